"""Stores and caches that the first version of the fingerprint names are taken over, if their vectors agree."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from pipeline.base import LeafError, key_array
from pipeline.corpus import scan
from pipeline.encode import encode, migrate, vectors_on_demand
from pipeline.params import EncodeParams, TeacherParams
from pipeline.store import ShardCache, Store, merge
from pipeline.teacher import LocalTeacher
from pipeline.teacher.local_identity import _digest

Made = Callable[..., Store]


@pytest.fixture
def params(tmp_path: Path) -> EncodeParams:
    """Section `encode` with a shard cache of its own."""
    return EncodeParams(shard_rows=64, dtype="float32", pool=str(tmp_path / "pool"))


@pytest.fixture
def teacher(tiny_teacher: Path, params: EncodeParams) -> LocalTeacher:
    """The tiny teacher, not loaded yet."""
    return LocalTeacher(TeacherParams(str(tiny_teacher)), params)


@pytest.fixture
def earlier(tiny_corpus: Path, teacher: LocalTeacher, tmp_path: Path) -> Made:
    """Makes a store of the corpus as the first version would have, its shard cache below `root`."""

    def make(root: Path, wrong: float = 0.0) -> Store:
        (fingerprint,) = teacher.earlier_fingerprints
        old: dict[str, Any] = {name: teacher.meta.teacher[name] for name in ("model", "prompts", "max_length")}
        meta = replace(teacher.meta, fingerprint=fingerprint, teacher=old)
        rows = scan(tiny_corpus).collect()
        vectors = teacher.vectors(rows)
        noise = np.random.default_rng(0).normal(size=vectors.shape).astype(np.float32)
        mixed = vectors + wrong * noise
        mixed /= np.linalg.norm(mixed, axis=1, keepdims=True)
        with ShardCache(root, meta) as cache:
            for start in range(0, len(rows), 64):
                part = rows[start : start + 64].with_columns(tokens=pl.lit(3, pl.Int32))
                cache.write(part, mixed[start : start + 64])
            return cache.publish(tmp_path / "earlier", rows["key"])

    return make


def inodes(store: Path) -> set[int]:
    """Of the files of a store's vectors and rows."""
    return {file.stat().st_ino for file in store.rglob("*") if file.is_file() and file.suffix != ".json"}


def test_a_store_of_the_first_version_is_taken_over_as_it_lies(
    earlier: Made, tiny_corpus: Path, teacher: LocalTeacher, params: EncodeParams, tmp_path: Path
) -> None:
    store = earlier(tmp_path / "elsewhere")
    figures = encode(tiny_corpus, teacher, replace(params, reuse=(str(store.path),), verify_rows=0), tmp_path / "new")
    new = Store.open(tmp_path / "new")
    assert figures["rows_encoded"] == 0
    assert new.meta.fingerprint == teacher.meta.fingerprint != store.meta.fingerprint
    assert new.meta.teacher["fingerprint_version"] == 2
    with pytest.raises(LeafError, match="leaf store migrate"):
        merge(new, store, tmp_path / "both")
    assert inodes(new.path) & inodes(store.path)
    np.testing.assert_array_equal(new.lookup(new.keys()), store.lookup(new.keys()))


def test_a_cache_of_the_first_version_is_taken_over(
    earlier: Made, tiny_corpus: Path, teacher: LocalTeacher, params: EncodeParams, tmp_path: Path
) -> None:
    earlier(Path(params.pool))
    assert encode(tiny_corpus, teacher, params, tmp_path / "new")["rows_encoded"] == 0
    rows = scan(tiny_corpus).collect()
    stored = Store.open(tmp_path / "new").lookup(key_array(rows["key"]))
    np.testing.assert_allclose(stored, teacher.vectors(rows), atol=2e-3)
    encode(tiny_corpus, teacher, replace(params, license="MIT"), tmp_path / "new")
    assert Store.open(tmp_path / "new").meta.license == "MIT"  # what was encoded here is under today's `encode.license`


def test_vectors_that_do_not_agree_are_refused_in_a_store_and_encoded_again_from_a_cache(
    earlier: Made,
    tiny_corpus: Path,
    teacher: LocalTeacher,
    params: EncodeParams,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    store = earlier(Path(params.pool), wrong=0.1)
    with pytest.raises(LeafError, match=r"encode\.reuse: .*do not trust this store"):
        reuse = replace(params, reuse=(str(store.path),), verify_rows=0, pool=str(tmp_path / "empty"))
        encode(tiny_corpus, teacher, reuse, tmp_path / "new")
    figures = encode(tiny_corpus, teacher, params, tmp_path / "new")
    assert figures["rows_encoded"] == store.rows
    assert "cache of an earlier version is not used" in caplog.text


def test_migrating_writes_the_new_fingerprint_beside_the_same_shards(
    earlier: Made, tiny_corpus: Path, teacher: LocalTeacher, tmp_path: Path
) -> None:
    store = earlier(tmp_path / "elsewhere")
    before = inodes(store.path)
    figures = migrate(store, tiny_corpus, teacher, store.path)
    new = Store.open(store.path)
    assert (figures["rows"], new.meta.fingerprint) == (new.rows, teacher.meta.fingerprint)
    assert inodes(new.path) & before
    new.verify()
    with pytest.raises(LeafError, match="nothing to migrate"):
        migrate(new, tiny_corpus, teacher, store.path)


def test_only_the_teachers_own_store_is_migrated(
    earlier: Made, tiny_corpus: Path, tiny_teacher: Path, params: EncodeParams, teacher: LocalTeacher, tmp_path: Path
) -> None:
    store = earlier(tmp_path / "elsewhere", wrong=0.1)
    with pytest.raises(LeafError, match="do not trust this store"):
        migrate(store, tiny_corpus, teacher, tmp_path / "out")
    other = LocalTeacher(TeacherParams(str(tiny_teacher), max_length=12), params)
    with pytest.raises(LeafError, match=r"section `teacher` describes"):
        migrate(store, tiny_corpus, other, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_evaluation_says_how_a_store_of_the_first_version_comes_along(
    earlier: Made, teacher: LocalTeacher, params: EncodeParams, tmp_path: Path
) -> None:
    with pytest.raises(LeafError, match=r"run encode again, .* or `leaf store migrate`"):
        vectors_on_demand(teacher, params, earlier(tmp_path / "elsewhere"))


def test_a_store_that_another_team_made_before_is_read(shared: Path) -> None:
    store = Store.open(shared / "stores" / "mpnet-broad" / "store")
    names = ("files", "modules", "prompts", "max_length", "normalize", "dim")
    assert store.meta.fingerprint == _digest({name: store.meta.teacher[name] for name in names})
    vectors = store.lookup(store.keys()[:100])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-3)
