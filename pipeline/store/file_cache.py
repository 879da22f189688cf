"""A bounded local cache of the files of remote stores, in which every file is hashed while it arrives.

What has arrived of a file lies beside its place, under a name with its digest. A killed download leaves it there, and
the next one, in whichever process, goes on from it.
"""

import fcntl
import hashlib
import json
import os
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from io import BufferedRandom
from pathlib import Path
from typing import IO

from pipeline.base import TEMPORARY, LeafError, access, bytes_kept, open_own, remember_sha256, written_file
from pipeline.store.transport import Transport


class FileCache:
    """Local copies of one store's files. The bound holds over all stores that share the directory `root`."""

    def __init__(self, root: Path, limit: int, transport: Transport, identity: str) -> None:
        """`limit` is in bytes; `identity` names this store's directory below `root`."""
        self.root, self.limit, self.transport = root, limit, transport
        self.path = root / identity
        self._turn = threading.Lock()
        self._downloads: dict[str, threading.Lock] = {}
        self._pinned: Counter[Path] = Counter()
        self._incoming: dict[Path, int] = {}
        """The final sizes of files of vectors that this process is downloading."""

    def drop_outdated(self, digests: Mapping[str, str]) -> None:
        """Drop local copies of files that have other digests now: the store behind the URL was published anew."""
        self.path.mkdir(parents=True, exist_ok=True)
        known = self.path / "known.json"
        try:
            before = dict(json.loads(known.read_bytes()))
        except (OSError, ValueError, TypeError):
            before = {}
        for file, digest in digests.items():
            if before.get(file) != digest:
                (self.path / file).unlink(missing_ok=True)
        for file, digest in before.items():
            if digests.get(file) != digest:
                _drop(_part(self.path / file, digest))
        with written_file(known) as new:
            new.write_text(json.dumps(dict(digests)), encoding="utf-8")

    @contextmanager
    def pinned(self, file: str) -> Iterator[None]:
        """Within the block this process does not drop the local copy."""
        with self._turn:
            self._pinned[self.path / file] += 1
        try:
            yield
        finally:
            with self._turn:
                self._pinned[self.path / file] -= 1

    def fetch(self, file: str, digest: str, size: int | None, limit: int, evictable: bool = False) -> Path:
        """The local path of a file, downloaded and checked if it is not there.

        Args:
            file: path below the URL.
            digest: the file's SHA-256.
            size: its exact size in bytes, where the format fixes it.
            limit: the most bytes it may have.
            evictable: it counts against the cache's bound, and files like it are dropped to make room.

        Raises:
            LeafError: the file is missing, has another size or digest, or cannot be reached.
        """
        with self._turn:
            download = self._downloads.setdefault(file, threading.Lock())
        with download:
            path = self.path / file
            try:
                with bytes_kept(path):
                    os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns))  # marks it as used just now
            except FileNotFoundError:
                with access(path):
                    return self._download(file, digest, size, limit, evictable)
            except PermissionError:  # of another user's cache, which may be read
                pass
            return path

    def _download(self, file: str, digest: str, size: int | None, limit: int, evictable: bool) -> Path:
        actual = self.transport.size(file)
        if size is not None and actual != size:
            raise LeafError(f"{self.transport.url}/{file}: has {actual} bytes instead of {size}: truncated or changed")
        if actual > limit:
            raise LeafError(f"{self.transport.url}/{file}: has {actual} bytes, more than its shard may have: refused")
        path = self.path / file
        path.parent.mkdir(parents=True, exist_ok=True)
        part = _part(path, digest)
        with _alone(part, path) as arrived:
            if arrived is None:
                return path
            if evictable:
                self._make_room(actual, part)
            try:
                if not self._complete(file, actual, digest, arrived):
                    part.unlink()
                    raise LeafError(f"{self.transport.url}/{file}: SHA-256 differs: damaged or swapped")
                part.rename(path)
                remember_sha256(path, digest)
            finally:
                if evictable:
                    with self._turn:
                        self._incoming.pop(part)
        return path

    def _complete(self, file: str, size: int, digest: str, arrived: BufferedRandom) -> bool:
        """Append the bytes of the file that have not arrived yet; whether all together have this SHA-256."""
        arrived.seek(0)
        hashed = hashlib.file_digest(arrived, "sha256")
        start = arrived.tell()
        for block in self.transport.blocks(file, size, start):
            hashed.update(block)
            arrived.write(block)
        arrived.flush()
        if hashed.hexdigest() == digest:
            return True
        arrived.truncate(0)
        # What a power cut has left may be anything, and is no word about the bytes at the URL.
        return start > 0 and self._complete(file, size, digest, arrived)

    def _make_room(self, size: int, part: Path) -> None:
        """Drop the least recently used files of vectors, of any store in the cache, until the file of `part` fits."""
        with self._turn:
            self._incoming[part] = size
            held = []
            for path in self.root.glob("*/vectors.zarr/*/c/0/*"):
                if path in self._incoming:
                    continue
                with suppress(OSError):  # another process dropped it
                    held.append((path.stat().st_atime_ns, path.stat().st_size, path))
            total = sum(bytes_ for _, bytes_, _ in held) + sum(self._incoming.values())
            for _, bytes_, path in sorted(held):
                if total <= self.limit:
                    return
                if not self._pinned[path] and _drop(path):
                    total -= bytes_


def _part(path: Path, digest: str) -> Path:
    """Where the bytes of a file wait that have arrived; another content has another place."""
    return path.with_name(f"{TEMPORARY}{digest[:16]}-{path.name}")


@contextmanager
def _alone(part: Path, path: Path) -> Iterator[BufferedRandom | None]:
    """`part`, open and locked, as soon as no other process has it; None if that one has brought `path` meanwhile."""
    while True:
        with os.fdopen(open_own(part, os.O_RDWR | os.O_APPEND), "a+b") as arrived:
            fcntl.flock(arrived, fcntl.LOCK_EX)
            if path.exists():
                if _is(arrived, part):
                    part.unlink()
                yield None
                return
            if _is(arrived, part):  # else its last owner has renamed or dropped it
                yield arrived
                return


def _is(opened: IO[bytes], path: Path) -> bool:
    """Whether the open file is still the one at the path."""
    try:
        return os.path.samestat(os.fstat(opened.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _drop(path: Path) -> bool:
    """Remove a file of the cache, if it is there and no other process is downloading it; whether it is gone."""
    if not path.name.startswith(TEMPORARY):
        path.unlink(missing_ok=True)
        return True
    with suppress(FileNotFoundError), path.open("rb") as arrived:
        try:
            fcntl.flock(arrived, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        if _is(arrived, path):
            path.unlink()
    return True
