"""Files and directories: locks, temporary files and directories, modes, links, digests, JSON.

Others may be able to create names where we write (`/tmp`, a directory of a group, what was unpacked from an archive).
So temporary names are made by chance, nothing is written through a link, and what is not ours is left alone.
"""

import errno
import fcntl
import glob
import hashlib
import itertools
import json
import os
import pwd
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pipeline.base.errors import LeafError, NoAccessError

TEMPORARY = ".tmp-"
"""Prefix of the names of unfinished files and directories; the next run removes what a killed one has left."""
CHANCE_BYTES = 8  # of randomness in such a name, so that nobody can put anything there before
LOCK_ATTEMPTS = 8  # to lock a file that others keep removing
_CHANCE = re.compile(r"[0-9a-f]{16}")
NO_ACCESS = (errno.EACCES, errno.EPERM, errno.EROFS)
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def access(place: Path | None = None) -> Iterator[None]:
    """Turn an OSError of the block that is a matter of permission into a NoAccessError with the owner and the mode.

    `place` is what the block reads or writes, where the OSError does not name a file.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in NO_ACCESS and not isinstance(error, PermissionError):
            raise
        path = Path(os.fsdecode(error.filename)) if isinstance(error.filename, str | bytes) else place
        raise NoAccessError(f"{path}: {permissions(path, error)}") from None


def permissions(path: Path | None, error: OSError) -> str:
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


def open_own(file: Path, flags: int) -> int:
    """A handle of a file that may be written into (`os.open`'s flags); it is made if it is absent.

    Whoever may create names in a directory could have put a link there, so that somebody else's file is written into.

    Raises:
        LeafError: it is a link, no regular file, has a second name, or is of a foreign owner (`is_own`).
    """
    with access(file):
        try:
            handle = os.open(file, flags | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        except OSError as error:
            if error.errno not in (errno.ELOOP, errno.EMLINK, errno.EISDIR):
                raise
            raise LeafError(f"{file}: is a link or a directory, and no file is written there; remove it") from None
    status = os.fstat(handle)
    if stat.S_ISREG(status.st_mode) and status.st_nlink <= 1 and is_own(status, file.parent):
        return handle
    os.close(handle)
    if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
        raise LeafError(f"{file}: is no regular file with one name, and nothing is written into it; remove it")
    raise LeafError(f"{file}: belongs to {_user(status.st_uid)}, and nothing is written into it; remove it")


def is_own(status: os.stat_result, directory: Path) -> bool:
    """Whether a file belongs to this user, or to whoever owns the directory that it lies in, who may do anything there.

    The second holds where a file system gives all files one owner, or another one than who made them.
    """
    return status.st_uid in (os.geteuid(), directory.stat().st_uid)


@contextmanager
def locked(path: Path, what: str) -> Iterator[None]:
    """Hold an exclusive lock on a file, which is made if absent and removed at the end.

    The kernel frees the lock of a process that dies. `what` names the locked thing in the message.

    Raises:
        LeafError: another process holds the lock; the message has its process id. Or the file is not ours (`open_own`).
    """
    handle = _lock(path, what)
    try:
        # Padded to one length, so that the file need not be truncated: ext4 flushes a file to the disk at close if it
        # was truncated and written again.
        os.pwrite(handle, f"{os.getpid():<31}\n".encode(), 0)
        yield
    finally:
        with suppress(OSError):
            if os.path.samestat(os.fstat(handle), path.lstat()):
                path.unlink()
        os.close(handle)


def _lock(path: Path, what: str) -> int:
    """A handle of the locked file."""
    holder = ""
    for _ in range(LOCK_ATTEMPTS):
        handle = open_own(path, os.O_RDWR)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(handle, 32, 0).decode(errors="replace").strip()
            os.close(handle)
            break
        if os.fstat(handle).st_nlink:
            return handle
        os.close(handle)  # its holder has removed it since we opened it
    process = f" (process {holder})" if holder.isdecimal() else ""
    raise LeafError(f"{what}: another run is under way{process}; wait for it or end it")


@contextmanager
def workspace(out: Path, purpose: str) -> Iterator[Path]:
    """An empty directory beside `out` for the holder of a lock that is named after `out` and the purpose.

    It has a name by chance, and is removed at the end. What a killed run has left is removed by the next run.

    Raises:
        LeafError: another process holds the lock.
    """
    prefix = f"{TEMPORARY}{out.name}.{purpose}."
    with access(out):
        out.parent.mkdir(parents=True, exist_ok=True)
    with locked(out.with_name(f"{prefix}lock"), str(out)):
        for left in _left_behind(out.parent, prefix):
            remove(left)
        with temporary(out.parent, prefix) as directory:
            yield directory


@contextmanager
def temporary(parent: Path, prefix: str) -> Iterator[Path]:
    """A new directory in `parent`, removed at the end unless the block has renamed it."""
    path = parent / f"{prefix}{secrets.token_hex(CHANCE_BYTES)}"
    with access(path):
        path.mkdir()  # fails where anything is, a link to a directory too
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


@contextmanager
def new_file(out: Path) -> Iterator[Path]:
    """A new, empty file beside `out`, with a name by chance; removed at the end unless the block has renamed it.

    Those that killed runs have left beside `out` are removed.
    """
    prefix = f"{TEMPORARY}{out.name}."
    for left in _left_behind(out.parent, prefix):
        _remove_abandoned(left)
    path, handle = _created(out.parent, prefix)
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)
        os.close(handle)


def _created(directory: Path, prefix: str) -> tuple[Path, int]:
    """A new file and a handle that holds its lock, by which other processes know that this one lives."""
    while True:
        path = directory / f"{prefix}{secrets.token_hex(CHANCE_BYTES)}"
        with access(path):
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        with suppress(OSError):  # of a file system without locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        if os.fstat(handle).st_nlink:
            return path, handle
        os.close(handle)  # another process has taken it for abandoned before it was locked


def _left_behind(directory: Path, prefix: str) -> list[Path]:
    """What has such a name by chance and is ours: no links, nothing of foreign owners."""
    found = []
    for path in directory.iterdir():
        if path.name.startswith(prefix) and _CHANCE.fullmatch(path.name[len(prefix) :]) and not path.is_symlink():
            with suppress(OSError):  # it is gone by now
                if is_own(path.lstat(), directory):
                    found.append(path)
    return found


def _remove_abandoned(file: Path) -> None:
    """Remove a file that no living process has locked (`_created`)."""
    with suppress(OSError):
        handle = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            file.unlink()
        finally:
            os.close(handle)


@contextmanager
def written_file(out: Path) -> Iterator[Path]:
    """A path beside `out` to write to; it replaces `out` when the block ends without an exception.

    `out` itself is never written into: it may be a link into a cache, read-only, or in use. Its directory is made.
    """
    with access(out):
        out.parent.mkdir(parents=True, exist_ok=True)
    with new_file(out) as path:
        mode = stat.S_IMODE(path.stat().st_mode)
        yield path
        path.chmod(mode)  # some libraries put a file of their own there, which nobody else could read
        path.replace(out)


def apply_umask(directory: Path) -> None:
    """Give what lies in a directory that `Path.mkdir` has made the modes that umask decides, as it did for that one.

    Libraries write files that nobody else can read. A file with a second name belongs to somebody's cache and is left
    as it is.
    """
    mode = stat.S_IMODE(directory.stat().st_mode)
    for folder, folders, files in os.walk(directory):
        for path in (Path(folder, name) for name in [*folders, *files]):
            status = path.lstat()
            wanted = mode if stat.S_ISDIR(status.st_mode) else mode & 0o666
            single = stat.S_ISDIR(status.st_mode) or (stat.S_ISREG(status.st_mode) and status.st_nlink == 1)
            if single and stat.S_IMODE(status.st_mode) != wanted:
                path.chmod(wanted)


def remove(path: Path) -> None:
    """Remove a file, a link, or a directory with its contents."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


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


def glob_root(path: Path) -> Path:
    """The directory below which a glob matches: what stands before its first wildcard; any other path as it is."""
    if path.exists() or not glob.has_magic(str(path)):
        return path
    return Path(*itertools.takewhile(lambda part: not glob.has_magic(part), path.parts))


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
