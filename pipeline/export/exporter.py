"""The interface of an exporter: a model made for serving, its card, and the encoders to check it with.

A new exporter is a file with a class like `onnx_graph.OnnxExporter`, and a line in `exporters.EXPORTERS`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from pipeline.base import Array
from pipeline.export.cards import Origin
from pipeline.model import Student, load_sentence_transformer
from pipeline.store import StoreMeta
from pipeline.teacher import Teacher

Encode = Callable[[Sequence[str]], Array]  # texts -> [n, dim] float32


@dataclass(frozen=True)
class ExportJob:
    """What is exported: a fitted student and its teacher. Both are loaded once for all exporters."""

    student_directory: Path
    student: Student
    teacher: Teacher
    meta: StoreMeta
    """Of the stored vectors, which an exported teacher must give."""
    origin: Origin

    @property
    def document_prompt(self) -> str:
        """What the teacher's documents began with when they were encoded; "" for nothing."""
        prompts = self.meta.teacher.get("prompts") or {}
        return prompts.get("document") or ""

    @cached_property
    def student_model(self) -> Any:
        """The student as a `SentenceTransformer`."""
        return load_sentence_transformer(self.student_directory, str(self.student_directory))

    def encode_in_pytorch(self, texts: Sequence[str]) -> Array:
        """Vectors `[n, dim]` of queries by `student_model`, in float32: what exported encoders are compared with."""
        return np.asarray(self.student_model.encode_query(list(texts), show_progress_bar=False))

    @cached_property
    def teacher_model(self) -> Any:
        """The teacher as a `SentenceTransformer`; LeafError if it cannot be loaded."""
        if self.teacher.directory is None:
            raise ValueError("a teacher behind an API cannot be loaded")
        return load_sentence_transformer(self.teacher.directory, self.teacher.params.model)


@dataclass(frozen=True)
class ExportedEncoder:
    """An encoder read from an exported model, and what its vectors are compared with."""

    encode: Encode
    role: Literal["query", "document"]
    """`query`: compared with the student in PyTorch, and its speed is measured. `document`: with the stored vectors."""
    lowest_cosine: float | None = None
    """A text whose vector has a lower cosine fails the export; None if the model may be inexact."""
    file: Path | None = None
    """Whose size is reported."""


@dataclass(frozen=True)
class LeftOut:
    """Why an exporter has nothing to write, and the card that says so in place of a model."""

    reason: str
    card: str


class Exporter(Protocol):
    """Writes one directory below the stage's --out."""

    name: str
    """Key of its figures in the metrics, and prefix of its encoders' names. Exporters of one model may share it."""
    directory: str

    def write(self, job: ExportJob, directory: Path) -> LeftOut | None:
        """Write the model's files into an empty directory; or say why this student or teacher cannot be exported so.

        In that case what it has written is removed.

        Raises:
            LeafError: a package is missing, or student and teacher do not fit together.
        """

    def encoders(self, job: ExportJob, directory: Path) -> Mapping[str, ExportedEncoder]:
        """Encoders of the written model, by variant (a precision, say); empty if there is nothing to compare.

        They are used again after `directory` has been moved to its final place: they must not open its files later.
        """

    def card(self, job: ExportJob, figures: Mapping[str, Any]) -> str | None:
        """The README.md of the directory; None for none. `figures` are those of its encoders, by variant."""
