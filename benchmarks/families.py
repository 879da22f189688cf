"""The family table of docs/models.md: what becomes of a tiny random model of each family as teacher and as student.

    python -m benchmarks.families [--write] [FAMILY ...]

Of each family a teacher encodes a small corpus and a student is fitted to its vectors, killed, continued, saved and
exported, by the functions that the stages call. A cell is what was measured, or why there is nothing to measure. With
--write the table replaces the one in docs/models.md.
"""

import logging
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import click
import numpy as np
import polars as pl
import torch
from safetensors.torch import load_file
from tqdm import tqdm

from benchmarks.common import ROOT, write_table
from pipeline.base import Array, LeafError, cosines
from pipeline.encode import encode
from pipeline.export import export
from pipeline.fit import Trainer, fit
from pipeline.model import StudentEncoder, bf16_is_fast
from pipeline.params import EncodeParams, ExportParams, FitParams, StudentParams, TeacherParams
from pipeline.store import Store
from pipeline.teacher import LocalTeacher
from tests.conftest import WORDS, corpus_frame, sentence
from tests.families import FAMILIES, RELATIVES, make_teacher

DOCUMENT = ROOT / "docs" / "models.md"
HEAD = (
    "| family | teacher, float32 | bfloat16 | path | student's path | loss | continued | saved | Router | ONNX |\n"
    "|---|---|---|---|---|---|---|---|---|---|"
)
TEXTS = [*(sentence(number) for number in range(20)), "file", " ".join(WORDS)]
STEPS, KILLED_AT = 40, 27
PRECISION = ("pipeline.teacher.runners", "pipeline.model.backbones.packed", "pipeline.model.backbones.padded")
"""Modules that ask whether bfloat16 is fast."""


class KilledError(Exception):
    """Stands for the end of a process in the midst of a fit."""


def measure(family: str, folder: Path) -> list[str]:
    """The cells of a family's row, behind its name."""
    model, checkpoint = make_teacher(folder / "teacher", family), folder / "teacher-checkpoint"
    cells = [_cell(partial(_parity, model, False)), _cell(partial(_parity, model, True)), _cell(partial(_path, model))]
    if cells[0].startswith("refused"):
        return [*cells, *["-"] * 6]
    try:
        return [*cells, *_student_cells(checkpoint, model, folder)]
    except LeafError as error:
        return [*cells, f"refused: {error}", *["-"] * 5]


def _cell(figure: Callable[[], str]) -> str:
    try:
        return figure()
    except LeafError as error:
        return f"refused: {error}"


@contextmanager
def _in_bfloat16(on: bool) -> Iterator[None]:
    with ExitStack() as patches:
        for module in PRECISION:
            patches.enter_context(patch(f"{module}.bf16_is_fast", lambda device="cpu": on))
        yield


def _parity(model: Path, bfloat16: bool) -> str:
    """Lowest cosine to the library's vectors of each text alone, over both roles and two sizes of batches."""
    from sentence_transformers import SentenceTransformer

    if bfloat16 and not bf16_is_fast():
        return "not measured"
    library = SentenceTransformer(str(model), device="cpu")
    roles = ["query" if number % 2 else "document" for number in range(len(TEXTS))]
    encoders: dict[str, Callable[..., Any]] = {"query": library.encode_query, "document": library.encode_document}
    expected = np.stack([encoders[role](text) for role, text in zip(roles, TEXTS, strict=True)])
    lowest = 1.0
    for budget in (64, 4096):
        with _in_bfloat16(bfloat16):
            teacher = LocalTeacher(TeacherParams(str(model)), EncodeParams(token_budget=budget))
            vectors = teacher.vectors(pl.DataFrame({"role": roles, "text": TEXTS}))
        lowest = min(lowest, float(cosines(vectors, expected).min()))
    return f"{lowest:.5f}"


def _path(model: Path) -> str:
    """How the teacher computes the model, and in which precision."""
    teacher = LocalTeacher(TeacherParams(str(model)), EncodeParams())
    teacher.load()
    runner = teacher._runners["document"]
    if type(runner).__name__ == "PackedRunner":
        return "packed"
    equal = ", equal lengths" if runner.equal_lengths else ""
    exact = ", float32" if bf16_is_fast() and not getattr(runner, "bf16", True) else ""
    return f"padded{equal}{exact}"


def _student_cells(checkpoint: Path, model: Path, folder: Path) -> list[str]:
    """Path, loss, whether a killed fit continued bit for bit, and the parity of what was saved and exported."""
    corpus, pool = folder / "corpus", folder / "pool"
    corpus.mkdir()
    corpus_frame(240).write_parquet(corpus / "part-00000.parquet")
    teacher = LocalTeacher(TeacherParams(str(model)), EncodeParams(dtype="float32", pool=str(pool)))
    encode(corpus, teacher, EncodeParams(dtype="float32", pool=str(pool)), folder / "store")
    store = Store.open(folder / "store")
    params = FitParams(
        StudentParams(str(checkpoint)), max_steps=STEPS, batch_size=8, learning_rate=1e-3, checkpoint_every=10
    )
    result = fit(corpus, store, params, folder / "whole", folder / "work-1")
    losses = [loss for _, split, loss in result.curve if split == "train"]
    fitted = f"{np.mean(losses[:10]):.3f} -> {np.mean(losses[-10:]):.3f}"
    student = StudentEncoder.load(folder / "whole")
    path = type(student.student.backbone).__name__.removesuffix("Backbone").lower()
    continued = "bit for bit" if _continues(corpus, store, params, folder) else "**differs**"
    saved = f"{cosines(student.encode(TEXTS), _library(folder / 'whole')).min():.5f}"
    return [path, fitted, continued, saved, *_exported(corpus, store, teacher, params, folder)]


def _continues(corpus: Path, store: Store, params: FitParams, folder: Path) -> bool:
    """Whether a fit that was killed and continued ends with the weights of the one that was not."""
    advance = Trainer._advance

    def killed(trainer: Trainer, batch: Any) -> None:
        if trainer.progress.step == KILLED_AT:
            raise KilledError
        advance(trainer, batch)

    arguments = corpus, store, params, folder / "torn", folder / "work-2"
    try:
        with patch.object(Trainer, "_advance", killed):
            fit(*arguments)
    except KilledError:
        fit(*arguments)
    files = [file.relative_to(folder / "whole") for file in (folder / "whole").rglob("*.safetensors")]
    pairs = [(load_file(folder / "whole" / file), load_file(folder / "torn" / file)) for file in files]
    return all(torch.equal(value, torn[name]) for whole, torn in pairs for name, value in whole.items())


def _library(model: Path) -> Array:
    from sentence_transformers import SentenceTransformer

    # One by one: beside others, some families give a text another vector.
    return np.asarray(SentenceTransformer(str(model), device="cpu").encode(TEXTS, batch_size=1))


def _exported(corpus: Path, store: Store, teacher: LocalTeacher, params: FitParams, folder: Path) -> list[str]:
    """Lowest cosine of the Router's documents to the store, and of the ONNX graph to the student."""
    settings = replace(ExportParams(), rows=40, speed_texts=0, bootstrap=0)
    try:
        figures = export(
            corpus, store, folder / "whole", folder, teacher=teacher, checkpoint=params.student, params=settings
        )
    except LeafError as error:
        return [f"refused: {error}", "-"]
    router, onnx = figures["asymmetric"], figures["onnx"]
    return [
        router.get("left_out") or f"{router['documents']['cosine']['lowest']:.5f}",
        onnx.get("left_out") or f"{onnx['float32']['cosine']['lowest']:.5f}",
    ]


def _shortened(cell: str) -> str:
    """A reason without what the libraries say in detail, and without what divides the cells of a table."""
    reason = cell.partition(" has no ONNX graph: ")[2]
    text = f"none: {reason}" if reason else cell
    return text.partition(" (")[0].partition(": supported are")[0].replace("|", "/")


def rows(families: list[str]) -> list[str]:
    """The table's lines, its head included."""
    lines = [HEAD]
    for family in tqdm(families, unit="family", desc="families"):
        with tempfile.TemporaryDirectory() as folder:
            cells = [_shortened(cell.replace(folder, "")) for cell in measure(family, Path(folder))]
        lines.append(f"| {' | '.join([family, *cells])} |")
    return lines


@click.command()
@click.option("--write", is_flag=True, help="Put the table into docs/models.md.")
@click.argument("families", nargs=-1)
def main(write: bool, families: tuple[str, ...]) -> None:
    """Measure the families, all if none is named, and print the table."""
    from transformers.utils import logging as of_transformers

    of_transformers.disable_progress_bar()  # type: ignore[no-untyped-call]
    logging.disable(logging.WARNING)  # of fits that find no pooler, and of what is known about a teacher
    known = FAMILIES | RELATIVES
    if unknown := sorted(set(families) - set(known)):
        raise click.UsageError(f"unknown families: {', '.join(unknown)}; known: {', '.join(sorted(known))}")
    text = "\n".join(rows(list(families) or list(known)))
    click.echo(text)
    if write:
        write_table(DOCUMENT, "families", text)


if __name__ == "__main__":
    main()
