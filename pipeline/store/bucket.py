"""Files below an `s3://` URL, and a bounded directory of local copies, each hashed while it arrives."""

import hashlib
import json
import os
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from pipeline.base.errors import LeafError
from pipeline.base.files import TEMPORARY
from pipeline.base.optional import import_optional

BLOCK = 8 * 2**20  # bytes asked for at a time


class Bucket:
    """The files below one URL. Every failure is a LeafError without the request, which might hold a secret."""

    def __init__(self, url: str) -> None:
        """Refuses URLs with credentials or queries in them, without repeating them."""
        place = url.removeprefix("s3://")
        if "@" in place or "?" in place or "#" in place or "//" in place or not place.split("/")[0]:
            raise LeafError(
                "the URL of a store must be s3://BUCKET/PREFIX without credentials or a query; credentials come from "
                "the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_PROFILE) or from ~/.aws"
            )
        self.url, self._place = url, place
        s3fs = import_optional("s3fs", "s3", f"{url}: reading from S3")
        with self._failing(""):
            self._system: Any = s3fs.S3FileSystem(skip_instance_cache=True, use_listings_cache=False)

    @contextmanager
    def _failing(self, file: str) -> Iterator[None]:
        try:
            yield
        except LeafError:
            raise
        except FileNotFoundError:
            raise LeafError(f"{self.url}/{file}: file is missing") from None
        except PermissionError:
            raise LeafError(f"{self.url}/{file}: access denied; look at your AWS credentials") from None
        except Exception as error:  # botocore and aiohttp raise anything; their text may quote the request
            raise LeafError(f"{self.url}/{file}: cannot be reached ({type(error).__name__})") from None

    def read(self, file: str, start: int, stop: int) -> bytes:
        """Bytes `[start, stop)` of a file; fewer where it ends before."""
        with self._failing(file):
            return cast(bytes, self._system.cat_file(f"{self._place}/{file}", start=start, end=stop))

    def size(self, file: str) -> int:
        """Bytes of a file."""
        with self._failing(file):
            return int(self._system.info(f"{self._place}/{file}")["size"])

    def files(self) -> dict[str, int]:
        """Every file below the URL and its size."""
        with self._failing(""):
            found = self._system.find(self._place, detail=True)
            return {name.removeprefix(f"{self._place}/"): int(entry["size"]) for name, entry in found.items()}

    def put(self, source: Path, file: str) -> None:
        """Send a file."""
        with self._failing(file):
            self._system.put_file(str(source), f"{self._place}/{file}")


class Cache:
    """Local copies of one store's files; the bound holds over all stores of the directory."""

    def __init__(self, root: Path, limit: int, bucket: Bucket, identity: str) -> None:
        self.root, self.limit, self.bucket = root, limit, bucket
        self.path = root / identity
        self._turn = threading.Lock()
        self._busy: dict[str, threading.Lock] = {}
        self._pinned: Counter[Path] = Counter()
        self._incoming = 0

    def expect(self, digests: Mapping[str, str]) -> None:
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
        part = known.with_name(f"{TEMPORARY}{os.getpid()}-known.json")
        part.write_text(json.dumps(dict(digests)), encoding="utf-8")
        part.rename(known)

    @contextmanager
    def pinned(self, file: str) -> Iterator[None]:
        """Within the block the local copy is not dropped by this process."""
        with self._turn:
            self._pinned[self.path / file] += 1
        try:
            yield
        finally:
            with self._turn:
                self._pinned[self.path / file] -= 1

    def fetch(self, file: str, digest: str, size: int | None, limit: int, evictable: bool = False) -> Path:
        """The local path of a file, fetched and checked if it is not there. `size` is exact, `limit` the most."""
        with self._turn:
            busy = self._busy.setdefault(file, threading.Lock())
        with busy:
            path = self.path / file
            try:
                os.utime(path)
                return path
            except OSError:
                return self._arrive(file, digest, size, limit, evictable)

    def _arrive(self, file: str, digest: str, size: int | None, limit: int, evictable: bool) -> Path:
        found = self.bucket.size(file)
        if size is not None and found != size:
            raise LeafError(f"{self.bucket.url}/{file}: has {found} bytes instead of {size}: truncated or changed")
        if found > limit:
            raise LeafError(f"{self.bucket.url}/{file}: has {found} bytes, more than its shard may have: refused")
        path = self.path / file
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{TEMPORARY}{os.getpid()}-{threading.get_ident()}-{path.name}")
        if evictable:
            self._make_room(found)
        hashed = hashlib.sha256()
        try:
            with part.open("wb") as target:
                for start in range(0, found, BLOCK):
                    block = self.bucket.read(file, start, min(start + BLOCK, found))
                    hashed.update(block)
                    target.write(block)
            if hashed.hexdigest() != digest:
                raise LeafError(f"{self.bucket.url}/{file}: SHA-256 differs: damaged or swapped")
            part.rename(path)
        finally:
            part.unlink(missing_ok=True)
            if evictable:
                with self._turn:
                    self._incoming -= found
        return path

    def _make_room(self, wanted: int) -> None:
        """Drop the files of vectors used longest ago, of whatever store, until `wanted` bytes fit."""
        with self._turn:
            held = []
            for path in self.root.glob("*/vectors.zarr/*/c/0/0"):
                try:
                    held.append((path.stat().st_mtime_ns, path.stat().st_size, path))
                except OSError:  # another process dropped it
                    continue
            self._incoming += wanted
            total = sum(size for _, size, _ in held) + self._incoming
            for _, size, path in sorted(held):
                if total <= self.limit:
                    return
                if not self._pinned[path]:
                    path.unlink(missing_ok=True)
                    total -= size
