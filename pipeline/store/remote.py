"""The files of a store behind a URL (`s3://`, `http(s)://`), downloaded by shards into a bounded local cache.

Every file is hashed while it arrives and is refused unless it is the file that `store.json` names. The files of vectors
are the large ones: the least recently used are dropped where the cache would exceed its bound. A dropped file that was
checked before is then read from there in ranges of whole chunks, each compared with the digest taken at the check.

Credentials come from the environment or the usual files (`~/.aws`, `~/.netrc`), never from a URL or a parameter.
`LEAF_CACHE` names the cache's directory (default `.cache/remote`) and `LEAF_CACHE_GB` its bound (default 20). They are
environment variables and not parameters because they belong to the machine and do not change the result.
"""

import hashlib
import os
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Self

import numpy as np
from tqdm import tqdm

from pipeline.base import (
    Array,
    DigestError,
    LeafError,
    NoAccessError,
    access,
    check_sha256,
    checked_file,
    new_file,
)
from pipeline.store.chunks import CHECKSUM_BYTES, CHUNK_ROWS, Chunks, chunk_bytes
from pipeline.store.file_cache import FileCache
from pipeline.store.manifest import MAX_DOCUMENT_BYTES, Manifest
from pipeline.store.shard import ShardInfo, arrays, data_path, document_path, file_sizes, open_array, rows_path
from pipeline.store.shard_files import ArrayReader, ShardFiles, naming_repair
from pipeline.store.transport import Transport, open_transport

AHEAD = 4  # shards downloaded at once
GIGABYTE = 10**9


class RemoteFiles(ShardFiles):
    """A store behind a URL. `path` is a partial local copy; `store.json` is read on opening, data on demand."""

    repair = "ask its owner to publish that shard again, or run `leaf store repair` on a copy"

    def __init__(self, transport: Transport, cache: FileCache, manifest: Manifest) -> None:
        self.transport, self.cache, self.manifest = transport, cache, manifest
        self.path = cache.path
        self._arrays: dict[str, list[RemoteArray]] = {}

    @classmethod
    def open(cls, url: str) -> Self:
        """The store at a URL; LeafError where there is none, or it is damaged or cannot be reached."""
        transport = open_transport(url)
        root = Path(os.environ.get("LEAF_CACHE", ".cache/remote"))
        cache = FileCache(root, _cache_limit(), transport, hashlib.sha256(url.encode()).hexdigest()[:16])
        with access(root):
            manifest = _download_manifest(transport, cache.path)
            shards = {file: digest for info in manifest.shards for file, digest in info.files.items()}
            cache.drop_outdated(manifest.files | shards)
        return cls(transport, cache, manifest)

    @property
    def name(self) -> str:
        """See `ShardFiles.name`."""
        return self.transport.url

    @contextmanager
    def named_errors(self) -> Iterator[None]:
        """See `ShardFiles.named_errors`."""
        try:
            yield
        except NoAccessError:  # to the local copy
            raise
        except LeafError as error:
            raise LeafError(str(error).replace(str(self.path), self.name)) from None

    def common(self) -> Path:
        """See `ShardFiles.common`."""
        for file, digest in self.manifest.files.items():
            self.cache.fetch(file, digest, None, MAX_DOCUMENT_BYTES)
        return self.path

    def rows(self, info: ShardInfo) -> Path:
        """See `ShardFiles.rows`."""
        return self.fetch(info, [rows_path(info.name)])

    def shard(self, info: ShardInfo) -> Path:
        """See `ShardFiles.shard`."""
        return self.fetch(info, info.files)

    def fetch(self, info: ShardInfo, files: Iterable[str]) -> Path:
        """Download those of the named files of a shard that are not in the cache, and mark all as used just now."""
        sizes = file_sizes(info.name, info.rows, self.manifest.meta)
        with naming_repair(f"shard {info.name}; {self.repair}"):
            for file in files:
                evictable = file == self._vectors_path(info)
                self.cache.fetch(file, info.files[file], sizes[file], info.bytes, evictable)
        return self.path

    def _vectors_path(self, info: ShardInfo) -> str:
        return data_path(info.name, (self.manifest.meta.dim,))

    def arrays(self, info: ShardInfo) -> Sequence[ArrayReader]:
        """See `ShardFiles.arrays`."""
        return self._remote_arrays(info)

    def _remote_arrays(self, info: ShardInfo) -> "list[RemoteArray]":
        if info.name not in self._arrays:
            names = arrays(info.name, self.manifest.meta)
            self._arrays[info.name] = [RemoteArray(self, info, name) for name in names]
        return self._arrays[info.name]

    def check_listing(self) -> None:
        """Refuse a bucket that lacks a file. Other files may be there: shards that the store no longer has."""
        listed = self.transport.files()
        if listed is None:
            return
        for info in self.manifest.shards:
            for file in info.files:
                if file not in listed:
                    raise LeafError(f"{self.transport.url}/{file}: shard {info.name}: file is missing; {self.repair}")

    def arrivals(self) -> Generator[int, None, None]:
        """See `ShardFiles.arrivals`. A few shards are downloaded ahead, as many as the cache's bound allows."""
        shards = self.manifest.shards
        largest = max((info.bytes for info in shards), default=1)
        ahead = max(1, min(AHEAD, self.cache.limit // largest - 1))
        with ThreadPoolExecutor(ahead, "fetch") as threads, ExitStack() as stack:
            bar = stack.enter_context(tqdm(total=len(shards), desc="fetch and check", unit="shard"))
            fetches: list[Future[Path]] = []
            stack.callback(lambda: [fetch.cancel() for fetch in fetches])
            for i in range(len(shards)):
                upcoming = shards[len(fetches) : i + ahead]
                fetches += [threads.submit(self.shard, info) for info in upcoming]
                fetches[i].result()
                yield i
                bar.update()

    @contextmanager
    def held_for_check(self, info: ShardInfo) -> Iterator[Path]:
        """See `ShardFiles.held_for_check`. A file that has rotted in the cache is downloaded once more."""
        with self.cache.pinned(self._vectors_path(info)):
            self.shard(info)
            for file, digest in info.files.items():
                try:
                    check_sha256(self.path / file, digest)
                except DigestError:
                    (self.path / file).unlink()
            yield self.shard(info)
            self._remote_arrays(info)[0].remember_chunks()

    def current_manifest(self) -> Manifest:
        """See `ShardFiles.current_manifest`."""
        return _download_manifest(self.transport, self.path)


class RemoteArray:
    """One Zarr array of a remote shard: read from the local copy, or from its URL where that has been dropped."""

    def __init__(self, files: RemoteFiles, info: ShardInfo, name: str) -> None:
        dtype, self.row = arrays(info.name, files.manifest.meta)[name]
        self.files, self.info, self.name = files, info, name
        self.dtype = np.dtype(dtype).newbyteorder("<")
        self.data = data_path(name, self.row)
        self._opened: Chunks | None = None
        self._digests: list[bytes] = []

    def read(self, low: int, high: int) -> Array:
        """See `ArrayReader.read`."""
        local = self.files.path / self.data
        if self._digests and not local.exists():
            return self._read_remotely(low, high)
        self.files.fetch(self.info, (document_path(self.name), self.data))
        try:
            return self._chunks().read(low, high)
        except DigestError:
            local.unlink(missing_ok=True)  # it has rotted in the cache, or somebody has changed it
        except LeafError:
            if local.exists():
                raise
        return self.read(low, high)  # dropped between looking and reading

    def remember_chunks(self) -> None:
        """Note the digest of every chunk of the local copy, whose SHA-256 the caller has just checked."""
        if self._digests:
            return
        size = chunk_bytes(self.row, self.dtype)
        offsets = tuple(range(0, -(-self.info.rows // CHUNK_ROWS) * size, size))
        if self._chunks().offsets != offsets:
            return  # chunks in another order than our writer's: such a shard is always downloaded whole
        with checked_file(self.files.path / self.data, self.info.files[self.data]) as file:
            self._digests = [_chunk_digest(file.read(size)) for _ in offsets]

    def _chunks(self) -> Chunks:
        if self._opened is None:
            self._opened = open_array(self.files.path, self.info, self.files.manifest.meta, self.name)
        return self._opened

    def _read_remotely(self, low: int, high: int) -> Array:
        if high <= low:
            return np.empty((0, *self.row), self.dtype)
        size = chunk_bytes(self.row, self.dtype)
        first, last = low // CHUNK_ROWS, -(-high // CHUNK_ROWS)
        raw = self.files.transport.read(self.data, first * size, last * size)
        chunks = [raw[start : start + size] for start in range(0, (last - first) * size, size)]
        if list(map(_chunk_digest, chunks)) != self._digests[first:last]:
            place = f"{self.files.name}/{self.data}: shard {self.info.name}"
            raise LeafError(f"{place}: changed since it was checked; {self.files.repair}")
        whole = np.frombuffer(b"".join(chunk[:-CHECKSUM_BYTES] for chunk in chunks), self.dtype)
        return whole.reshape(-1, *self.row)[low - first * CHUNK_ROWS : high - first * CHUNK_ROWS].copy()


def _chunk_digest(chunk: bytes) -> bytes:
    return hashlib.blake2b(chunk, digest_size=16).digest()


def _download_manifest(transport: Transport, directory: Path) -> Manifest:
    raw = transport.read("store.json", 0, MAX_DOCUMENT_BYTES + 1)
    directory.mkdir(parents=True, exist_ok=True)
    with new_file(directory / "store.json") as part:
        part.write_bytes(raw)
        try:
            return Manifest.read(part)
        except LeafError as error:
            raise LeafError(str(error).replace(str(part), f"{transport.url}/store.json")) from None


def _cache_limit() -> int:
    """The bound of the cache in bytes."""
    raw = os.environ.get("LEAF_CACHE_GB", "20")
    try:
        limit = float(raw)
    except ValueError:
        limit = 0.0
    if not 0 < limit < float("inf"):
        raise LeafError(f"LEAF_CACHE_GB: must be a positive number of gigabytes, not {raw!r:.40}")
    return int(limit * GIGABYTE)
