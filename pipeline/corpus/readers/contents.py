"""The bytes of a file, unpacked if it is compressed. What a file is, is told by its first bytes, not by its name."""

import bz2
import gzip
import lzma
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import IO, Any

import pyarrow as pa

from pipeline.base import LeafError, access

_SIGNATURES = (
    (b"\x1f\x8b", "gzip"),
    (b"\xfd7zXZ\x00", "xz"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"\x50\x2a\x4d\x18", "zstd"),  # a skippable frame, with which parallel compressors begin
    (b"\x04\x22\x4d\x18", "lz4"),
    (b"PK\x03\x04", "zip"),
    (b"PAR1", "a Parquet file: kind `parquet` reads it"),
    (b"ARROW1", "an Arrow file: kind `arrow` reads it"),
    (b"\xff\xff\xff\xff", "a stream of Arrow batches: kind `arrow` reads it"),
    (b"%PDF-", "a PDF: convert it to text"),
    (b"SQLite format 3\x00", "an SQLite database: export the table"),
    (b"version https://git-lfs", "a Git LFS pointer, not the file: `git lfs pull` fetches it"),
)
_BZIP2 = b"1AY&SY"  # the first block's mark; a text may well begin with the three letters before it
_TAR = b"ustar"
HEAD = 300  # bytes from which `nature` tells what a file is

_DAMAGE = (OSError, EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, pa.ArrowException)


def nature(head: bytes) -> str | None:
    """The compression of a file with these first bytes, or else what it is instead of text; None if it may be text."""
    if head[:3] == b"BZh" and head[4:10] == _BZIP2:
        return "bzip2"
    if head[257:262] == _TAR:
        return "a tar archive: unpack it"
    return next((name for signature, name in _SIGNATURES if head.startswith(signature)), None)


@contextmanager
def unpacked(file: Path) -> Iterator[IO[bytes]]:
    """The bytes of a file of text, read as a stream, without its compression.

    Raises:
        LeafError: the file cannot be read, is damaged or cut short, or is no text.
    """
    try:
        with access(), file.open("rb") as raw:
            packing = nature(raw.read(HEAD))
            raw.seek(0)
            with _UNPACK.get(packing or "", nullcontext)(raw) as stream:
                yield stream
    except _DAMAGE as error:
        reason = getattr(error, "strerror", None) or error
        raise LeafError(f"{file}: cannot be read: {reason!s:.200}") from None


def check_text(file: Path, head: bytes) -> None:
    """Refuse a file whose unpacked bytes begin with `head`, if that is no text.

    Raises:
        LeafError: the message says what the file is, and what to do.
    """
    if kind := nature(head):
        described = f"packed twice, the second time with {kind}: unpack it" if kind in _UNPACK else kind
        raise LeafError(f"{file}: is {described}")


def _pyarrow(codec: str) -> Callable[[IO[bytes]], AbstractContextManager[Any]]:
    return lambda raw: pa.CompressedInputStream(raw, codec)


@contextmanager
def _zip_member(raw: IO[bytes]) -> Iterator[IO[bytes]]:
    """The one file in a zip archive, apart from what macOS adds."""
    with zipfile.ZipFile(raw) as archive:
        members = [
            info for info in archive.infolist() if not info.is_dir() and not info.filename.startswith("__MACOSX/")
        ]
        place = getattr(raw, "name", "zip archive")
        if any(info.filename == "[Content_Types].xml" for info in members):
            raise LeafError(f"{place}: is an Office document (Excel, Word): save it as CSV or text")
        if len(members) != 1:
            raise LeafError(f"{place}: is a zip archive of {len(members)} files, not of one: unpack it")
        if members[0].flag_bits & 1:
            raise LeafError(f"{place}: is an encrypted zip archive: unpack it")
        with archive.open(members[0]) as stream:
            yield stream


_UNPACK: dict[str, Callable[[Any], AbstractContextManager[Any]]] = {
    "gzip": lambda raw: gzip.GzipFile(fileobj=raw),
    "bzip2": bz2.BZ2File,
    "xz": lzma.LZMAFile,
    "zstd": _pyarrow("zstd"),
    "lz4": _pyarrow("lz4"),
    "zip": _zip_member,
}
