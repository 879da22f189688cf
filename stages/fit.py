"""Stage two: fit the student to the stored vectors."""

import csv
import sys
from pathlib import Path

import click

from pipeline.base import check_writable, written_file
from pipeline.fit import LOST, RankLostError, Ranks, end_with_parent, fit, is_one_of_several, joined, launch
from pipeline.params import ClusterParams, FitParams, load_section
from pipeline.store import MODEL_KIND, Store
from stages.common import command, echo, params_option, write_json
from stages.recorded import check_recorded, student_digest
from stages.watched import warn_unwatched

# By its path, so that a user's own `stages/` is not imported instead.
LEAF = Path(__file__).absolute().parents[1] / "leaf_pipeline.py"


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

    Stores of further teachers and other files are named in the parameters (docs/recipes.md). Killed at any moment, it
    continues from the last checkpoint and ends with the same weights. Sections read: fit, and for where it runs,
    cluster.
    """
    params = load_section(paths["params"], "fit", FitParams)
    cluster = load_section(paths["params"], "cluster", ClusterParams, ClusterParams())
    count = params.replicas if params.replicas > 1 else cluster.fit_ranks
    if count > 1 and not is_one_of_several():
        options = [part for name, path in paths.items() for part in (f"--{name}", str(path))]
        return launch(LEAF, ["fit", *options], count, cluster.attempts)
    if is_one_of_several():
        end_with_parent()
    try:
        with joined() as ranks:
            _fit(params, ranks, paths)
    except RankLostError as error:
        echo(str(error), err=True)
        sys.exit(LOST)


def _fit(params: FitParams, ranks: Ranks, paths: dict[str, Path]) -> None:
    curve = paths["curve"]
    check_writable([paths["metrics"], curve], {paths["out"]: MODEL_KIND})
    check_recorded(paths["corpus"], paths["embeddings"])
    warn_unwatched(params.files, "fit")
    result = fit(paths["corpus"], Store.open(paths["embeddings"]), params, paths["out"], paths["work"], ranks=ranks)
    if not ranks.first:
        return
    figures = result.metrics
    write_json(paths["metrics"], figures | {"digest": student_digest(paths["out"])})
    with written_file(curve) as new, new.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([("step", "split", "loss"), *result.curve])
    result.discard_state()
    echo(f"{figures['presentations']:,} texts in {figures['steps']:,} steps, {figures['samples_per_s']} texts/s")
    for name, value in figures["validation"].items():
        echo(f"held-out {name:<7} {figures['validation_at_start'][name]:.4f} -> {value:.4f}")
    echo(f"{paths['out']}\n{paths['metrics']}\n{curve}")


if __name__ == "__main__":
    main()
