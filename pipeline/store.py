"""The embedding store: a directory of immutable shards, key -> vector, for one fingerprint. Reading and checking.

Whatever lies in a store is taken for hostile until checked: names are derived and never followed, sizes are compared
with what the format fixes before anything is allocated, and nothing in it is executed.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import polars as pl

from pipeline.errors import LeafError
from pipeline.shard import (
    CHUNK_ROWS,
    DTYPES,
    MAX_DIM,
    Array,
    ShardInfo,
    StoreMeta,
    arrays,
    check_sizes,
    file_sizes,
    key_array,
    open_array,
    read_rows,
    regular_size,
    sha256,
)

__all__ = ["Array", "ShardInfo", "Store", "StoreMeta", "document", "key_array", "parse_shard"]

FORMAT = "leaf-embedding-store"
VERSION = 1
GROUP = "vectors.zarr/zarr.json"
MAX_DOCUMENT_BYTES = 64 * 2**20
MAX_ROWS = 2**40
READ_ROWS = 16 * CHUNK_ROWS  # rows read by one call to Zarr; larger reads are slower and hold two copies
_HEX64 = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(r"[0-9a-f]{16}")
REPAIR = (
    "restore the store (`dvc checkout`, or copy it again), or delete the shard from pool and store and run encode again"
)


class Store:
    """A published store. Build it with `Store.open`."""

    def __init__(self, path: Path, meta: StoreMeta, shards: tuple[ShardInfo, ...], group_sha256: str) -> None:
        self.path = path
        self.meta = meta
        self.shards = shards
        self.rows = sum(info.rows for info in shards)
        self._group_sha256 = group_sha256

    @classmethod
    def open(cls, path: Path) -> Self:
        """Parse and validate `store.json`, and find every file with the right size. Reads no data.

        Raises:
            LeafError: no store, a damaged or edited one, or one of a later version; says which shard and what to do.
        """
        raw, found = _load(path / "store.json")
        where = str(path / "store.json")
        _require(found.get("format") == FORMAT, f"{where}: not an embedding store")
        version = found.get("version")
        _require(
            type(version) is int and version == VERSION,
            f"{where}: format version {version!r:.40}, but this program reads version {VERSION}: use a later program",
        )
        try:
            meta, shards, group = _parse(found)
            canonical = document(meta, shards, group)
        except (LeafError, KeyError, TypeError, ValueError, RecursionError) as error:
            raise LeafError(f"{where}: invalid: {error!s:.200}; {REPAIR}") from None
        _require(raw == canonical, f"{where}: edited or damaged (its digest or layout differs); {REPAIR}")
        store = cls(path, meta, shards, group)
        store._check_files()
        return store

    def _check_files(self) -> None:
        regular_size(self.path / GROUP, "group of vectors")
        for info in self.shards:
            with _repair():
                check_sizes(self.path, info, self.meta)

    def verify(self) -> None:
        """Read everything: SHA-256 of every file, row counts, unique keys, vectors against rows, NaN, stray files.

        Raises:
            LeafError: names the shard and the repair.
        """
        self._check_stray()
        for i in range(len(self.shards)):
            self.verify_shard(i)
        if sha256(self.path / GROUP) != self._group_sha256:
            raise LeafError(f"{self.path / GROUP}: SHA-256 differs; {REPAIR}")
        ordered, _ = self._index
        twice = ordered[1:][ordered[1:] == ordered[:-1]]
        if len(twice):
            raise LeafError(f"{self.path}: {len(twice)} keys occur twice, first {twice[0].tobytes().hex()}; {REPAIR}")

    def verify_shard(self, i: int) -> None:
        """`verify` for one shard: as much reading as the shard has bytes, twice."""
        info = self.shards[i]
        with _repair():
            check_sizes(self.path, info, self.meta)
            for file, digest in info.files.items():
                if sha256(self.path / file) != digest:
                    raise LeafError(f"{self.path / file}: shard {info.name}: SHA-256 differs: damaged or swapped")
            read_rows(self.path, info)
        for start, vectors in self.chunks(i):
            bad = ~np.isfinite(vectors).all(axis=1)
            if bad.any():
                row = start + int(bad.argmax())
                raise LeafError(f"{self.path}: shard {info.name}: row {row} is not finite; {REPAIR}")

    def _check_stray(self) -> None:
        known = {"store.json", "README.md", GROUP}.union(*(info.files for info in self.shards))
        for file in sorted(self.path.rglob("*")):
            name = file.relative_to(self.path).as_posix()
            if not file.is_dir() and name not in known:
                raise LeafError(f"{file}: not listed in store.json: it belongs to no shard of this store; delete it")

    def shard_rows_frame(self, i: int) -> pl.DataFrame:
        """`key, role, id, source, tokens` of shard `i`, in the order of its vectors; its SHA-256 is checked."""
        with _repair():
            return read_rows(self.path, self.shards[i])

    def read(self, i: int, start: int = 0, stop: int | None = None) -> Array:
        """Vectors `[stop - start, dim]` of shard `i`: float16 or float32 as stored, int8 as float32.

        Fastest where `start` is a multiple of CHUNK_ROWS: whole chunks are read and their crc32c checked.
        Raises LeafError where a chunk is missing or its checksum differs.
        """
        info = self.shards[i]
        first, last, _ = slice(start, stop).indices(info.rows)
        result = np.empty(
            (max(last - first, 0), self.meta.dim), np.float16 if self.meta.dtype == "float16" else np.float32
        )
        with _repair():
            codes, *scales = [open_array(self.path, info, self.meta, name) for name in arrays(info.name, self.meta)]
        for low in range(first, last, READ_ROWS):
            high = min(low - low % CHUNK_ROWS + READ_ROWS, low + READ_ROWS, last)
            out = result[low - first : high - first]
            out[:] = self._piece(info, codes, low, high)
            if scales:
                out *= self._piece(info, scales[0], low, high)[:, None]
            if np.isnan(out[:, 0]).any():
                raise LeafError(f"{self.path}: shard {info.name}: chunks missing in rows {low} to {high}; {REPAIR}")
        return result

    def _piece(self, info: ShardInfo, array: Any, low: int, high: int) -> Array:
        try:
            return np.asarray(array[low:high])
        except Exception as error:  # a hostile shard index makes Zarr raise anything
            raise LeafError(f"{self.path}: shard {info.name}: rows {low} to {high}: {error!s:.120}; {REPAIR}") from None

    def chunks(self, i: int, rows: int = READ_ROWS) -> Iterator[tuple[int, Array]]:
        """`(start, vectors)` over shard `i`, `rows` at a time (a multiple of CHUNK_ROWS reads each chunk once)."""
        for start in range(0, self.shards[i].rows, rows):
            yield start, self.read(i, start, start + rows)

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
        limit = READ_ROWS // CHUNK_ROWS
        low = 0
        while low < len(rows):
            run = chunk[low:]
            breaks = (np.diff(run) > 1) | (run[1:] - run[0] >= limit)
            high = low + (int(breaks.argmax()) + 1 if breaks.any() else len(run))
            start = int(chunk[low]) * CHUNK_ROWS
            vectors = self.read(i, start, (int(chunk[high - 1]) + 1) * CHUNK_ROWS)
            result[places[low:high]] = vectors[rows[low:high] - start]
            low = high


class _repair:  # noqa: N801
    """Adds the repair to a LeafError about a shard."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, _type: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, LeafError) and REPAIR not in str(error):
            raise LeafError(f"{error}; {REPAIR}") from None


def document(meta: StoreMeta, shards: Sequence[ShardInfo], group_sha256: str) -> bytes:
    """The bytes of `store.json`: sorted keys, no timestamps, and a digest over all the rest."""
    body: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "fingerprint": meta.fingerprint,
        "teacher": meta.teacher,
        "dim": meta.dim,
        "dtype": meta.dtype,
        "normalized": meta.normalized,
        "files": {GROUP: group_sha256},
        "shards": [vars(info) for info in shards],
        "rows": sum(info.rows for info in shards),
        "bytes": sum(info.bytes for info in shards),
    }
    digest = hashlib.sha256(_dump(body)).hexdigest()
    return _dump(body | {"digest": digest})


def _dump(body: dict[str, Any]) -> bytes:
    return (json.dumps(body, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _load(file: Path) -> tuple[bytes, dict[str, Any]]:
    if regular_size(file, "no embedding store here") > MAX_DOCUMENT_BYTES:
        raise LeafError(f"{file}: larger than {MAX_DOCUMENT_BYTES} bytes: not an embedding store")
    try:
        raw = file.read_bytes()
        found = json.loads(raw)
    except (OSError, ValueError, RecursionError) as error:
        raise LeafError(f"{file}: cannot be read as JSON: {error!s:.100}; {REPAIR}") from None
    _require(isinstance(found, dict), f"{file}: not an embedding store")
    return raw, found


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise LeafError(message)


def _parse(found: dict[str, Any]) -> tuple[StoreMeta, tuple[ShardInfo, ...], str]:
    meta = StoreMeta(*(found[name] for name in ("fingerprint", "teacher", "dim", "dtype", "normalized")))
    check_meta(meta)
    shards = tuple(parse_shard(entry, meta) for entry in found["shards"])
    _require(len({info.name for info in shards}) == len(shards), "a shard is listed twice")
    group = found["files"][GROUP]
    _require(isinstance(group, str) and bool(_HEX64.fullmatch(group)), "the group's SHA-256 is not one")
    return meta, shards, group


def check_meta(meta: StoreMeta) -> None:
    """Raise LeafError where a field of `meta` is of the wrong type or impossible."""
    fingerprint = meta.fingerprint
    _require(isinstance(fingerprint, str) and bool(_HEX64.fullmatch(fingerprint)), "fingerprint: not 64 hex digits")
    _require(isinstance(meta.teacher, dict), "teacher: not a mapping")
    _require(type(meta.dim) is int and 1 <= meta.dim <= MAX_DIM, f"dim: {meta.dim!r:.40} is impossible")
    _require(meta.dtype in DTYPES, f"dtype: {meta.dtype!r:.40} is none of {', '.join(DTYPES)}")
    _require(isinstance(meta.normalized, bool), "normalized: neither true nor false")


def parse_shard(entry: Any, meta: StoreMeta) -> ShardInfo:
    """A ShardInfo from JSON; raises LeafError unless its name, sizes and file names are what the format derives."""
    _require(isinstance(entry, dict) and set(entry) == {"name", "rows", "bytes", "files"}, "a shard has other fields")
    info = ShardInfo(**entry)
    _require(
        isinstance(info.name, str) and bool(_NAME.fullmatch(info.name)), f"shard name {info.name!r:.60} is impossible"
    )
    for field, value in (("rows", info.rows), ("bytes", info.bytes)):
        possible = type(value) is int and 1 <= value <= MAX_ROWS * MAX_DIM
        _require(possible, f"shard {info.name}: {field} {value!r:.40} is impossible")
    _require(info.rows <= MAX_ROWS, f"shard {info.name}: {info.rows} rows are impossible")
    _require(isinstance(info.files, dict), f"shard {info.name}: files is not a mapping")
    expected = set(file_sizes(info.name, info.rows, meta))
    _require(set(info.files) == expected, f"shard {info.name}: lists other files than its own")
    digests = all(isinstance(digest, str) and _HEX64.fullmatch(digest) for digest in info.files.values())
    _require(digests, f"shard {info.name}: a SHA-256 is not one")
    return info
