"""A store lists the texts that the teacher refused, also when merged or compacted; no other text may lack a vector."""

import json
from pathlib import Path

import polars as pl
import pytest

from pipeline.base.errors import LeafError
from pipeline.base.keys import key_array
from pipeline.corpus.parts import corpus_keys
from pipeline.fit.loader import join
from pipeline.fit.token_cache import Tokens
from pipeline.store import operations
from pipeline.store.shard_cache import ShardCache
from pipeline.store.store import Store
from tests.store_helpers import meta, rows, vectors


def published(directory: Path, refused: list[int], first: int = 0, count: int = 20) -> Store:
    """Texts `first` to `first + count`, without those refused."""
    every = rows(first, count)
    kept = [row for row in range(count) if first + row not in refused]
    with ShardCache(directory / "pool", meta()) as cache:
        for number in refused:
            cache.refused.add(rows(number, 1)["key"][0], f"id {number}", f"reason {number}")
        cache.write(every[kept], vectors(first, count)[kept])
        return cache.publish(directory / "store", every["key"].to_list())


def listed(store: Store) -> dict[str, str]:
    return store.meta.refused or {}


def test_refused_texts_are_listed_with_their_reason_and_verified(tmp_path: Path) -> None:
    store = published(tmp_path, [3, 7])
    store.verify()
    expected = {rows(number, 1)["key"][0].hex(): f"reason {number}" for number in (3, 7)}
    assert listed(Store.open(tmp_path / "store")) == expected
    assert store.rows == 18 and operations.info(store)["refused"] == 2
    left = store.answered(rows(0, 20).lazy()).collect()
    assert left["id"].to_list() == [f"id {n}" for n in range(20) if n not in (3, 7)]


def test_a_text_that_is_missing_for_no_reason_is_an_error(tmp_path: Path) -> None:
    published(tmp_path, [3])
    with (
        ShardCache(tmp_path / "pool", meta()) as cache,
        pytest.raises(LeafError, match="1 of 21 wanted keys have no vector"),
    ):
        cache.publish(tmp_path / "store", rows(0, 21)["key"].to_list())


def test_the_loader_leaves_out_what_is_listed_and_nothing_else(tmp_path: Path) -> None:
    import numpy as np

    store = published(tmp_path, [3, 7])

    def tokens(count: int) -> Tokens:
        keys = np.sort(key_array(rows(0, count)["key"]))
        return Tokens(np.zeros(count, np.uint16), np.arange(count + 1), keys, np.ones(count, bool))

    corpus = tokens(20)
    joined = join(corpus, store)
    assert len(joined) == 18
    refused = set(store.refused.tolist())
    assert not refused & set(corpus.keys[joined.text].tolist())
    with pytest.raises(LeafError, match="lacks the vectors of 1 of the corpus's 21 texts"):
        join(tokens(21), store)


def test_a_merged_store_lists_what_neither_has(tmp_path: Path) -> None:
    first = published(tmp_path / "first", [3, 7])
    second = published(tmp_path / "second", [3, 25], first=0, count=30)  # this server took text 7
    operations.merge(first, second, tmp_path / "merged")
    merged = Store.open(tmp_path / "merged")
    merged.verify()
    assert set(listed(merged)) == {rows(number, 1)["key"][0].hex() for number in (3, 25)}


def test_a_compacted_store_lists_only_texts_of_the_corpus(tmp_path: Path) -> None:
    store = published(tmp_path, [3, 7])
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    frame = rows(0, 5).with_columns(text=pl.lit("t"), split=pl.lit("train")).sort("key")
    frame.select("key", "id", "text", "role", "source", "split").write_parquet(corpus / "part-00000.parquet")
    operations.compact(store, corpus_keys(corpus), str(corpus), tmp_path / "cut")
    assert set(listed(Store.open(tmp_path / "cut"))) == {rows(3, 1)["key"][0].hex()}


@pytest.mark.parametrize("refused", [{"xyz": "no"}, {"a" * 32: 1}, ["a" * 32], {}, "no"])
def test_an_invalid_list_of_refused_texts_is_an_error(tmp_path: Path, refused: object) -> None:
    from dataclasses import replace

    store = published(tmp_path, [3])
    invalid = replace(store.manifest, meta=replace(store.meta, refused=refused))  # type: ignore[arg-type]
    (tmp_path / "store" / "store.json").unlink()
    (tmp_path / "store" / "store.json").write_bytes(invalid.to_bytes())
    assert json.loads((tmp_path / "store" / "store.json").read_bytes())["refused"] == refused
    with pytest.raises(LeafError, match=r"store\.json: invalid: refused"):
        Store.open(tmp_path / "store")
