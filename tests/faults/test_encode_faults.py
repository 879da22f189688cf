"""An encode process killed, starved of disk space or started twice loses nothing and publishes nothing half-done."""

import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from tests.conftest import ROOT
from tests.forked import Start

Completed = subprocess.CompletedProcess[str]


ENCODE = ("encode", "--corpus", "corpus", "--out", "out/store", "--params", "params.yaml")


def start_on_full_disk(folder: Path) -> "subprocess.Popen[str]":
    """Start the stage where no file may grow beyond 20 kB, which ends as a full disk does."""

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    return subprocess.Popen(
        [sys.executable, "-m", f"stages.{ENCODE[0]}", *ENCODE[1:]],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=limit,  # noqa: PLW1509 (no threads here yet)
    )


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_a_run_killed_again_and_again_publishes_the_bytes_of_one_never_killed(
    tiny_corpus: Path, write_params: Callable[..., Path], tmp_path: Path, start: Start
) -> None:
    write_params(encode={"pool": "pool-a", "shard_rows": 32})
    assert start(*ENCODE).wait(600) == 0
    undisturbed = contents(tmp_path / "out" / "store")

    (tmp_path / "out").rename(tmp_path / "first")
    write_params(encode={"pool": "pool-b", "shard_rows": 32})
    generator = random.Random(3)
    kills = 0
    for _ in range(5):
        process = start(*ENCODE)
        cache = tmp_path / "pool-b"
        shards = len(list(cache.glob("*/*/shard.json")))
        # Killed at a random moment after its first shard: while it encodes, writes another shard, or publishes.
        deadline = time.monotonic() + 600
        while (
            process.poll() is None and len(list(cache.glob("*/*/shard.json"))) <= shards and time.monotonic() < deadline
        ):
            time.sleep(0.002)
        time.sleep(generator.random() * 0.05)
        if process.poll() is not None:
            break
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills += 1
        assert not (tmp_path / "out" / "store").exists() or contents(tmp_path / "out" / "store") == undisturbed
    assert kills > 0
    assert start(*ENCODE).wait(600) == 0
    assert contents(tmp_path / "out" / "store") == undisturbed
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["store"]


def test_a_second_run_is_told_that_one_is_under_way(
    tiny_corpus: Path, write_params: Callable[..., Path], tmp_path: Path, tiny_teacher: Path, start: Start
) -> None:
    from pipeline.params.sections import TeacherParams
    from pipeline.store.shard_cache import ShardCache
    from pipeline.teacher.local_identity import describe

    write_params()
    with ShardCache(tmp_path / "pool", describe(TeacherParams(str(tiny_teacher)), "float16")):
        second = start(*ENCODE)
        _, errors = second.communicate(timeout=600)
    assert second.returncode == 1
    assert f"another run is under way (process {os.getpid()})" in errors
    assert "Traceback" not in errors


def test_a_full_disk_is_one_sentence_and_the_finished_shards_stay(
    tiny_corpus: Path, write_params: Callable[..., Path], tmp_path: Path, start: Start
) -> None:
    write_params(encode={"shard_rows": 64})
    process = start_on_full_disk(tmp_path)
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 1
    assert "no space left" in errors and "Traceback" not in errors
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())
    assert not list((tmp_path / "pool").rglob(".tmp-*"))
    assert start(*ENCODE).wait(600) == 0


@pytest.mark.parametrize("damage", ["columns", "empty", "missing", "truncated"])
def test_a_bad_corpus_is_named(
    damage: str, tiny_corpus: Path, write_params: Callable[..., Path], stage: Callable[..., Completed]
) -> None:
    write_params()
    part = tiny_corpus / "part-00000.parquet"
    if damage == "columns":
        pl.read_parquet(part).drop("role").write_parquet(part)
    elif damage == "empty":
        pl.read_parquet(part).clear().write_parquet(part)
    elif damage == "missing":
        part.unlink()
    else:
        part.write_bytes(part.read_bytes()[:-200])
    result = stage("encode", "--corpus", "corpus", "--out", "store")
    assert result.returncode == 1, result.stderr
    assert "corpus" in result.stderr and "Traceback" not in result.stderr
    assert not (tiny_corpus.parent / "store").exists()
