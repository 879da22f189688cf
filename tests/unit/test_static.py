"""A static student is exported as any other: on the query route of a Router, and as a graph."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from tokenizers import Tokenizer

from pipeline.base import LeafError
from pipeline.encode import encode
from pipeline.export import export, write_graphs
from pipeline.fit import fit
from pipeline.model import StudentEncoder, build
from pipeline.params import EncodeParams, ExportParams, FitParams, StudentParams, TeacherParams, load_section
from pipeline.serve import OnnxEncoder
from pipeline.store import Store
from pipeline.teacher import LocalTeacher
from tests.conftest import make_model, sentence

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


@pytest.mark.parametrize("place", ["", "0_StaticEmbedding"])
def test_a_student_starts_from_static_embeddings(
    place: str, tiny_store: Store, tiny_corpus: Path, write_params: Callable[..., Path], tmp_path: Path
) -> None:
    tokenizer = Tokenizer.from_file(str(make_model(tmp_path / "bert") / "tokenizer.json"))
    table = np.random.default_rng(0).normal(size=(tokenizer.get_vocab_size(), 12)).astype(np.float32)
    SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_weights=table)]).save(str(tmp_path / "table"))
    if place:
        move_module(tmp_path / "table", place)
    student = {"model": str(tmp_path / "table"), "architecture": "static", "max_length": 32}
    params = load_section(write_params(fit={"student": student, "snapshots": [0]}), "fit", FitParams)
    fit(tiny_corpus, tiny_store, params, tmp_path / "student", tmp_path / "work")
    start: Any = SentenceTransformer(str(tmp_path / "student-snapshots/step-0"), device="cpu")[0]
    np.testing.assert_array_equal(start.embedding.weight.detach().numpy(), table)
    trained: Any = SentenceTransformer(str(tmp_path / "student"), device="cpu")[0]
    assert np.abs(trained.embedding.weight.detach().numpy() - table).max() > 1e-3


def move_module(directory: Path, place: str) -> None:
    """Put a model's only module into a directory of its own, as others save it."""
    (directory / place).mkdir()
    for name in ("model.safetensors", "tokenizer.json"):
        (directory / name).rename(directory / place / name)
    listing = json.loads((directory / "modules.json").read_text())
    listing[0]["path"] = place
    (directory / "modules.json").write_text(json.dumps(listing))


@pytest.mark.parametrize(("name", "value"), [("architecture", "transformer"), ("vocabulary", "corpus")])
def test_what_a_table_cannot_be_asked_for_is_refused(name: str, value: str, tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_file(str(make_model(tmp_path / "bert") / "tokenizer.json"))
    SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_dim=8)]).save(str(tmp_path / "table"))
    asked: dict[str, Any] = {"architecture": "static", name: value}
    with pytest.raises(LeafError, match=f"fit.student.{name}: must be"):
        build(StudentParams(str(tmp_path / "table"), max_length=32, **asked), dim=24, normalize=True)
