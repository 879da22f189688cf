"""The embedding store: a directory of immutable shards, key -> vector, for one fingerprint. Reading and checking.

Whatever lies in a store is taken for hostile until checked: names are derived and never followed, sizes are compared
with what the format fixes before anything is allocated, and nothing in it is executed.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Self, cast

import numpy as np
import polars as pl

from pipeline.base.arrays import Array
from pipeline.base.errors import LeafError
from pipeline.base.files import regular_size, sha256
from pipeline.base.keys import key_array
from pipeline.store import manifest
from pipeline.store.chunks import CHUNK_ROWS, Chunks
from pipeline.store.manifest import GROUP, README, REPAIR, Manifest, Sources
from pipeline.store.shard import ShardInfo, StoreMeta, arrays, check_files, check_sizes, open_array, read_rows
from pipeline.store.source import VectorSource
from pipeline.store.validation import finite_and_zero

__all__ = ["Array", "ShardInfo", "Store", "StoreMeta", "key_array"]

PASS_BYTES = 32 * 2**20  # of vectors at a time, where a whole shard is passed over


class Store(VectorSource):
    """A published store. Build it with `Store.open`."""

    def __init__(self, path: Path, found: Manifest) -> None:
        self.path = path
        self.manifest = found
        self.meta = found.meta
        self.shards = found.shards
        self.rows = sum(info.rows for info in found.shards)
        self._opened: dict[int, list[Chunks]] = {}

    @classmethod
    def open(cls, path: Path | str) -> Self:
        """Parse and validate `store.json`, and find every file with the right size. Reads no data.

        `path` may be the URL of a store in an object store (`pipeline.remote`).

        Raises:
            LeafError: no store, a damaged or edited one, or one of a later version; says which shard and what to do.
        """
        if url := remote_url(path):
            from pipeline.store.remote import open_remote

            return cast(Self, open_remote(url))
        path = Path(path)
        store = cls(path, manifest.read(path / "store.json"))
        store._check_files()
        return store

    @property
    def name(self) -> str:
        """The path."""
        return str(self.path)

    @property
    def parts(self) -> Sequence[int]:
        """The number of rows of each shard."""
        return [info.rows for info in self.shards]

    def digest(self) -> str:
        """Not known here."""
        raise NotImplementedError

    @property
    def _step(self) -> int:
        """Rows of whole chunks of about PASS_BYTES, one at least."""
        chunk = CHUNK_ROWS * self.meta.dim * np.dtype(self.meta.dtype).itemsize
        return CHUNK_ROWS * max(1, PASS_BYTES // chunk)

    def _check_files(self) -> None:
        regular_size(self.path / GROUP, "group of vectors")
        for info in self.shards:
            with repairable():
                check_sizes(self.path, info, self.meta)

    def _check_common(self) -> None:
        """The files that belong to no shard, and what `sources` says."""
        for file, digest in self.manifest.files.items():
            regular_size(self.path / file, "belongs to the store")
            if sha256(self.path / file) != digest:
                raise LeafError(f"{self.path / file}: SHA-256 differs; {REPAIR}")
        if self.manifest.sources is not None and self.count_sources() != self.manifest.sources:
            raise LeafError(f"{self.path}: store.json counts other rows by source than there are; {REPAIR}")

    def count_sources(self) -> Sources:
        """Rows by source and role, from the shards themselves."""
        return sum_sources(by_source(self.shard_rows_frame(i)) for i in range(len(self.shards)))

    def verify(self) -> None:
        """Read everything: SHA-256 of every file, row counts, unique keys, vectors against rows, NaN, stray files.

        Raises:
            LeafError: names the shard and the repair.
        """
        try:
            self._check_stray()
            for i in range(len(self.shards)):
                self.verify_shard(i)
            self._check_common()
            self._check_unique()
        except LeafError:
            # A writer may have swapped the directory for a new one while it was read.
            if manifest.read(self.path / "store.json") != self.manifest:
                raise LeafError(f"{self.path}: was published anew while it was checked; run again") from None
            raise

    def _check_unique(self) -> None:
        ordered, _ = self._index
        twice = ordered[1:][ordered[1:] == ordered[:-1]]
        if len(twice):
            raise LeafError(f"{self.path}: {len(twice)} keys occur twice, first {twice[0].tobytes().hex()}; {REPAIR}")

    def verify_shard(self, i: int) -> None:
        """`verify` for one shard: as much reading as the shard has bytes, twice."""
        info = self.shards[i]
        with repairable():
            check_files(self.path, info, self.meta)
            read_rows(self.path, info)
        for start, vectors in self.chunks(i):
            finite, zero = finite_and_zero(vectors)
            bad = ~finite | zero
            if bad.any():
                row = start + int(bad.argmax())
                raise LeafError(f"{self.path}: shard {info.name}: row {row} is zero or not finite; {REPAIR}")

    def _check_stray(self) -> None:
        known = {"store.json", README, GROUP}.union(*(info.files for info in self.shards))
        for file in sorted(self.path.rglob("*")):
            name = file.relative_to(self.path).as_posix()
            if not file.is_dir() and name not in known:
                raise LeafError(f"{file}: not listed in store.json: it belongs to no shard of this store; delete it")

    def shard_rows_frame(self, i: int) -> pl.DataFrame:
        """`key, role, id, source, tokens` of shard `i`, in the order of its vectors; its SHA-256 is checked."""
        with repairable():
            return read_rows(self.path, self.shards[i])

    def read(self, i: int, start: int = 0, stop: int | None = None) -> Array:
        """Vectors `[stop - start, dim]` of shard `i`: float16 or float32 as stored, int8 as float32.

        Fastest where `start` is a multiple of CHUNK_ROWS: whole chunks are read and their crc32c checked.
        Raises LeafError where a chunk's checksum differs.
        """
        info = self.shards[i]
        low, high, _ = slice(start, stop).indices(info.rows)
        codes, *scales = (self._piece(info, array, low, high) for array in self._arrays(i))
        return codes * scales[0][:, None] if scales else codes

    def stored(self, i: int) -> list[Array]:
        """All vectors of shard `i` in the very bits that lie there: one array, or int8 codes and their scales."""
        info = self.shards[i]
        return [self._piece(info, array, 0, info.rows) for array in self._arrays(i)]

    def _arrays(self, i: int) -> list[Chunks]:
        """The shard's Zarr arrays, checked once: that takes as long as to read a chunk."""
        if i not in self._opened:
            info = self.shards[i]
            with repairable():
                names = arrays(info.name, self.meta)
                self._opened[i] = [open_array(self.path, info, self.meta, name) for name in names]
        return self._opened[i]

    def root(self, i: int) -> Path:
        """The directory in which the files of shard `i` lie."""
        return self.path

    def _piece(self, info: ShardInfo, array: Chunks, low: int, high: int) -> Array:
        try:
            return array.read(low, high)
        except LeafError as error:
            raise LeafError(f"{self.path}: shard {info.name}: rows {low} to {high}: {error}; {REPAIR}") from None

    def chunks(self, i: int, rows: int | None = None) -> Iterator[tuple[int, Array]]:
        """`(start, vectors)` over shard `i`, `rows` at a time (a multiple of CHUNK_ROWS reads each chunk once)."""
        step = rows or self._step
        for start in range(0, self.shards[i].rows, step):
            yield start, self.read(i, start, start + step)

    def keys(self) -> Array:
        """`[rows] V16`, shard after shard, in the order of the vectors; `.tolist()` gives bytes."""
        parts = [key_array(self.shard_rows_frame(i)["key"]) for i in range(len(self.shards))]
        return np.concatenate(parts) if parts else key_array([])

    @cached_property
    def _index(self) -> tuple[Array, Array]:
        """All keys in bytewise order, and the row (counted over all shards) of each. 24 bytes a row."""
        keys = self.keys()
        order = np.argsort(keys, kind="stable")
        return keys[order], order

    def locate(self, keys: Sequence[bytes] | Array) -> Array:
        """`[n] int64`: the row of each key, counted over all shards in order; -1 where the store lacks it."""
        wanted = key_array(keys)
        ordered, rows = self._index
        if not len(ordered):
            return np.full(len(wanted), -1, np.int64)
        place = np.minimum(np.searchsorted(ordered, wanted), len(ordered) - 1)
        return np.where(ordered[place] == wanted, rows[place], -1)

    @cached_property
    def refused(self) -> Array:
        """`[n] V16`, sorted: keys of texts that the teacher would not embed, so that they have no vector."""
        return np.sort(key_array([bytes.fromhex(key) for key in self.meta.refused or {}]))

    def answered(self, texts: pl.LazyFrame) -> pl.LazyFrame:
        """The rows of a frame with `key`, in their order, without the texts that the store lists as refused."""
        if not len(self.refused):
            return texts
        refused = pl.LazyFrame({"key": self.refused.tolist()}, schema={"key": pl.Binary})
        return texts.join(refused, on="key", how="anti", maintain_order="left")

    def lookup(self, keys: Sequence[bytes] | Array) -> Array:
        """Vectors `[n, dim] float32` in the order asked. Each chunk that holds a wanted row is read once.

        Raises:
            LeafError: some keys are not in the store; says how many, and the first.
        """
        wanted = key_array(keys)
        rows = self.locate(wanted)
        if (rows < 0).any():
            first = wanted[int((rows < 0).argmax())].tobytes().hex()
            raise LeafError(
                f"{self.path}: {int((rows < 0).sum())} of {len(rows)} keys are not in the store, first {first}: "
                "run encode for the corpus they come from"
            )
        result = np.empty((len(rows), self.meta.dim), np.float32)
        bounds = np.cumsum([0, *(info.rows for info in self.shards)])
        order = np.argsort(rows, kind="stable")
        shard = np.searchsorted(bounds, rows[order], side="right") - 1
        for i in np.unique(shard).tolist():
            places = order[shard == i]
            self._gather(i, rows[places] - bounds[i], places, result)
        return result

    def _gather(self, i: int, rows: Array, places: Array, result: Array) -> None:
        """Fill `result[places]` with `rows` (ascending) of shard `i`, reading runs of neighbouring chunks at once."""
        chunk = rows // CHUNK_ROWS
        limit = self._step // CHUNK_ROWS
        low = 0
        while low < len(rows):
            run = chunk[low:]
            breaks = (np.diff(run) > 1) | (run[1:] - run[0] >= limit)
            high = low + (int(breaks.argmax()) + 1 if breaks.any() else len(run))
            start = int(chunk[low]) * CHUNK_ROWS
            vectors = self.read(i, start, (int(chunk[high - 1]) + 1) * CHUNK_ROWS)
            result[places[low:high]] = vectors[rows[low:high] - start]
            low = high


class repairable:  # noqa: N801
    """Adds the repair to a LeafError about a shard."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, _type: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, LeafError) and REPAIR not in str(error):
            raise LeafError(f"{error}; {REPAIR}") from None


def by_source(rows: pl.DataFrame) -> Counter[tuple[str, str]]:
    """Rows of a shard by source and role."""
    return Counter({(source, role): n for source, role, n in rows.group_by("source", "role").len().iter_rows()})


def sum_sources(shards: Iterable[Counter[tuple[str, str]]]) -> Sources:
    """Rows of a store by source and role, sorted, from what `by_source` gave for each shard."""
    counts: Counter[tuple[str, str]] = Counter()
    for counted in shards:
        counts.update(counted)
    found: Sources = {}
    for source, role in sorted(counts):
        found.setdefault(source, {})[role] = counts[source, role]
    return found


def remote_url(path: Path | str) -> str | None:
    """The URL that `path` is, if it is one; a URL that went through `pathlib` has lost a slash."""
    found = re.match(r"s3:/+(?=[^/])", str(path))
    return f"s3://{str(path)[found.end() :].rstrip('/')}" if found else None
