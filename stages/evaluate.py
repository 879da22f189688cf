"""Measure the student: alignment, neighbours, retrieval, truncation, quantisation, tasks, cost."""

from pathlib import Path
from typing import Any

import click
import polars as pl

from pipeline.base import Array, LeafError, check_writable
from pipeline.encode import vectors_on_demand
from pipeline.evaluate import StudentVectors, cost, evaluate, needs_of_teacher, plots
from pipeline.model import StudentEncoder, untouched
from pipeline.params import EncodeParams, EvaluateParams, FitParams, Permits, TeacherParams, load_section
from pipeline.serve import MODES, START
from pipeline.store import Store
from pipeline.teacher import Teacher
from stages.common import api_options, check_student, command, echo, open_teacher, params_option, with_part, write_json
from stages.recorded import check_recorded
from stages.watched import name_outside, warn_unwatched

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
@api_options
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
    permits: Permits,
) -> None:
    """Measure a student on the held-out texts of the corpus and on the collections and files of the section evaluate.

    Texts of BEIR directories and files that the store does not hold go through the shard cache of the encode stage.
    Sections read: teacher, encode, evaluate; of fit, the checkpoint that the student was made from, which is measured
    beside it.
    """
    encode = load_section(params, "encode", EncodeParams)
    settings = load_section(params, "evaluate", EvaluateParams)
    costs, pictures = costs or (COST if out == OUT else None), pictures or (PLOTS if out == OUT else None)
    check_writable([out, *([costs] if costs else []), *(plots.files(pictures) if pictures else [])])
    check_recorded(*(() if no_corpus else (corpus,)), embeddings, model)
    read = {key: getattr(settings, key) for key in ("beir", "sts", "classification", "clustering")}
    for key, paths in read.items():
        name_outside(paths, f"evaluate.{key}")
    warn_unwatched([path for paths in read.values() for path in paths], "evaluate")
    store = Store.open(embeddings)
    teacher = open_teacher(load_section(params, "teacher", TeacherParams), encode, permits, store)
    check_student(model, store.meta.fingerprint, store.name, teacher)
    model = with_part(model, store.meta.fingerprint)
    student = StudentEncoder.load(model)
    _check_teacher(teacher, settings, store, measures_cost=costs is not None)

    def teacher_vectors(texts: pl.DataFrame) -> Array:
        return vectors_on_demand(teacher, encode, store)(texts)

    result = evaluate(
        None if no_corpus else corpus, store, student.encode, teacher_vectors, settings, start=_start(params)
    )
    written = [out]
    write_json(out, result.figures)
    if pictures:
        written += plots.write(result, pictures)
    if costs:
        figures = cost(teacher, model, encode.token_budget, result.timed, settings)
        write_json(costs, figures)
        if "left_out" in figures:
            echo(f"cost: left out: {figures['left_out']}")
        written.append(costs)
    echo("\n".join([*table(result.figures), *map(str, written)]))


def _start(params: Path) -> StudentVectors | None:
    """The encoder of the untouched checkpoint of `fit.student`; None, with a word, where it cannot be had."""
    try:
        checkpoint = load_section(params, "fit", FitParams).student
        return StudentEncoder(untouched(checkpoint)).encode
    except LeafError as error:
        echo(f"the untouched checkpoint is left out: {error}", err=True)
        return None


def _check_teacher(teacher: Teacher, settings: EvaluateParams, store: Store, *, measures_cost: bool) -> None:
    """Refuse now a teacher that is not there and will be needed, at the latest after all else is measured."""
    try:
        if teacher.directory is not None:
            _ = teacher.meta
    except LeafError as error:
        needs = needs_of_teacher(settings, store) + (["evaluate.cost"] if measures_cost and settings.cost.texts else [])
        if needs:
            raise LeafError(
                f"{error}; the teacher is needed for {', '.join(needs)}, so leave that out where it is not "
                "(`cost: {texts: 0}`; collections whose texts the store has need no teacher)"
            ) from None


def table(figures: dict[str, Any]) -> list[str]:
    """The figures as lines for people: a row per data set and mode, then alignment and neighbours."""
    results = figures["retrieval"] | figures.get("indexes", {})
    width = max([len("data set"), *map(len, results)])
    lines = [figures["similarity_note"]] if "similarity_note" in figures else []
    lines += figures.get("notices", [])
    lines += [f"{'data set':{width}}  {'mode':10}  nDCG@10  recall@100  MRR@10  retention  (95 % interval)"]
    for name, result in results.items():
        for mode in (*MODES, START):
            if (row := result.get(mode)) is None:
                continue
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
