"""The export stage: every exporter writes its directory, is checked, and its encoders are measured."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from pipeline.base import LeafError, remove, under_way, written_directory
from pipeline.corpus import further_records, scan
from pipeline.evaluate import metrics
from pipeline.export.cards import Origin, origin_of
from pipeline.export.exporter import Encode, ExportedEncoder, Exporter, ExportJob
from pipeline.export.onnx_graph import OnnxExporter
from pipeline.export.parity import Parity, measure_speed
from pipeline.export.router import NamedRouterExporter, RouterExporter
from pipeline.export.student_card import StudentCardExporter
from pipeline.model import Student, StudentEncoder, resolve_model, write_errors
from pipeline.params import ExportParams, StudentParams
from pipeline.store import MODEL_KIND, VectorSource
from pipeline.teacher import Teacher

EXPORTERS: list[Exporter] = [RouterExporter(), NamedRouterExporter(), OnnxExporter(), StudentCardExporter()]


def export(
    corpus: Path,
    source: VectorSource,
    student: Path,
    out: Path,
    *,
    teacher: Teacher,
    checkpoint: StudentParams,
    params: ExportParams,
    evaluation: Path | None = None,
    exporters: Sequence[Exporter] = EXPORTERS,
) -> dict[str, Any]:
    """Write all exports of a student below `out` and return the figures of their parity and speed.

    A directory takes its place only once it is whole, with its card, and has passed its check.

    Args:
        corpus: whose held-out texts the exports are compared on.
        source: the teacher's vectors of the corpus.
        student: directory of the fitted student.
        out: parent of the new directories.
        teacher: whose vectors are in `source`.
        checkpoint: section `fit.student`, for the cards.
        params: section `export`.
        evaluation: metrics file of the evaluate stage, for the cards; None if nothing was evaluated.
        exporters: which exports to make.

    Raises:
        LeafError: bad corpus, source, student or teacher; a package is missing; a model does not give the vectors of
            what it was made from.
    """
    origin = _origin(teacher, checkpoint, params, source.meta.license, _read(evaluation) if evaluation else {})
    job = ExportJob(student, Student.load(student), teacher, source.meta, origin)
    texts = _compared_texts(source.answered(scan(corpus)), corpus, params)
    parity = Parity(job.encode_in_pytorch, source, texts, further_records(corpus), params)
    figures: dict[str, Any] = {}
    timed: dict[str, Encode] = {"pytorch": job.encode_in_pytorch, "packed": StudentEncoder(job.student).encode}
    for exporter in exporters:
        with under_way(f"export: {exporter.directory}"):
            own_figures, encoders = _write(exporter, job, parity, out / exporter.directory)
        if own_figures is not None:
            figures.setdefault(exporter.name, {}).update(own_figures)
        for variant, encoder in encoders.items():
            if encoder.role == "query":
                timed[f"{exporter.name}_{variant}"] = encoder.encode
    if params.speed_texts:
        with under_way("export: speed"):
            figures["speed"] = measure_speed(timed, _evenly_spaced(texts, params.speed_texts))
    rounded: dict[str, Any] = metrics.rounded(figures)
    return rounded


def _origin(
    teacher: Teacher,
    checkpoint: StudentParams,
    params: ExportParams,
    vectors_license: str | None,
    evaluation: dict[str, Any],
) -> Origin:
    try:
        of_checkpoint = resolve_model(checkpoint.model, checkpoint.revision)
    except LeafError:
        of_checkpoint = None  # only its card would be read, for the licence
    directories = teacher.directory, of_checkpoint
    models = teacher.params.model, checkpoint.model
    return origin_of(params, *models, directories, evaluation, vectors_license=vectors_license)


def _write(
    exporter: Exporter, job: ExportJob, parity: Parity, out: Path
) -> tuple[dict[str, Any] | None, dict[str, ExportedEncoder]]:
    """Write one export and put it in its place; its figures (None: it contributes none) and its encoders."""
    with written_directory(out, MODEL_KIND) as directory:
        with write_errors(out):
            left_out = exporter.write(job, directory)
        if left_out:
            for path in directory.iterdir():
                remove(path)
            _write_card(left_out.card, directory, out)
            return {"left_out": left_out.reason}, {}
        encoders = dict(exporter.encoders(job, directory))
        compared = {variant: parity.compare(encoder, variant, out) for variant, encoder in encoders.items()}
        figures = {variant: entry for variant, entry in compared.items() if entry}
        card = exporter.card(job, figures)
        if card is not None:
            _write_card(card, directory, out)
    return figures if encoders else None, encoders


def _write_card(card: str, directory: Path, out: Path) -> None:
    with write_errors(out):
        (directory / "README.md").write_text(card, encoding="utf-8")


def _read(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise LeafError(f"{file}: cannot be read ({error}); run the evaluate stage first") from None


def _compared_texts(texts: pl.LazyFrame, corpus: Path, params: ExportParams) -> pl.DataFrame:
    """The held-out texts, or the first ones if none is held out; by role, and by key, which is a random order."""
    heldout = texts.filter(pl.col("split") == "heldout").sort("role", "key").collect()
    if heldout.is_empty():
        heldout = texts.head(2 * params.rows).collect().sort("role", "key")
    if heldout.is_empty():
        raise LeafError(f"{corpus}: holds no texts to compare the exported models on")
    return heldout


def _evenly_spaced(texts: pl.DataFrame, count: int) -> list[str]:
    """`count` texts at even distances, so that both roles have their share."""
    rows = np.unique(np.linspace(0, len(texts) - 1, count).astype(np.int64))
    chosen: list[str] = texts["text"][rows].to_list()
    return chosen
