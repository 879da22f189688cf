"""What is read of a store has the SHA-256 of its manifest, whoever reads, and however late a file is changed."""

import io
import os
import secrets
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest

from benchmarks.hostile import resign
from pipeline.base import LeafError, digests
from pipeline.serve import read_vectors
from pipeline.store import Store, operations
from pipeline.store.chunks import CHECKSUM_BYTES, CHUNK_ROWS, chunk_bytes, crc32c
from pipeline.store.shard_cache import ShardCache
from tests.conftest import ROOT
from tests.store_helpers import DIM, META, meta, publish, rows, vectors

MEGABYTE = 10**6


def data_file(store: Store, shard: int = 0) -> Path:
    return store.path / f"vectors.zarr/{store.shards[shard].name}/c/0/0"


def forged(raw: bytes) -> bytes:
    """The first chunk's vectors turned around, with the checksum that belongs to them."""
    size = chunk_bytes((DIM,), np.dtype("<f2")) - CHECKSUM_BYTES
    other = np.frombuffer(raw[:size], "<f2").reshape(CHUNK_ROWS, DIM)[::-1].tobytes()
    return other + crc32c(other) + raw[size + CHECKSUM_BYTES :]


READERS: dict[str, Callable[[Store, Path], object]] = {
    "read": lambda store, out: store.read(0, 0, 10),
    "lookup": lambda store, out: store.lookup(store.keys()[:3]),
    "search": lambda store, out: read_vectors(store),
    "chunks": lambda store, out: list(store.chunks(0)),
    "merge": lambda store, out: operations.merge(store, publish(out / "other", (30,)), out / "merged"),
    "diff": lambda store, out: operations.diff(store, publish(out / "other", (30,)), 0),
    "compact": lambda store, out: operations.compact(store, np.sort(store.keys())[:100], "corpus", out / "small"),
}


@pytest.mark.parametrize("reader", READERS)
def test_vectors_that_were_changed_with_their_checksums_are_refused(reader: str, tmp_path: Path) -> None:
    store = publish(tmp_path, (1500,))
    file = data_file(store)
    raw = file.read_bytes()
    file.unlink()  # the shard cache has the same file
    file.write_bytes(forged(raw))
    with pytest.raises(LeafError, match=rf"{store.shards[0].name}.*SHA-256 differs"):
        READERS[reader](Store.open(store.path), tmp_path)


def test_a_file_that_is_changed_after_it_was_checked_is_refused(tmp_path: Path) -> None:
    store = publish(tmp_path, (1500,))
    store.verify()
    file, name = data_file(store), store.shards[0].name
    right, raw, times = store.read(0), file.read_bytes(), file.stat()
    other = tmp_path / "other"
    other.write_bytes(forged(raw))
    os.utime(other, ns=(times.st_atime_ns, times.st_mtime_ns))
    file.rename(kept := tmp_path / "kept")
    other.rename(file)
    with pytest.raises(LeafError, match=f"shard {name}.*SHA-256 differs"):
        store.read(0)
    kept.rename(file)
    assert np.array_equal(store.read(0), right)
    with file.open("r+b") as same_file:
        same_file.write(forged(raw))
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.raises(LeafError, match=f"shard {name}.*SHA-256 differs"):
        store.read(0)


def test_a_shard_is_hashed_once_however_often_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = publish(tmp_path, (3000, 40)).path
    time.sleep(0.05)  # until another change of the files would show in their time
    hashed: list[int] = []
    original = digests._hash

    def counting(file: io.FileIO) -> str:
        hashed.append(1)
        return original(file)

    monkeypatch.setattr(digests, "_hash", counting)
    monkeypatch.setattr(digests, "_REMEMBERED", digests._Remembered())
    for _ in range(3):
        store = Store.open(path)
        for part in range(2):
            store.read(part, 0, 20)
            store.read(part)
    assert len(hashed) == 2


REMEMBERING = """
from pathlib import Path
from pipeline.base import digests
from pipeline.store import Store
digests.SAVED_BYTES = 1
hashed = []
original = digests._hash
digests._hash = lambda file: hashed.append(1) or original(file)
Store.open(Path("store")).read(0)
print(len(hashed))
"""


def test_the_next_program_does_not_hash_again_unless_somebody_else_says_so(tmp_path: Path) -> None:
    publish(tmp_path, (300,))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "LEAF_CACHE": str(tmp_path / "cache")}

    def hashed() -> int:
        command = [sys.executable, "-c", REMEMBERING]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
        return int(done.stdout)

    assert (hashed(), hashed()) == (1, 0)
    memory = tmp_path / "cache" / "checked.json"
    memory.chmod(0o666)  # anybody may have written into it
    assert hashed() == 1
    memory.write_text("[[1, 2, 3")
    assert hashed() == 1


def test_a_local_copy_of_a_remote_store_that_somebody_changed_is_fetched_again(tmp_path: Path, bucket: object) -> None:
    from pipeline.store.upload import push

    local = publish(tmp_path, (1500,))
    push(local, url := f"s3://{bucket.name}/embeddings")  # type: ignore[attr-defined]
    remote = Store.open(url)
    assert np.array_equal(remote.read(0), local.read(0))
    (copy,) = (tmp_path / "remote-cache").glob("*/vectors.zarr/*/c/0/0")
    copy.write_bytes(forged(copy.read_bytes()))
    assert np.array_equal(remote.read(0), local.read(0))
    copy.write_bytes(forged(copy.read_bytes()))
    assert np.array_equal(Store.open(url).read(0), local.read(0))


def test_a_shard_that_is_taken_over_is_checked_where_it_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = publish(tmp_path / "theirs", (300,))
    file, other = data_file(store), tmp_path / "other"
    other.write_bytes(forged(file.read_bytes()))
    from pipeline.store import shard_cache

    original = vars(shard_cache)["link"]

    def swapping(source: Path, target: Path) -> None:
        """Another user swaps the file just before it is linked."""
        if source == file:
            other.replace(file)
        original(source, target)

    monkeypatch.setattr(shard_cache, "link", swapping)
    with ShardCache(tmp_path / "pool", META) as cache:
        with pytest.raises(LeafError, match=f"{file}: shard {store.shards[0].name}: SHA-256 differs"):
            cache.adopt(store.path, store.shards[0])
        assert not cache.shards and not list(cache.path.glob("*/rows"))


def test_keys_that_begin_alike_are_packed_and_read(tmp_path: Path) -> None:
    """As in a shard of a large corpus, which is a narrow range of all keys in order."""
    count = 4000
    keys_ = [(number << 64 | secrets.randbits(60)).to_bytes(16, "big") for number in range(count)]
    frame = rows(0, count).with_columns(pl.Series("key", keys_, dtype=pl.Binary))
    with ShardCache(tmp_path / "pool", meta()) as cache:
        cache.write(frame, vectors(0, count))
        store = cache.publish(tmp_path / "store", cache.keys())
    columns = pq.read_metadata(store.path / f"rows/{store.shards[0].name}.parquet").row_group(0)
    assert columns.column(0).total_compressed_size < 12 * count
    store.verify()
    assert len(Store.open(store.path).keys()) == count


def test_rows_that_no_keys_stand_behind_are_refused_before_they_take_memory(tmp_path: Path) -> None:
    """A store of a few kilobytes that declares three million rows: every key is the same, and packs to nothing."""
    count = 3_000_000
    with ShardCache(tmp_path / "pool", meta()) as cache:
        cache.write(rows(0, 10), vectors(0, 10))
        store = cache.publish(tmp_path / "store", cache.keys())
    info = store.shards[0]
    file = store.path / f"rows/{info.name}.parquet"
    frame = pl.read_parquet(file).head(1)
    repeated = pl.DataFrame(
        {name: pl.repeat(frame[name][0], count, eager=True, dtype=frame[name].dtype) for name in frame.columns}
    )
    file.unlink()
    repeated.write_parquet(file, compression="zstd")
    del repeated
    assert file.stat().st_size < MEGABYTE
    document = store.path / "store.json"
    text = (
        document.read_text()
        .replace('"rows": 10', f'"rows": {count}')
        .replace('"document": 5', f'"document": {count - 5}')
    )
    document.write_text(text)
    with data_file(store).open("r+b") as data:
        data.truncate(-(-count // CHUNK_ROWS) * (chunk_bytes((DIM,), np.dtype("<f2")) + 16) + CHECKSUM_BYTES)
    resign(store.path)
    tracemalloc.start()
    with pytest.raises(LeafError, match=f"too few for {count} keys"):
        operations.info(Store.open(store.path))
    with file.open("ab") as padded:
        padded.truncate(17 * count)  # nothing but zeros behind the footer
    resign(store.path)
    with pytest.raises(LeafError, match=r"cannot be read as Parquet|digests cannot be packed"):
        Store.open(store.path).keys()
    assert tracemalloc.get_traced_memory()[1] < 120 * MEGABYTE
    tracemalloc.stop()
