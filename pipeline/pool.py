"""The pool: the local, disposable cache of finished shards, from which stores are published by hard links.

One directory per fingerprint and dtype, locked by one writer at a time. A shard is built in a temporary directory and
renamed into place, so that a writer killed at any moment leaves whole shards and `.tmp-*`, which the next one sweeps.
"""

import errno
import fcntl
import json
import os
import re
import shutil
import tempfile
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import polars as pl
import zarr

from pipeline.checks import checked_rows, checked_vectors
from pipeline.errors import LeafError
from pipeline.manifest import GROUP, check_meta, document, parse_shard
from pipeline.shard import (
    Array,
    ShardInfo,
    StoreMeta,
    check_sizes,
    key_array,
    read_rows,
    sha256,
    sync,
    write_shard,
)
from pipeline.store import Store

TEMPORARY = ".tmp-"
_NAME = re.compile(r"[0-9a-f]{16}")
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Pool:
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
        self._keys: Array = key_array([])
        with _disk(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = _locked(self.path / "lock")
            try:
                _sweep(self.path, TEMPORARY)
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
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    @property
    def shards(self) -> tuple[ShardInfo, ...]:
        """Finished shards, sorted by name."""
        return tuple(self._shards[name][0] for name in sorted(self._shards))

    def keys(self) -> Array:
        """`[n] V16` of all finished shards, sorted; `.tolist()` gives bytes."""
        return self._keys

    def has(self, keys: Sequence[bytes] | Array) -> Array:
        """`[n] bool`: which of these keys have a vector in the pool."""
        return _contains(self._keys, key_array(keys))

    def write(self, rows: pl.DataFrame, vectors: Array) -> ShardInfo:
        """Add one shard: `rows` with `key, role, id, source, tokens`; `vectors` `[n, dim]` in the same order.

        Raises:
            LeafError: a vector is NaN, infinite, zero or of another dimension (names the text's id); a key is already
                there; the disk is full. Nothing is left behind.
        """
        rows = checked_rows(rows)
        keys = key_array(rows["key"])
        self._check_new(rows, keys)
        vectors = checked_vectors(rows, vectors, self.meta)
        with _disk(self.path), _temporary(self.path, TEMPORARY) as temporary:
            info = write_shard(temporary, rows, vectors, self.meta)
            _write(temporary / "shard.json", vars(info))
            sync(temporary)
            temporary.rename(self.path / info.name)
            sync(self.path)
        self._add(info, keys)
        return info

    def publish(self, out: Path, wanted: Collection[bytes] | Array) -> Store:
        """Make `out` the store of every shard that holds at least one wanted key, by hard links or copies.

        It is built beside `out` and renamed into place: `out` is the old store, absent, or the new one, never half.

        Raises:
            LeafError: a wanted key is not in the pool, a shard is damaged, `out` is something else, the disk is full.
        """
        keys = np.sort(key_array(wanted if isinstance(wanted, np.ndarray) else list(wanted)))
        missing = int((~self.has(keys)).sum())
        if missing:
            raise LeafError(f"{self.path}: {missing} of {len(keys)} wanted keys have no vector: run encode again")
        _check_replaceable(out)
        chosen = [name for name in sorted(self._shards) if _contains(keys, self._shards[name][1]).any()]
        prefix = f"{TEMPORARY}{out.name}-"
        with _disk(out):
            out.parent.mkdir(parents=True, exist_ok=True)
            _sweep(out.parent, prefix)
            with _temporary(out.parent, prefix) as temporary:
                self._build(temporary, [self._shards[name][0] for name in chosen])
                Store.open(temporary)
                _replace(temporary, out, prefix)
        return Store.open(out)

    def _build(self, root: Path, shards: list[ShardInfo]) -> None:
        zarr.create_group(str(root / "vectors.zarr"))
        (root / "rows").mkdir()
        for info in shards:
            source = self.path / info.name
            for file, digest in info.files.items():
                if sha256(source / file) != digest:
                    raise LeafError(f"{source / file}: damaged; {_forget(source)}")
                _link(source / file, root / file)
        (root / "store.json").write_bytes(document(self.meta, shards, sha256(root / GROUP)))
        for path in (root / "store.json", root / GROUP, root / "rows", root / "vectors.zarr", root):
            sync(path)

    def _check_identity(self) -> None:
        """Two fingerprints may share sixteen digits; they must not share a pool."""
        file = self.path / "pool.json"
        identity = {name: value for name, value in vars(self.meta).items() if name != "teacher"}
        if not file.exists():
            _write(self.path / f"{TEMPORARY}pool.json", identity)
            (self.path / f"{TEMPORARY}pool.json").rename(file)
        elif _read(file) != identity:
            raise LeafError(f"{file}: this pool holds vectors of another teacher; choose another `encode.pool`")

    def _load(self) -> None:
        for directory in sorted(self.path.iterdir()):
            if not directory.is_dir() or not _NAME.fullmatch(directory.name):
                continue
            try:
                info = parse_shard(_read(directory / "shard.json"), self.meta)
                if info.name != directory.name:
                    raise LeafError(f"{directory}: holds shard {info.name}")
                check_sizes(directory, info, self.meta)
                keys = key_array(read_rows(directory, info)["key"])
            except LeafError as error:
                raise LeafError(f"{directory}: {error}; {_forget(directory)}") from None
            self._shards[info.name] = (info, keys)
        if self._shards:
            self._keys = np.sort(np.concatenate([keys for _, keys in self._shards.values()]))

    def _add(self, info: ShardInfo, keys: Array) -> None:
        self._shards[info.name] = (info, keys)
        # Two sorted runs: the stable sort merges them in one pass.
        self._keys = np.sort(np.concatenate([self._keys, np.sort(keys)]), kind="stable")

    def _check_new(self, rows: pl.DataFrame, keys: Array) -> None:
        known = self.has(keys)
        if known.any():
            first = rows["id"][int(known.argmax())]
            raise LeafError(
                f"{self.path}: {int(known.sum())} keys already have a vector, first that of id {first!r:.100}"
            )


def _forget(directory: Path) -> str:
    return f"delete {directory} and run encode again: only its texts are encoded anew"


def _contains(ordered: Array, keys: Array) -> Array:
    if not len(ordered):
        return np.zeros(len(keys), dtype=bool)
    place = np.minimum(np.searchsorted(ordered, keys), len(ordered) - 1)
    found: Array = ordered[place] == keys
    return found


def _locked(file: Path) -> int:
    handle = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(handle, 32, 0).decode(errors="replace").strip() or "unknown"
        os.close(handle)
        raise LeafError(f"{file.parent}: a run is under way (process {holder}); wait for it or end it") from None
    os.ftruncate(handle, 0)
    os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
    return handle


def _sweep(directory: Path, prefix: str) -> None:
    for path in directory.glob(f"{prefix}*"):
        _remove(path)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def _temporary(parent: Path, prefix: str) -> Iterator[Path]:
    """A fresh directory that is gone at the end unless it was renamed."""
    path = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
    path.chmod(0o755)
    try:
        yield path
    finally:
        if path.exists():
            shutil.rmtree(path, ignore_errors=True)


@contextmanager
def _disk(place: Path) -> Iterator[None]:
    """OSError becomes a LeafError that says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise LeafError(
                f"{place}: no space left for this shard; free some and run again: nothing is lost"
            ) from None
        raise LeafError(f"{place}: {error.strerror or error} ({error.filename})") from None


def _write(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, sort_keys=True, indent=1) + "\n", encoding="utf-8")
    sync(file)


def _read(file: Path) -> Any:
    try:
        return json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        raise LeafError(f"{file}: missing or not JSON") from None


def _link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno in _FULL:
            raise
        shutil.copyfile(source, target)
        sync(target)


def _check_replaceable(out: Path) -> None:
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise LeafError(f"{out}: not a directory; move it away, the store is published there")
    if out.is_dir() and any(out.iterdir()) and not (out / "store.json").exists():
        raise LeafError(f"{out}: holds something else than a store; move it away, the store is published there")


def _replace(new: Path, out: Path, prefix: str) -> None:
    if out.exists():
        aside = Path(tempfile.mkdtemp(prefix=prefix, dir=out.parent))
        out.rename(aside)
        new.rename(out)
        shutil.rmtree(aside, ignore_errors=True)
    else:
        new.rename(out)
    sync(out.parent)
