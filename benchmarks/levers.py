"""What each lever of the fit is worth: students of one store, each fitted with a few other keys, and what they keep.

python -m benchmarks.levers --project runs/mpnet-minilm --presentations 100000

The project has its corpus and embeddings (`leaf repro encode`). benchmarks/levers.yaml names the configurations:
changes of the section `fit`. Killed, it continues: what is measured is kept in runs/levers of the project.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

import click
import yaml

from benchmarks.common import machine, skipped
from benchmarks.dose import PARAMS, measured, project_option
from pipeline.base import LeafError, written_file
from pipeline.fit import fit
from pipeline.model import Student
from pipeline.params import FitParams, load_section
from pipeline.serve import MODES
from pipeline.store import Store
from stages.common import command

RUNS = Path("runs/levers")
LEVERS = Path(__file__).with_name("levers.yaml")
BASE = "base"  # the configuration that the others are compared with


@command
@project_option
@click.option(
    "--levers", type=Path, default=LEVERS, show_default=True, help="YAML: name -> changes of the section fit."
)
@click.option("--only", multiple=True, help="Name of a configuration; may be given again  [default: all]")
@click.option("--presentations", type=click.IntRange(1), default=100_000, show_default=True, help="Of texts, in a fit.")
@click.option("--seed", "seeds", type=int, multiple=True, default=(0,), show_default=True, help="May be given again.")
def main(project: Path, levers: Path, only: tuple[str, ...], presentations: int, seeds: tuple[int, ...]) -> None:
    """Fit and measure a student for each configuration and seed, and print the table."""
    changes: dict[str, Any] = yaml.safe_load(levers.read_text(encoding="utf-8"))
    os.chdir(project)
    if unknown := [name for name in only if name not in changes]:
        raise LeafError(f"--only: {levers} has no `{unknown[0]}`; it has {', '.join(changes)}")
    rows: dict[str, list[dict[str, Any]]] = {}
    for name, changed in changes.items():
        if only and name not in (*only, BASE):
            continue
        try:
            rows[name] = [_figures(name, changed or {}, presentations, seed) for seed in seeds]
        except LeafError as error:
            skipped(name, str(error))
    click.echo(f"{machine()}; {presentations:,} presentations, {len(seeds)} seed{'s' * (len(seeds) > 1)}\n")
    click.echo("\n".join(_table(rows)))


def _figures(name: str, changed: Mapping[str, Any], presentations: int, seed: int) -> dict[str, Any]:
    """What the student of a configuration keeps: read, if it has been measured before."""
    place = RUNS / f"{name}-{presentations}-{seed}"
    file, section = place / "params.yaml", yaml.safe_load(PARAMS.read_text(encoding="utf-8"))
    batch = changed.get("batch_size") or section["fit"].get("batch_size") or FitParams.batch_size
    length = {"max_steps": -(-presentations // batch), "seed": seed, "snapshots": []}
    wanted = yaml.safe_dump({"fit": _merged(section["fit"], {**changed, **length})})
    results = place / "figures.json"
    if results.is_file() and file.is_file() and file.read_text(encoding="utf-8") == wanted:
        known: dict[str, Any] = json.loads(results.read_text(encoding="utf-8"))
        return known
    place.mkdir(parents=True, exist_ok=True)
    results.unlink(missing_ok=True)
    file.write_text(wanted, encoding="utf-8")
    settings = load_section(file, "fit", FitParams)
    done = fit(Path("data/corpus"), Store.open("data/embeddings"), settings, place / "student", RUNS / "work")
    figures = {"fit": done.metrics, "evaluate": measured()(Student.load(place / "student"))}
    with written_file(results) as new:
        new.write_text(json.dumps(figures), encoding="utf-8")
    done.discard_state()
    return figures


def _merged(section: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The section with the keys of `changes`, mappings within it likewise."""
    merged = dict(section)
    for key, value in changes.items():
        below = merged.get(key)
        merged[key] = _merged(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return merged


def _table(rows: Mapping[str, list[dict[str, Any]]]) -> list[str]:
    """Means over the seeds: retention over all sets in both modes, how far these are from BASE, and each set's."""
    if not rows:
        return []
    modes, sets = MODES[1:], sorted(next(iter(rows.values()))[0]["evaluate"]["retrieval"])
    titles = ["configuration", *modes, *(f"{mode} - {BASE}" for mode in modes), "cosine", "texts/s"]
    titles += [f"{name} {mode}" for name in sets for mode in modes]
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    means = {name: [_mean(runs, sets, mode) for mode in modes] for name, runs in rows.items()}
    for name, runs in rows.items():
        cells = [f"{value:.4f}" for value in means[name]]
        cells += (
            [f"{a - b:+.4f}" for a, b in zip(means[name], means[BASE], strict=True)] if BASE in means else ["-"] * 2
        )
        cells.append(f"{fmean((run['fit']['validation'] or {'cosine': 0})['cosine'] for run in runs):.4f}")
        cells.append(f"{fmean(run['fit']['samples_per_s'] for run in runs):.0f}")
        cells += [f"{_mean(runs, [name_], mode):.3f}" for name_ in sets for mode in modes]
        lines.append(f"| {' | '.join([name, *cells])} |")
    return lines


def _mean(runs: list[dict[str, Any]], sets: list[str], mode: str) -> float:
    return fmean(run["evaluate"]["retrieval"][name][mode]["retention"] or 0.0 for run in runs for name in sets)


if __name__ == "__main__":
    main()
