"""A store in an object store (`s3://bucket/prefix`), fetched shard by shard into a bounded local cache.

Every file is hashed while it arrives and is refused if it is not the one that `store.json` names. Files of vectors are
the large ones: the least recently used are dropped where the cache would grow beyond its bound. What is then asked for
again comes chunk by chunk, each compared with the digest taken when the whole file had been checked.

Credentials come from the environment or the usual files (`~/.aws`), never from a URL or a parameter.
`LEAF_CACHE` names the directory (default `.cache/remote`) and `LEAF_CACHE_GB` the bound (default 20): they belong to
the machine, not to the result.
"""

import hashlib
import os
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from tqdm import tqdm

from pipeline.base.arrays import Array
from pipeline.base.errors import LeafError
from pipeline.base.files import TEMPORARY, sha256
from pipeline.store import manifest
from pipeline.store.bucket import Bucket, Cache
from pipeline.store.chunks import CHUNK_ROWS, chunk_bytes
from pipeline.store.manifest import MAX_DOCUMENT_BYTES, Manifest
from pipeline.store.shard import file_sizes, open_array, rows_path
from pipeline.store.store import Store

AHEAD = 4  # shards on their way at once
GIGABYTE = 10**9
_REPAIR = "ask its owner to publish that shard again, or run `leaf store repair` on a copy"


class RemoteStore(Store):
    """A store whose `path` is a partial local copy. Build it with `Store.open`."""

    def __init__(self, bucket: Bucket, cache: Cache, found: Manifest) -> None:
        super().__init__(cache.path, found)
        self.bucket, self.cache = bucket, cache
        self._chunks: dict[int, list[bytes]] = {}

    def _fetch(self, i: int, vectors: bool) -> None:
        info = self.shards[i]
        sizes = file_sizes(info.name, info.rows, self.meta)
        for file, digest in info.files.items():
            if vectors or file == rows_path(info.name):
                self.cache.fetch(file, digest, sizes[file], info.bytes, evictable=file == self._large(i))

    def _large(self, i: int) -> str:
        return f"vectors.zarr/{self.shards[i].name}/c/0/0"

    def verify(self) -> None:
        """Fetch, check and read every shard, a few ahead; see `Store.verify`."""
        listed = self.bucket.files()
        for info in self.shards:
            for file in info.files:
                if file not in listed:
                    raise LeafError(f"{self.bucket.url}/{file}: shard {info.name}: file is missing; {_REPAIR}")
        self._common()
        largest = max((info.bytes for info in self.shards), default=1)
        ahead = max(1, min(AHEAD, self.cache.limit // largest - 1))
        with ThreadPoolExecutor(ahead, "fetch") as threads, ExitStack() as stack:
            bar = stack.enter_context(tqdm(total=len(self.shards), desc="fetch and check", unit="shard"))
            coming: list[Future[None]] = []
            stack.callback(lambda: [one.cancel() for one in coming])
            for i in range(len(self.shards)):
                soon = range(len(coming), min(i + ahead, len(self.shards)))
                coming += [threads.submit(self._local, j) for j in soon]
                coming[i].result()
                self.verify_shard(i)
                bar.update()
        self._check_common()
        self._check_unique()

    def _common(self) -> None:
        for file, digest in self.manifest.files.items():
            self.cache.fetch(file, digest, None, MAX_DOCUMENT_BYTES)

    def verify_shard(self, i: int) -> None:
        """`Store.verify_shard` on the local copy, which is fetched once more if it has rotted here."""
        with self.cache.pinned(self._large(i)):
            self._local(i)
            for file, digest in self.shards[i].files.items():
                if sha256(self.path / file) != digest:
                    (self.path / file).unlink()
            self._local(i)
            super().verify_shard(i)
            self._remember(i)

    def _local(self, i: int) -> None:
        try:
            self._fetch(i, vectors=True)
        except LeafError as error:
            raise LeafError(f"{error}; shard {self.shards[i].name}; {_REPAIR}") from None

    def fetch(self, i: int | None) -> None:
        """Bring the files of shard `i`, or those that belong to no shard, into the local copy, checked."""
        if i is None:
            self._common()
        else:
            self._local(i)

    def root(self, i: int) -> Path:
        """The local copy, in which all files of shard `i` lie now."""
        self._local(i)
        return self.path

    def stored(self, i: int) -> list[Array]:
        """See `Store.stored`."""
        self._local(i)
        return super().stored(i)

    def shard_rows_frame(self, i: int) -> pl.DataFrame:
        """See `Store.shard_rows_frame`; fetches only the rows file."""
        self._fetch(i, vectors=False)
        return super().shard_rows_frame(i)

    def read(self, i: int, start: int = 0, stop: int | None = None) -> Array:
        """See `Store.read`. A shard that was dropped from the cache gives single chunks by their digests."""
        large = self.path / self._large(i)
        if i in self._chunks and not large.exists():
            return self._read_chunks(i, *slice(start, stop).indices(self.shards[i].rows)[:2])
        self._local(i)
        try:
            return super().read(i, start, stop)
        except LeafError:
            if large.exists():
                raise
        return self.read(i, start, stop)  # dropped between looking and reading

    def _layout(self) -> tuple[np.dtype[Any], int]:
        """Type of the stored numbers, and bytes of a chunk with its crc32c."""
        dtype = np.dtype(self.meta.dtype).newbyteorder("<")
        return dtype, chunk_bytes((self.meta.dim,), dtype)

    def _remember(self, i: int) -> None:
        """Digests of the chunks of a file that has just been checked. The writer lays chunks one after another."""
        if i in self._chunks:
            return
        _, size = self._layout()
        with (self.path / self._large(i)).open("rb") as file:
            count = -(-self.shards[i].rows // CHUNK_ROWS)
            self._chunks[i] = [hashlib.blake2b(file.read(size), digest_size=16).digest() for _ in range(count)]
        if self._arrays(i)[0].offsets != tuple(range(0, count * size, size)):
            del self._chunks[i]  # another order: such a shard is always fetched whole

    def _read_chunks(self, i: int, low: int, high: int) -> Array:
        info, (dtype, size) = self.shards[i], self._layout()
        first, last = low // CHUNK_ROWS, -(-high // CHUNK_ROWS)
        file = self._large(i)
        raw = self.bucket.read(file, first * size, last * size) if high > low else b""
        parts = []
        for number in range(first, last if high > low else first):
            chunk = raw[(number - first) * size : (number - first + 1) * size]
            if hashlib.blake2b(chunk, digest_size=16).digest() != self._chunks[i][number]:
                raise LeafError(f"{self.bucket.url}/{file}: shard {info.name}: changed since it was checked; {_REPAIR}")
            parts.append(np.frombuffer(chunk[:-4], dtype).reshape(CHUNK_ROWS, self.meta.dim))
        whole = np.concatenate(parts) if parts else np.empty((0, self.meta.dim), dtype)
        codes = whole[low - first * CHUNK_ROWS : high - first * CHUNK_ROWS]
        if self.meta.dtype != "int8":
            return codes.astype(dtype.newbyteorder("="), copy=True)
        return codes.astype(np.float32) * self._scales(i)[low:high, None]

    def _scales(self, i: int) -> Array:
        info = self.shards[i]
        return open_array(self.path, info, self.meta, f"{info.name}_scale").read(0, info.rows)


def open_remote(url: str) -> RemoteStore:
    """The store at an s3:// URL: `store.json` is read anew each time, data on demand."""
    bucket = Bucket(url)
    raw = bucket.read("store.json", 0, MAX_DOCUMENT_BYTES + 1)
    root = Path(os.environ.get("LEAF_CACHE", ".cache/remote"))
    cache = Cache(root, _limit(), bucket, hashlib.sha256(url.encode()).hexdigest()[:16])
    cache.path.mkdir(parents=True, exist_ok=True)
    part = cache.path / f"{TEMPORARY}{os.getpid()}-store.json"
    part.write_bytes(raw)
    try:
        found = manifest.read(part)
    except LeafError as error:
        raise LeafError(str(error).replace(str(part), f"{url}/store.json")) from None
    finally:
        part.unlink()
    cache.expect(found.files | {file: digest for info in found.shards for file, digest in info.files.items()})
    return RemoteStore(bucket, cache, found)


def _limit() -> int:
    raw = os.environ.get("LEAF_CACHE_GB", "20")
    try:
        limit = float(raw)
    except ValueError:
        limit = 0.0
    if not 0 < limit < float("inf"):
        raise LeafError(f"LEAF_CACHE_GB: must be a positive number of gigabytes, not {raw!r:.40}")
    return int(limit * GIGABYTE)
