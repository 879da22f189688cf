"""A static student is exported as any other: on the query route of a Router, and as a graph."""

from pathlib import Path

import numpy as np
from sentence_transformers import SentenceTransformer

from pipeline.encode import encode
from pipeline.export import export, write_graphs
from pipeline.fit import fit
from pipeline.model import StudentEncoder, build
from pipeline.params import EncodeParams, ExportParams, FitParams, StudentParams, TeacherParams
from pipeline.serve import OnnxEncoder
from pipeline.store import Store
from pipeline.teacher import LocalTeacher
from tests.conftest import sentence

TEXTS = [*(sentence(number) for number in range(20)), "file", "of of of"]


def test_a_static_student_is_exported(
    tiny_teacher: Path, tiny_student: Path, tiny_corpus: Path, tmp_path: Path
) -> None:
    settings = EncodeParams(pool=str(tmp_path / "pool"))
    teacher = LocalTeacher(TeacherParams(str(tiny_teacher)), settings)
    encode(tiny_corpus, teacher, settings, tmp_path / "store")
    store, student = Store.open(tmp_path / "store"), StudentParams(str(tiny_student), architecture="static")
    fit(tiny_corpus, store, FitParams(student, max_steps=20), tmp_path / "student", tmp_path / "work")
    figures = export(
        tiny_corpus,
        store,
        tmp_path / "student",
        tmp_path,
        teacher=teacher,
        checkpoint=student,
        params=ExportParams(rows=20, speed_texts=0, bootstrap=0),
    )
    assert figures["onnx"]["float32"]["cosine"]["lowest"] > 0.9999
    router = SentenceTransformer(str(tmp_path / "asymmetric"), device="cpu")
    expected = StudentEncoder.load(tmp_path / "student").encode([*TEXTS, ""])
    np.testing.assert_allclose(router.encode_query([*TEXTS, ""]), expected, atol=1e-5)


def test_a_graph_takes_the_mean_of_a_texts_own_tokens(tiny_student: Path, tmp_path: Path) -> None:
    student = build(StudentParams(str(tiny_student), architecture="static"), dim=24, normalize=True).eval()
    assert write_graphs(student, tmp_path) is None
    found = OnnxEncoder(tmp_path, "float32").encode(TEXTS)
    np.testing.assert_allclose(found, StudentEncoder(student).encode(TEXTS), atol=1e-5)
