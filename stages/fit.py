"""Stage two: fit the student to the stored vectors."""

import csv
from pathlib import Path

import click

from pipeline.base import check_writable, written_file
from pipeline.fit import fit
from pipeline.params import FitParams, load_section
from pipeline.store import Store
from stages.common import command, params_option, write_json
from stages.recorded import check_recorded
from stages.watched import warn_without_dependency


@command
@params_option
@click.option("--corpus", type=Path, default=Path("data/corpus"), show_default=True, help="Corpus directory.")
@click.option("--embeddings", type=Path, default=Path("data/embeddings"), show_default=True, help="Embedding store.")
@click.option("--out", type=Path, default=Path("models/student"), show_default=True, help="Student to write.")
@click.option("--metrics", type=Path, default=Path("metrics/fit.json"), show_default=True, help="Metrics file.")
@click.option("--curve", type=Path, default=Path("plots/fit_loss.csv"), show_default=True, help="Loss curves.")
@click.option("--work", type=Path, default=Path(".cache/fit"), show_default=True, help="Checkpoints and token cache.")
def main(**paths: Path) -> None:
    """Fit a student to the stored vectors of the corpus's training texts.

    Stores of further teachers and other files are named in the parameters (docs/recipes.md).
    Killed at any moment, it continues from the last checkpoint and ends with the same weights. Section read: fit.
    """
    params = load_section(paths["params"], "fit", FitParams)
    curve = paths["curve"]
    check_writable([paths["metrics"], curve], [paths["out"]])
    check_recorded(paths["corpus"], paths["embeddings"])
    extra = [entry.store for entry in [params.anchor] if entry] + [entry.path for entry in [params.candidates] if entry]
    warn_without_dependency([*params.further_stores, *extra], "fit")
    result = fit(paths["corpus"], Store.open(paths["embeddings"]), params, paths["out"], paths["work"])
    figures = result.metrics
    write_json(paths["metrics"], figures)
    with written_file(curve) as new, new.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([("step", "split", "loss"), *result.curve])
    result.discard_state()
    click.echo(f"{figures['presentations']:,} texts in {figures['steps']:,} steps, {figures['samples_per_s']} texts/s")
    for name, value in figures["validation"].items():
        click.echo(f"held-out {name:<7} {figures['validation_at_start'][name]:.4f} -> {value:.4f}")
    click.echo(f"{paths['out']}\n{paths['metrics']}\n{curve}")


if __name__ == "__main__":
    main()
