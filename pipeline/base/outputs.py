"""Output directories: written beside their place, swapped in whole, and replaced only where all that is there is ours.

Whoever names a directory of his own for an output, by mistake or because a file told him to, must not lose it. So each
kind of output has a mark of its own: the format of its files (`store.json`, the columns of a corpus), or a listing of
them (`.leaf.json`). A directory is replaced if it is empty, or has the mark of that kind and holds nothing else than
what that kind writes.
"""

import ctypes
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from pipeline.base.errors import LeafError, NoAccessError
from pipeline.base.files import (
    NO_ACCESS,
    TEMPORARY,
    apply_umask,
    is_own,
    locked,
    permissions,
    remove,
    sha256,
    sync,
    workspace,
)

LISTING = ".leaf.json"
FORMAT = "leaf-output"
MAX_LISTING_BYTES = 64 * 2**20
NOBODYS = frozenset({"__pycache__", ".DS_Store", "Thumbs.db", ".ipynb_checkpoints"})
"""Names of files and directories that programs leave everywhere and nobody misses."""
SHOWN = 3  # names in a message
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # constants of renameat2(2)

IsOurs = Callable[[str], bool]
"""Whether a file, by its path in the directory, is one that this program wrote there."""


@dataclass(frozen=True)
class Kind:
    """A kind of output directory."""

    name: str
    """What messages and the listing call it."""
    recognise: Callable[[Path], IsOurs | None]
    """For a directory without a listing: which of its files are ours, None if it is not of this kind."""
    listed: bool = False
    """Whether a listing of the files and their SHA-256 is written. Readers of a directory of Parquet files may stumble
    over one."""


def check_replaceable(out: Path, kind: Kind) -> None:
    """Refuse to replace what this program has not written as an output of this kind.

    Raises:
        LeafError: `out` is neither absent, nor an empty directory, nor one that holds an output of this kind alone.
    """
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        what = "link" if out.is_symlink() else "file"
        raise LeafError(f"{out}: is a {what} and no directory; move it away, or name another place")
    if not out.exists() or not any(out.iterdir()):
        return
    is_ours = _ours(out, kind)
    foreign = [name for name in _files(out) if is_ours is None or not is_ours(name)]
    if is_ours is None or foreign:
        shown = ", ".join(f"{name:.80}" for name in foreign[:SHOWN]) or "directories"
        more = f" and {len(foreign) - SHOWN:,} more" if len(foreign) > SHOWN else ""
        what = f"no {kind.name} of this program" if is_ours is None else f"a {kind.name}, and what is not part of it"
        raise LeafError(
            f"{out}: holds {what} ({shown}{more}), and is not replaced: move that away, or name another directory"
        )


def _ours(directory: Path, kind: Kind) -> IsOurs | None:
    if (directory / LISTING).is_symlink() or (directory / LISTING).exists():
        listed = read_listing(directory, kind.name)
        return None if listed is None else {*listed, LISTING}.__contains__
    return kind.recognise(directory)


def _files(directory: Path) -> Iterator[str]:
    """Paths of all files and links below a directory, sorted, but for those of NOBODYS and unfinished ones."""
    for folder, folders, files in os.walk(directory):
        folders[:] = sorted(name for name in folders if name not in NOBODYS)
        links = {name for name in folders if Path(folder, name).is_symlink()}
        for name in sorted({*files, *links} - NOBODYS):
            if not name.startswith(TEMPORARY):
                yield Path(folder, name).relative_to(directory).as_posix()


def read_listing(directory: Path, kind: str) -> Mapping[str, str] | None:
    """Path -> SHA-256 of the files of an output of this kind, as they were written; None if it has no listing.

    A listing that is a link, no listing, or of a foreign owner is none.
    """
    file = directory / LISTING
    try:
        status = file.lstat()
        if file.is_symlink() or status.st_size > MAX_LISTING_BYTES or not is_own(status, directory):
            return None
        document = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(document, dict) or (document.get("format"), document.get("kind")) != (FORMAT, kind):
        return None
    files = document.get("files")
    return files if isinstance(files, dict) else None


def _write_listing(directory: Path, kind: Kind) -> None:
    listed = {name: sha256(directory / name) for name in _files(directory)}
    document = {"format": FORMAT, "kind": kind.name, "files": listed}
    (directory / LISTING).write_text(json.dumps(document, indent=1, sort_keys=True) + "\n", encoding="utf-8")


@contextmanager
def written_directory(out: Path, kind: Kind) -> Iterator[Path]:
    """An empty directory that replaces `out` when the block ends without an exception; until then `out` stays as it is.

    It lies beside `out`, under a lock. If the block fails or the process is killed, `out` is untouched.

    Raises:
        LeafError: another process is writing `out`, or something else than an output of this kind is there.
    """
    check_replaceable(out, kind)
    with workspace(out, "new") as directory:
        result = directory / "result"
        result.mkdir()
        yield result
        if kind.listed:
            _write_listing(result, kind)
        apply_umask(result)
        check_replaceable(out, kind)  # again: the work may have taken hours
        _replace_directory(result, out)


def made_once(path: Path, what: str, doing: str, make: Callable[[Path], None]) -> Path:
    """`path`, a directory named after its content, which `make` writes if it is not there.

    Args:
        path: never replaced.
        what: it is called in messages.
        doing: what is under way, for another process that needs it now.
        make: called with an empty directory.

    Raises:
        LeafError: another process is making it.
    """
    if not path.is_dir():
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked(path.with_suffix(".lock"), doing):
            if not path.is_dir():
                with written_directory(path, Kind(what, lambda _: None)) as directory:
                    make(directory)
    return path


def check_writable(files: Iterable[Path], directories: Mapping[Path, Kind] | None = None) -> None:
    """Refuse now what `written_file` and `written_directory` could not put in place after hours of work.

    Raises:
        LeafError: nothing can be created there, or a directory is where a file belongs, or something is where a
            directory belongs that is not replaced.
    """
    for out in files:
        if out.is_dir():
            raise LeafError(f"{out}: is a directory; remove it, or name another place")
    for out, kind in (directories or {}).items():
        check_replaceable(out, kind)
    for out in [*files, *(directories or {})]:
        place = next(parent for parent in out.absolute().parents if parent.exists() or parent.is_symlink())
        try:
            with tempfile.TemporaryFile(dir=place):
                pass
        except OSError as error:
            if error.errno in NO_ACCESS:
                raise NoAccessError(f"{out}: cannot be written: {permissions(out, error)}") from None
            raise LeafError(
                f"{out}: cannot be written: {place}: {error.strerror or error}; name another place"
            ) from None


def _replace_directory(new: Path, out: Path) -> None:
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
