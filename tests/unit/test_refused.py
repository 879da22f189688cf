"""A store lists the texts that have no vector on purpose, also when merged or cut; no other text may lack one."""

import json
from pathlib import Path

import polars as pl
import pytest

from pipeline.base.errors import LeafError
from pipeline.base.keys import key_array
from pipeline.corpus.files import corpus_keys
from pipeline.fit.loader import join
from pipeline.fit.token_cache import Tokens
from pipeline.store import operations as manage
from pipeline.store.shard_cache import ShardCache
from pipeline.store.store import Store
from tests.store_helpers import meta, rows, vectors


def published(directory: Path, refused: list[int], first: int = 0, count: int = 20) -> Store:
    """Texts `first` to `first + count`, without those refused."""
    every = rows(first, count)
    kept = [row for row in range(count) if first + row not in refused]
    with ShardCache(directory / "pool", meta()) as pool:
        for number in refused:
            pool.refused.add(rows(number, 1)["key"][0], f"id {number}", f"reason {number}")
        pool.write(every[kept], vectors(first, count)[kept])
        return pool.publish(directory / "store", every["key"].to_list())


def listed(store: Store) -> dict[str, str]:
    return store.meta.refused or {}


def test_refused_texts_are_listed_with_their_reason_and_verified(tmp_path: Path) -> None:
    store = published(tmp_path, [3, 7])
    store.verify()
    expected = {rows(number, 1)["key"][0].hex(): f"reason {number}" for number in (3, 7)}
    assert listed(Store.open(tmp_path / "store")) == expected
    assert store.rows == 18 and manage.info(store)["refused"] == 2
    left = store.answered(rows(0, 20).lazy()).collect()
    assert left["id"].to_list() == [f"id {n}" for n in range(20) if n not in (3, 7)]


def test_a_text_that_is_missing_for_no_reason_is_an_error(tmp_path: Path) -> None:
    published(tmp_path, [3])
    with (
        ShardCache(tmp_path / "pool", meta()) as pool,
        pytest.raises(LeafError, match="1 of 21 wanted keys have no vector"),
    ):
        pool.publish(tmp_path / "store", rows(0, 21)["key"].to_list())


def test_the_loader_leaves_out_what_is_listed_and_nothing_else(tmp_path: Path) -> None:
    import numpy as np

    store = published(tmp_path, [3, 7])

    def tokens(count: int) -> Tokens:
        keys = np.sort(key_array(rows(0, count)["key"]))
        return Tokens(np.zeros(count, np.uint16), np.arange(count + 1), keys, np.ones(count, bool))

    corpus = tokens(20)
    found = join(corpus, store)
    assert len(found) == 18
    refused = set(store.refused.tolist())
    assert not refused & set(corpus.keys[found.text].tolist())
    with pytest.raises(LeafError, match="lacks the vectors of 1 of the corpus's 21 texts"):
        join(tokens(21), store)


def test_a_merged_store_lists_what_neither_has(tmp_path: Path) -> None:
    one = published(tmp_path / "one", [3, 7])
    two = published(tmp_path / "two", [3, 25], first=0, count=30)  # this server took text 7
    manage.merge(one, two, tmp_path / "both")
    both = Store.open(tmp_path / "both")
    both.verify()
    assert set(listed(both)) == {rows(number, 1)["key"][0].hex() for number in (3, 25)}


def test_a_store_cut_to_a_corpus_lists_only_texts_of_that(tmp_path: Path) -> None:
    store = published(tmp_path, [3, 7])
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    frame = rows(0, 5).with_columns(text=pl.lit("t"), split=pl.lit("train")).sort("key")
    frame.select("key", "id", "text", "role", "source", "split").write_parquet(corpus / "part-00000.parquet")
    manage.compact(store, corpus_keys(corpus), str(corpus), tmp_path / "cut")
    assert set(listed(Store.open(tmp_path / "cut"))) == {rows(3, 1)["key"][0].hex()}


@pytest.mark.parametrize("refused", [{"xyz": "no"}, {"a" * 32: 1}, ["a" * 32], {}, "no"])
def test_a_list_of_refused_texts_that_is_none_is_refused(tmp_path: Path, refused: object) -> None:
    from dataclasses import replace

    store = published(tmp_path, [3])
    found = replace(store.manifest, meta=replace(store.meta, refused=refused))  # type: ignore[arg-type]
    (tmp_path / "store" / "store.json").unlink()
    (tmp_path / "store" / "store.json").write_bytes(found.to_bytes())
    assert json.loads((tmp_path / "store" / "store.json").read_bytes())["refused"] == refused
    with pytest.raises(LeafError, match=r"store\.json: invalid: refused"):
        Store.open(tmp_path / "store")
