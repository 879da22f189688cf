"""The embedding store: immutable shards of key -> vector for one fingerprint. Reading and checking it.

The content of a store is not trusted until it has been checked: file names are derived from the format and never
followed, sizes are compared with what the format fixes before anything is allocated, and nothing in it is executed. The
first read of a file compares its SHA-256, later ones do so if it has changed (`base/digests.py`).
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import cached_property
from pathlib import Path

import numpy as np
import polars as pl

from pipeline.base import Array, LeafError, check_sha256, key_array, regular_size
from pipeline.store.manifest import Sources
from pipeline.store.remote import RemoteFiles
from pipeline.store.shard import ShardInfo, check_files, read_rows
from pipeline.store.shard_files import ArrayReader, LocalFiles, ShardFiles
from pipeline.store.source import VectorSource
from pipeline.store.transport import remote_url
from pipeline.store.validation import finite_and_zero


class Store(VectorSource):
    """A published store, wherever its files are. Open it with `Store.open`. Its parts are its shards."""

    def __init__(self, files: ShardFiles) -> None:
        """Reads nothing and checks nothing; `open` does."""
        self.files = files
        self.manifest = files.manifest
        self.meta = files.manifest.meta
        self.shards = files.manifest.shards
        self.rows = sum(info.rows for info in self.shards)

    @classmethod
    def open(cls, path: Path | str) -> "Store":
        """Parse and validate `store.json`; in a directory, check that every file has the right size. Reads no data.

        `path` is a directory or a URL: `s3://BUCKET/PREFIX` in an object store, `http(s)://HOST/PATH` on a web server.

        Raises:
            LeafError: no store, a damaged or edited one, or one of a later version; says which shard and what to do.
        """
        url = remote_url(path)
        return cls(RemoteFiles.open(url) if url else LocalFiles.open(Path(path)))

    @property
    def path(self) -> Path:
        """The local directory of the store's files; of a remote store, of those downloaded so far."""
        return self.files.path

    @property
    def name(self) -> str:
        """The path or the URL."""
        return self.files.name

    @cached_property
    def parts(self) -> Sequence[int]:
        """The number of rows of each shard."""
        return tuple(info.rows for info in self.shards)

    def digest(self) -> str:
        """See `VectorSource.digest`: covers the shards' bits, their order, and the refused texts."""
        decisive = ("name", "rows", "bytes", "files")  # and not the licence, which changes no vector
        shards = [{field: getattr(info, field) for field in decisive} for info in self.shards]
        return hashlib.sha256(json.dumps([shards, sorted(self.meta.refused or {})]).encode()).hexdigest()

    def count_sources(self) -> Sources:
        """Rows by source and role, counted from the rows of all shards."""
        return total_by_source(count_by_source(self.shard_rows_frame(i)) for i in range(len(self.shards)))

    def verify(self) -> None:
        """Read everything: SHA-256 of every file, row counts, unique keys, vectors against rows, NaN, stray files.

        Raises:
            LeafError: names the shard and the repair.
        """
        try:
            self.files.check_listing()
            with closing(self.files.arrivals()) as arrivals:
                for i in arrivals:
                    self.verify_shard(i)
            self._check_common()
            self._check_unique()
        except LeafError:
            # A writer may have put a new store in the place of this one while it was read.
            if self.files.current_manifest() != self.manifest:
                raise LeafError(f"{self.name}: was published anew while it was checked; run again") from None
            raise

    def verify_shard(self, i: int) -> None:
        """`verify` for one shard. Reads each of its bytes twice."""
        info = self.shards[i]
        with self.files.held_for_check(info) as root:
            with self.files.errors():
                check_files(root, info, self.meta)
                read_rows(root, info)
            for start, vectors in self.chunks(i):
                finite, zero = finite_and_zero(vectors)
                bad = ~finite | zero
                if bad.any():
                    row = start + int(bad.argmax())
                    place = f"{self.name}: shard {info.name}: row {row}"
                    raise LeafError(f"{place} is zero or not finite; {self.files.repair}")

    @contextmanager
    def shard_files(self, i: int) -> Iterator[Path]:
        """The directory with all files of shard `i`, until the block ends; LeafErrors of the block name the store."""
        with self.files.named_errors(), self.files.held_for_check(self.shards[i]) as root:
            yield root

    def _check_common(self) -> None:
        """Check the files that belong to no shard, and the counts under `sources`."""
        root = self.files.common()
        with self.files.errors():
            for file, digest in self.manifest.files.items():
                regular_size(root / file, "belongs to the store")
                check_sha256(root / file, digest)
        if self.manifest.sources is not None and self.count_sources() != self.manifest.sources:
            raise LeafError(f"{self.name}: store.json counts other rows by source than there are; {self.files.repair}")

    def _check_unique(self) -> None:
        ordered, _ = self._index
        repeated = ordered[1:][ordered[1:] == ordered[:-1]]
        if len(repeated):
            first = repeated[0].tobytes().hex()
            raise LeafError(f"{self.name}: {len(repeated)} keys occur twice, first {first}; {self.files.repair}")

    def shard_rows_frame(self, i: int) -> pl.DataFrame:
        """`key, role, id, source, tokens` of shard `i`, in the order of its vectors; its SHA-256 is checked."""
        with self.files.errors():
            return read_rows(self.files.rows(self.shards[i]), self.shards[i])

    def read(self, part: int, start: int = 0, stop: int | None = None) -> Array:
        """Vectors `[stop - start, dim]` of a shard: float16 or float32 as stored, int8 as float32.

        Fastest where `start` is a multiple of CHUNK_ROWS: whole chunks are read and their crc32c checked, and the
        file's SHA-256 at the first of them. Raises LeafError where either differs.
        """
        low, high, _ = slice(start, stop).indices(self.shards[part].rows)
        codes, *scales = self._read_arrays(self.shards[part], low, high)
        return codes * scales[0][:, None] if scales else codes

    def stored(self, i: int) -> list[Array]:
        """All vectors of shard `i`, bit for bit as they are stored: one array, or int8 codes and their scales."""
        return self._read_arrays(self.shards[i], 0, self.shards[i].rows)

    def _read_arrays(self, info: ShardInfo, low: int, high: int) -> list[Array]:
        with self.files.errors():
            readers = self.files.arrays(info)
        return [self._read_array(info, reader, low, high) for reader in readers]

    def _read_array(self, info: ShardInfo, reader: ArrayReader, low: int, high: int) -> Array:
        with self.files.errors(f"{self.name}: shard {info.name}: rows {low} to {high}: "):
            return reader.read(low, high)

    def chunks(self, i: int, rows: int | None = None) -> Iterator[tuple[int, Array]]:
        """`(start, vectors)` over shard `i`, `rows` at a time (a multiple of CHUNK_ROWS reads each chunk once)."""
        step = rows or self.rows_at_once
        for start in range(0, self.shards[i].rows, step):
            yield start, self.read(i, start, start + step)

    def keys(self) -> Array:
        """`[rows] V16`, shard after shard, in the order of the vectors; `.tolist()` gives bytes."""
        shards = [key_array(self.shard_rows_frame(i)["key"]) for i in range(len(self.shards))]
        return np.concatenate(shards) if shards else key_array([])

    @cached_property
    def _index(self) -> tuple[Array, Array]:
        """All keys in bytewise order, and the row (counted over all shards) of each. 24 bytes a row."""
        keys = self.keys()
        order = np.argsort(keys, kind="stable")
        return keys[order], order

    def locate(self, keys: Sequence[bytes] | Array) -> Array:
        """See `VectorSource.locate`: rows are counted over all shards in order."""
        queries = key_array(keys)
        ordered, rows = self._index
        if not len(ordered):
            return np.full(len(queries), -1, np.int64)
        place = np.minimum(np.searchsorted(ordered, queries), len(ordered) - 1)
        return np.where(ordered[place] == queries, rows[place], -1)


def count_by_source(rows: pl.DataFrame) -> Counter[tuple[str, str]]:
    """Rows of a shard by source and role."""
    return Counter({(source, role): n for source, role, n in rows.group_by("source", "role").len().iter_rows()})


def total_by_source(shards: Iterable[Counter[tuple[str, str]]]) -> Sources:
    """Rows of a store by source and role, sorted, from the counts of its shards (`count_by_source`)."""
    total: Counter[tuple[str, str]] = Counter()
    for counts in shards:
        total.update(counts)
    sources: Sources = {}
    for source, role in sorted(total):
        sources.setdefault(source, {})[role] = total[source, role]
    return sources
