"""Measure teacher, student and the asymmetric pair on tasks of the mteb library, or on BEIR directories through it."""

from collections.abc import Sequence
from pathlib import Path

import click
import numpy as np
import polars as pl

from pipeline.base import LeafError
from pipeline.evaluate import mteb_tasks
from pipeline.model import StudentEncoder
from pipeline.params import EncodeParams, TeacherParams, load_section
from pipeline.serve import MODES
from pipeline.teacher import open_teacher
from stages.common import check_student, command, echo, params_option, with_part
from stages.recorded import check_recorded

ROWS = {"role": pl.String, "text": pl.String}  # what a teacher reads


@command
@params_option
@click.option("--task", "names", multiple=True, help="Task of mteb, by name; may be given again. Needs the network.")
@click.option("--beir", type=Path, multiple=True, help="Directory in BEIR layout; may be given again.")
@click.option("--mode", "modes", type=click.Choice(MODES), multiple=True, default=MODES, show_default=True)
@click.option("--model", type=Path, default=Path("models/student"), show_default=True, help="Student to measure.")
@click.option("--out", type=Path, default=Path("metrics/mteb"), show_default=True, help="Directory of mteb's results.")
def main(
    *, params: Path, names: tuple[str, ...], beir: tuple[Path, ...], modes: tuple[str, ...], model: Path, out: Path
) -> None:
    """Measure with the mteb library and write its own JSON. Sections read: teacher, encode."""
    if not names and not beir:
        raise click.UsageError("name a --task or a --beir directory")
    teacher = open_teacher(load_section(params, "teacher", TeacherParams), load_section(params, "encode", EncodeParams))
    if teacher.directory is None:
        raise LeafError("teacher.api: these tasks would pay for vectors that nobody keeps; name them in evaluate.beir")
    check_recorded(model)
    check_student(model, teacher.meta.fingerprint, "the section `teacher`", teacher)
    student = StudentEncoder.load(with_part(model, teacher.meta.fingerprint))

    def encode_with_teacher(texts: Sequence[str], role: str) -> np.ndarray:
        return teacher.vectors(pl.DataFrame({"role": [role] * len(texts), "text": list(texts)}, schema=ROWS))

    def encode_asymmetric(texts: Sequence[str], role: str) -> np.ndarray:
        return student.encode(texts) if role == "query" else encode_with_teacher(texts, role)

    encoders = {"teacher": encode_with_teacher, "standard": student.encode, "asymmetric": encode_asymmetric}
    dim, similarity = teacher.meta.dim, teacher.meta.similarity
    for mode in modes:
        tasks = [*mteb_tasks.named_tasks(names), *(mteb_tasks.local_task(path) for path in beir)]
        for row in mteb_tasks.run(mteb_tasks.model(mode, encoders[mode], dim, similarity), tasks, out):
            echo(f"{row['task']:24} {row['model']:10} {row['score']:.4f}  {row['path']}")


if __name__ == "__main__":
    main()
