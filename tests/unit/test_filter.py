"""The filter stage: which pairs stay, what the candidates are, and that blocks of any size give the same."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from click.testing import CliRunner

import stages.filter
from pipeline.base.errors import LeafError
from pipeline.base.keys import key, keys
from pipeline.corpus.parts import scan
from pipeline.filter import filtering
from pipeline.filter.filtering import filter_corpus
from pipeline.params.sections import FilterParams
from pipeline.store.shard import StoreMeta
from pipeline.store.shard_cache import ShardCache
from pipeline.store.store import Store

META = StoreMeta(fingerprint="ab" * 32, teacher={"model": "tiny"}, dim=8, dtype="float32", normalized=True)
Texts = list[tuple[str, str, str, str]]  # id, text, role, split


def given(folder: Path, texts: Texts, vectors: dict[str, list[float]], part_rows: int = 3) -> tuple[Path, Store]:
    """A corpus of these texts, and a store of their vectors."""
    frame = pl.DataFrame(texts, schema=["id", "text", "role", "split"], orient="row").with_columns(source=pl.lit("s"))
    row_keys = pl.Series("key", keys(frame["role"], frame["text"]), dtype=pl.Binary)
    frame = frame.with_columns(row_keys).select("key", "id", "text", "role", "source", "split").sort("key")
    corpus = folder / "corpus"
    corpus.mkdir()
    for number, part in enumerate(frame.iter_slices(part_rows)):
        part.write_parquet(corpus / f"part-{number:05d}.parquet")
    rows = frame.select("key", "role", "id", "source", tokens=pl.lit(1, pl.Int32))
    rows = rows.sample(fraction=1, shuffle=True, seed=1)
    by_key = dict(zip(frame["key"], frame["text"], strict=True))
    padded = [[*vectors[by_key[one]], *[0.0] * (8 - len(vectors[by_key[one]]))] for one in rows["key"]]
    with ShardCache(folder / "pool", META) as cache:
        cache.write(rows, np.array(padded, np.float32))
        return corpus, cache.publish(folder / "store", cache.keys())


TEXTS: Texts = [
    ("good", "near", "query", "train"),
    ("good", "near document", "document", "train"),
    ("bad", "far", "query", "train"),
    ("bad", "far document", "document", "train"),
    ("alone", "lonely", "query", "train"),
    ("heap", "other document", "document", "train"),
    ("held", "held far", "query", "heldout"),
    ("held", "held far document", "document", "heldout"),
]
VECTORS: dict[str, list[float]] = {
    "near": [1.0, 0.0],
    "near document": [0.8, 0.6],
    "far": [0.96, 0.28],
    "far document": [-1.0, 0.0],
    "lonely": [0.0, -1.0],
    "other document": [0.6, 0.8],
    "held far": [1.0, 0.0],
    "held far document": [0.0, 1.0],
}


def texts_of(directory: Path) -> set[str]:
    return set(scan(directory).collect()["text"])


def candidates_of(file: Path) -> dict[str, list[tuple[str, float]]]:
    """By the text of the query: texts of its candidates, and similarities."""
    names = {key(role, text): text for _, text, role, _ in TEXTS}
    rows = pl.read_parquet(file)
    assert rows["key"].to_list() == sorted(rows["key"])
    return {
        names[query]: [(names[document], round(cosine, 4)) for document, cosine in zip(documents, cosines, strict=True)]
        for query, documents, cosines in rows.select("key", "candidates", "cosines").iter_rows()
    }


def test_a_pair_goes_whose_document_is_not_among_the_nearest_of_its_query(tmp_path: Path) -> None:
    corpus, store = given(tmp_path, TEXTS, VECTORS)
    before = {file.name: file.read_bytes() for file in corpus.iterdir()}
    params = FilterParams(nearest=2, candidates=2)
    figures = filter_corpus(corpus, store, params, tmp_path / "out", tmp_path / "c.parquet")
    assert texts_of(corpus) - texts_of(tmp_path / "out") == {"far", "far document"}
    assert figures == {"s": {"pairs": 2, "first": 1, "queries_dropped": 1, "documents_dropped": 1}}
    assert candidates_of(tmp_path / "c.parquet") == {
        "near": [("near document", 0.8), ("other document", 0.6)],
        "lonely": [("near document", -0.6)],  # `far document` was nearer, and is no training text any more
    }
    assert {file.name: file.read_bytes() for file in corpus.iterdir()} == before
    everything = scan(corpus).collect().filter(~pl.col("id").is_in(["bad"]))
    assert scan(tmp_path / "out").collect().equals(everything)


@pytest.mark.parametrize("nearest", [3, None])
def test_nothing_goes_where_the_search_is_deep_enough_or_drops_nothing(tmp_path: Path, nearest: int | None) -> None:
    corpus, store = given(tmp_path, TEXTS, VECTORS)
    filter_corpus(corpus, store, FilterParams(nearest=nearest), tmp_path / "out", tmp_path / "c.parquet")
    assert texts_of(tmp_path / "out") == texts_of(corpus)
    assert len(candidates_of(tmp_path / "c.parquet")["far"]) == 3


def test_one_document_of_a_record_and_one_query_are_enough(tmp_path: Path) -> None:
    texts: Texts = [
        ("page", "near", "query", "train"),
        ("page", "lonely", "query", "train"),
        ("page", "near document", "document", "train"),
        ("page", "far document", "document", "train"),
        ("x", "other document", "document", "train"),
    ]
    corpus, store = given(tmp_path, texts, VECTORS | {"lonely": [0.5, 0.8660254]})
    figures = filter_corpus(corpus, store, FilterParams(nearest=1), tmp_path / "out", tmp_path / "c.parquet")
    # `lonely` finds `other document` first; its passages stay for the sake of `near`.
    assert texts_of(corpus) - texts_of(tmp_path / "out") == {"lonely"}
    assert figures["s"]["documents_dropped"] == 0


def test_blocks_of_any_size_give_what_brute_force_gives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    texts: Texts = [
        (f"r{number}", f"{role} {number}", role, "train") for number in range(90) for role in ("query", "document")
    ]
    vectors = {text: (v := random.normal(size=8)) / np.linalg.norm(v) for _, text, _, _ in texts}
    corpus, store = given(tmp_path, texts, {text: vector.tolist() for text, vector in vectors.items()}, part_rows=50)
    for name, rows in (("QUERY_ROWS", 40), ("SCORED_ROWS", 16), ("DOCUMENT_ROWS", 25)):
        monkeypatch.setattr(filtering, name, rows)
    filter_corpus(corpus, store, FilterParams(nearest=20, candidates=5), tmp_path / "out", tmp_path / "c.parquet")
    scores = {
        q: sorted((-float(np.float32(vectors[f"query {q}"] @ vectors[f"document {d}"])), d) for d in range(90))
        for q in range(90)
    }
    stays = {q for q in range(90) if q in [d for _, d in scores[q][:20]]}
    assert 10 < len(stays) < 60
    assert texts_of(tmp_path / "out") == {f"{role} {q}" for q in stays for role in ("query", "document")}
    written = pl.read_parquet(tmp_path / "c.parquet")
    expected = {key("query", f"query {q}"): [d for _, d in scores[q][:5] if d in stays] for q in stays}
    numbers = {key("document", f"document {d}"): d for d in range(90)}
    found = dict(written.select("key", "candidates").iter_rows())
    assert {query: [numbers[one] for one in documents] for query, documents in found.items()} == expected


@pytest.mark.parametrize(
    ("texts", "params", "message"),
    [
        ([row for row in TEXTS if row[2] == "query"], {}, "has no training queries, or no documents"),
        ([row for row in TEXTS if row[0] in ("bad", "heap", "held")], {"nearest": 1}, "leaves nothing of"),
    ],
)
def test_what_cannot_be_filtered_is_named(tmp_path: Path, texts: Texts, params: dict[str, Any], message: str) -> None:
    corpus, store = given(tmp_path, texts, VECTORS)
    with pytest.raises(LeafError, match=message):
        filter_corpus(corpus, store, FilterParams(**params), tmp_path / "out", tmp_path / "c.parquet")
    assert not (tmp_path / "out").exists() and not (tmp_path / "c.parquet").exists()


def test_the_stage_writes_corpus_candidates_and_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given(tmp_path, TEXTS, VECTORS)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text("filter: {nearest: 2, candidates: 1}\n")
    done = CliRunner().invoke(stages.filter.main, ["--corpus", "corpus", "--embeddings", "store"])
    assert done.exit_code == 0, done.output
    assert json.loads(Path("metrics/filter.json").read_text())["sources"]["s"]["queries_dropped"] == 1
    assert pl.read_parquet("data/candidates.parquet")["candidates"].list.len().max() == 1
    assert texts_of(Path("data/filtered")) == {text for name, text, _, _ in TEXTS if name != "bad"}
    (tmp_path / "params.yaml").write_text("filter: {nearest: null, candidates: 0}\n")
    assert "neither drops pairs" in CliRunner().invoke(stages.filter.main, []).output
