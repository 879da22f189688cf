"""Export the student: the asymmetric model, ONNX, model cards."""

from pathlib import Path

import click

from pipeline.export.exporters import Outputs, Sections, export
from pipeline.params.parsing import load_section
from pipeline.params.sections import ExportParams, FitParams, TeacherParams
from stages.common import command, params_option, write_json


@command
@params_option
@click.option("--corpus", type=Path, default=Path("data/corpus"), show_default=True, help="Corpus directory.")
@click.option("--embeddings", type=Path, default=Path("data/embeddings"), show_default=True, help="Teacher's store.")
@click.option("--model", type=Path, default=Path("models/student"), show_default=True, help="Student to export.")
@click.option("--evaluation", type=Path, help="Figures for the cards  [default: metrics/evaluate.json if it exists]")
@click.option("--out", type=Path, default=Path("models"), show_default=True, help="Parent of the new directories.")
@click.option("--metrics", type=Path, default=Path("metrics/export.json"), show_default=True, help="Metrics file.")
def main(
    *, params: Path, corpus: Path, embeddings: Path, model: Path, evaluation: Path | None, out: Path, metrics: Path
) -> None:
    """Make a student ready to serve: `asymmetric`, `asymmetric-named`, `onnx` and `cards` below --out.

    Sections read: export, teacher, fit.student.
    """
    sections = Sections(
        load_section(params, "export", ExportParams),
        load_section(params, "teacher", TeacherParams),
        load_section(params, "fit", FitParams).student,
    )
    usual = Path("metrics/evaluate.json")
    evaluation = evaluation or (usual if usual.is_file() else None)
    places = Outputs(out / "asymmetric", out / "asymmetric-named", out / "onnx", out / "cards")
    figures = export(corpus, embeddings, model, evaluation=evaluation, sections=sections, out=places)
    write_json(metrics, figures)
    if reason := figures["asymmetric"].get("left_out"):
        click.echo(f"asymmetric models left out: {reason}")
    for precision, one in figures["onnx"].items():
        loss = "" if one["loss"] is None else f", nDCG@10 loss {one['loss']:.2%} of {one['queries']:,} queries"
        size, lowest = one["bytes"] / 1e6, one["cosine"]["lowest"]
        click.echo(f"onnx {precision:8}{size:6.1f} MB, lowest cosine {lowest:.5f}{loss}")
    if "speed" in figures:
        single = figures["speed"]["single_query_ms"]
        for name, rate in figures["speed"]["texts_per_s"].items():
            click.echo(f"{name:13}{rate:8.1f} texts/s, {single[name]:.1f} ms for one query")
    click.echo("\n".join(map(str, [places.asymmetric, places.named, places.onnx, places.cards, metrics])))


if __name__ == "__main__":
    main()
