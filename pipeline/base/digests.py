"""SHA-256 of files, computed once: a file keeps its digest until it is written or another one takes its place.

A file is known by its device, inode, size, and the times of its last change, of which the system keeps one (`ctime`)
that no program can set back. What is compared and what is read are one opened file, never two of one name.

Digests of large files outlast the program, in `checked.json` below the directory that `LEAF_CACHE` names.
"""

import atexit
import hashlib
import io
import json
import os
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pipeline.base.errors import LeafError
from pipeline.base.files import TEMPORARY, access

SAVED_BYTES = 64 * 2**20
"""Fewer are hashed again by the next program, in less than a second."""
MOST_SAVED = 100_000
_TICK = 20_000_000  # nanoseconds in which a second change of a file may go by without another time
Stamp = tuple[int, ...]


class DigestError(LeafError):
    """A file has another SHA-256 than it should have."""


class _Remembered:
    """Digests by stamp, of all threads."""

    def __init__(self) -> None:
        self.known: dict[Stamp, str] = {}
        self.hashed_bytes = 0
        self.lock = threading.Lock()
        self.loaded = False

    def digest(self, stamp: Stamp) -> str | None:
        with self.lock:
            if not self.loaded:
                self.loaded = True
                self.known = _load() | self.known
            return self.known.get(stamp)

    def add(self, stamp: Stamp, digest: str, hashed: int = 0) -> None:
        with self.lock:
            self.known[stamp] = digest
            if self.hashed_bytes < SAVED_BYTES <= self.hashed_bytes + hashed:
                atexit.register(_save, self)
            self.hashed_bytes += hashed


_REMEMBERED = _Remembered()


@contextmanager
def checked_file(path: Path, sha256: str) -> Iterator[io.FileIO]:
    """The file opened for reading, unbuffered, once its SHA-256 has been compared, or is known from before.

    Raises:
        DigestError: it has another SHA-256.
        LeafError: it cannot be read.
    """
    with _opened(path) as file:
        if (_REMEMBERED.digest(_stamp(os.fstat(file.fileno()))) or _hash(file)) != sha256:
            raise DigestError(f"{path}: SHA-256 differs: damaged or swapped")
        yield file


def file_sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file, which is read only where it is not known from before."""
    with _opened(path) as file:
        return _REMEMBERED.digest(_stamp(os.fstat(file.fileno()))) or _hash(file)


def check_sha256(path: Path, sha256: str) -> None:
    """Read the whole file, whatever is known of it; raises as `checked_file`."""
    with _opened(path) as file:
        if _hash(file) != sha256:
            raise DigestError(f"{path}: SHA-256 differs: damaged or swapped")


@contextmanager
def bytes_kept(path: Path) -> Iterator[None]:
    """Within the block no byte of the file changes, only its names or its times: its digest stays known."""
    before = _stamp(path.stat())
    yield
    after = _stamp(path.stat())
    if before[:-1] == after[:-1] and (digest := _REMEMBERED.digest(before)):
        _REMEMBERED.add(after, digest)


def remember_sha256(path: Path, sha256: str) -> None:
    """Take note of the digest of a file that this program has just written, and hashed while it did."""
    _REMEMBERED.add(_stamp(path.stat()), sha256)


@contextmanager
def _opened(path: Path) -> Iterator[io.FileIO]:
    try:
        with access(), path.open("rb", buffering=0) as file:
            yield file
    except OSError as error:
        raise LeafError(f"{path}: {error.strerror or error}") from None


def _hash(file: io.FileIO) -> str:
    status = os.fstat(file.fileno())
    stamp, young = _stamp(status), time.time_ns() - status.st_ctime_ns < _TICK
    file.seek(0)
    digest = hashlib.file_digest(file, "sha256").hexdigest()
    file.seek(0)
    if not young and _stamp(os.fstat(file.fileno())) == stamp:
        _REMEMBERED.add(stamp, digest, status.st_size)
    return digest


def _stamp(status: os.stat_result) -> Stamp:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _place() -> Path:
    return Path(os.environ.get("LEAF_CACHE", ".cache/remote")) / "checked.json"


def _load() -> dict[Stamp, str]:
    """The digests of earlier programs of this user; none where the file is missing, damaged or somebody else's."""
    try:
        with open(os.open(_place(), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb") as file:  # noqa: PTH123
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o022:
                return {}
            entries: list[Any] = json.loads(file.read(256 * MOST_SAVED))
        return {tuple(map(int, entry[:-1])): str(entry[-1]) for entry in entries}
    except (OSError, ValueError, TypeError, RecursionError):
        return {}


def _save(remembered: _Remembered) -> None:
    """Write the digests down for later programs; where that fails, files are hashed again."""
    place = _place()
    entries = [[*stamp, digest] for stamp, digest in (_load() | remembered.known).items()]
    part = place.with_name(f"{TEMPORARY}{os.urandom(8).hex()}-{place.name}")
    with suppress(OSError):
        place.parent.mkdir(parents=True, exist_ok=True)
        with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:  # noqa: PTH123
            json.dump(entries[-MOST_SAVED:], file)
        part.replace(place)
