"""What a smaller student costs: its vocabulary, then its layers, are taken away, down to a table of token vectors.

python -m benchmarks.trade --project .          # after `make demo`

Fits each student with the section `fit` of a project whose corpus and store are there, below runs/trade, and prints the
table. Killed, it continues. About 45 minutes on 2 cores for the demo.
"""

import dataclasses
import itertools
import os
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean, median
from typing import Any, Literal

import click
import polars as pl

from benchmarks.common import machine
from benchmarks.dose import measured, project_option
from pipeline.corpus import scan
from pipeline.fit import fit
from pipeline.model import Student, StudentEncoder
from pipeline.params import FitParams, load_section
from pipeline.serve import MODES
from pipeline.store import Store
from stages.common import command

CORPUS, RUN = Path("data/corpus"), Path("runs/trade")
QUERIES = 100  # held-out queries that are timed
ROUNDS = 5  # in each of which every student encodes all of them
STATIC_RATE = 10  # times `fit.learning_rate`: a row of a table alone needs larger steps than a transformer's
TWO_POOLINGS = "mean+cls"
TITLES = ("student", "vocabulary", *(f"nDCG@10 kept, {mode}" for mode in MODES[1:]), "parameters", "MB", "ms a query")


@command
@project_option
@click.option("--layers", multiple=True, default=("all", "1,3,5", "0"), show_default=True, help="Layers of a student.")
def main(project: Path, layers: tuple[str, ...]) -> None:
    """Fit a student of each shape and print what each keeps and costs."""
    os.chdir(project)
    settings = load_section(Path("params.yaml"), "fit", FitParams)
    measure, results = measured(), []
    students: dict[str, Path] = {}
    for name, changed in _shapes(settings, layers):
        out = students[name] = RUN / "students" / name
        results.append(fit(CORPUS, Store.open(Path("data/embeddings")), changed, out, RUN / "work"))
    click.echo(f"{machine()}\n\n| {' | '.join(TITLES)} |\n{'|---' * len(TITLES)}|")
    latencies = _latencies(students, CORPUS)
    for name, path in students.items():
        click.echo(_row(name, path, measure(Student.load(path)), latencies[name]))
    for result in results:
        result.discard_state()


def _shapes(params: FitParams, layers: tuple[str, ...]) -> Iterator[tuple[str, FitParams]]:
    """The students by name: each number of layers, then none, with either vocabulary; and one on two poolings."""
    both = dataclasses.replace(params.student, pooling=TWO_POOLINGS)
    yield TWO_POOLINGS, dataclasses.replace(params, student=both)
    vocabularies: tuple[Literal["checkpoint", "corpus"], ...] = ("checkpoint", "corpus")
    for shape, vocabulary in itertools.product((*layers, "static"), vocabularies):
        name, chosen = f"{shape}-{vocabulary}", None
        if shape not in ("all", "static"):
            chosen = tuple(map(int, shape.split(",")))
        static = {"architecture": "static", "pooling": None} if shape == "static" else {}
        changes: dict[str, Any] = {"layers": chosen, "vocabulary": vocabulary, **static}
        rate = STATIC_RATE if shape == "static" else 1
        yield (
            name,
            dataclasses.replace(
                params,
                student=dataclasses.replace(params.student, **changes),
                learning_rate=params.learning_rate * rate,
                learning_rate_end=params.learning_rate_end * rate,
            ),
        )


def _latencies(students: dict[str, Path], corpus: Path) -> dict[str, float]:
    """Median milliseconds in which each student encodes a query; they take turns."""
    heldout = scan(corpus).filter((pl.col("split") == "heldout") & (pl.col("role") == "query"))
    queries = heldout.sort("key").head(QUERIES).collect()["text"].to_list()
    encoders = {name: StudentEncoder.load(path) for name, path in students.items()}
    seconds: dict[str, list[float]] = {name: [] for name in students}
    for turn in range(ROUNDS + 1):
        for name, encoder in encoders.items():
            for query in queries:
                began = time.perf_counter()
                encoder.encode([query], "query")
                if turn:  # the first warms up
                    seconds[name].append(time.perf_counter() - began)
    return {name: 1000 * median(times) for name, times in seconds.items()}


def _row(name: str, path: Path, figures: dict[str, Any], latency: float) -> str:
    student = Student.load(path)
    layers, tokens = student.backbone.layers, student.backbone.token_embeddings.num_embeddings
    shape = "static" if not layers else f"{layers} layer{'s' * (layers > 1)}{f', {name}' * (name == TWO_POOLINGS)}"
    kept = [fmean(modes[mode]["retention"] for modes in figures["retrieval"].values()) for mode in MODES[1:]]
    parameters = sum(parameter.numel() for parameter in student.parameters())
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    vocabulary = f"{tokens:,}{', of the corpus' * name.endswith('corpus')}"
    cells = [shape, vocabulary, *(f"{share:.3f}" for share in kept), f"{parameters:,}"]
    return f"| {' | '.join([*cells, f'{size / 1e6:.1f}', f'{latency:.3f}'])} |"


if __name__ == "__main__":
    main()
