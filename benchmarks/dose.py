"""Retention against the number of presentations: a row for each snapshot of a project's run, and for its student.

python -m benchmarks.dose --project runs/mpnet-minilm
"""

import dataclasses
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import click
import polars as pl

from pipeline.base import Array
from pipeline.encode import vectors_on_demand
from pipeline.evaluate import evaluate
from pipeline.model import Student, StudentEncoder
from pipeline.params import EncodeParams, EvaluateParams, FitParams, TeacherParams, load_section
from pipeline.serve import MODES
from pipeline.store import Store
from pipeline.teacher import open_teacher
from stages.common import command

PARAMS, STUDENT, SNAPSHOTS = Path("params.yaml"), Path("models/student"), Path("models/student-snapshots")
project_option = click.option(
    "--project", type=click.Path(exists=True, path_type=Path), required=True, help="Directory of `leaf init`."
)


@command
@project_option
def main(project: Path) -> None:
    """Measure every snapshot and the student, and print the table."""
    os.chdir(project)
    batch = load_section(PARAMS, "fit", FitParams).batch_size
    steps = {int(path.name.removeprefix("step-")): path for path in SNAPSHOTS.glob("step-*")}
    models = {step * batch: path for step, path in steps.items()}
    if STUDENT.is_dir():
        models[json.loads(Path("metrics/fit.json").read_text())["presentations"]] = STUDENT
    measure = measured()
    table("presentations", ((f"{count:,}", measure(Student.load(model))) for count, model in sorted(models.items())))


def measured() -> Callable[[Student], dict[str, Any]]:
    """A function that gives the alignment and retrieval of a student of this project, without intervals."""
    teacher, encode = load_section(PARAMS, "teacher", TeacherParams), load_section(PARAMS, "encode", EncodeParams)
    settings = dataclasses.replace(
        load_section(PARAMS, "evaluate", EvaluateParams),
        calibration_rows=0,
        bootstrap=0,
        dims=(1,),
        moved=0,
        map_texts=0,
    )

    store = Store.open(Path("data/embeddings"))
    opened = open_teacher(teacher, encode, store)

    def teacher_vectors(texts: pl.DataFrame) -> Array:
        return vectors_on_demand(opened, encode, store)(texts)

    def measure(student: Student) -> dict[str, Any]:
        return evaluate(Path("data/corpus"), store, StudentEncoder(student).encode, teacher_vectors, settings).figures

    return measure


def table(what: str, rows: Iterable[tuple[str, dict[str, Any]]]) -> None:
    """Print mean cosine over held-out texts, then standard and asymmetric retention of each collection."""
    for number, (label, figures) in enumerate(rows):
        names, roles = sorted(figures["retrieval"]), figures["alignment"].values()
        if not number:
            titles = [f"{name} {mode}" for name in names for mode in MODES[1:]]
            click.echo(f"| {what} | held-out cosine | {' | '.join(titles)} |\n{'|---' * (2 + len(titles))}|")
        count = sum(role["n"] for role in roles)
        cells = [sum(role["cosine"]["mean"] * role["n"] for role in roles) / count if count else None]
        cells += [figures["retrieval"][name][mode]["retention"] for name in names for mode in MODES[1:]]
        click.echo(f"| {label} | {' | '.join('-' if cell is None else f'{cell:.3f}' for cell in cells)} |")


if __name__ == "__main__":
    main()
