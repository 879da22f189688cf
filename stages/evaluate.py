"""Measure the student: alignment, neighbours, retrieval, truncation, quantisation, tasks, cost."""

from pathlib import Path
from typing import Any

import click
import polars as pl

from pipeline.base import Array, LeafError, check_writable
from pipeline.corpus import scan
from pipeline.encode import vectors_on_demand
from pipeline.evaluate import cost, evaluate, plots
from pipeline.model import StudentEncoder
from pipeline.params import EncodeParams, EvaluateParams, TeacherParams, load_section
from pipeline.serve import MODES
from pipeline.store import Store
from pipeline.teacher import Teacher, open_teacher
from stages.common import check_student, command, params_option, with_part, write_json
from stages.recorded import check_recorded
from stages.watched import warn_unwatched

COLLECTIONS = Path("data/evaluation")  # what the stage depends on in dvc.yaml
OUT, COST, PLOTS = Path("metrics/evaluate.json"), Path("metrics/cost.json"), Path("plots")


@command
@params_option
@click.option("--corpus", type=Path, default=Path("data/corpus"), show_default=True, help="Corpus directory.")
@click.option("--no-corpus", is_flag=True, help="There is none: measure on the collections and files alone.")
@click.option("--embeddings", type=Path, default=Path("data/embeddings"), show_default=True, help="Teacher's store.")
@click.option("--model", type=Path, default=Path("models/student"), show_default=True, help="Student to measure.")
@click.option("--out", type=Path, default=OUT, show_default=True, help="Metrics file.")
@click.option("--cost", "costs", type=Path, help=f"Speed and size, a file  [default: {COST}; none if --out]")
@click.option("--plots", "pictures", type=Path, help="Directory of tables and picture  [default: plots; none if --out]")
def main(
    *,
    params: Path,
    corpus: Path,
    no_corpus: bool,
    embeddings: Path,
    model: Path,
    out: Path,
    costs: Path | None,
    pictures: Path | None,
) -> None:
    """Measure a student on the held-out texts of the corpus and on the collections and files of the section evaluate.

    Texts of BEIR directories and files that the store does not hold go through the shard cache of the encode stage.
    Sections read: teacher, encode, evaluate.
    """
    encode = load_section(params, "encode", EncodeParams)
    settings = load_section(params, "evaluate", EvaluateParams)
    costs, pictures = costs or (COST if out == OUT else None), pictures or (PLOTS if out == OUT else None)
    check_writable([out, *([costs] if costs else []), *(plots.files(pictures) if pictures else [])])
    check_recorded(corpus, embeddings)
    warn_unwatched([*settings.beir, *settings.sts, *settings.classification], COLLECTIONS, "evaluate")
    store = Store.open(embeddings)
    teacher = open_teacher(load_section(params, "teacher", TeacherParams), encode, store)
    check_student(model, store.meta.fingerprint, store.name, teacher)
    model = with_part(model, store.meta.fingerprint)
    student = StudentEncoder.load(model)
    _check_teacher(teacher, settings, measures_cost=costs is not None)

    def teacher_vectors(texts: pl.DataFrame) -> Array:
        return vectors_on_demand(teacher, encode, store)(texts)

    result = evaluate(None if no_corpus else corpus, store, student.encode, teacher_vectors, settings)
    written = [out]
    write_json(out, result.figures)
    if pictures:
        written += plots.write(result, pictures)
    if costs and not no_corpus:
        figures = cost(teacher, model, encode.token_budget, _timed_texts(corpus, settings), settings)
        write_json(costs, figures)
        if "left_out" in figures:
            click.echo(f"cost: left out: {figures['left_out']}")
        written.append(costs)
    click.echo("\n".join([*table(result.figures), *map(str, written)]))


def _check_teacher(teacher: Teacher, settings: EvaluateParams, *, measures_cost: bool) -> None:
    """Refuse now a teacher that is not there and will be needed, at the latest after all else is measured."""
    needs = [name for name in ("beir", "sts", "classification") if getattr(settings, name)]
    needs += ["cost"] if measures_cost and settings.cost.texts else []
    try:
        if needs and teacher.directory is not None:
            _ = teacher.meta
    except LeafError as error:
        names = ", ".join(f"evaluate.{name}" for name in needs)
        raise LeafError(f"{error}; the teacher is needed for {names}, so leave that out where it is not") from None


def _timed_texts(corpus: Path, settings: EvaluateParams) -> tuple[list[str], list[str]]:
    """Held-out documents and queries for `cost`; a role without held-out texts takes the other's."""
    heldout = scan(corpus).filter(pl.col("split") == "heldout")
    counts = {"document": settings.cost.texts, "query": settings.cost.queries}
    texts = {
        role: heldout.filter(pl.col("role") == role).head(count).collect()["text"].to_list()
        for role, count in counts.items()
    }
    return texts["document"] or texts["query"], texts["query"] or texts["document"]


def table(figures: dict[str, Any]) -> list[str]:
    """The figures as lines for people: a row per data set and mode, then alignment and neighbours."""
    width = max([len("data set"), *map(len, figures["retrieval"])])
    lines = [figures["similarity_note"]] if "similarity_note" in figures else []
    lines += figures.get("notices", [])
    lines += [f"{'data set':{width}}  {'mode':10}  nDCG@10  recall@100  MRR@10  retention  (95 % interval)"]
    for name, result in figures["retrieval"].items():
        for mode in MODES:
            row = result[mode]
            line = f"{name:{width}}  {mode:10}  {row['ndcg@10']:7.4f}  {row['recall@100']:10.4f}  {row['mrr@10']:6.4f}"
            if row.get("retention") is not None:
                line += f"  {row['retention']:9.4f}"
                if span := row["interval"]["retention"]:
                    line += f"  ({span[0]:.4f} to {span[1]:.4f})"
            lines.append(line)
    for role, row in figures["alignment"].items():
        cosine = row["cosine"]
        lines.append(f"held-out {role}: cosine {cosine['mean']:.4f} (p05 {cosine['p05']:.4f}), {row['n']:,} texts")
    if near := figures["neighbours"]:
        lines.append(f"neighbours@10: standard {near['standard']:.4f}, asymmetric {near['asymmetric']:.4f}")
    return lines


if __name__ == "__main__":
    main()
