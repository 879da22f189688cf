"""What can be done with a store by people who may not have the texts, and what is passed on without them."""

import json
import multiprocessing
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import yaml
from click.testing import CliRunner, Result

import stages.evaluate
from pipeline.base.errors import LeafError
from pipeline.base.keys import keys
from pipeline.evaluate import collection
from pipeline.evaluate.cost import Subject, _request, _start
from pipeline.evaluate.datasets import Dataset, PairedVectors
from pipeline.evaluate.evaluation import evaluate
from pipeline.evaluate.metrics import rounded
from pipeline.evaluate.quantisation import Calibration, quantisation
from pipeline.model.student import build
from pipeline.params.sections import EvaluateParams, StudentParams, TeacherParams
from pipeline.serve.search import Searcher, read_vectors
from pipeline.store.store import Store
from tests.conftest import corpus_frame, sentence
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


def test_without_training_texts_a_collection_is_calibrated_on_its_own(tmp_path: Path) -> None:
    texts = corpus_frame(120).filter(role="document")["text"].to_list()
    params = EvaluateParams(bootstrap=0, beir=(str(write_collection(tmp_path / "news", texts)),), calibration_rows=500)
    store = collection_store(tmp_path, texts)
    figures = evaluate(None, store, blurred, no_teacher, params).figures
    data = collection.read(tmp_path / "news")
    queries, documents = (
        PairedVectors(store.lookup(frame["key"].to_list()), blurred(frame["text"].to_list(), role))
        for role, frame in (("query", data.queries), ("document", data.documents))
    )
    dataset = Dataset("news", queries, documents, data.judged, itself=data.itself)
    expected = quantisation(dataset, Calibration(queries, documents), params)
    assert figures["quantisation"]["news"]["variants"]["int8 both"] == rounded(expected)["variants"]["int8 both"]
    assert "news: int8 was calibrated on its own texts, as there are no training texts" in figures["notices"]
    assert "quantisation" not in evaluate(None, store, blurred, no_teacher, replace(params, calibration_rows=0)).figures


@pytest.fixture
def measure(tmp_path: Path, tiny_student: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """The stage without a corpus, on a collection whose texts are all stored; the teacher is not there."""
    monkeypatch.chdir(tmp_path)
    texts = corpus_frame(60).filter(role="document")["text"].to_list()
    collection_store(tmp_path, texts)
    build(StudentParams(model=str(tiny_student)), dim=META.dim, normalize=True).save(tmp_path / "student")
    write_collection(tmp_path / "news", texts)

    def run(*arguments: str, evaluate: str, teacher: str = "absent") -> Result:
        Path("params.yaml").write_text(f"teacher: {{model: {teacher}}}\nencode: {{}}\nevaluate: {{{evaluate}}}\n")
        places = ["--embeddings", "embeddings", "--model", "student"]
        return CliRunner().invoke(stages.evaluate.main, [*places, *arguments])

    return run


def test_the_stage_measures_without_a_corpus_and_the_teacher(measure: Callable[..., Result]) -> None:
    Path("s.csv").write_text("text,label\n" + "".join(f"{sentence(2 * n)},{n % 2}\n" for n in range(12)))
    for evaluated in ("bootstrap: 0, beir: [news]", "bootstrap: 0, beir: [news], classification: [s.csv]"):
        done = measure("--no-corpus", evaluate=f"{evaluated}, cost: {{texts: 0}}")
        assert done.exit_code == 0, done.output
        assert list(json.loads(Path("metrics/evaluate.json").read_text())["retrieval"]) == ["news"]
        assert Path("plots/evaluation.svg").exists()
    refused = measure("--corpus", "none", evaluate="bootstrap: 0, beir: [news], cost: {texts: 0}")
    assert refused.exit_code == 1
    assert "no corpus there" in refused.output


def test_a_teacher_is_asked_for_only_by_what_the_store_lacks(measure: Callable[..., Result]) -> None:
    Path("other.csv").write_text("sentence1,sentence2,score\na text,that nobody,1\nhas,stored,2\nso,far,3\n")
    write_collection(Path("unknown"), ["words that", "are in no", "store at all"])
    for evaluated, needed in (
        ("beir: [news]", "evaluate.cost"),
        ("beir: [news], sts: [other.csv], cost: {texts: 0}", "evaluate.sts"),
        ("beir: [news, unknown], cost: {texts: 0}", "evaluate.beir"),
    ):
        refused = measure("--no-corpus", evaluate=evaluated)
        assert refused.exit_code == 1
        assert f"the teacher is needed for {needed}, so leave that out" in refused.output


def test_cost_is_measured_on_the_collections_where_there_is_no_corpus(
    measure: Callable[..., Result], tiny_teacher: Path
) -> None:
    cost = "cost: {texts: 8, queries: 4, rounds: 1}"
    done = measure("--no-corpus", evaluate=f"bootstrap: 0, beir: [news], {cost}", teacher=str(tiny_teacher))
    assert done.exit_code == 0, done.output
    figures = json.loads(Path("metrics/cost.json").read_text())
    assert (figures["texts"], figures["queries"]) == (8, 4)


def test_without_a_corpus_none_is_compared_with_the_records(measure: Callable[..., Result]) -> None:
    """A colleague who may not have the texts has those of another day, or none that git knows."""
    outs = [{"path": "data/corpus", "md5": "34" * 16 + ".dir"}]
    Path("dvc.lock").write_text(yaml.safe_dump({"schema": "2.0", "stages": {"corpus": {"outs": outs}}}))
    Path("data/corpus").mkdir(parents=True)
    done = measure("--no-corpus", "--out", "m.json", evaluate="bootstrap: 0, beir: [news]")
    assert done.exit_code == 0, done.output


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


def test_ctrl_c_is_for_the_process_that_waits_not_for_those_that_measure(tiny_teacher: Path) -> None:
    subject = Subject(TeacherParams(str(tiny_teacher)), None)
    process, pipe = _start(multiprocessing.get_context("spawn"), subject)
    try:
        os.kill(process.pid, signal.SIGINT)
        assert _request(pipe, "load")["parameters"] > 0
        assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())
    finally:
        pipe.close()
        process.join(30)
    assert process.exitcode == 0
