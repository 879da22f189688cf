"""Files and directories: locks, temporary directories, replacing a directory at once, links, digests, JSON.

What is written here survives kills and power cuts: a directory is built beside its place and then swapped in.
"""

import ctypes
import errno
import fcntl
import hashlib
import json
import os
import pwd
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pipeline.base.errors import LeafError, NoAccessError

TEMPORARY = ".tmp-"
"""Prefix of the names of unfinished files and directories; the next run removes what a killed one has left."""
_LOCK = "lock"
_NO_ACCESS = (errno.EACCES, errno.EPERM, errno.EROFS)
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # constants of renameat2(2)


@contextmanager
def access(place: Path | None = None) -> Iterator[None]:
    """Turn an OSError of the block that is a matter of permission into a NoAccessError with the owner and the mode.

    `place` is what the block reads or writes, where the OSError does not name a file.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _NO_ACCESS and not isinstance(error, PermissionError):
            raise
        path = Path(os.fsdecode(error.filename)) if isinstance(error.filename, str | bytes) else place
        raise NoAccessError(f"{path}: {_permissions(path, error)}") from None


def _permissions(path: Path | None, error: OSError) -> str:
    """Who owns the nearest of the path and its parents that can be looked at, with which mode, and what to do."""
    if error.errno == errno.EROFS:
        return "the file system is mounted read-only: name a place elsewhere"
    for place in (path, *path.absolute().parents) if path else ():
        try:
            status = place.stat()
        except OSError:
            continue
        owner, mode = _user(status.st_uid), stat.S_IMODE(status.st_mode)
        what = "" if place == path else f" {place}"
        return (
            f"no access:{what} belongs to {owner} and has the mode {mode:04o}, and this program runs as "
            f"{_user(os.geteuid())}; its owner can change that (`chmod`; umask for what comes later)"
        )
    return f"no access ({error.strerror or error})"


def _user(number: int) -> str:
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return f"user {number}"


@contextmanager
def locked(path: Path, what: str) -> Iterator[None]:
    """Hold an exclusive lock on a file, which is made if absent. The kernel frees the lock of a process that dies.

    `what` names the locked thing in the message.

    Raises:
        LeafError: another process holds the lock; the message has its process id.
    """
    with access():
        handle = os.open(path, os.O_CLOEXEC | os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            free = os.fstat(handle).st_nlink > 0  # 0 if its holder has removed it since we opened it
        except BlockingIOError:
            free = False
        if not free:
            holder = os.pread(handle, 32, 0).decode(errors="replace").strip()
            process = f" (process {holder})" if holder else ""
            raise LeafError(f"{what}: another run is under way{process}; wait for it or end it")
        # Padded to one length, so that the file need not be truncated: ext4 flushes a file to the disk at close if it
        # was truncated and written again.
        os.pwrite(handle, f"{os.getpid():<31}\n".encode(), 0)
        yield
    finally:
        os.close(handle)


@contextmanager
def workspace(out: Path, purpose: str) -> Iterator[Path]:
    """An empty, locked directory beside `out`, named after `out` and the purpose. It is removed at the end.

    What a killed run left in it is removed when the next run opens it.

    Raises:
        LeafError: another process holds it for the same purpose.
    """
    directory = out.parent / f"{TEMPORARY}{out.name}.{purpose}"
    directory.mkdir(parents=True, exist_ok=True)
    with locked(directory / _LOCK, str(out)):
        _empty(directory)
        try:
            yield directory
        finally:
            with suppress(OSError):  # what stays is removed by the next run
                _empty(directory)
                shutil.rmtree(directory)


@contextmanager
def written_directory(out: Path) -> Iterator[Path]:
    """An empty directory that replaces `out` when the block ends without an exception; until then `out` stays as it is.

    It lies beside `out`, under a lock. If the block fails or the process is killed, `out` is untouched.

    Raises:
        LeafError: another process is writing `out`.
    """
    with workspace(out, "new") as directory:
        result = directory / "result"
        result.mkdir()
        yield result
        replace_directory(result, out)


@contextmanager
def written_file(out: Path) -> Iterator[Path]:
    """A path beside `out` to write to; it replaces `out` when the block ends without an exception.

    `out` itself is never written into: it may be a link into a cache, read-only, or in use. Its directory is made.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    path = out.with_name(f"{TEMPORARY}{out.name}")
    path.unlink(missing_ok=True)
    try:
        yield path
        path.replace(out)
    finally:
        path.unlink(missing_ok=True)


def check_writable(files: Iterable[Path], directories: Iterable[Path] = ()) -> None:
    """Refuse now what `written_file` and `written_directory` could not put in place after hours of work.

    Raises:
        LeafError: nothing can be created there, or a file is where a directory belongs, or the other way round.
    """
    for out, wrong in [*((file, Path.is_dir) for file in files), *((path, Path.is_file) for path in directories)]:
        if wrong(out):
            raise LeafError(f"{out}: is a {'directory' if out.is_dir() else 'file'}; remove it, or name another place")
        place = next(parent for parent in out.absolute().parents if parent.exists() or parent.is_symlink())
        try:
            with tempfile.TemporaryFile(dir=place):
                pass
        except OSError as error:
            if error.errno in _NO_ACCESS:
                raise NoAccessError(f"{out}: cannot be written: {_permissions(out, error)}") from None
            raise LeafError(
                f"{out}: cannot be written: {place}: {error.strerror or error}; name another place"
            ) from None


def _empty(directory: Path) -> None:
    """Remove everything but the lock file: another process that finds none would take the directory for free."""
    for path in directory.iterdir():
        if path.name != _LOCK:
            remove(path)


def remove(path: Path) -> None:
    """Remove a file, a link, or a directory with its contents."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def temporary(parent: Path, prefix: str) -> Iterator[Path]:
    """A new directory in `parent`, removed at the end unless the block has renamed it."""
    path = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
    path.chmod(0o755)
    try:
        yield path
    finally:
        if path.exists():
            shutil.rmtree(path, ignore_errors=True)


@contextmanager
def disk(place: Path, what: str | None = None) -> Iterator[None]:
    """Turn an OSError of the block, which writes `what` at `place`, into a LeafError that says what to do."""
    try:
        with access(place):
            yield
    except OSError as error:
        if error.errno in _NO_SPACE:
            target = f" for {what}" if what else ""
            raise LeafError(f"{place}: no space left{target}; free some and run again: nothing is lost") from None
        raise LeafError(f"{place}: {error.strerror or error} ({error.filename})") from None


def write_json(file: Path, content: dict[str, Any]) -> None:
    """Write JSON with sorted keys and flush it to the disk."""
    file.write_text(json.dumps(content, sort_keys=True, indent=1) + "\n", encoding="utf-8")
    sync(file)


def read_json(file: Path) -> Any:
    """Parse a JSON file.

    Raises:
        LeafError: it is missing or not JSON, or may not be read.
    """
    try:
        with access():
            return json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        raise LeafError(f"{file}: missing or not JSON") from None


def link(source: Path, target: Path) -> None:
    """Hard-link `source` to `target`, or copy it if the file system cannot; symbolic links in `source` are followed."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source.resolve(), target)
    except OSError as error:
        if error.errno in _NO_SPACE:
            raise
        shutil.copyfile(source, target)
        sync(target)


def replace_directory(new: Path, out: Path) -> None:
    """Put the finished directory `new` in place of `out`: a kill at any moment leaves the old one or the new one there.

    On a system that cannot swap two names atomically, `out` is absent for a moment.
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
    with suppress(OSError):  # the old directory; if it stays, the next run removes it
        remove(new)
        remove(aside)
    sync(out.parent)


def _exchange(first: Path, second: Path) -> bool:
    """Swap two names atomically (Linux); False if the system or the file system cannot."""
    renameat2 = getattr(ctypes.CDLL(None), "renameat2", None)
    if renameat2 is None:
        return False
    flags = ctypes.c_uint(_RENAME_EXCHANGE)
    return bool(renameat2(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), flags) == 0)


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file, which is not read whole into memory."""
    with access(), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Flush a file or a directory to the disk, so that it survives a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def regular_size(path: Path, what: str) -> int:
    """Size in bytes of a regular file, or of what a link points to. `what` tells its use in the message.

    Raises:
        LeafError: it is missing, unreadable, or no regular file (a pipe would block its reader forever).
    """
    try:
        with access():
            status = path.stat()
    except OSError as error:
        raise LeafError(f"{path}: {what}: file is missing or unreadable ({error.strerror})") from None
    if not stat.S_ISREG(status.st_mode):
        raise LeafError(f"{path}: {what}: not a regular file")
    return status.st_size
