"""A teacher turned onto its principal axes: same distances, a fingerprint of its own, most in the first dimensions."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from click.testing import CliRunner
from sentence_transformers import SentenceTransformer

import stages.encode
import stages.rotate
from pipeline.base.errors import LeafError
from pipeline.encode.rotation import principal_axes, turn
from pipeline.params.sections import ApiParams, EncodeParams, Prompts, TeacherParams
from pipeline.store.store import Store
from tests.conftest import corpus_frame


def test_the_axes_are_those_of_the_singular_vectors_with_a_fixed_sign() -> None:
    random = np.random.default_rng(0)
    points = random.normal(size=(500, 6)) * [5, 1, 3, 0.5, 2, 0.1] @ np.linalg.qr(random.normal(size=(6, 6)))[0]
    axes = principal_axes(np.cov(points.T))
    assert np.abs(axes.T @ axes - np.eye(6)).max() < 1e-6
    _, values, expected = np.linalg.svd(points - points.mean(0), full_matrices=False)
    assert np.abs(np.abs((axes * expected.T).sum(0)) - 1).max() < 1e-6
    turned = points @ axes
    assert np.abs(turned.var(0) - values**2 / 500).max() < 1e-4 and (np.diff(turned.var(0)) < 0).all()
    assert (axes[np.abs(axes).argmax(0), np.arange(6)] > 0).all()


@pytest.fixture
def encoded(
    tmp_path: Path, tiny_teacher: Path, monkeypatch: pytest.MonkeyPatch, write_params: Callable[..., Path]
) -> Path:
    """A directory with a corpus of 400 texts and the store of a teacher that has prompts of its own."""
    monkeypatch.chdir(tmp_path)
    model = SentenceTransformer(str(tiny_teacher), device="cpu", prompts={"query": "list of ", "document": ""})
    model.save(str(tmp_path / "teacher"), create_model_card=False)
    (tmp_path / "corpus").mkdir()
    corpus_frame(400).write_parquet(tmp_path / "corpus" / "part-00000.parquet")
    write_params(teacher={"model": "teacher"})
    done = CliRunner().invoke(stages.encode.main, ["--corpus", "corpus", "--out", "embeddings"])
    assert done.exit_code == 0, done.output
    return tmp_path


def test_a_turned_teacher_compares_as_before_and_holds_more_in_its_first_dimensions(encoded: Path) -> None:
    arguments = ["--corpus", "corpus", "--embeddings", "embeddings", "--model", "turned", "--out", "turned-store"]
    done = CliRunner().invoke(stages.rotate.main, arguments)
    assert done.exit_code == 0, done.output
    before, after = Store.open(encoded / "embeddings"), Store.open(encoded / "turned-store")
    assert before.meta.fingerprint != after.meta.fingerprint
    keys = corpus_frame(400)["key"].to_list()
    plain, turned = before.lookup(keys), after.lookup(keys)
    assert np.abs(plain @ plain.T - turned @ turned.T).max() < 4e-3  # float16
    variance = turned.var(0)
    assert variance[:8].sum() > 1.2 * plain.var(0)[:8].sum()
    assert np.abs(np.sort(variance)[::-1] - variance).max() < 1e-3
    # The model alone, with the library, gives the vectors of the store, prompts and all.
    texts = corpus_frame(400).filter(pl.col("role") == "query").head(20)
    model = SentenceTransformer(str(encoded / "turned"), device="cpu")
    assert (model.encode_query(texts["text"].to_list()) * after.lookup(texts["key"].to_list())).sum(1).min() > 0.999
    # The encode stage takes all of them over.
    (encoded / "params.yaml").write_text(
        "teacher: {model: turned}\nencode: {shard_rows: 128, reuse: [turned-store], pool: other-pool}\n"
    )
    again = CliRunner().invoke(stages.encode.main, ["--corpus", "corpus", "--out", "embeddings"])
    assert again.exit_code == 0 and "encoded 0 texts" in again.output, again.output


def test_what_cannot_be_turned_is_refused(encoded: Path) -> None:
    store = Store.open(encoded / "embeddings")

    def refusal(corpus: str = "corpus", model: str = "turned", **teacher: Any) -> str:
        params = TeacherParams(**{"model": str(encoded / "teacher"), **teacher})
        places = {"model": encoded / model, "out": encoded / "out"}
        with pytest.raises(LeafError) as refused:
            turn(store, encoded / corpus, params, EncodeParams(), **places, rows=65_536)
        return str(refused.value)

    assert "another teacher.prompts" in refusal(prompts=Prompts(query="other "))
    assert "behind an API" in refusal(api=ApiParams(base_url="http://127.0.0.1:9/v1"))
    assert "holds no model of this program" in refusal(model="teacher")
    assert not (encoded / "turned").exists() and (encoded / "teacher" / "modules.json").exists()
    assert "no corpus there" in refusal(corpus="nowhere")
    assert not (encoded / "out").exists()
