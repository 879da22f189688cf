"""What can be done with a store by people who may not have the texts, and what is passed on without them."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from click.testing import CliRunner

import stages.evaluate
from pipeline.base.errors import LeafError
from pipeline.base.keys import keys
from pipeline.evaluate.evaluation import evaluate
from pipeline.model.student import build
from pipeline.params.sections import EvaluateParams, StudentParams
from pipeline.serve.search import Searcher, read_vectors
from pipeline.store.store import Store
from tests.conftest import corpus_frame
from tests.unit.test_evaluate import META, bag_of_words, blurred, teacher_vectors, write_collection, write_store


def no_teacher(texts: pl.DataFrame) -> np.ndarray:
    raise AssertionError(f"the teacher was asked for {len(texts)} texts that are stored")


def collection_store(tmp_path: Path, texts: list[str]) -> Store:
    """A store of a collection's documents and queries."""
    queries = [" ".join(text.split()[:3]) for text in texts]
    roles = ["document"] * len(texts) + ["query"] * len(queries)
    frame = pl.DataFrame(
        {"key": keys(roles, texts + queries), "role": roles, "text": texts + queries, "source": ["s"] * len(roles)}
    ).unique("key")
    return write_store(frame.with_columns(id=pl.int_range(pl.len()).cast(pl.String)), tmp_path)


def test_a_collection_is_measured_with_a_store_and_neither_corpus_nor_teacher(tmp_path: Path) -> None:
    texts = corpus_frame(120).filter(role="document")["text"].to_list()
    params = EvaluateParams(bootstrap=20, beir=(str(write_collection(tmp_path / "news", texts)),))
    store = collection_store(tmp_path, texts)
    without = evaluate(None, store, blurred, no_teacher, params).figures
    computed = evaluate(None, write_store(corpus_frame(4), tmp_path / "2"), blurred, teacher_vectors, params).figures
    assert without["retrieval"] == computed["retrieval"]
    assert without["retrieval"]["news"]["asymmetric"]["ndcg@10"] > 0
    assert without["alignment"] == {}
    assert "quantisation" not in without
    with pytest.raises(LeafError, match=r"no corpus: holds no held-out texts and evaluate\.beir names no collections"):
        evaluate(None, store, blurred, no_teacher, EvaluateParams())


def test_only_texts_that_are_not_stored_are_asked_of_the_teacher(tmp_path: Path) -> None:
    texts = corpus_frame(120).filter(role="document")["text"].to_list()
    params = EvaluateParams(bootstrap=0, beir=(str(write_collection(tmp_path / "news", texts)),))
    store, asked = collection_store(tmp_path, texts[:40]), []

    def teacher(frame: pl.DataFrame) -> np.ndarray:
        asked.extend(frame["text"].to_list())
        return teacher_vectors(frame)

    figures = evaluate(None, store, bag_of_words, teacher, params).figures
    assert figures["retrieval"]["news"]["standard"]["retention"] == 1
    assert not set(asked) & set(texts[:40])
    assert set(texts[40:]) <= set(asked)


def test_the_stage_measures_without_a_corpus_and_times_nothing(tmp_path: Path, tiny_student: Path) -> None:
    texts = corpus_frame(60).filter(role="document")["text"].to_list()
    collection_store(tmp_path, texts)
    build(StudentParams(model=str(tiny_student)), dim=META.dim, normalize=True).save(tmp_path / "student")
    file = tmp_path / "params.yaml"
    beir = write_collection(tmp_path / "news", texts)
    file.write_text(f"teacher: {{model: absent}}\nencode: {{}}\nevaluate: {{bootstrap: 0, beir: [{beir}]}}\n")
    places = {"params": file, "embeddings": tmp_path / "embeddings", "model": tmp_path / "student"}
    places |= {"out": tmp_path / "m.json", "cost": tmp_path / "cost.json", "plots": tmp_path / "plots"}
    arguments = [part for name, path in places.items() for part in (f"--{name}", str(path))]
    result = CliRunner().invoke(stages.evaluate.main, [*arguments, "--no-corpus"])
    assert result.exit_code == 0, result.output
    assert list(json.loads((tmp_path / "m.json").read_text())["retrieval"]) == ["news"]
    assert not (tmp_path / "cost.json").exists()
    refused = CliRunner().invoke(stages.evaluate.main, [*arguments, "--corpus", str(tmp_path / "none")])
    assert refused.exit_code == 1
    assert "no corpus there" in refused.output


def test_search_without_a_corpus_shows_ids(tmp_path: Path) -> None:
    store = write_store(corpus_frame(60), tmp_path)
    vectors = read_vectors(store)
    searcher = Searcher(bag_of_words, vectors.rows, vectors.nearest, None)
    hits = searcher.search("copy the file", 5).hits
    assert searcher.documents == len(vectors.rows)
    assert [hit.text for hit in hits] == [None] * 5
    with_texts = tmp_path / "corpus"
    with_texts.mkdir()
    corpus_frame(60).write_parquet(with_texts / "part-00000.parquet")
    same = Searcher(bag_of_words, vectors.rows, vectors.nearest, with_texts).search("copy the file", 5).hits
    assert [(hit.id, hit.score) for hit in hits] == [(hit.id, hit.score) for hit in same]
    assert all(hit.text for hit in same)


def test_moved_queries_hold_ids_where_texts_may_not_leave(tiny_corpus: Path, tmp_path: Path) -> None:
    store, frame = write_store(corpus_frame(400), tmp_path), corpus_frame(400)
    shown = evaluate(tiny_corpus, store, blurred, teacher_vectors, EvaluateParams(bootstrap=0)).moved
    hidden = evaluate(tiny_corpus, store, blurred, teacher_vectors, EvaluateParams(bootstrap=0, texts=False)).moved
    assert len(shown) == len(hidden) > 0
    texts, ids = frame["text"].to_list(), set(frame["id"])
    assert any(text in json.dumps(shown) for text in texts)
    assert not any(text in json.dumps(hidden) for text in texts)
    for entry in hidden:
        assert {entry["query"], *(document["text"] for document in entry["student"]["top"])} <= ids
    assert [entry["overlap"] for entry in hidden] == [entry["overlap"] for entry in shown]
