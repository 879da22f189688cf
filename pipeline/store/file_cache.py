"""A bounded local cache of the files of remote stores, in which every file is hashed while it arrives."""

import hashlib
import json
import os
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from pipeline.base import LeafError, access, bytes_kept, remember_sha256, written_file
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
        self._incoming_bytes = 0

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
        if evictable:
            self._make_room(actual)
        try:
            with written_file(path) as new:
                if self._copy_and_hash(file, actual, new) != digest:
                    raise LeafError(f"{self.transport.url}/{file}: SHA-256 differs: damaged or swapped")
            remember_sha256(path, digest)
        finally:
            if evictable:
                with self._turn:
                    self._incoming_bytes -= actual
        return path

    def _copy_and_hash(self, file: str, size: int, target: Path) -> str:
        """Write the file's bytes to `target`; returns their SHA-256."""
        hashed = hashlib.sha256()
        with target.open("wb") as out:
            for block in self.transport.blocks(file, size):
                hashed.update(block)
                out.write(block)
        return hashed.hexdigest()

    def _make_room(self, incoming: int) -> None:
        """Drop the least recently used files of vectors, of any store in the cache, until `incoming` bytes fit."""
        with self._turn:
            held = []
            for path in self.root.glob("*/vectors.zarr/*/c/0/0"):
                try:
                    held.append((path.stat().st_atime_ns, path.stat().st_size, path))
                except OSError:  # another process dropped it
                    continue
            self._incoming_bytes += incoming
            total = sum(size for _, size, _ in held) + self._incoming_bytes
            for _, size, path in sorted(held):
                if total <= self.limit:
                    return
                if not self._pinned[path]:
                    path.unlink(missing_ok=True)
                    total -= size
