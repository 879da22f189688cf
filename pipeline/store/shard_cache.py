"""The pool: the local, disposable cache of finished shards, from which stores are published by hard links.

One directory per fingerprint and dtype, locked by one writer at a time. A shard is built in a temporary directory and
renamed into place, so that a writer killed at any moment leaves whole shards and `.tmp-*`, which the next one sweeps.
"""

import os
import re
from collections import Counter
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace as changed
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import polars as pl
import zarr

from pipeline.base.arrays import Array
from pipeline.base.errors import LeafError
from pipeline.base.files import (
    TEMPORARY,
    disk,
    link,
    locked,
    read_json,
    remove,
    replace_directory,
    sha256,
    sync,
    temporary,
    workspace,
    write_json,
)
from pipeline.base.keys import contains, key_array, merge_sorted
from pipeline.store.manifest import check_meta, parse_shard
from pipeline.store.readme import write_manifest
from pipeline.store.refused import Refused
from pipeline.store.shard import (
    ShardInfo,
    StoreMeta,
    check_files,
    check_sizes,
    encoded,
    read_rows,
    rows_path,
    write_shard,
)
from pipeline.store.store import Store, by_source, sum_sources
from pipeline.store.validation import check_replaceable, checked_rows, checked_vectors

_NAME = re.compile(r"[0-9a-f]{16}")
_NOT_OF_THE_POOL = ("teacher", "license", "refused")


class ShardCache:
    """Finished shards of one fingerprint. Holds the pool's lock until `close` (or the end of a `with`)."""

    def __init__(self, root: Path, meta: StoreMeta) -> None:
        """Open `root/<fingerprint[:16]>-<dtype>/`, lock it and sweep what killed writers left.

        Raises:
            LeafError: another run holds the lock, or a shard of the pool is damaged.
        """
        check_meta(meta)
        self.meta = meta
        self.path = root / f"{meta.fingerprint[:16]}-{meta.dtype}"
        self._shards: dict[str, tuple[ShardInfo, Array]] = {}
        self._runs: list[Array] = []
        self._lock = ExitStack()
        with disk(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock.enter_context(locked(self.path / "lock", str(self.path)))
            try:
                for left in self.path.glob(f"{TEMPORARY}*"):
                    remove(left)
                self.refused = Refused(self.path / "refused.jsonl")
                self._check_identity()
                self._load()
            except BaseException:
                self.close()
                raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Release the lock; a second call does nothing."""
        self._lock.close()

    @property
    def shards(self) -> tuple[ShardInfo, ...]:
        """Finished shards, sorted by name."""
        return tuple(self._shards[name][0] for name in sorted(self._shards))

    def keys(self) -> Array:
        """`[n] V16` of all finished shards, sorted; `.tolist()` gives bytes."""
        if len(self._runs) != 1:
            self._runs = [merge_sorted(self._runs) if self._runs else key_array([])]
        return self._runs[0]

    def has(self, keys: Sequence[bytes] | Array | pl.Series) -> Array:
        """`[n] bool`: which of these keys have a vector in the pool."""
        wanted = key_array(keys)
        found = np.zeros(len(wanted), dtype=bool)
        for run in self._runs:
            found |= contains(run, wanted)
        return found

    def write(self, rows: pl.DataFrame, vectors: Array) -> ShardInfo:
        """Add one shard: `rows` with `key, role, id, source, tokens`; `vectors` `[n, dim]` in the same order.

        Raises:
            LeafError: a vector is NaN, infinite, zero or of another dimension (names the text's id); a key is already
                there; the disk is full. Nothing is left behind.
        """
        rows = checked_rows(rows)
        self._check_new(rows, key_array(rows["key"]))
        vectors = checked_vectors(rows, vectors, self.meta)
        return self._commit(rows, encoded(vectors, self.meta))

    def write_stored(self, rows: pl.DataFrame, stored: Sequence[Array]) -> ShardInfo:
        """`write` for what `Store.stored` gave: the very bits, so that no vector changes by being moved."""
        rows = checked_rows(rows)
        self._check_new(rows, key_array(rows["key"]))
        return self._commit(rows, stored)

    def adopt(self, root: Path, info: ShardInfo) -> None:
        """Take a whole shard of another store by hard links; its SHA-256 are checked, its vectors are not read.

        Raises:
            LeafError: it is damaged, or a key is already there.
        """
        rows = read_rows(root, info)
        self._check_new(rows, key_array(rows["key"]))
        check_files(root, info, self.meta)
        with disk(self.path), temporary(self.path, TEMPORARY) as directory:
            for file in info.files:
                link(root / file, directory / file)
            _finish(self.path, directory, info)
        self._add(info, key_array(rows["key"]))

    def register(self, name: str) -> ShardInfo:
        """Take note of a shard that another process has written by `commit_shard`.

        Raises:
            LeafError: it is damaged, or a key is already there.
        """
        info, keys = self._read(self.path / name)
        self._check_new(read_rows(self.path / name, info), keys)
        self._add(info, keys)
        return info

    def _commit(self, rows: pl.DataFrame, stored: Sequence[Array]) -> ShardInfo:
        info = commit_shard(self.path, rows, stored, self.meta)
        self._add(info, key_array(rows["key"]))
        return info

    def publish(self, out: Path, wanted: Collection[bytes] | Array | pl.Series) -> Store:
        """Make `out` the store of every shard that holds at least one wanted key, by hard links or copies.

        It is built beside `out` and renamed into place: `out` is the old store, absent, or the new one, never half.

        Raises:
            LeafError: a wanted key is not in the pool, a shard is damaged, `out` is something else, another run
                publishes there, the disk is full.
        """
        keys = merge_sorted([key_array(wanted if isinstance(wanted, np.ndarray | pl.Series) else list(wanted))])
        missing = int((~self.has(keys)).sum()) - len(self.left_out(keys))
        if missing:
            raise LeafError(f"{self.path}: {missing} of {len(keys)} wanted keys have no vector: run encode again")
        check_replaceable(out)
        chosen = [name for name in sorted(self._shards) if _any(keys, self._shards[name][1])]
        with disk(out), workspace(out, "new") as directory:
            result = directory / "result"
            self._build(result, [self._shards[name][0] for name in chosen], self._listed(keys))
            Store.open(result)
            replace_directory(result, out)
        return Store.open(out)

    def left_out(self, wanted: Array) -> list[bytes]:
        """Those of the wanted keys (sorted) that have no vector because the teacher has refused their texts."""
        keys = key_array(list(self.refused))
        left: list[bytes] = keys[contains(wanted, keys) & ~self.has(keys)].tolist()
        return left

    def _listed(self, wanted: Array) -> dict[str, str] | None:
        """What the store lists as refused: what those it was made from listed, and what this pool lacks."""
        listed = {
            key: reason for key, reason in (self.meta.refused or {}).items() if not self.has([bytes.fromhex(key)])[0]
        }
        listed |= {key.hex(): self.refused[key].reason for key in self.left_out(wanted)}
        return dict(sorted(listed.items())) or None

    def _build(self, root: Path, shards: list[ShardInfo], refused: dict[str, str] | None) -> None:
        (root / "rows").mkdir(parents=True)
        zarr.create_group(str(root / "vectors.zarr"))
        with ThreadPoolExecutor(os.cpu_count()) as threads:  # hashing leaves the interpreter to the others
            sources = sum_sources(threads.map(lambda info: self._link(info, root), shards))
        write_manifest(root, changed(self.meta, refused=refused), shards, sources)
        for path in (root / "rows", root / "vectors.zarr", root):
            sync(path)

    def _link(self, info: ShardInfo, root: Path) -> Counter[tuple[str, str]]:
        """Link a shard's files once every byte has been hashed; its rows by source and role."""
        source = self.path / info.name
        try:
            rows = read_rows(source, info)  # hashes them
        except LeafError as error:
            raise LeafError(f"{error}; {_forget(source)}") from None
        for file, digest in info.files.items():
            if file != rows_path(info.name) and sha256(source / file) != digest:
                raise LeafError(f"{source / file}: damaged; {_forget(source)}")
            link(source / file, root / file)
        return by_source(rows)

    def _check_identity(self) -> None:
        """Two fingerprints may share sixteen digits; they must not share a pool."""
        file = self.path / "pool.json"
        identity = {name: value for name, value in vars(self.meta).items() if name not in _NOT_OF_THE_POOL}
        if not file.exists():
            write_json(self.path / f"{TEMPORARY}pool.json", identity)
            (self.path / f"{TEMPORARY}pool.json").rename(file)
        elif read_json(file) != identity:
            raise LeafError(f"{file}: this pool holds vectors of another teacher; choose another `encode.pool`")

    def _load(self) -> None:
        found = [path for path in sorted(self.path.iterdir()) if path.is_dir() and _NAME.fullmatch(path.name)]
        with ThreadPoolExecutor(os.cpu_count()) as threads:
            self._shards = {info.name: (info, keys) for info, keys in threads.map(self._read, found)}
        if self._shards:
            self._runs = [merge_sorted([keys for _, keys in self._shards.values()])]

    def _read(self, directory: Path) -> tuple[ShardInfo, Array]:
        try:
            info = parse_shard(read_json(directory / "shard.json"), self.meta)
            if info.name != directory.name:
                raise LeafError(f"{directory}: holds shard {info.name}")
            check_sizes(directory, info, self.meta)
            return info, key_array(read_rows(directory, info)["key"])
        except LeafError as error:
            raise LeafError(f"{directory}: {error}; {_forget(directory)}") from None

    def _add(self, info: ShardInfo, keys: Array) -> None:
        self._shards[info.name] = (info, keys)
        run = merge_sorted([keys])
        # Runs grow like the digits of a binary counter: a key is merged log(shards) times, not once a shard.
        while self._runs and len(self._runs[-1]) <= len(run):
            run = merge_sorted([self._runs.pop(), run])
        self._runs.append(run)

    def _check_new(self, rows: pl.DataFrame, keys: Array) -> None:
        known = self.has(keys)
        if known.any():
            first = rows["id"][int(known.argmax())]
            raise LeafError(
                f"{self.path}: {int(known.sum())} keys already have a vector, first that of id {first!r:.100}"
            )


def commit_shard(root: Path, rows: pl.DataFrame, stored: Sequence[Array], meta: StoreMeta) -> ShardInfo:
    """Write one finished shard into the cache's directory `root` (`ShardCache.path`); needs no lock.

    `rows` comes from `checked_rows`, `stored` from `encoded`. The process that holds the lock calls `register` then.
    """
    with disk(root), temporary(root, TEMPORARY) as directory:
        info = write_shard(directory, rows, stored, meta)
        _finish(root, directory, info)
    return info


def _finish(root: Path, directory: Path, info: ShardInfo) -> None:
    write_json(directory / "shard.json", vars(info))
    sync(directory)
    directory.rename(root / info.name)
    sync(root)


def _forget(directory: Path) -> str:
    return f"delete {directory} and run encode again: only its texts are encoded anew"


def _any(ordered: Array, keys: Array) -> bool:
    """Whether any of `keys` is among `ordered`; as a rule the first few say so."""
    return bool(contains(ordered, keys[:64]).any() or contains(ordered, keys).any())
