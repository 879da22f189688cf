"""Export the student: the asymmetric model, ONNX, model cards."""

from pathlib import Path
from typing import Any

import click

from pipeline.base import check_writable
from pipeline.export import EXPORTERS, export
from pipeline.params import EncodeParams, ExportParams, FitParams, Permits, TeacherParams, load_section
from pipeline.store import MODEL_KIND, Store
from stages.common import api_options, check_student, command, echo, open_teacher, params_option, with_part, write_json
from stages.recorded import check_recorded

EVALUATION = Path("metrics/evaluate.json")


@command
@params_option
@click.option("--corpus", type=Path, default=Path("data/corpus"), show_default=True, help="Corpus directory.")
@click.option("--embeddings", type=Path, default=Path("data/embeddings"), show_default=True, help="Teacher's store.")
@click.option("--model", type=Path, default=Path("models/student"), show_default=True, help="Student to export.")
@click.option("--evaluation", type=Path, help="Figures for the cards  [default: metrics/evaluate.json if it exists]")
@click.option("--out", type=Path, default=Path("models"), show_default=True, help="Parent of the new directories.")
@click.option("--metrics", type=Path, default=Path("metrics/export.json"), show_default=True, help="Metrics file.")
@api_options
def main(
    *,
    params: Path,
    corpus: Path,
    embeddings: Path,
    model: Path,
    evaluation: Path | None,
    out: Path,
    metrics: Path,
    permits: Permits,
) -> None:
    """Make a student ready to serve: `asymmetric`, `asymmetric-named`, `onnx` and `cards` below --out.

    Sections read: export, teacher, fit.student.
    """
    settings = load_section(params, "export", ExportParams)
    check_writable([metrics], {out / exporter.directory: MODEL_KIND for exporter in EXPORTERS})
    check_recorded(corpus, embeddings, model)
    nothing_is_encoded = EncodeParams()
    teacher = open_teacher(load_section(params, "teacher", TeacherParams), nothing_is_encoded, permits)
    checkpoint = load_section(params, "fit", FitParams).student
    if evaluation is None and EVALUATION.is_file():
        evaluation = EVALUATION
    store = Store.open(embeddings)
    check_student(model, store.meta.fingerprint, store.name, teacher)
    figures = export(
        corpus,
        store,
        with_part(model, store.meta.fingerprint),
        out,
        teacher=teacher,
        checkpoint=checkpoint,
        params=settings,
        evaluation=evaluation,
        exporters=EXPORTERS,
    )
    write_json(metrics, figures)
    echo("\n".join([*table(figures), *(str(out / exporter.directory) for exporter in EXPORTERS), str(metrics)]))


def table(figures: dict[str, Any]) -> list[str]:
    """The figures as lines for people: what was left out, parity of each model file, speed of each encoder."""
    lines = []
    for name, variants in figures.items():
        if name == "speed":
            single = variants["single_query_ms"]
            for encoder, rate in variants["texts_per_s"].items():
                lines.append(f"{encoder:13}{rate:8.1f} texts/s, {single[encoder]:.1f} ms for one query")
        elif "left_out" in variants:
            lines.append(f"{name} models left out: {variants['left_out']}")
        else:
            lines += [_parity(name, variant, entry) for variant, entry in variants.items() if "bytes" in entry]
    return lines


def _parity(name: str, variant: str, entry: dict[str, Any]) -> str:
    loss = "" if entry["loss"] is None else f", nDCG@10 loss {entry['loss']:.2%} of {entry['queries']:,} queries"
    return f"{name} {variant:8}{entry['bytes'] / 1e6:6.1f} MB, lowest cosine {entry['cosine']['lowest']:.5f}{loss}"


if __name__ == "__main__":
    main()
