"""Several processes in stage two, at equal presentations: shared batches, replicas, and a larger batch.

    python -m benchmarks.replicas --params params.yaml [--processes 2] [--every 16 --every 64] [--max-steps STEPS]

Corpus and store are those of a run of the stages (`--corpus`, `--embeddings`). Every row is the stage `fit`, started
with the parameters of the file but for what the row names. `--max-steps` is for one process; the others do as
many texts. A larger batch has the rates times the root of the factor (arXiv 2507.07101).
"""

import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click
import yaml

from benchmarks.common import ROOT, machine
from stages.common import command

Change = dict[str, dict[str, Any]]
"""Keys by section."""


@command
@click.option("--params", type=Path, default=Path("params.yaml"), show_default=True)
@click.option("--corpus", type=Path, default=Path("data/corpus"), show_default=True)
@click.option("--embeddings", type=Path, default=Path("data/embeddings"), show_default=True)
@click.option("--processes", type=click.IntRange(2), default=2, show_default=True)
@click.option("--every", type=int, multiple=True, default=(16, 64), show_default=True, help="fit.average_every.")
@click.option("--max-steps", type=int, help="Of one process.")
def main(
    *, params: Path, corpus: Path, embeddings: Path, processes: int, every: Sequence[int], max_steps: int | None
) -> None:
    """Print a row for each way."""
    given = yaml.safe_load(params.read_text())
    print(f"{machine()}\n\n| | steps | texts | texts/s | loss | cosine |\n|---|---|---|---|---|---|", flush=True)
    for name, change in ways(given["fit"], processes, every, max_steps):
        sections = {section: {**given.get(section, {}), **change.get(section, {})} for section in {*given, *change}}
        figures = fitted(sections, corpus, embeddings)
        end = figures["validation"]
        print(
            f"| {name} | {figures['steps']:,} | {figures['presentations']:,} | {figures['samples_per_s']:,.0f} "
            f"| {end['loss']:.4f} | {end['cosine']:.4f} |",
            flush=True,
        )


def ways(
    fit: dict[str, Any], processes: int, every: Sequence[int], max_steps: int | None
) -> Iterator[tuple[str, Change]]:
    """The name of each row, and what it changes."""
    whole = {} if max_steps is None else {"max_steps": max_steps}
    fewer = {} if max_steps is None else {"max_steps": -(-max_steps // processes)}
    size = fit.get("batch_size", 32)
    yield "one process", {"fit": whole}
    yield f"{processes} share each batch", {"fit": whole, "cluster": {"fit_ranks": processes}}
    for steps in every:
        yield (
            f"{processes} replicas, averaged every {steps}",
            {"fit": {**fewer, "replicas": processes, "average_every": steps}},
        )
    rates: dict[str, Any] = {
        name: fit[name] * math.sqrt(processes) for name in ("learning_rate", "learning_rate_end") if name in fit
    }
    yield f"batches of {size * processes}", {"fit": {**fewer, **rates, "batch_size": size * processes}}


def fitted(sections: dict[str, Any], corpus: Path, embeddings: Path) -> Any:
    """The metrics of a fit with these parameters."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "params.yaml").write_text(yaml.safe_dump(sections))
        names = {"params": "params.yaml", "out": "student", "work": "work", "metrics": "fit.json", "curve": "curve.csv"}
        places = {name: folder / place for name, place in names.items()}
        options = [
            f"--{name}={place}" for name, place in (places | {"corpus": corpus, "embeddings": embeddings}).items()
        ]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        subprocess.run([sys.executable, "-m", "stages.fit", *options], env=environment, check=True)
        return json.loads((folder / "fit.json").read_text())


if __name__ == "__main__":
    main()
