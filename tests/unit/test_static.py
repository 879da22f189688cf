"""Students of another shape: a table of token vectors, and one from nothing but a configuration."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer

from pipeline.base import LeafError
from pipeline.encode import encode
from pipeline.export import export, write_graphs
from pipeline.fit import Trainer, fit
from pipeline.model import Student, StudentEncoder, build
from pipeline.params import EncodeParams, ExportParams, FitParams, StudentParams, TeacherParams
from pipeline.store import Store
from pipeline.teacher import LocalTeacher
from tests.conftest import sentence

TEXTS = [*(sentence(number) for number in range(20)), "file", "", "of of of"]


@pytest.fixture
def teacher(tiny_teacher: Path, tmp_path: Path) -> LocalTeacher:
    """The tiny teacher."""
    return LocalTeacher(TeacherParams(str(tiny_teacher)), EncodeParams(pool=str(tmp_path / "pool")))


@pytest.fixture
def store(tiny_corpus: Path, teacher: LocalTeacher, tmp_path: Path) -> Store:
    """Its vectors of the tiny corpus."""
    encode(tiny_corpus, teacher, EncodeParams(pool=str(tmp_path / "pool")), tmp_path / "store")
    return Store.open(tmp_path / "store")


def static(directory: Path, **params: Any) -> Student:
    """A static student of a checkpoint, not fitted."""
    return build(StudentParams(str(directory), architecture="static", **params), dim=24, normalize=True)


def test_the_features_are_the_mean_of_the_checkpoints_vectors_of_each_token(tiny_student: Path) -> None:
    student = static(tiny_student)
    whole = build(StudentParams(str(tiny_student)), dim=24, normalize=True).eval()
    words = ["sort", "file", "list"]
    table = student.backbone.token_embeddings.weight
    tokenizer = student.tokenizer()
    for word in words:
        alone = whole.features(_batch(whole, word))[0]
        row = table[tokenizer.token_to_id(word)]
        assert torch.cosine_similarity(row, alone, dim=0) > 0.999  # it may have been computed in bfloat16
    mean = torch.stack([table[tokenizer.token_to_id(word)] for word in words]).mean(0)
    torch.testing.assert_close(student.features(_batch(student, " ".join(words)))[0], mean)


def _batch(student: Student, text: str) -> Any:
    from pipeline.model import pack

    return pack([student.tokenizer().encode(text).ids])


@pytest.mark.parametrize("max_length", [None, 5])
def test_a_static_student_is_one_in_the_library_too(max_length: int | None, tiny_student: Path, tmp_path: Path) -> None:
    student = static(tiny_student, max_length=max_length)
    student.save(tmp_path / "student")
    plain = SentenceTransformer(str(tmp_path / "student"), device="cpu")
    expected = np.asarray(plain.encode(TEXTS))
    again = StudentEncoder.load(tmp_path / "student")
    np.testing.assert_allclose(StudentEncoder(student).encode(TEXTS), expected, atol=1e-5)
    np.testing.assert_allclose(again.encode(TEXTS), expected, atol=1e-5)
    assert again.student.max_length == student.max_length == (max_length or 48)


def test_a_static_student_is_fitted_killed_continued_and_exported(
    tiny_student: Path,
    tiny_corpus: Path,
    store: Store,
    teacher: LocalTeacher,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    student = StudentParams(str(tiny_student), architecture="static")
    params = FitParams(student, max_steps=60, batch_size=8, learning_rate=1e-2, checkpoint_every=10)

    def fitted(name: str) -> Any:
        return fit(tiny_corpus, store, params, tmp_path / name / "student", tmp_path / name / "work")

    whole = fitted("whole")
    losses = [loss for _, split, loss in whole.curve if split == "train"]
    assert np.mean(losses[-15:]) < np.mean(losses[:15])
    advance = Trainer._advance

    def interrupted(trainer: Trainer, batch: Any) -> None:
        if trainer.progress.step == 27:
            raise KeyboardInterrupt
        advance(trainer, batch)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Trainer, "_advance", interrupted)
        fitted("torn")
    assert fitted("torn").curve == whole.curve
    for name in ("model.safetensors", "1_Dense/model.safetensors"):
        found, expected = (load_file(tmp_path / run / "student" / name) for run in ("torn", "whole"))
        assert all(torch.equal(found[tensor], value) for tensor, value in expected.items())
    assert "static" in (tmp_path / "whole/student/README.md").read_text(encoding="utf-8")

    settings = ExportParams(rows=20, speed_texts=0, bootstrap=0)
    figures = export(
        tiny_corpus, store, tmp_path / "whole/student", tmp_path, teacher=teacher, checkpoint=student, params=settings
    )
    assert figures["onnx"]["float32"]["cosine"]["lowest"] > 0.9999
    router = SentenceTransformer(str(tmp_path / "asymmetric"), device="cpu")
    np.testing.assert_allclose(
        router.encode_query(TEXTS), StudentEncoder.load(tmp_path / "whole/student").encode(TEXTS), atol=1e-5
    )


def test_a_graph_pools_only_a_texts_own_tokens(tiny_student: Path, tmp_path: Path) -> None:
    from pipeline.serve import OnnxEncoder

    student = static(tiny_student).eval()
    assert write_graphs(student, tmp_path) is None
    texts = [text for text in TEXTS if text]
    found = OnnxEncoder(tmp_path, "float32").encode(texts)
    np.testing.assert_allclose(found, StudentEncoder(student).encode(texts), atol=1e-5)


def test_without_weights_a_student_is_drawn_by_the_seed(tiny_student: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for file in [tiny_student / "config.json", *tiny_student.glob("token*.json")]:
        (bare / file.name).write_bytes(file.read_bytes())
    with pytest.raises(LeafError, match=r"holds no \*\.safetensors"):
        build(StudentParams(str(bare)), dim=8, normalize=True)

    def weights(seed: int) -> torch.Tensor:
        student = build(StudentParams(str(bare), weights="random", layers=(0,)), 8, normalize=True, seed=seed)
        return student.backbone.token_embeddings.weight

    assert torch.equal(weights(0), weights(0))
    assert not torch.equal(weights(0), weights(1))


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"architecture": "static", "layers": (0,)}, r"fit\.student\.layers: must be left out"),
        ({"architecture": "static", "pooling": "cls"}, r"fit\.student\.pooling: `cls` is impossible"),
        ({"weights": "random", "sha256": "ab"}, r"fit\.student\.sha256: must be left out"),
    ],
)
def test_what_does_not_go_together_is_refused(params: dict[str, Any], message: str) -> None:
    with pytest.raises(LeafError, match=message):
        StudentParams("model", **params)
