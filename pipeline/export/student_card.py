"""The student's model card for the hub: the card that fit wrote, with front matter and measured results."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.base import markdown, string_literal
from pipeline.export.cards import FRONT_MATTER, Origin, front_matter, results_table
from pipeline.export.exporter import ExportedEncoder, ExportJob
from pipeline.params import name_in_code, public_name

NAMED = ("# A student of {}\n", "**{}**", "| teacher | {} |")
NAMED_IN_CODE = "SentenceTransformer({})"
"""Where fit's card names the teacher. Elsewhere the same word is no name: a directory may be called `teacher`."""


class StudentCardExporter:
    """`cards/student.md`: the student itself is exported as fit wrote it."""

    name = "cards"
    directory = "cards"

    def write(self, job: ExportJob, directory: Path) -> None:
        """`student.md`, made of the student's README.md."""
        fitted = job.student_directory / "README.md"
        card = fitted.read_text(encoding="utf-8") if fitted.is_file() else "# A student\n"
        (directory / "student.md").write_text(
            student_card(card, job.origin, job.teacher.params.model), encoding="utf-8"
        )

    def encoders(self, job: ExportJob, directory: Path) -> Mapping[str, ExportedEncoder]:
        """None."""
        return {}

    def card(self, job: ExportJob, figures: Mapping[str, Any]) -> None:
        """None: the directory holds cards, not a model."""


def student_card(card: str, origin: Origin, teacher: str) -> str:
    """The card that fit wrote, with the front matter and the results that are known now.

    Where it names the teacher (`teacher`, the parameter `teacher.model`), readers get the hub id if there is one.
    """
    modes = ("standard", "asymmetric")
    head, parameters, rest = FRONT_MATTER.sub("", card).strip().partition("\n## Parameters")
    name_in_card = Path(teacher).name if Path(teacher).is_dir() else public_name(teacher)
    if origin.teacher:
        for phrase in NAMED:
            head = head.replace(phrase.format(markdown(name_in_card)), phrase.format(markdown(origin.teacher)))
        names = name_in_code(name_in_card), origin.teacher
        here, elsewhere = (NAMED_IN_CODE.format(string_literal(name)) for name in names)
        head = head.replace(here, elsewhere)
    body = head + parameters + rest
    table = results_table(origin, modes).replace("## Results", "## Retrieval")
    return "\n".join([front_matter(origin.title, origin, modes), body, "", table])
