"""The shard cache: finished shards on this machine, disposable, from which stores are published by hard links.

It has a directory per fingerprint and dtype, which a single writer locks. A shard is built in a temporary directory
and renamed into place, so that a writer killed at any moment leaves whole shards and `.tmp-*`, which the next writer
sweeps. Other processes, on this machine or on others that share the file system, may add shards for the writer that
holds the lock: `ShardWriter` there, `ShardCache.register` here. Each writer names a job, and a shard is only added
while its job is the newest, so that what a run that has ended left working changes nothing under the next one.
"""

import errno
import os
import re
import shutil
import uuid
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import polars as pl
import zarr

from pipeline.base import (
    TEMPORARY,
    Array,
    DigestError,
    LeafError,
    apply_umask,
    bytes_kept,
    check_replaceable,
    check_sha256,
    contains,
    disk,
    key_array,
    link,
    locked,
    merge_sorted,
    open_own,
    read_json,
    remove,
    sync,
    temporary,
    write_json,
    written_directory,
    written_file,
)
from pipeline.store.manifest import check_meta, parse_shard
from pipeline.store.output import STORE_KIND
from pipeline.store.readme import write_manifest
from pipeline.store.refused import RefusedTexts
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
from pipeline.store.store import Store, count_by_source, total_by_source
from pipeline.store.validation import checked_rows, checked_vectors

_NAME = re.compile(r"[0-9a-f]{16}")
_NOT_OF_THE_IDENTITY = ("teacher", "license", "refused")
JOB = "job"
"""File that names the newest job."""
_TAKEN = (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT)
"""What a rename onto a shard that is there says; on NFS also one whose first answer was lost on the way."""


class ShardCache:
    """Finished shards of one fingerprint and dtype. Holds the cache's lock until `close` (or the end of a `with`)."""

    def __init__(self, root: Path, meta: StoreMeta) -> None:
        """Open `root/<fingerprint[:16]>-<dtype>/`, lock it and sweep what killed writers left.

        Raises:
            LeafError: another run holds the lock, or a shard of the cache is damaged.
        """
        check_meta(meta)
        self.meta = meta
        self.path = shard_directory(root, meta)
        self._shards: dict[str, tuple[ShardInfo, Array]] = {}
        self._sorted_keys: list[Array] = []
        self._lock = ExitStack()
        self.job = uuid.uuid4().hex
        """Names this opening of the cache to those who add shards to it (`ShardWriter`)."""
        with disk(self.path):
            if self.path.is_symlink():
                raise LeafError(f"{self.path}: is a link, and a shard cache is kept in no other place; remove it")
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock.enter_context(locked(self.path / "lock", str(self.path)))
            try:
                # In place: a client of NFS that opens the file sees its content, but may be late to see another file.
                with os.fdopen(open_own(self.path / JOB, os.O_RDWR), "w") as file:
                    file.truncate()
                    file.write(self.job)
                for leftover in self.path.glob(f"{TEMPORARY}*"):
                    remove(leftover)
                self.refused = RefusedTexts(self.path / "refused.jsonl")
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
        if len(self._sorted_keys) != 1:
            self._sorted_keys = [merge_sorted(self._sorted_keys) if self._sorted_keys else key_array([])]
        return self._sorted_keys[0]

    def has(self, keys: Sequence[bytes] | Array | pl.Series) -> Array:
        """`[n] bool`: which of these keys have a vector in the cache."""
        queries = key_array(keys)
        present = np.zeros(len(queries), dtype=bool)
        for ordered in self._sorted_keys:
            present |= contains(ordered, queries)
        return present

    def write(self, rows: pl.DataFrame, vectors: Array) -> ShardInfo:
        """Add one shard: `rows` with `key, role, id, source, tokens`; `vectors` `[n, dim]` in the same order.

        Raises:
            LeafError: a vector is NaN, infinite, zero or of another dimension (names the text's id); a key is already
                there; the disk is full. Nothing is left behind.
        """
        rows = checked_rows(rows)
        self._check_new(rows)
        return self._commit(rows, encoded(checked_vectors(rows, vectors, self.meta), self.meta))

    def write_stored(self, rows: pl.DataFrame, stored: Sequence[Array], license_: str | None) -> ShardInfo:
        """`write` for arrays from `Store.stored`: bit for bit, so that no vector changes by being moved.

        `license_` is that of the shard they come from (`ShardInfo.license`).
        """
        rows = checked_rows(rows)
        self._check_new(rows)
        return self._commit(rows, stored, license_)

    def _commit(self, rows: pl.DataFrame, stored: Sequence[Array], license_: str | None = None) -> ShardInfo:
        info = commit_shard(self.path, rows, stored, self.meta, license_)
        self._add(info, key_array(rows["key"]))
        return info

    def register(self, name: str) -> ShardInfo:
        """Take note of a shard that another process has committed here with `commit_shard`; reads and checks its rows.

        Raises:
            LeafError: there is no such shard, it is damaged, or a key is already there.
        """
        info, rows = self._read(self.path / name)
        self._check_new(rows)
        self._add(info, key_array(rows["key"]))
        return info

    def adopt(self, root: Path, info: ShardInfo) -> None:
        """Take a whole shard of another store by hard links; its SHA-256 are checked, its vectors are not read.

        What is checked are the files that stay here. Those of another user are copied: who owns a file can change it.
        It keeps the licence that `info` states.

        Raises:
            LeafError: it is damaged, or a key is already there.
        """
        check_sizes(root, info, self.meta)
        with disk(self.path, "this shard"), temporary(self.path, TEMPORARY) as directory:
            for file in info.files:
                _link_or_copy(root / file, directory / file)
            try:
                rows = read_rows(directory, info)
                self._check_new(rows)
                check_files(directory, info, self.meta)
            except LeafError as error:  # names the shard where it came from
                raise type(error)(str(error).replace(str(directory), str(root))) from None
            info = move_into_place(directory, self.path, info, self.meta)
        self._add(info, key_array(rows["key"]))

    def publish(self, out: Path, wanted: Collection[bytes] | Array | pl.Series) -> Store:
        """Make `out` the store of every shard that holds at least one wanted key, by hard links or copies.

        It is built beside `out` and renamed into place: `out` is the old store, absent, or the new store, never half.

        Raises:
            LeafError: a wanted key is not in the cache, a shard is damaged, `out` is something else, another run
                publishes there, the disk is full.
        """
        keys = merge_sorted([key_array(wanted if isinstance(wanted, np.ndarray | pl.Series) else list(wanted))])
        missing = int((~self.has(keys)).sum()) - len(self.left_out(keys))
        if missing:
            raise LeafError(f"{self.path}: {missing} of {len(keys)} wanted keys have no vector: run encode again")
        check_replaceable(out, STORE_KIND)
        chosen = [name for name in sorted(self._shards) if _contains_any(keys, self._shards[name][1])]
        with disk(out), written_directory(out, STORE_KIND) as directory:
            self._build(directory, [self._shards[name][0] for name in chosen], self._refused_without_vector(keys))
            Store.open(directory)
        return Store.open(out)

    def left_out(self, wanted: Array) -> list[bytes]:
        """Those of the wanted keys (sorted) that have no vector because the teacher has refused their texts."""
        refused = key_array(list(self.refused))
        left_out: list[bytes] = refused[contains(wanted, refused) & ~self.has(refused)].tolist()
        return left_out

    def _refused_without_vector(self, wanted: Array) -> dict[str, str] | None:
        """The field `refused` of the published store: key in hexadecimal digits -> reason, None if there is none.

        The texts listed by the stores that this cache was filled from, and the wanted keys that were refused here,
        without those that have a vector.
        """
        listed = {
            key: reason for key, reason in (self.meta.refused or {}).items() if not self.has([bytes.fromhex(key)])[0]
        }
        listed |= {key.hex(): self.refused[key].reason for key in self.left_out(wanted)}
        return dict(sorted(listed.items())) or None

    def _build(self, root: Path, shards: list[ShardInfo], refused: dict[str, str] | None) -> None:
        (root / "rows").mkdir()
        zarr.create_group(str(root / "vectors.zarr"))
        with ThreadPoolExecutor(os.cpu_count()) as threads:  # hashing releases the interpreter's lock
            sources = total_by_source(threads.map(lambda info: self._link(info, root), shards))
        write_manifest(root, replace(self.meta, refused=refused), shards, sources)
        for path in (root / "rows", root / "vectors.zarr", root):
            sync(path)

    def _link(self, info: ShardInfo, root: Path) -> Counter[tuple[str, str]]:
        """Link a shard's files after hashing every byte; returns its rows by source and role."""
        directory = self.path / info.name
        try:
            rows = read_rows(directory, info)  # hashes the rows file
        except LeafError as error:
            raise LeafError(f"{error}; {_deletion_advice(directory)}") from None
        for file, digest in info.files.items():
            if file != rows_path(info.name):
                try:
                    check_sha256(directory / file, digest)
                except DigestError:
                    raise LeafError(f"{directory / file}: damaged; {_deletion_advice(directory)}") from None
            with bytes_kept(directory / file):
                link(directory / file, root / file)
        return count_by_source(rows)

    def _check_identity(self) -> None:
        """Refuse a directory of another fingerprint that begins with the same sixteen digits."""
        file = self.path / "pool.json"
        identity = {name: value for name, value in vars(self.meta).items() if name not in _NOT_OF_THE_IDENTITY}
        if not file.exists():
            with written_file(file) as new:
                write_json(new, identity)
        elif read_json(file) != identity:
            raise LeafError(f"{file}: this shard cache holds vectors of another teacher; choose another `encode.pool`")

    def _load(self) -> None:
        names = [path.name for path in sorted(self.path.iterdir()) if path.is_dir() and _NAME.fullmatch(path.name)]
        with ThreadPoolExecutor(os.cpu_count()) as threads:
            self._shards = dict(zip(names, threads.map(self._read_keys, names), strict=True))
        if self._shards:
            self._sorted_keys = [merge_sorted([keys for _, keys in self._shards.values()])]

    def _read_keys(self, name: str) -> tuple[ShardInfo, Array]:
        info, rows = self._read(self.path / name)
        return info, key_array(rows["key"])

    def _read(self, directory: Path) -> tuple[ShardInfo, pl.DataFrame]:
        """A shard's entry and rows, checked; of its vectors only the files' sizes."""
        try:
            info = parse_shard(read_json(directory / "shard.json"), self.meta)
            if info.name != directory.name:
                raise LeafError(f"{directory}: holds shard {info.name}")
            check_sizes(directory, info, self.meta)
            return info, read_rows(directory, info)
        except LeafError as error:
            raise LeafError(f"{directory}: {error}; {_deletion_advice(directory)}") from None

    def _add(self, info: ShardInfo, keys: Array) -> None:
        self._shards[info.name] = (info, keys)
        merged = merge_sorted([keys])
        # Sorted arrays grow like the digits of a binary counter: a key is merged log(shards) times, not once a shard.
        while self._sorted_keys and len(self._sorted_keys[-1]) <= len(merged):
            merged = merge_sorted([self._sorted_keys.pop(), merged])
        self._sorted_keys.append(merged)

    def _check_new(self, rows: pl.DataFrame) -> None:
        known = self.has(key_array(rows["key"]))
        if known.any():
            first = rows["id"][int(known.argmax())]
            raise LeafError(
                f"{self.path}: {int(known.sum())} keys already have a vector, first that of id {first!r:.100}"
            )


def shard_directory(root: Path, meta: StoreMeta) -> Path:
    """The directory below a shard cache's root that holds the shards of this fingerprint and dtype."""
    return root / f"{meta.fingerprint[:16]}-{meta.dtype}"


def finished_keys(path: Path, refused: bool) -> Array:
    """`[n] V16`, sorted: keys with a vector in the directory of a shard cache, whoever has it open; none if absent.

    With `refused`, also those whose texts the teacher has refused. LeafError where a shard is damaged.
    """
    names = [entry for entry in path.glob("*/shard.json") if _NAME.fullmatch(entry.parent.name)]
    keys = [
        key_array(pl.read_parquet(entry.parent / rows_path(entry.parent.name), columns=["key"])["key"])
        for entry in names
    ]
    if refused:
        keys.append(key_array(list(RefusedTexts(path / "refused.jsonl"))))
    return merge_sorted(keys) if keys else key_array([])


class ShardWriter:
    """Adds shards to a shard cache for the process that holds its lock, from any process and machine.

    That one takes note of them with `ShardCache.register`. Several may be given the same rows: each shard is computed
    at least once and added once.
    """

    def __init__(self, path: Path, meta: StoreMeta, job: str) -> None:
        """`path`, `meta` and `job` are those of the `ShardCache`."""
        self.path, self.meta, self.job = path, meta, job

    def check_current(self) -> None:
        """LeafError where the cache has been opened again since: then nothing of this job may be added."""
        try:
            current = (self.path / JOB).read_text()
        except OSError as error:
            raise LeafError(f"{self.path}: the shard cache cannot be reached ({error.strerror})") from None
        if current != self.job:
            raise LeafError(f"{self.path}: another run has opened the shard cache since this work was planned")

    def holds(self, name: str) -> bool:
        """Whether a shard of this name is finished."""
        return (self.path / name / "shard.json").exists()

    def agree(self, file: str, content: bytes) -> bytes:
        """What a small file holds; where there is none, it is made of `content`. All who ask are told the same."""
        with disk(self.path), temporary(self.path, TEMPORARY) as directory:
            if not (self.path / file).exists():
                (directory / file).write_bytes(content)
                sync(directory / file)
                with suppress(FileExistsError):  # of two that come first, one is
                    os.link(directory / file, self.path / file)
            return (self.path / file).read_bytes()

    def write(self, rows: pl.DataFrame, vectors: Array) -> ShardInfo:
        """Add a shard, or take the one that another attempt was faster to add; see `ShardCache.write`.

        Raises:
            LeafError: as there; or the job is not the newest.
        """
        rows = checked_rows(rows)
        stored = encoded(checked_vectors(rows, vectors, self.meta), self.meta)
        try:
            return commit_shard(self.path, rows, stored, self.meta, fence=self.check_current)
        except LeafError:
            self.check_current()  # the next run sweeps what earlier ones have not finished: then that is the reason
            raise


def commit_shard(
    root: Path,
    rows: pl.DataFrame,
    stored: Sequence[Array],
    meta: StoreMeta,
    license_: str | None = None,
    *,
    fence: Callable[[], None] = lambda: None,
) -> ShardInfo:
    """Write one finished shard into the directory `root` of a shard cache (`ShardCache.path`), whole or not at all.

    A shard of the same keys that is there already stays, and its entry is returned.

    Args:
        root: directory that exists; the shard becomes `root/<name>/`.
        rows: from `checked_rows`.
        stored: from `encoded`, in the rows' order.
        meta: of the cache.
        license_: of vectors that come from another store; None for those encoded here.
        fence: called when everything is written, just before the shard gets its name; raises where it must not.

    Raises:
        LeafError: the disk is full, or what is there under the shard's name is damaged. Nothing is left behind.
    """
    with disk(root, "this shard"), temporary(root, TEMPORARY) as directory:
        info = replace(write_shard(directory, rows, stored, meta), license=license_)
        return move_into_place(directory, root, info, meta, fence)


def _link_or_copy(source: Path, target: Path) -> None:
    if source.stat().st_uid == os.geteuid():
        with bytes_kept(source):
            link(source, target)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    sync(target)


def move_into_place(
    directory: Path, root: Path, info: ShardInfo, meta: StoreMeta, fence: Callable[[], None] = lambda: None
) -> ShardInfo:
    """Give a shard built in a temporary directory of `root` its name, flushed to the disk; returns what has the name.

    Whoever comes second finds the name taken, and the first one's shard stays.
    """
    write_json(directory / "shard.json", info.to_json())
    apply_umask(directory)
    sync(directory)
    fence()
    target = root / info.name
    try:
        directory.rename(target)
    except OSError as error:
        if error.errno not in _TAKEN or not target.exists():
            raise
        info = parse_shard(read_json(target / "shard.json"), meta)
        check_sizes(target, info, meta)
    sync(root)
    return info


def _deletion_advice(directory: Path) -> str:
    return f"delete {directory} and run encode again: only its texts are encoded anew"


def _contains_any(ordered: Array, keys: Array) -> bool:
    """Whether any of `keys` is among the sorted `ordered`; looks at a few first, which mostly decide it."""
    return bool(contains(ordered, keys[:64]).any() or contains(ordered, keys).any())
