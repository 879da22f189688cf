"""What the pool and its like do to files: locks, temporary directories, links, and swapping a directory whole."""

import ctypes
import errno
import fcntl
import hashlib
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pipeline.base.errors import LeafError

TEMPORARY = ".tmp-"
_LOCK = "lock"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_AT_FDCWD, _EXCHANGE = -100, 2  # of renameat2(2)


@contextmanager
def locked(path: Path, what: str) -> Iterator[None]:
    """Hold the lock on a file, which is made if absent. The kernel frees a dead process's lock.

    Raises:
        LeafError: another process holds it; says what is under way and in which process.
    """
    handle = os.open(path, os.O_CLOEXEC | os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            free = os.fstat(handle).st_nlink > 0  # else its holder has removed it since we opened it
        except BlockingIOError:
            free = False
        if not free:
            holder = os.pread(handle, 32, 0).decode(errors="replace").strip()
            process = f" (process {holder})" if holder else ""
            raise LeafError(f"{what}: another run is under way{process}; wait for it or end it")
        # As long as any: a file that is cut before it is written anew, ext4 puts on the disk when it is closed.
        os.pwrite(handle, f"{os.getpid():<31}\n".encode(), 0)
        yield
    finally:
        os.close(handle)


@contextmanager
def workspace(out: Path, purpose: str) -> Iterator[Path]:
    """An empty directory beside `out`, named after it and locked; gone at the end. The next run sweeps a killed one's.

    Raises:
        LeafError: another process has it for the same purpose.
    """
    directory = out.parent / f"{TEMPORARY}{out.name}.{purpose}"
    directory.mkdir(parents=True, exist_ok=True)
    with locked(directory / _LOCK, str(out)):
        _empty(directory)
        try:
            yield directory
        finally:
            with suppress(OSError):  # the next run sweeps it
                _empty(directory)
                shutil.rmtree(directory)


@contextmanager
def written_directory(out: Path) -> Iterator[Path]:
    """An empty directory that takes the place of `out` once the block has ended well; until then `out` stays as it is.

    It lies beside `out`, under a lock; where the block fails or the process is killed, nothing of it remains at `out`.

    Raises:
        LeafError: another process is writing `out`.
    """
    with workspace(out, "new") as directory:
        result = directory / "result"
        result.mkdir()
        yield result
        replace_directory(result, out)


def _empty(directory: Path) -> None:
    """Remove all but the lock, which goes last: whoever finds none takes the directory for free."""
    for path in directory.iterdir():
        if path.name != _LOCK:
            remove(path)


def remove(path: Path) -> None:
    """Remove a file, a link, or a directory with all it holds."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def temporary(parent: Path, prefix: str) -> Iterator[Path]:
    """A fresh directory that is gone at the end unless it was renamed."""
    path = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
    path.chmod(0o755)
    try:
        yield path
    finally:
        if path.exists():
            shutil.rmtree(path, ignore_errors=True)


@contextmanager
def disk(place: Path) -> Iterator[None]:
    """OSError becomes a LeafError that says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise LeafError(
                f"{place}: no space left for this shard; free some and run again: nothing is lost"
            ) from None
        raise LeafError(f"{place}: {error.strerror or error} ({error.filename})") from None


def write_json(file: Path, content: dict[str, Any]) -> None:
    """Write sorted JSON and flush it to the disk."""
    file.write_text(json.dumps(content, sort_keys=True, indent=1) + "\n", encoding="utf-8")
    sync(file)


def read_json(file: Path) -> Any:
    """Parse a JSON file; LeafError where that fails."""
    try:
        return json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        raise LeafError(f"{file}: missing or not JSON") from None


def link(source: Path, target: Path) -> None:
    """Hard link, or copy where the file system has none; links in `source` are followed."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source.resolve(), target)
    except OSError as error:
        if error.errno in _FULL:
            raise
        shutil.copyfile(source, target)
        sync(target)


def replace_directory(new: Path, out: Path) -> None:
    """Put the finished directory `new` at `out`: there is the old one or the new one at any moment, kills included.

    Where the system cannot swap two names at once there is a moment in which `out` is absent.
    """
    aside = new.with_name(f"{new.name}.old")
    if not out.exists():
        new.rename(out)
    elif not _exchange(new, out):
        remove(aside)
        try:
            out.rename(aside)
            new.rename(out)
        finally:
            if not out.exists():
                aside.rename(out)
    with suppress(OSError):  # the old one; if it stays, the next run sweeps it
        remove(new)
        remove(aside)
    sync(out.parent)


def _exchange(one: Path, two: Path) -> bool:
    """Swap two names atomically (Linux); False where system or file system cannot."""
    call = getattr(ctypes.CDLL(None), "renameat2", None)
    if call is None:
        return False
    return bool(call(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(two), ctypes.c_uint(_EXCHANGE)) == 0)


def sha256(path: Path) -> str:
    """Hexadecimal digest of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Make a file or a directory survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def regular_size(path: Path, what: str) -> int:
    """Size of a regular file (or of what a link points to); anything else is refused, a pipe would hang the reader."""
    try:
        status = path.stat()
    except OSError as error:
        raise LeafError(f"{path}: {what}: file is missing or unreadable ({error.strerror})") from None
    if not stat.S_ISREG(status.st_mode):
        raise LeafError(f"{path}: {what}: not a regular file")
    return status.st_size
