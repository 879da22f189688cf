"""Shards that other processes commit into a shard cache are registered, checked and published like its own."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pipeline.base.errors import LeafError
from pipeline.store.shard import encoded
from pipeline.store.shard_cache import ShardCache, commit_shard
from pipeline.store.validation import checked_rows
from tests.conftest import ROOT
from tests.store_helpers import META, contents, meta, rows, vectors

COMMIT = """
import sys
from pathlib import Path
from pipeline.store.shard import encoded
from pipeline.store.shard_cache import commit_shard
from pipeline.store.validation import checked_rows
from tests.store_helpers import META, rows, vectors
print(commit_shard(Path(sys.argv[1]), checked_rows(rows(0, 30)), encoded(vectors(0, 30), META), META).name)
"""


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_a_shard_committed_without_the_lock_is_the_one_that_the_cache_would_write(tmp_path: Path, dtype: str) -> None:
    with ShardCache(tmp_path / "written", meta(dtype)) as cache:
        info = cache.write(rows(0, 30), vectors(0, 30))
        written = contents(cache.path / info.name)
    with ShardCache(tmp_path / "committed", meta(dtype)) as cache:
        stored = encoded(vectors(0, 30), meta(dtype))
        assert commit_shard(cache.path, checked_rows(rows(0, 30)), stored, meta(dtype)) == info
        assert contents(cache.path / info.name) == written
        assert not list(cache.path.glob(".tmp-*"))


def test_a_shard_of_another_process_counts_once_it_is_registered(tmp_path: Path) -> None:
    keys = rows(0, 30)["key"]
    with ShardCache(tmp_path / "pool", META) as cache:
        command = [sys.executable, "-c", COMMIT, str(cache.path)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        worker = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        assert not cache.has(keys).any()
        info = cache.register(worker.stdout.strip())
        assert (info.rows, cache.shards) == (30, (info,))
        assert cache.has(keys).all()
        store = cache.publish(tmp_path / "store", cache.keys())
        with pytest.raises(LeafError, match="30 keys already have a vector, first that of id 'id 0'"):
            cache.register(info.name)
    store.verify()
    np.testing.assert_allclose(store.lookup(keys.to_list()), vectors(0, 30), atol=1e-3)
    with ShardCache(tmp_path / "pool", META) as cache:
        assert cache.shards == (info,)


def test_a_shard_that_is_absent_damaged_or_shares_keys_is_not_registered(tmp_path: Path) -> None:
    with ShardCache(tmp_path, META) as cache:
        with pytest.raises(LeafError, match=r"shard\.json: missing or not JSON"):
            cache.register("0" * 16)
        damaged = commit_shard(cache.path, checked_rows(rows(0, 30)), encoded(vectors(0, 30), META), META)
        os.truncate(cache.path / damaged.name / f"rows/{damaged.name}.parquet", 10)
        with pytest.raises(LeafError, match=f"delete {cache.path / damaged.name} and run encode again"):
            cache.register(damaged.name)
        cache.write(rows(30, 10), vectors(30, 10))
        overlapping = commit_shard(cache.path, checked_rows(rows(39, 10)), encoded(vectors(39, 10), META), META)
        with pytest.raises(LeafError, match="1 keys already have a vector"):
            cache.register(overlapping.name)
        assert [info.rows for info in cache.shards] == [10]


def test_of_two_commits_of_one_shard_the_first_stays_and_both_have_it(tmp_path: Path) -> None:
    frame, stored = checked_rows(rows(0, 30)), encoded(vectors(0, 30), META)
    info = commit_shard(tmp_path, frame, stored, META)
    before = contents(tmp_path)
    assert commit_shard(tmp_path, frame, encoded(vectors(500, 30), META), META) == info
    assert contents(tmp_path) == before
    assert [path.name for path in tmp_path.iterdir()] == [info.name]
