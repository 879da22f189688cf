"""Every file of a store, damaged in every way: `verify` finds it, and `fit` refuses before it trains."""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import combinations
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from pipeline.base.errors import LeafError
from pipeline.encode.encoding import encode
from pipeline.params.sections import EncodeParams, TeacherParams
from pipeline.store.manifest import Manifest
from pipeline.store.shard_cache import ShardCache
from pipeline.store.store import Store
from pipeline.teacher.teacher import open_teacher
from tests.conftest import ROOT
from tests.store_helpers import META, contents, publish, rows, vectors

FLIPS = 500


def flipped(raw: bytes, position: int, mask: int) -> bytes:
    changed = bytearray(raw)
    changed[position] ^= mask
    return bytes(changed)


WAYS: dict[str, Callable[[bytes], bytes | None]] = {
    "first bit flipped": lambda raw: flipped(raw, 0, 1),
    "middle bit flipped": lambda raw: flipped(raw, len(raw) // 2, 0x80),
    "last bit flipped": lambda raw: flipped(raw, len(raw) - 1, 1),
    "cut by a byte": lambda raw: raw[:-1],
    "cut in half": lambda raw: raw[: len(raw) // 2],
    "emptied": lambda raw: b"",
    "a byte longer": lambda raw: raw + b"\0",
    "zeroed": lambda raw: b"\0" * len(raw),
    "missing": lambda raw: None,
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return publish(tmp_path_factory.mktemp("whole"), (1100, 40, 40)).path


@pytest.fixture
def store(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "store"))


def refusal(path: Path) -> str | None:
    """The message with which a full check refuses the store; None if it does not."""
    try:
        Store.open(path).verify()
    except LeafError as error:
        return str(error)
    return None


def shard_of(file: str, store: Store) -> str | None:
    return next((info.name for info in store.shards if file in info.files), None)


def undetected(path: Path) -> Iterator[str]:
    """Damage every file in every way; yields the cases not refused, or refused without naming shard and repair."""
    opened, files = Store.open(path), contents(path)
    for file, raw in files.items():
        for way, change in WAYS.items():
            changed = change(raw)
            (path / file).unlink()
            if changed is not None:
                (path / file).write_bytes(changed)
            message = refusal(path)
            name = shard_of(file, opened)
            if message is None or (
                file not in message.replace(str(path), "") and (name is None or name not in message)
            ):
                yield f"{file}: {way}: {message}"
            elif name and "leaf store repair" not in message:
                yield f"{file}: {way}: no repair named: {message}"
            (path / file).write_bytes(raw)
    assert refusal(path) is None


def test_every_file_damaged_in_every_way_is_found_and_named(store: Path) -> None:
    assert list(undetected(store)) == []


def test_every_pair_of_files_swapped_is_found(store: Path) -> None:
    kinds = ["rows/*.parquet", "vectors.zarr/*/c/0/0", "vectors.zarr/*/zarr.json"]
    pairs = 0
    for pattern in kinds:
        for first, second in combinations(sorted(store.glob(pattern)), 2):
            if first.read_bytes() == second.read_bytes():
                continue  # metadata of two arrays of one shape are the same document
            raw = first.read_bytes(), second.read_bytes()
            first.write_bytes(raw[1])
            second.write_bytes(raw[0])
            assert refusal(store) is not None
            first.write_bytes(raw[0])
            second.write_bytes(raw[1])
            pairs += 1
    assert pairs >= 8


def flips(path: Path, count: int, seed: int) -> tuple[int, int]:
    """Change single bytes at random places; returns how many, and how many of them went undetected.

    Every second file is drawn in proportion to its size, the others with equal probability.
    """
    files = {file: raw for file, raw in contents(path).items() if raw}
    names, generator = sorted(files), np.random.default_rng(seed)
    sizes = np.array([len(files[name]) for name in names], dtype=float)
    missed = 0
    for number in range(count):
        weights = sizes / sizes.sum() if number % 2 else np.full(len(names), 1 / len(names))
        file = names[generator.choice(len(names), p=weights)]
        (path / file).write_bytes(
            flipped(files[file], int(generator.integers(len(files[file]))), int(generator.integers(1, 256)))
        )
        missed += refusal(path) is None
        (path / file).write_bytes(files[file])
    return count, missed


def test_five_hundred_random_bytes_changed_are_all_found(store: Path) -> None:
    assert flips(store, FLIPS, seed=0) == (FLIPS, 0)


def test_parquet_that_unpacks_to_far_more_than_its_rows_is_refused(tmp_path: Path) -> None:
    store = publish(tmp_path, (40,)).path
    info = Store.open(store).shards[0]
    file = store / f"rows/{info.name}.parquet"
    frame = pl.read_parquet(file).with_columns(id=pl.Series(["x" * 2_000_000 + str(i) for i in range(40)]))
    frame.write_parquet(file, compression="zstd", compression_level=19)
    assert file.stat().st_size < 100_000
    from benchmarks.hostile import resign

    resign(store)
    with pytest.raises(LeafError, match=f"shard {info.name}: unpacks to .* refused"):
        Store.open(store).keys()


def test_fit_refuses_a_damaged_store_before_it_trains_and_names_shard_and_repair(
    tmp_path: Path,
    tiny_corpus: Path,
    tiny_teacher: Path,
    write_params: Callable[..., Path],
    stage: Callable[..., "subprocess.CompletedProcess[str]"],
) -> None:
    params = EncodeParams(shard_rows=64, pool=str(tmp_path / "pool"))
    encode(tiny_corpus, open_teacher(TeacherParams(str(tiny_teacher)), params), params, tmp_path / "store")
    name = Store.open(tmp_path / "store").shards[-1].name
    file = tmp_path / f"store/vectors.zarr/{name}/c/0/0"
    raw = flipped(file.read_bytes(), 77, 1)
    file.unlink()
    file.write_bytes(raw)
    write_params()
    result = stage("fit", "--corpus", str(tiny_corpus), "--embeddings", str(tmp_path / "store"))
    assert result.returncode == 1
    assert name in result.stderr
    assert "leaf store repair" in result.stderr
    assert not (tmp_path / "models").exists()
    assert "step" not in result.stderr


WRITER = """
import sys
from pathlib import Path
from tests.store_helpers import META, ShardCache, rows, vectors
root, number = Path(sys.argv[1]), int(sys.argv[2])
done = 0
while done < 6:
    try:
        with ShardCache(root / "pool", META) as cache:
            first = 1000 * number + 20 * done
            cache.write(rows(first, 20), vectors(first, 20))
            cache.publish(root / "store", cache.keys())
        done += 1
    except Exception as error:
        if "another run is under way" not in str(error):
            raise
"""
READER = """
import json, sys, time
from pathlib import Path
from pipeline.base.errors import LeafError
from pipeline.store.store import Store
path, stop, seen = Path(sys.argv[1]) / "store", Path(sys.argv[1]) / "stop", []
while not stop.exists() or not seen:
    try:
        store = Store.open(path)
        store.verify()
        seen.append(store.rows)
    except LeafError as error:
        if "was published anew" not in str(error):
            raise
print(json.dumps(seen))
"""


def test_two_writers_and_two_readers_at_once_lose_and_corrupt_nothing(tmp_path: Path) -> None:
    with ShardCache(tmp_path / "pool", META) as cache:
        cache.write(rows(0, 20), vectors(0, 20))
        cache.publish(tmp_path / "store", cache.keys())

    def start(script: str, *arguments: str) -> "subprocess.Popen[str]":
        command = [sys.executable, "-c", script, str(tmp_path), *arguments]
        return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    readers, writers = [start(READER) for _ in range(2)], [start(WRITER, str(number)) for number in (1, 2)]
    for writer in writers:
        _, errors = writer.communicate(timeout=600)
        assert writer.returncode == 0, errors
    time.sleep(0.2)
    (tmp_path / "stop").touch()
    for reader in readers:
        output, errors = reader.communicate(timeout=600)
        assert reader.returncode == 0, errors
        seen = json.loads(output)
        assert seen == sorted(seen)
    final = Store.open(tmp_path / "store")
    final.verify()
    written = [rows(0, 20), *(rows(1000 * number + 20 * part, 20) for number in (1, 2) for part in range(6))]
    expected = {key for frame in written for key in frame["key"]}
    assert set(final.keys().tolist()) == expected
    assert not list(tmp_path.glob(".tmp-*"))


def test_a_store_published_anew_while_it_is_checked_is_said_to_be_so(tmp_path: Path) -> None:
    old = publish(tmp_path, (20,))
    with ShardCache(tmp_path / "pool", META) as cache:
        cache.write(rows(20, 20), vectors(20, 20))
        cache.publish(tmp_path / "store", cache.keys())
    with pytest.raises(LeafError, match="was published anew"):
        old.verify()
    assert len(Manifest.read(old.path / "store.json").shards) == 2


def main(argv: list[str]) -> None:
    """Figures for docs/reliability.md: python -m tests.faults.test_trust [FLIPS [SEED]]."""
    import tempfile

    count, seed = int(argv[0]) if argv else FLIPS, int(argv[1]) if len(argv) > 1 else 0
    with tempfile.TemporaryDirectory() as directory:
        store = publish(Path(directory), (1100, 40, 40)).path
        ways = len(WAYS) * len(contents(store))
        sys.stdout.write(f"damage: {ways} cases, {len(list(undetected(store)))} undetected\n")
        done, missed = flips(store, count, seed)
        sys.stdout.write(f"random bytes changed: {done}, {missed} undetected\n")


if __name__ == "__main__":
    main(sys.argv[1:])
