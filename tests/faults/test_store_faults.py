"""Killed writers, damaged and hostile stores, full disks: each ends in a whole shard cache and a clear message."""

import hashlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.base.errors import LeafError
from pipeline.base.files import sha256
from pipeline.store import shard
from pipeline.store.chunks import crc32c
from pipeline.store.manifest import GROUP, Manifest
from pipeline.store.shard_cache import ShardCache
from pipeline.store.store import Store
from tests.store_helpers import DIM, META, contents, publish, rows, vectors

ROOT = Path(__file__).parents[2]
SHARDS = 6


def writer(directory: Path) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "tests.faults.store_writer", str(directory), str(SHARDS)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(directory: Path) -> None:
    process = writer(directory)
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("undisturbed")
    finish(directory)
    return directory


def test_a_writer_killed_at_any_moment_loses_only_the_shard_in_hand(tmp_path: Path, undisturbed: Path) -> None:
    generator = np.random.default_rng(os.getpid())
    for _ in range(4):
        process = writer(tmp_path)
        assert process.stdout is not None
        finished = [int(process.stdout.readline() or SHARDS - 1) for _ in range(generator.integers(1, SHARDS + 1))]
        time.sleep(float(generator.uniform(0, 0.05)))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        with ShardCache(tmp_path / "pool", META) as cache:
            assert len(cache.shards) >= finished[-1] + 1
            assert not list(cache.path.glob(".tmp-*"))
            assert all(info.rows == 300 for info in cache.shards)
        if (tmp_path / "store").exists():
            Store.open(tmp_path / "store").verify()
    finish(tmp_path)
    assert contents(tmp_path / "store") == contents(undisturbed / "store")
    assert not list(tmp_path.glob(".tmp-*"))
    Store.open(tmp_path / "store").verify()


def killed(*runs: tuple[int, Path]) -> str:
    """Run tests/faults/store_killed.py on each (step, directory)."""
    arguments = [str(part) for run in runs for part in run]
    command = [sys.executable, "-m", "tests.faults.store_killed", *arguments]
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout


def test_killed_at_any_change_of_the_file_system_the_store_is_old_new_or_absent(tmp_path: Path) -> None:
    reference = tmp_path / "reference"
    publish(reference, (30, 20))
    old = contents(reference / "store")
    shutil.copytree(reference, tmp_path / "whole")
    changes = int(killed((0, tmp_path / "whole")))
    new = contents(tmp_path / "whole/store")
    assert new != old
    runs = [(step, Path(shutil.copytree(reference, tmp_path / str(step)))) for step in range(1, changes, 3)]
    killed(*runs)
    outcomes = set()
    for _, directory in runs:
        left = contents(directory / "store") if (directory / "store").exists() else None
        assert left in (old, new, None)
        outcomes.add("old" if left == old else "new" if left == new else "absent")
    assert outcomes >= {"old", "new"}
    killed(*((0, directory) for _, directory in runs))
    for _, directory in runs:
        assert contents(directory / "store") == new
        assert not list(directory.rglob(".tmp-*"))


def test_a_second_writer_is_refused_with_the_process_that_holds_the_lock(tmp_path: Path) -> None:
    command = "import sys; from tests.store_helpers import *; ShardCache(Path(sys.argv[1]), META)"
    with ShardCache(tmp_path, META) as cache:
        second = subprocess.run(
            [sys.executable, "-c", command, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert second.returncode != 0
        assert f"another run is under way (process {os.getpid()})" in second.stderr
        cache.write(rows(0, 3), vectors(0, 3))
    assert subprocess.run([sys.executable, "-c", command, str(tmp_path)], cwd=ROOT, check=False).returncode == 0


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("whole")
    publish(directory, (1500, 40))
    return directory / "store"


@pytest.fixture
def store(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "store"))


def refusal(path: Path) -> str:
    """The message with which a full check refuses the store."""
    with pytest.raises(LeafError) as caught:
        Store.open(path).verify()
    return str(caught.value)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_a_flipped_byte_anywhere_is_found(whole: Path, data: st.DataObject) -> None:
    files = sorted(contents(whole))
    name = data.draw(st.sampled_from(files))
    raw = bytearray((whole / name).read_bytes())
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    with tempfile.TemporaryDirectory() as directory:
        copy = Path(shutil.copytree(whole, Path(directory) / "store"))
        (copy / name).write_bytes(raw)
        message = refusal(copy)
    assert name.split("/")[0] in message


def test_a_flipped_byte_in_a_chunk_is_found_by_reading_any_chunk(store: Path) -> None:
    opened = Store.open(store)
    large = next(i for i, info in enumerate(opened.shards) if info.rows == 1500)
    name = opened.shards[large].name
    file = store / f"vectors.zarr/{name}/c/0/0"
    raw = bytearray(file.read_bytes())
    raw[1024 * DIM * 2 + 4 + 17] ^= 1
    file.write_bytes(raw)
    with pytest.raises(LeafError, match=rf"shard {name}: SHA-256 differs.*; restore the store"):
        opened.read(large, 0, 1024)
    with pytest.raises(LeafError, match=name):
        opened.lookup(opened.keys())


@pytest.mark.parametrize(
    "pattern", ["rows/*.parquet", "vectors.zarr/*/c/0/0", "vectors.zarr/*/zarr.json", "vectors.zarr/zarr.json"]
)
def test_a_missing_file_is_named(store: Path, pattern: str) -> None:
    file = next(iter(store.glob(pattern)))
    file.unlink()
    message = refusal(store)
    assert str(file) in message
    assert "missing" in message


@pytest.mark.parametrize("pattern", ["rows/*.parquet", "vectors.zarr/*/c/0/0", "store.json"])
def test_a_truncated_file_is_named_before_any_data_is_read(store: Path, pattern: str) -> None:
    file = next(iter(store.glob(pattern)))
    os.truncate(file, file.stat().st_size // 2)
    with pytest.raises(LeafError) as caught:
        Store.open(store)
    assert str(file.parent if file.suffix != ".json" else file) in str(caught.value) or file.stem in str(caught.value)


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_a_missing_chunk_never_reads_as_data(tmp_path: Path, dtype: str) -> None:
    opened = publish(tmp_path, (2048,), dtype)
    file = opened.path / f"vectors.zarr/{opened.shards[0].name}/c/0/0"
    raw = file.read_bytes()
    index = np.frombuffer(raw[-36:-4], "<u8").reshape(2, 2)
    for entry, message in (
        ((2**64 - 1, 2**64 - 1), "the chunk of rows from 1024 on is missing"),
        ((len(raw), index[1, 1]), "the chunk of rows from 1024 on lies outside the file"),
        ((index[1, 0], index[1, 1] - 1), "the chunk of rows from 1024 on lies outside the file"),
        ((0, index[1, 1]), None),  # of other rows, but whole: only the SHA-256 tells
    ):
        forged = np.array([index[0], entry], "<u8").tobytes()
        file.write_bytes(raw[:-36] + forged + crc32c(forged))
        if message is None:
            with pytest.raises(LeafError, match="SHA-256 differs"):
                Store.open(opened.path).read(0)
        else:
            resigned(opened.path, file.relative_to(opened.path).as_posix())
            with pytest.raises(LeafError, match=f"{message}.*; restore the store"):
                Store.open(opened.path).read(0, 0, 10)
    file.write_bytes(raw[:-36] + bytes(36))
    resigned(opened.path, file.relative_to(opened.path).as_posix())
    with pytest.raises(LeafError, match="the checksum of its index of chunks differs"):
        Store.open(opened.path).read(0)
    file.write_bytes(raw)
    resigned(opened.path, file.relative_to(opened.path).as_posix())
    last = Store.open(opened.path)
    last.read(0)
    file.unlink()
    with pytest.raises(LeafError, match=r"rows 0 to 2048: .*No such file"):
        last.read(0)


def test_files_of_two_shards_swapped_are_found(tmp_path: Path) -> None:
    for pattern in ("rows/*.parquet", "vectors.zarr/*/c/0/0"):
        opened = publish(tmp_path / pattern.replace("/", "-").replace("*", "_"), (40, 40))
        first, second = sorted(opened.path.glob(pattern))
        aside = tmp_path / "aside"
        first.rename(aside)
        second.rename(first)
        aside.rename(second)
        assert any(info.name in refusal(opened.path) for info in opened.shards)


def test_a_shard_that_store_json_does_not_list_is_found(store: Path) -> None:
    (store / "rows/0123456789abcdef.parquet").write_bytes(b"stray")
    assert "not listed in store.json" in refusal(store)


def resign(store: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Edit store.json and bring its digest up to date."""
    document = json.loads((store / "store.json").read_text())
    change(document)
    document.pop("digest", None)
    plain = (json.dumps(document, sort_keys=True, indent=1, ensure_ascii=False) + "\n").encode()
    document["digest"] = hashlib.sha256(plain).hexdigest()
    (store / "store.json").write_text(json.dumps(document, sort_keys=True, indent=1, ensure_ascii=False) + "\n")


def test_an_edited_store_json_is_found(store: Path) -> None:
    file = store / "store.json"
    file.write_text(file.read_text().replace('"tiny"', '"huge"'))
    assert "edited or damaged" in refusal(store)


HOSTILE: dict[str, Callable[[dict[str, Any]], Any]] = {
    "path traversal in a name": lambda d: d["shards"][0].update(name="../../../../etc"),
    "path traversal in a file": lambda d: d["shards"][0]["files"].update({"../../etc/passwd": "0" * 64}),
    "absolute file": lambda d: d["shards"][0].update(files={"/etc/passwd": "0" * 64}),
    "absurd rows": lambda d: d["shards"][0].update(rows=10**15),
    "many rows": lambda d: d["shards"][0].update(rows=10**9),
    "absurd bytes": lambda d: d["shards"][0].update(bytes=2**200),
    "negative rows": lambda d: d["shards"][0].update(rows=-1),
    "true rows": lambda d: d["shards"][0].update(rows=True),
    "one row more": lambda d: d["shards"][0].update(rows=d["shards"][0]["rows"] + 1),
    "absurd dim": lambda d: d.update(dim=10**12),
    "large dim": lambda d: d.update(dim=65_536),
    "other dim": lambda d: d.update(dim=DIM * 2),
    "dim of text": lambda d: d.update(dim="8"),
    "unknown dtype": lambda d: d.update(dtype="object"),
    "other dtype": lambda d: d.update(dtype="float32"),
    "list as dtype": lambda d: d.update(dtype=["float16"]),
    "short fingerprint": lambda d: d.update(fingerprint="ab"),
    "teacher of text": lambda d: d.update(teacher="evil"),
    "no shards": lambda d: d.pop("shards"),
    "shards of null": lambda d: d.update(shards=None),
    "a shard of null": lambda d: d.update(shards=[None]),
    "a shard twice": lambda d: d.update(shards=d["shards"] * 2),
    "other total": lambda d: d.update(rows=5),
    "unknown field": lambda d: d.update(evil=1),
    "other format": lambda d: d.update(format="tar"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_store_json_is_refused_before_anything_is_read(store: Path, name: str) -> None:
    resign(store, HOSTILE[name])
    with pytest.raises(LeafError, match=str(store)):
        Store.open(store)


def test_a_store_of_a_later_version_says_so(store: Path) -> None:
    resign(store, lambda d: d.update(version=3, shards="a new layout"))
    with pytest.raises(
        LeafError, match="format version 3, but this program reads versions 1 and 2: use a later program"
    ):
        Store.open(store)


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff\xfe", b"[" * 200_000, b'{"dim": ' + b"1" * 10_000 + b"}"])
def test_a_store_json_of_rubbish_is_refused(store: Path, content: bytes) -> None:
    (store / "store.json").write_bytes(content)
    with pytest.raises(LeafError, match=r"store\.json"):
        Store.open(store)


def test_a_pipe_in_place_of_a_file_does_not_hang_the_reader(store: Path) -> None:
    file = next(iter(store.glob("rows/*.parquet")))
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(LeafError, match="not a regular file"):
        Store.open(store)


def test_a_directory_without_a_store_says_so(tmp_path: Path) -> None:
    with pytest.raises(LeafError, match="no embedding store here"):
        Store.open(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"shape": [10**12, DIM]},
        {"data_type": "float64"},
        {"storage_transformers": [{"name": "evil"}]},
        {"codecs": [{"name": "numcodecs.pickle"}]},
        {"attributes": {"x": 1}},
        {"chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}}},
    ],
)
def test_array_metadata_that_say_something_else_are_refused(store: Path, change: dict[str, Any]) -> None:
    file = store / f"vectors.zarr/{Store.open(store).shards[0].name}/zarr.json"
    size = file.stat().st_size
    file.write_text(json.dumps(json.loads(file.read_text()) | change).ljust(size)[:size])
    with pytest.raises(LeafError, match=f"shard {file.parent.name}|bytes"):
        Store.open(store).read(0)


def resigned(store: Path, file: str) -> None:
    """Give store.json the size and digest of a changed file of shard 0."""

    def change(document: dict[str, Any]) -> None:
        entry = document["shards"][0]
        entry["files"][file] = hashlib.sha256((store / file).read_bytes()).hexdigest()
        old = entry["bytes"]
        entry["bytes"] = sum((store / name).stat().st_size for name in entry["files"])
        document["bytes"] += entry["bytes"] - old

    resign(store, change)


def test_wrong_content_with_right_checksums_is_refused(store: Path) -> None:
    opened = Store.open(store)
    file, info = f"rows/{opened.shards[0].name}.parquet", opened.shards[0]
    frame = opened.shard_rows_frame(0)
    cases = {
        "its keys belong to another shard": frame.reverse(),
        "not .* rows of key, role": frame.head(3),
        "rows of key, role, id, source, tokens": frame.drop("id"),
        "rows without source": frame.with_columns(source=pl.lit(None, pl.String)),
    }
    for message, changed in cases.items():
        changed.write_parquet(store / file)
        resigned(store, file)
        with pytest.raises(LeafError, match=rf"shard {info.name}: .*{message}"):
            Store.open(store).verify()
    for raw in (b"PAR1", b"PAR1" + b"\0" * 40 + b"PAR1", os.urandom(500)):
        (store / file).write_bytes(raw)
        resigned(store, file)
        with pytest.raises(LeafError, match=r"cannot be read as Parquet|too few for 40 keys"):
            Store.open(store).verify()


def test_nan_with_right_checksums_is_refused(store: Path) -> None:
    name = Store.open(store).shards[0].name
    array = zarr.open_array(str(store / "vectors.zarr" / name), mode="r+")
    array[5, 3] = np.nan
    resigned(store, f"vectors.zarr/{name}/c/0/0")
    assert "row 5 is zero or not finite" in refusal(store)


def test_a_key_in_two_shards_is_refused(tmp_path: Path) -> None:
    for number, frame in enumerate([rows(0, 10), rows(9, 10)]):
        with ShardCache(tmp_path / f"cache{number}", META) as cache:
            cache.write(frame, vectors(0, 10))
            last = cache.publish(tmp_path / f"store{number}", cache.keys())
    first = Store.open(tmp_path / "store0")
    for file in first.shards[0].files:
        (last.path / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(first.path / file, last.path / file)
    group = sha256(last.path / GROUP)
    (last.path / "store.json").write_bytes(Manifest(META, (*first.shards, *last.shards), group).to_bytes())
    assert "1 keys occur twice" in refusal(last.path)


def test_a_damaged_shard_of_the_cache_is_named_with_its_repair_and_never_published(tmp_path: Path) -> None:
    publish(tmp_path, (20, 10))
    before = contents(tmp_path / "store")
    with ShardCache(tmp_path / "pool", META) as cache:
        directory = cache.path / cache.shards[0].name
        file = directory / f"vectors.zarr/{directory.name}/c/0/0"
        raw = bytearray(file.read_bytes())
        raw[7] ^= 4
        file.unlink()  # the store's hard link keeps the good bytes
        file.write_bytes(raw)
        with pytest.raises(LeafError, match=f"damaged; delete {directory} and run encode again"):
            cache.publish(tmp_path / "store", cache.keys())
    assert contents(tmp_path / "store") == before
    for damage in ("shard.json", f"rows/{directory.name}.parquet"):
        os.truncate(directory / damage, 10)
        with pytest.raises(LeafError, match=f"delete {directory} and run encode again"):
            ShardCache(tmp_path / "pool", META)
    shutil.rmtree(directory)
    with ShardCache(tmp_path / "pool", META) as cache:
        assert len(cache.shards) == 1


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte, where we may mount one."""
    path = tmp_path / "disk"
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(path)]
    if os.geteuid() or not shutil.which("mount") or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a tmpfs")
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


def test_a_full_disk_is_named_and_leaves_only_whole_shards(small_disk: Path) -> None:
    with ShardCache(small_disk / "pool", META) as cache:
        cache.write(rows(0, 2000), vectors(0, 2000))
        before = contents(small_disk)
        with pytest.raises(LeafError, match="no space left for this shard; free some and run again"):
            cache.write(rows(5000, 60_000), np.ones((60_000, DIM), np.float32))
        assert contents(small_disk) == before
        cache.write(rows(2000, 100), vectors(2000, 100))
        assert len(cache.publish(small_disk / "store", cache.keys()).shards) == 2


def test_a_file_size_limit_is_taken_like_a_full_disk(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with ShardCache(tmp_path, META) as cache:
        before = contents(tmp_path)
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
            with pytest.raises(LeafError, match="no space left"):
                cache.write(rows(0, 20_000), np.ones((20_000, DIM), np.float32))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert contents(tmp_path) == before
        assert cache.write(rows(0, 10), vectors(0, 10)).rows == 10


MEMORY = """
import resource, sys
from pathlib import Path
from pipeline.base.errors import LeafError
from pipeline.store.store import Store
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    Store.open(Path(sys.argv[1])).verify()
except LeafError as error:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_a_shard_of_absurd_size_costs_no_memory(store: Path) -> None:
    """A sparse file has the size of a billion vectors; that of the rows has not even that of their keys."""
    info = Store.open(store).shards[0]
    count = 10**9
    sizes = shard.file_sizes(info.name, count, META)
    file = f"vectors.zarr/{info.name}/c/0/0"
    os.truncate(store / file, sizes[file] or 0)
    total = sum((store / name).stat().st_size for name in info.files)

    def change(document: dict[str, Any]) -> None:
        document["rows"] += count - info.rows
        document.pop("sources")
        document["bytes"] += total - info.bytes
        document["shards"][0].update(rows=count, bytes=total)

    resign(store, change)
    command = MEMORY.replace("Store.open(Path(sys.argv[1])).verify()", "Store.open(Path(sys.argv[1])).keys()")
    run = subprocess.run(
        [sys.executable, "-c", command, str(store)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert int(run.stdout) < 100_000  # KiB
    with pytest.raises(LeafError, match=f"too few for {count} keys"):
        Store.open(store).read(0, 0, 1024)
