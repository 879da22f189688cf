"""Shards that workers commit to an object store are whole, and one of each, whatever is killed."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline.base.errors import LeafError
from pipeline.store.shard_bucket import ShardBucket
from pipeline.store.shard_cache import ShardCache
from tests.conftest import ROOT
from tests.store_helpers import META, contents, rows, vectors

REQUESTS = 8  # that a commit makes, at least


def place_in(bucket: Any) -> str:
    return f"s3://{bucket.name}/shards"


def keys_of(bucket: Any) -> set[str]:
    return {entry.key for entry in bucket.objects.all()}


def test_a_fetched_shard_is_the_one_that_the_cache_would_write(bucket: Any, tmp_path: Path) -> None:
    with ShardCache(tmp_path / "here", META) as cache:
        info = cache.write(rows(0, 30), vectors(0, 30))
        expected = contents(cache.path / info.name)
    with ShardCache(tmp_path / "there", META) as cache:
        shards = ShardBucket(place_in(bucket), META, cache.job)
        shards.open()
        assert not shards.holds(info.name)
        assert shards.write(rows(0, 30), vectors(0, 30)) == info and shards.holds(info.name)
        before = keys_of(bucket)
        assert shards.write(rows(0, 30), vectors(500, 30)).files == info.files  # the second one's are dropped
        assert keys_of(bucket) == before
        shards.fetch(info.name, cache.path)
        assert cache.register(info.name) == info
        assert contents(cache.path / info.name) == expected
        assert shards.agree("record.json", b"first") == b"first" == shards.agree("record.json", b"second")


def test_an_earlier_run_adds_nothing(bucket: Any, tmp_path: Path) -> None:
    first, second = (ShardBucket(place_in(bucket), META, job * 32) for job in "ab")
    first.open()
    first.check_current()
    second.open()
    with pytest.raises(LeafError, match="another run uses this place since this work was planned"):
        first.write(rows(0, 10), vectors(0, 10))
    assert not [key for key in keys_of(bucket) if key.endswith(".json") and key.count("/") == 2]


def test_what_is_damaged_on_the_way_is_not_taken(bucket: Any, tmp_path: Path) -> None:
    with ShardCache(tmp_path, META) as cache:
        shards = ShardBucket(place_in(bucket), META, cache.job)
        shards.open()
        name = shards.write(rows(0, 30), vectors(0, 30)).name
        (rows_file,) = (key for key in keys_of(bucket) if key.endswith(".parquet"))
        bucket.Object(rows_file).put(Body=b"other bytes")
        with pytest.raises(LeafError, match=f"shard {name}"):
            shards.fetch(name, cache.path)
        document = next(key for key in keys_of(bucket) if key.endswith(f"{name}.json"))
        bucket.Object(document).put(Body=json.dumps({"attempt": "../..", "shard": {}}).encode())
        with pytest.raises(LeafError, match="document is damaged"):
            shards.fetch(name, cache.path)
        assert not list(cache.path.glob(".tmp-*")) and not cache.shards


def test_two_at_once_killed_at_any_request_leave_one_whole_shard(bucket: Any, tmp_path: Path) -> None:
    with ShardCache(tmp_path, META) as cache:
        shards = ShardBucket(place_in(bucket), META, cache.job)
        shards.open()
        turns = range(1, REQUESTS + 4)
        numbers = [number for turn in turns for pair in ((turn, turn), (turn, 0)) for number in pair]
        command = [sys.executable, "-m", "tests.faults.shard_writers_killed", place_in(bucket), cache.job]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [*command, *map(str, numbers)], env=environment, capture_output=True, text=True, check=False, timeout=300
        )
        assert done.returncode == 0, done.stderr
        # Of two that die at the same request one dies there: whoever gives the shard its name makes all requests.
        killed = {int(line.removeprefix("killed ")) for line in done.stdout.splitlines()}
        assert len(killed) >= REQUESTS and killed == set(range(1, len(killed) + 1))
        for start in range(0, len(numbers), 2):
            info = shards.write(rows(start * 10, 20), vectors(start * 10, 20))  # takes what is there, or makes it
            shards.fetch(info.name, cache.path)
            assert cache.register(info.name).rows == 20
        documents = [key for key in keys_of(bucket) if key.count("/") == 2 and key.endswith(".json")]
        assert len(documents) == len(cache.shards) == len(numbers) // 2
        cache.publish(tmp_path / "store", cache.keys()).verify()
