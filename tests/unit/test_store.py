"""A store returns the vectors written to its shard cache, for any sizes, and the same input gives the same bytes."""

import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.base.errors import LeafError
from pipeline.base.keys import contains, key_array
from pipeline.store.shard_cache import ShardCache
from pipeline.store.source import VectorSource
from pipeline.store.store import Store
from tests.store_helpers import DIM, META, contents, meta, publish, rows, vectors

TOLERANCE = {"float16": 1e-3, "float32": 0.0, "int8": 5e-3}


@pytest.mark.parametrize("dtype", ["float16", "float32", "int8"])
def test_a_published_store_gives_back_rows_and_vectors(tmp_path: Path, dtype: str) -> None:
    publish(tmp_path, (2500, 3), dtype)
    store = Store.open(tmp_path / "store")
    store.verify()
    assert store.rows == 2503
    assert store.meta == meta(dtype)
    large = next(i for i, info in enumerate(store.shards) if info.rows == 2500)
    read = store.read(large)
    assert read.dtype == (np.float16 if dtype == "float16" else np.float32)
    np.testing.assert_allclose(read, vectors(0, 2500), atol=TOLERANCE[dtype])
    expected = rows(0, 2500).with_columns(pl.col("tokens").cast(pl.Int32))
    assert store.shard_rows_frame(large).equals(expected)


def test_ranges_and_chunks_are_slices_of_the_whole_shard(tmp_path: Path) -> None:
    store = publish(tmp_path, (2500,))
    whole = store.read(0)
    for start, stop in [(0, 1), (1023, 1025), (2499, 2500), (5, 5), (2500, 2600), (0, None), (1024, 2048)]:
        np.testing.assert_array_equal(store.read(0, start, stop), whole[start:stop])
    parts = list(store.chunks(0, 1024))
    assert [start for start, _ in parts] == [0, 1024, 2048]
    np.testing.assert_array_equal(np.concatenate([part for _, part in parts]), whole)


def test_lookup_answers_in_the_order_of_the_keys_and_repeats_repeated_keys(tmp_path: Path) -> None:
    store = publish(tmp_path, (2500, 700))
    numbers = [*np.random.default_rng(0).permutation(3200).tolist(), 7, 7]
    every = rows(0, 3200)["key"].to_list()
    looked_up = store.lookup([every[number] for number in numbers])
    assert looked_up.dtype == np.float32
    np.testing.assert_allclose(looked_up, vectors(0, 3200)[numbers], atol=1e-3)
    assert store.lookup([]).shape == (0, DIM)


def test_lookup_of_unknown_keys_says_how_many(tmp_path: Path) -> None:
    store = publish(tmp_path, (10,))
    unknown = rows(100, 3)["key"].to_list()
    with pytest.raises(LeafError, match="3 of 13 keys are not in the store"):
        store.lookup([*rows(0, 10)["key"].to_list(), *unknown])
    assert store.locate(unknown).tolist() == [-1, -1, -1]
    with pytest.raises(LeafError, match="a key must be 16 bytes"):
        store.lookup([b"short"])


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    for dtype in ("float16", "int8"):
        publish(tmp_path / f"first-{dtype}", dtype=dtype)
        publish(tmp_path / f"second-{dtype}", dtype=dtype)
        assert contents(tmp_path / f"first-{dtype}/store") == contents(tmp_path / f"second-{dtype}/store")


def test_publishing_again_keeps_the_files_and_growing_only_adds(tmp_path: Path) -> None:
    store = publish(tmp_path, (30, 20))
    before = contents(store.path)
    inodes = {path: path.stat().st_ino for path in store.path.rglob("*/c/0/0")}
    with ShardCache(tmp_path / "pool", META) as cache:
        cache.publish(store.path, cache.keys())
        assert contents(store.path) == before
        assert {path: path.stat().st_ino for path in store.path.rglob("*/c/0/0")} == inodes
        cache.write(rows(50, 5), vectors(50, 5))
        cache.publish(store.path, cache.keys())
    after = contents(store.path)
    written_anew = ("store.json", "README.md")
    kept = {name: data for name, data in before.items() if name not in written_anew}
    assert {name: after[name] for name in kept} == kept
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".tmp-")] == []


def test_only_shards_with_a_wanted_key_are_published(tmp_path: Path) -> None:
    with ShardCache(tmp_path / "pool", META) as cache:
        cache.write(rows(0, 10), vectors(0, 10))
        info = cache.write(rows(10, 10), vectors(10, 10))
        store = cache.publish(tmp_path / "store", rows(12, 1)["key"].to_list())
        assert [shard.files for shard in store.shards] == [info.files]
        with pytest.raises(LeafError, match="1 of 2 wanted keys have no vector"):
            cache.publish(tmp_path / "store", rows(19, 2)["key"].to_list())
        assert [shard.files for shard in Store.open(tmp_path / "store").shards] == [info.files]
        assert cache.publish(tmp_path / "empty", []).rows == 0
    Store.open(tmp_path / "empty").verify()


def test_where_hard_links_are_refused_the_store_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    store = publish(tmp_path)
    store.verify()
    assert {path.stat().st_nlink for path in store.path.rglob("*.parquet")} == {1}


def test_a_shard_cache_remembers_its_keys(tmp_path: Path) -> None:
    with ShardCache(tmp_path, META) as cache:
        cache.write(rows(0, 10), vectors(0, 10))
    with ShardCache(tmp_path, META) as cache:
        assert cache.keys().tolist() == sorted(rows(0, 10)["key"].to_list())
        assert cache.has(rows(8, 4)["key"].to_list()).tolist() == [True, True, False, False]
        assert [info.rows for info in cache.shards] == [10]


def test_a_shard_cache_knows_its_keys_after_every_shard_whatever_their_sizes(tmp_path: Path) -> None:
    known: list[bytes] = []
    with ShardCache(tmp_path, META) as cache:
        for first, size in ((0, 3), (10, 3), (20, 1), (30, 9), (40, 2), (50, 1)):
            assert not cache.has(rows(first, size)["key"]).any()
            cache.write(rows(first, size), vectors(first, size))
            known += rows(first, size)["key"].to_list()
            assert cache.has(known).all()
        assert cache.keys().tolist() == sorted(known)
        assert cache.has(known).all()


def test_a_column_of_keys_is_taken_as_it_is(tmp_path: Path) -> None:
    column = rows(0, 40)["key"]
    for part in (
        column,
        column[3:20],
        column.filter(pl.Series([True, False] * 20)),
        pl.concat([column[:2], column[9:]]),
    ):
        assert key_array(part).tolist() == part.to_list()
    for wrong in ([b"short"], [None], [None, b"x" * 16]):
        with pytest.raises(LeafError, match="a key must be 16 bytes"):
            key_array(pl.Series(wrong, dtype=pl.Binary))


def test_a_shard_cache_serves_one_fingerprint_and_dtype(tmp_path: Path) -> None:
    publish(tmp_path)
    with (
        ShardCache(tmp_path / "pool", meta("float32")) as cache,
        ShardCache(tmp_path / "pool", meta(fingerprint="cd" * 32)) as other,
    ):
        assert not len(cache.keys())
        assert not len(other.keys())
    with pytest.raises(LeafError, match="another teacher"):
        ShardCache(tmp_path / "pool", meta(fingerprint="ab" * 8 + "cd" * 24))


def test_bad_vectors_are_refused_with_the_id_and_leave_nothing(tmp_path: Path) -> None:
    with ShardCache(tmp_path, META) as cache:
        before = contents(tmp_path)
        for value, word in [
            (np.nan, "NaN"),
            (np.inf, "NaN or infinite"),
            (1e6, "infinite"),
            (0.0, "zero"),
            (1e-9, "zero"),
        ]:
            bad = vectors(0, 10)
            bad[7] = value
            with pytest.raises(LeafError, match=f"{word}.*'id 7'"):
                cache.write(rows(0, 10), bad)
        with pytest.raises(LeafError, match=r"shape \(10, 9\)"):
            cache.write(rows(0, 10), np.ones((10, 9), np.float32))
        with pytest.raises(LeafError, match="float64"):
            cache.write(rows(0, 10), np.ones((10, DIM)))
        assert contents(tmp_path) == before


def test_bad_rows_are_refused(tmp_path: Path) -> None:
    with ShardCache(tmp_path, META) as cache:
        good = rows(0, 4)
        cases = {
            "missing: .'id'": good.drop("id"),
            "at least one row": good.head(0),
            "nulls": good.with_columns(id=pl.lit(None, pl.String)),
            "share a key": pl.concat([good.head(2), good.head(2)]),
            "16 bytes": good.head(1).with_columns(key=pl.lit(b"short")),
            "other types": good.with_columns(tokens=pl.lit("many")),
        }
        for message, frame in cases.items():
            with pytest.raises(LeafError, match=message):
                cache.write(frame, vectors(0, len(frame)) if len(frame) else np.empty((0, DIM), np.float32))
        cache.write(good, vectors(0, 4))
        with pytest.raises(LeafError, match="1 keys already have a vector, first that of id 'id 3'"):
            cache.write(rows(3, 4), vectors(3, 4))


def test_publish_replaces_nothing_but_a_store(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("years of work")
    with ShardCache(tmp_path / "pool", META) as cache:
        cache.write(rows(0, 3), vectors(0, 3))
        with pytest.raises(LeafError, match="holds no store of this program"):
            cache.publish(out, cache.keys())
        (tmp_path / "link").symlink_to(tmp_path)
        with pytest.raises(LeafError, match="is a link and no directory"):
            cache.publish(tmp_path / "link", cache.keys())
    assert contents(out) == {"thesis.txt": b"years of work"}


def test_impossible_meta_are_refused(tmp_path: Path) -> None:
    for bad in (meta(dim=0), meta(dim=10**9), meta(dtype="float8"), meta(fingerprint="../" * 20)):
        with pytest.raises(LeafError):
            ShardCache(tmp_path, bad)


def test_links_made_by_dvc_are_read_and_never_written(tmp_path: Path) -> None:
    store = publish(tmp_path)
    dvc_cache = tmp_path / "dvc-cache"
    dvc_cache.mkdir()
    for number, path in enumerate(sorted(p for p in store.path.rglob("*") if p.is_file())):
        moved = dvc_cache / str(number)
        path.rename(moved)
        moved.chmod(0o444)
        path.symlink_to(moved)
    Store.open(store.path).verify()
    cached = contents(dvc_cache)
    with ShardCache(tmp_path / "pool", META) as cache:
        cache.publish(store.path, cache.keys()).verify()
    assert contents(dvc_cache) == cached


@settings(max_examples=8, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 2100), min_size=1, max_size=3),
    dtype=st.sampled_from(["float16", "float32", "int8"]),
    dim=st.integers(1, 5),
    seed=st.integers(0, 2**32 - 1),
)
def test_whatever_is_written_is_read_back(sizes: list[int], dtype: str, dim: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    total = sum(sizes)
    keys = key_array([generator.bytes(16) for _ in range(total)])
    numbers = generator.uniform(0.1, 1, (total, dim)).astype(np.float32)
    frame = pl.DataFrame(
        {"key": keys.tolist(), "role": "query", "id": "é", "source": "", "tokens": 1},
        schema_overrides={"key": pl.Binary},
    )
    directory = Path(tempfile.mkdtemp())
    try:
        with ShardCache(directory / "pool", meta(dtype, dim)) as cache:
            for start, size in zip(np.cumsum([0, *sizes]).tolist(), sizes, strict=False):
                cache.write(frame[start : start + size], numbers[start : start + size])
            store = cache.publish(directory / "store", keys)
        store.verify()
        queries = generator.permutation(total)[: generator.integers(1, total + 1)]
        tolerance = {"float16": 5e-4, "float32": 0, "int8": 4e-3}[dtype]
        np.testing.assert_allclose(store.lookup(keys[queries]), numbers[queries], atol=tolerance)
        i = int(generator.integers(len(store.shards)))
        start, stop = sorted(generator.integers(0, store.shards[i].rows + 1, 2).tolist())
        np.testing.assert_array_equal(store.read(i, start, stop), store.read(i)[start:stop])
    finally:
        shutil.rmtree(directory)


@settings(max_examples=15, deadline=None)
@given(
    st.lists(st.binary(min_size=16, max_size=16), unique=True, min_size=1, max_size=50),
    st.binary(min_size=16, max_size=16),
)
def test_keys_are_compared_bytewise_whatever_their_bytes(keys: list[bytes], other: bytes) -> None:
    directory = Path(tempfile.mkdtemp())
    try:
        with ShardCache(directory, meta("float32", 1)) as cache:
            frame = pl.DataFrame(
                {"key": keys, "role": "query", "id": "x", "source": "s", "tokens": 1},
                schema_overrides={"key": pl.Binary},
            )
            cache.write(frame, np.arange(1, len(keys) + 1, dtype=np.float32)[:, None])
            assert cache.keys().tolist() == sorted(keys)
            assert cache.has([other]).tolist() == [other in keys]
            store = cache.publish(directory / "store", keys)
        assert store.lookup(keys)[:, 0].tolist() == list(range(1, len(keys) + 1))
        assert (store.locate([other])[0] >= 0) == (other in keys)
    finally:
        shutil.rmtree(directory)


@given(st.lists(st.binary(min_size=16, max_size=16), unique=True, max_size=30), st.data())
def test_keys_that_are_there_are_told_from_those_that_are_not(keys: list[bytes], data: st.DataObject) -> None:
    ordered = key_array(sorted(keys))
    start = data.draw(st.integers(0, len(keys)))
    others = data.draw(st.lists(st.binary(min_size=16, max_size=16), max_size=5))
    for queries in (ordered[start:].tolist(), [*ordered[start:].tolist(), *others], [*others, *keys]):
        assert contains(ordered, key_array(queries)).tolist() == [query in keys for query in queries]


def test_a_store_is_a_vector_source(tmp_path: Path) -> None:
    source: VectorSource = publish(tmp_path, (40, 30))
    assert sorted(source.parts) == [30, 40]
    assert source.name == str(tmp_path / "store")
    keys = key_array(rows(0, 70)["key"])
    first = source.parts[0]
    row = int(source.locate(keys[:1])[0])
    part, within = (0, row) if row < first else (1, row - first)
    assert np.array_equal(source.read(part, within, within + 1)[0].astype(np.float32), source.lookup(keys[:1])[0])


def test_the_digest_covers_shards_their_order_and_refused_texts_and_stays_what_it_was(tmp_path: Path) -> None:
    store = publish(tmp_path / "a", (40, 30))
    # The directory of a fit under way is named by this digest: another one would lose its checkpoints.
    fields = ("name", "rows", "bytes", "files")
    formula = json.dumps([[{name: getattr(info, name) for name in fields} for info in store.shards], []]).encode()
    assert store.digest() == hashlib.sha256(formula).hexdigest()
    assert store.digest() == publish(tmp_path / "b", (40, 30)).digest()
    assert store.digest() != publish(tmp_path / "c", (40,)).digest()
    with ShardCache(tmp_path / "a/pool", META) as cache:
        cache.refused.add(rows(99, 1)["key"][0], "id 99", "too long")
        refusing = cache.publish(tmp_path / "refusing", rows(0, 70)["key"].to_list() + rows(99, 1)["key"].to_list())
    assert refusing.shards == store.shards
    assert Store.open(refusing.path).digest() != store.digest()
