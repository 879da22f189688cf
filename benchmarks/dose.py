"""Retention against the number of presentations: a row for each snapshot of a recipe's run, and for its student.

python -m benchmarks.dose --params recipes/mpnet-minilm.yaml --run runs/mpnet-minilm
"""

import json
import subprocess
import sys
from pathlib import Path

import click

from pipeline.params import FitParams, load_section


@click.command()
@click.option("--params", type=Path, required=True, help="Parameter file of the run.")
@click.option("--run", "folder", type=Path, required=True, help="Directory that `make recipe` filled.")
def main(params: Path, folder: Path) -> None:
    """Evaluate every snapshot under RUN/snapshots and RUN/student that has no figures yet, and print the table."""
    batch = load_section(params, "fit", FitParams).batch_size
    steps = sorted(int(path.name.removeprefix("step-")) for path in (folder / "snapshots").glob("step-*"))
    models = {step * batch: folder / "snapshots" / f"step-{step}" for step in steps}
    if (folder / "student").is_dir():
        models[json.loads((folder / "fit.json").read_text())["presentations"]] = folder / "student"
    rows = {count: _figures(params, folder, model) for count, model in models.items()}
    names = sorted({name for figures in rows.values() for name in figures["retrieval"]})
    click.echo(f"| presentations | held-out cosine | {' | '.join(f'{n} standard | {n} asymmetric' for n in names)} |")
    click.echo("|---" * (2 + 2 * len(names)) + "|")
    for count, figures in sorted(rows.items()):
        alignment = figures["alignment"].values()
        cosine = sum(one["cosine"]["mean"] * one["n"] for one in alignment) / sum(one["n"] for one in alignment)
        cells = [figures["retrieval"][n][mode]["retention"] for n in names for mode in ("standard", "asymmetric")]
        click.echo(f"| {count:,} | {cosine:.3f} | {' | '.join(f'{cell:.3f}' for cell in cells)} |")


def _figures(params: Path, folder: Path, model: Path) -> dict[str, dict[str, dict[str, dict[str, float]]]]:
    out = folder / "dose" / f"{model.name}.json"
    if not out.exists() or out.stat().st_mtime < (model / "model.safetensors").stat().st_mtime:
        command = [sys.executable, "-m", "stages.evaluate", "--params", str(params), "--model", str(model)]
        command += ["--corpus", str(folder / "corpus"), "--embeddings", str(folder / "embeddings"), "--out", str(out)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    figures: dict[str, dict[str, dict[str, dict[str, float]]]] = json.loads(out.read_text())
    return figures


if __name__ == "__main__":
    main()
