"""Files below an `s3://` URL: read in ranges, listed, and written only where nobody else has written."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

from pipeline.base import FileMissingError, LeafError, import_optional

BLOCK_BYTES = 8 * 2**20  # of one request
_CHANGED = {"PreconditionFailed", "ConditionalRequestConflict", "OperationAborted", "412", "409"}
_NOT_IMPLEMENTED = {"NotImplemented", "501"}
_NO_CONDITIONS = (
    "this server knows no conditional writes (If-None-Match, If-Match), without which one of two pushes at once could "
    "lose its rows: push to a server that does (Amazon S3, MinIO, Cloudflare R2), or copy the store to an empty place "
    "with `aws s3 sync`"
)


class ChangedMeanwhileError(LeafError):
    """A conditional write found another file than it was to replace, or one where there should be none."""


class Bucket:
    """The files below one URL. Every failure is a LeafError without the request, which might hold a secret."""

    def __init__(self, url: str) -> None:
        """LeafError for a URL with credentials or a query in it; the message does not repeat them."""
        place = url.removeprefix("s3://")
        if "@" in place or "?" in place or "#" in place or "//" in place or not place.split("/")[0]:
            raise LeafError(
                "the URL of a store must be s3://BUCKET/PREFIX without credentials or a query; credentials come from "
                "the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_PROFILE) or from ~/.aws"
            )
        self.url, self._place = url, place
        import_optional("s3fs", "s3", f"{url}: reading from S3")
        settings = sorted((name, value) for name, value in os.environ.items() if name.startswith("AWS_"))
        with self._errors_without_secrets(""):
            self._system: Any = _client(os.getpid(), tuple(settings))

    @contextmanager
    def _errors_without_secrets(self, file: str) -> Iterator[None]:
        try:
            yield
        except LeafError:
            raise
        except FileNotFoundError:
            raise FileMissingError(f"{self.url}/{file}: file is missing") from None
        except PermissionError:
            raise LeafError(f"{self.url}/{file}: access denied; look at your AWS credentials") from None
        except Exception as error:  # botocore and aiohttp raise many classes; their texts may quote the request
            if _error_code(error) in _CHANGED:
                raise ChangedMeanwhileError(f"{self.url}/{file}: was changed by somebody else just now") from None
            if _error_code(error) in _NOT_IMPLEMENTED:
                raise LeafError(f"{self.url}: {_NO_CONDITIONS}") from None
            raise LeafError(f"{self.url}/{file}: cannot be reached ({type(error).__name__})") from None

    def read(self, file: str, start: int, stop: int) -> bytes:
        """Bytes `[start, stop)` of a file; fewer where the file ends earlier."""
        with self._errors_without_secrets(file):
            return cast(bytes, self._system.cat_file(f"{self._place}/{file}", start=start, end=stop))

    def size(self, file: str) -> int:
        """Size of a file in bytes."""
        with self._errors_without_secrets(file):
            return int(self._system.info(f"{self._place}/{file}")["size"])

    def files(self) -> dict[str, int]:
        """Every file below the URL, with its size in bytes."""
        with self._errors_without_secrets(""):
            listing = self._system.find(self._place, detail=True)
            return {name.removeprefix(f"{self._place}/"): int(entry["size"]) for name, entry in listing.items()}

    def children(self, folder: str) -> tuple[set[str], list[str]]:
        """The names of the files in a folder (`""`: in the place itself), and those of its folders, sorted."""
        place = f"{self._place}/{folder}".rstrip("/")
        files, folders = set(), []
        with self._errors_without_secrets(folder):
            try:
                entries = self._system.ls(place, detail=True)
            except FileNotFoundError:
                return set(), []
            for entry in entries:
                name = entry["name"].rstrip("/").removeprefix(place).lstrip("/")
                if entry["type"] == "directory":
                    folders.append(name)
                else:
                    files.add(name)
        return files, sorted(folders)

    def blocks(self, file: str, size: int, start: int = 0) -> Iterator[bytes]:
        """The first `size` bytes of a file but for `start` of them, block by block."""
        for low in range(start, size, BLOCK_BYTES):
            yield self.read(file, low, min(low + BLOCK_BYTES, size))

    def sha256(self, file: str) -> str:
        """Hexadecimal SHA-256 of a file, which is read block by block."""
        hashed = hashlib.sha256()
        for block in self.blocks(file, self.size(file)):
            hashed.update(block)
        return hashed.hexdigest()

    def version(self, file: str) -> str | None:
        """The ETag of what the file is now, for `write`; None where there is no such file."""
        with self._errors_without_secrets(file):
            try:
                return cast("str | None", self._system.info(f"{self._place}/{file}").get("ETag"))
            except FileNotFoundError:
                return None

    def put(self, source: Path, file: str) -> None:
        """Upload a file, whatever is there."""
        with self._errors_without_secrets(file):
            self._system.put_file(str(source), f"{self._place}/{file}")

    def create(self, source: Path, file: str) -> None:
        """Upload a file where there is none; ChangedMeanwhileError where there is one, which stays as it is."""
        with self._errors_without_secrets(file):
            self._system.put_file(str(source), f"{self._place}/{file}", mode="create")

    def write(self, content: bytes, file: str, version: str | None) -> str:
        """Replace a small file that still has this version (None: that is still absent), in one step.

        Returns its new version. ChangedMeanwhileError where somebody else was faster; then nothing is changed.
        """
        name, _, key = f"{self._place}/{file}".partition("/")
        condition = {"IfNoneMatch": "*"} if version is None else {"IfMatch": version}
        with self._errors_without_secrets(file):
            try:
                answer = self._system.call_s3("put_object", Bucket=name, Key=key, Body=content, **condition)
            except FileNotFoundError:
                if version is None:
                    raise
                raise ChangedMeanwhileError(f"{self.url}/{file}: was removed by somebody else just now") from None
            return str(answer["ETag"])

    def remove(self, files: list[str]) -> None:
        """Delete files."""
        with self._errors_without_secrets(""):
            self._system.rm([f"{self._place}/{file}" for file in files])

    def check_conditional_writes(self, file: str, content: bytes) -> None:
        """LeafError unless the server refuses to write over a file that is there; `content` is what it holds."""
        for version in (None, f'"{"0" * 32}"'):
            try:
                self.write(content, file, version)
            except ChangedMeanwhileError:
                continue
            raise LeafError(f"{self.url}: {_NO_CONDITIONS}")


@lru_cache(maxsize=1)
def _client(process: int, settings: tuple[tuple[str, str], ...]) -> Any:
    """The client of this process under these settings, which it reads itself; to make one takes some 0.3 s."""
    import s3fs

    return s3fs.S3FileSystem(skip_instance_cache=True, use_listings_cache=False)


def _error_code(error: BaseException | None) -> str | None:
    """The code of the server's answer behind an exception, which s3fs translates into one of Python's own."""
    while error is not None:
        answer = getattr(error, "response", None)
        if isinstance(answer, dict):
            return str(answer.get("Error", {}).get("Code"))
        error = error.__cause__
    return None
