"""The seam between a remote store and the protocol by which its files are reached, and the URLs that name them."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from pipeline.store.bucket import Bucket
from pipeline.store.http import HttpDirectory


class Transport(Protocol):
    """The files below one URL. Every failure is a LeafError that begins with the file's URL and tells no secret."""

    url: str

    def read(self, file: str, start: int, stop: int) -> bytes:
        """Bytes `[start, stop)` of a file; fewer where the file ends earlier."""

    def blocks(self, file: str, size: int, start: int = 0) -> Iterator[bytes]:
        """The first `size` bytes of a file but for `start` of them, block by block."""

    def size(self, file: str) -> int:
        """Size of a file in bytes."""

    def files(self) -> dict[str, int] | None:
        """Every file below the URL, with its size in bytes; None where the protocol has no listings."""


def remote_url(path: Path | str) -> str | None:
    """The URL that `path` stands for, None if it is no URL. A URL that went through `pathlib` has lost a slash."""
    scheme = re.match(r"(s3|https?):/+(?=[^/])", str(path))
    return f"{scheme[1]}://{str(path)[scheme.end() :].rstrip('/')}" if scheme else None


def open_transport(url: str) -> Transport:
    """What reads the files below a URL; LeafError where the URL holds credentials, or a package is missing."""
    return Bucket(url) if url.startswith("s3:") else HttpDirectory(url)
