"""Models ready to serve: the asymmetric Router in two forms, ONNX in two precisions, their cards, and their parity."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from pipeline.base.arrays import cosines
from pipeline.base.errors import LeafError
from pipeline.corpus.files import scan
from pipeline.evaluate import metrics
from pipeline.export import cards as export_cards
from pipeline.export import parity
from pipeline.export import router as asymmetric
from pipeline.export.cards import Origin
from pipeline.export.onnx_graph import export_onnx
from pipeline.model.model_files import load_sentence_transformer, resolve_model
from pipeline.model.student import Student
from pipeline.params.sections import ExportParams, StudentParams, TeacherParams
from pipeline.serve.onnx_encoder import MODELS, OnnxEncoder
from pipeline.store.store import Store

LOWEST_COSINE = 0.9999  # of a float32 graph to PyTorch; below that the export is wrong
LOWEST_STORED = 0.999  # of the teacher inside to the store's vectors, which bfloat16 and float16 have rounded


@dataclass(frozen=True)
class Outputs:
    """Where the models go."""

    asymmetric: Path
    named: Path
    onnx: Path
    cards: Path


@dataclass(frozen=True)
class Sections:
    """The sections of `params.yaml` that are needed."""

    export: ExportParams
    teacher: TeacherParams
    student: StudentParams


def export(
    corpus: Path, embeddings: Path, student: Path, *, evaluation: Path | None, sections: Sections, out: Outputs
) -> dict[str, Any]:
    """Write all models and return the figures of their parity and speed.

    `evaluation` is the file of figures that the cards show; None where nothing was evaluated.

    Raises:
        LeafError: bad corpus, store, student or teacher; a package is missing; a model does not give the vectors of
            what it was made from.
    """
    params = sections.export
    origin = export_cards.origin(
        params,
        sections.teacher,
        sections.student,
        [_directory(one) for one in (sections.teacher, sections.student)],
        _read(evaluation) if evaluation else {},
    )
    store = Store.open(embeddings)
    held = _compared(store.answered(scan(corpus)), corpus, params)
    figures: dict[str, Any] = {}
    if sections.teacher.api is None:
        model = asymmetric.build(student, sections.teacher)
        _write_asymmetric(model, student, sections, origin, out)
        figures["asymmetric"] = _check_documents(model, store, held, params)
    else:
        model = load_sentence_transformer(student, str(student))
        figures["asymmetric"] = {"left_out": asymmetric.leave_out(sections.teacher, [out.asymmetric, out.named])}
    loaded = Student.load(student)
    export_onnx(loaded, out.onnx)
    graphs = {precision: OnnxEncoder(out.onnx, precision) for precision in MODELS}
    figures["onnx"] = parity.compare(model, graphs, store, held, params)
    for precision, file in MODELS.items():
        figures["onnx"][precision]["bytes"] = (out.onnx / file).stat().st_size
    lowest = figures["onnx"]["float32"]["cosine"]["lowest"]
    if lowest < LOWEST_COSINE:
        raise LeafError(f"{out.onnx}: the float32 graph has a cosine of {lowest:.5f} to PyTorch; do not use it")
    if params.speed_texts:
        figures["speed"] = parity.speed(model, loaded, graphs, _spaced(held, params.speed_texts))
    (out.onnx / "README.md").write_text(_onnx_card(figures["onnx"], origin, loaded), encoding="utf-8")
    out.cards.mkdir(parents=True, exist_ok=True)
    written = student / "README.md"
    card = written.read_text(encoding="utf-8") if written.is_file() else "# A student\n"
    (out.cards / "student.md").write_text(
        export_cards.student_card(card, origin, sections.teacher.model), encoding="utf-8"
    )
    rounded: dict[str, Any] = metrics.rounded(figures)
    return rounded


def _directory(model: TeacherParams | StudentParams) -> Path | None:
    if isinstance(model, TeacherParams) and model.api is not None:
        return None
    try:
        return resolve_model(model.model, model.revision)
    except LeafError:
        return None  # of a checkpoint nothing but the card would be read here


def _read(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise LeafError(f"{file}: cannot be read ({error}); run the evaluate stage first") from None


def _compared(texts: pl.LazyFrame, corpus: Path, params: ExportParams) -> pl.DataFrame:
    """The held-out texts, or the first ones where none is held out; by role, and by key, which is a random order."""
    held = texts.filter(pl.col("split") == "heldout").sort("role", "key").collect()
    if held.is_empty():
        held = texts.head(2 * params.rows).collect().sort("role", "key")
    if held.is_empty():
        raise LeafError(f"{corpus}: holds no texts to compare the exported models on")
    return held


def _spaced(held: pl.DataFrame, count: int) -> list[str]:
    """`count` texts at even distances, so that both roles have their share."""
    rows = np.unique(np.linspace(0, len(held) - 1, count).astype(np.int64))
    texts: list[str] = held["text"][rows].to_list()
    return texts


def _write_asymmetric(model: Any, student: Path, sections: Sections, origin: Origin, out: Outputs) -> None:
    dim, prompt = int(model.get_embedding_dimension()), sections.teacher.prompts.document
    cards = {kind: export_cards.asymmetric_card(kind, origin, dim, prompt) for kind in export_cards.USAGE}
    asymmetric.save(model, out.asymmetric, cards["inside"])
    asymmetric.save_named(model, student, sections.teacher, name=origin.teacher, out=out.named, card=cards["named"])


def _check_documents(model: Any, store: Store, held: pl.DataFrame, params: ExportParams) -> dict[str, Any]:
    """The document route against the stored vectors, as far as time allows: the teacher is slow."""
    documents = held.filter(pl.col("role") == "document").head(min(params.rows, 64))
    if documents.is_empty():
        return {}
    found = model.encode_document(documents["text"].to_list(), show_progress_bar=False)
    similar = cosines(found, store.lookup(documents["key"].to_list()))
    if similar.min() < LOWEST_STORED:
        row = int(similar.argmin())
        raise LeafError(
            f"{store.path}: the teacher's vector of `{documents['id'][row]}` has a cosine of {similar[row]:.4f} to the "
            "stored one; the section `teacher` describes another teacher than the one that encoded"
        )
    return {"documents": {"n": len(similar), "cosine": parity.summary(similar)}}


def _onnx_card(figures: dict[str, Any], origin: Origin, student: Student) -> str:
    rows = []
    for precision, file in MODELS.items():
        one = figures[precision]
        lost = [f"{one['loss']:.2%}"] if one.get("loss") is not None else ["not measured"]
        rows.append([f"`{file}`", precision, f"{one['bytes'] / 1e6:.0f}", f"{one['cosine']['lowest']:.4f}", *lost])
    return export_cards.onnx_card(origin, student.dim, student.max_length, rows)
