"""Exported graphs in their runtimes, against PyTorch and against OpenVINO on the model itself.

    python -m benchmarks.onnx [--rounds N] [--write]      (needs pip install -e '.[demo,bench]')

A student made of all-MiniLM-L6-v2 is exported as the stage does it. onnxruntime runs through `OnnxEncoder`, in float32
and in int8. OpenVINO, with the bfloat16 hint, compiles model.onnx and, for comparison, the student's PyTorch module,
each in the fastest of the settings in `openvino_encoder.candidates`. All get the same texts of natural lengths, sort
them by length, and take turns. What int8 costs is measured on collections of ../shared/ir. With --write the tables
replace those in docs/benchmarks.md.
"""

import tempfile
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
from sentence_transformers import SentenceTransformer

from benchmarks.common import (
    MINILM,
    QUICK,
    ROOT,
    SHARED,
    Row,
    Work,
    alternate,
    machine,
    report,
    skipped,
    texts,
    write_table,
)
from benchmarks.encode import BUDGET, LIBRARY, OPENVINO
from benchmarks.openvino_encoder import OpenVino, candidates, timed
from pipeline.base import cosines
from pipeline.evaluate import collection, metrics
from pipeline.export import write_graphs
from pipeline.model import StudentEncoder, build
from pipeline.params import EncodeParams, StudentParams, TeacherParams
from pipeline.serve import MODELS, OnnxEncoder
from pipeline.teacher import LocalTeacher

DOCUMENT = ROOT / "docs" / "benchmarks.md"
NAME = "all-MiniLM-L6-v2 in ONNX"
TEXTS = 24 if QUICK else 600
OWN = "packed bfloat16, our own"
LIBRARY_SIDE, FLOAT32, INT8 = f"{LIBRARY} float32", "onnxruntime float32", "onnxruntime int8"
OF_FILE, OF_MODEL = f"{OPENVINO}, model.onnx", f"{OPENVINO}, the model itself"
COLLECTIONS = () if QUICK else ("cran", "cacm")  # npl takes as long as all the rest
TARGETS = [(FLOAT32, LIBRARY_SIDE, 1.0), (INT8, FLOAT32, 2.5), (OF_FILE, OF_MODEL, 0.9)]


@click.command()
@click.option("--rounds", default=1 if QUICK else 7, show_default=True, help="Runs of each side, after a first one.")
@click.option("--write", is_flag=True, help="Put the table into docs/benchmarks.md.")
def main(rounds: int, write: bool) -> None:
    """Measure all sides and print the tables."""
    with tempfile.TemporaryDirectory() as folder:
        sides = _sides(Path(folder))
    sample, before = texts(TEXTS), machine()
    vectors = {name: encode(sample) for name, encode in sides.items()}
    rates = alternate({name: _counted(encode, sample) for name, encode in sides.items()}, rounds)
    lines = [f"{before}; load {machine().partition('load ')[2].partition(';')[0]} at the end", "", *HEAD]
    for name, rate in rates.items():
        lowest = cosines(vectors[name], vectors[LIBRARY_SIDE]).min()
        lines.append(f"| {name} | {rate:,.0f} | {rate / rates[LIBRARY_SIDE]:.2f} | {lowest:.4f} |")
    lines += ["", *_ranked({name: sides[name] for name in (FLOAT32, INT8)})]
    print("\n".join(lines), flush=True)
    report([Row(f"{NAME}, {ours}", theirs, "texts/s", rates[ours], rates[theirs], target)
            for ours, theirs, target in TARGETS if {ours, theirs} <= rates.keys()])  # fmt: skip
    if write:
        write_table(DOCUMENT, "onnx", "\n".join(lines))


HEAD = ("| encoder | texts/s | times the library | cosine to it, lowest |", "|---|---|---|---|")


def _sides(folder: Path) -> dict[str, Callable[[list[str]], Any]]:
    """The encoders of a student that is saved and exported below `folder`, by name."""
    student = build(StudentParams(MINILM), dim=384, normalize=True)
    student.save(folder / "student")
    if reason := write_graphs(student, folder):
        raise SystemExit(reason)
    library = SentenceTransformer(str(folder / "student"), device="cpu")
    return {
        LIBRARY_SIDE: partial(library.encode, show_progress_bar=False),
        FLOAT32: OnnxEncoder(folder, "float32").encode,
        INT8: OnnxEncoder(folder, "int8").encode,
        **_openvino(folder),
        OWN: StudentEncoder(student).encode,
    }


def _openvino(folder: Path) -> dict[str, Callable[[list[str]], Any]]:
    """OpenVINO on model.onnx and on the student's PyTorch module; nothing where it is not installed."""
    if find_spec("openvino") is None:
        skipped(f"{NAME} / {OPENVINO}", "openvino is not installed: pip install -e '.[bench]'")
        return {}
    teacher = LocalTeacher(TeacherParams(str(folder / "student")), EncodeParams(token_budget=BUDGET))
    teacher.load()
    settings, sample = candidates(teacher, BUDGET)[: 2 if QUICK else None], texts(TEXTS)
    of_file = partial(OpenVino, teacher, graph=folder / MODELS["float32"])
    plain = [setting for setting in settings if setting.attention == "eager"]  # a graph is written down already
    fastest: dict[str, Callable[[list[str]], Any]] = {}
    for name, make, tried in ((OF_FILE, of_file, plain), (OF_MODEL, partial(OpenVino, teacher), settings)):
        print(f"{name}:")
        seconds = timed(make, tried, sample)
        fastest[name] = make(min(seconds, key=seconds.__getitem__)).encode
    return fastest


def _ranked(sides: dict[str, Callable[[list[str]], Any]]) -> list[str]:
    """A table of nDCG@10 by each encoder of both queries and documents, on collections beside the checkout."""
    places = [SHARED / "ir" / name for name in COLLECTIONS if (SHARED / "ir" / name).is_dir()]
    if not places:
        skipped(f"{NAME}, nDCG@10", "needs the collections of shared/ir beside the checkout")
    lines = [f"| nDCG@10 | {' | '.join(sides)} |", "|---" * (1 + len(sides)) + "|"]
    for place in places:
        read, found = collection.read(place), []
        for encode in sides.values():
            queries, documents = (encode(frame["text"].to_list()) for frame in (read.queries, read.documents))
            rankings = metrics.nearest(queries, documents, 10, read.itself)
            found.append(metrics.ranking_metrics(rankings, read.judged)[:, 0].mean())
        lines.append(f"| {place.name} | {' | '.join(f'{value:.4f}' for value in found)} |")
    return lines if places else []


def _counted(encode: Callable[[list[str]], Any], sample: list[str]) -> Callable[[], Work]:
    def side() -> Work:
        encode(sample)
        return float(len(sample))

    return side


if __name__ == "__main__":
    main()
