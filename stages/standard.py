"""Standard tasks of the mteb library, and BEIR directories through it: teacher, student and the asymmetric pair."""

from collections.abc import Sequence
from pathlib import Path

import click
import numpy as np

from pipeline.base.errors import LeafError
from pipeline.evaluate import mteb_tasks as standard
from pipeline.model.student import StudentEncoder
from pipeline.params.parsing import load_section
from pipeline.params.sections import EncodeParams, TeacherParams
from pipeline.teacher.local import Teacher
from stages.common import command, params_option

MODES = ("teacher", "standard", "asymmetric")


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
    section = load_section(params, "teacher", TeacherParams)
    if section.api is not None:
        raise LeafError("teacher.api: these tasks would pay for vectors that nobody keeps; name them in evaluate.beir")
    teacher = Teacher(section, load_section(params, "encode", EncodeParams).token_budget)
    student = StudentEncoder.load(model)

    def by_teacher(texts: Sequence[str], role: str) -> np.ndarray:
        return teacher.encode_tokens(teacher.tokenize(texts, role))

    def by_both(texts: Sequence[str], role: str) -> np.ndarray:
        return student.encode(texts) if role == "query" else by_teacher(texts, role)

    encoders = {"teacher": by_teacher, "standard": student.encode, "asymmetric": by_both}
    for mode in modes:
        tasks = [*standard.named_tasks(names), *(standard.local_task(path) for path in beir)]
        for row in standard.run(standard.model(mode, encoders[mode], teacher.dim), tasks, out):
            click.echo(f"{row['task']:24} {row['model']:10} {row['score']:.4f}  {row['path']}")


if __name__ == "__main__":
    main()
