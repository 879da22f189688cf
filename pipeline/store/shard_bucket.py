"""Shards on their way from workers that share no file system: in an object store, each committed by one request.

Below `URL/<fingerprint[:16]>-<dtype>/` an attempt uploads a shard's files to `<shard>/<attempt>/`, then creates
`<shard>.json`, which names the attempt, where there is none (`If-None-Match: *`). Whoever is second finds it there and
removes his files. So an attempt that dies at any request leaves files that nothing names, and no half shard.
"""

import json
import re
import tempfile
import time
import uuid
from pathlib import Path

import polars as pl

from pipeline.base import TEMPORARY, Array, FileMissingError, LeafError, disk, sync, temporary
from pipeline.store.bucket import Bucket, ChangedMeanwhileError
from pipeline.store.manifest import parse_shard
from pipeline.store.shard import ShardInfo, StoreMeta, check_files, encoded, write_shard
from pipeline.store.shard_cache import JOB, move_into_place, shard_directory
from pipeline.store.validation import checked_rows, checked_vectors

RETRIES = 5  # where the server asks for another try of a conditional write
RETRY_SECONDS = 0.2
_ATTEMPT = re.compile(r"[0-9a-f]{32}")


class ShardBucket:
    """What `ShardWriter` is, over an object store; the driver fetches what workers have put there."""

    def __init__(self, url: str, meta: StoreMeta, job: str) -> None:
        """`meta` and `job` are those of the driver's `ShardCache`; LeafError for a bad URL, or without s3fs."""
        self.bucket = Bucket(f"{url.rstrip('/')}/{shard_directory(Path(), meta).name}")
        self.meta, self.job = meta, job

    def open(self) -> None:
        """Make this job the newest; LeafError where the server cannot be written to, or knows no conditional writes."""
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / JOB
            file.write_text(self.job)
            self.bucket.put(file, JOB)
        self.bucket.check_conditional_writes(JOB, self.job.encode())

    def check_current(self) -> None:
        """LeafError where another run has made its job the newest."""
        if self.bucket.read(JOB, 0, len(self.job)).decode() != self.job:
            raise LeafError(f"{self.bucket.url}: another run uses this place since this work was planned")

    def holds(self, name: str) -> bool:
        """Whether a shard of this name is finished."""
        return self.bucket.version(f"{name}.json") is not None

    def write(self, rows: pl.DataFrame, vectors: Array) -> ShardInfo:
        """Commit a shard, or take the one that another attempt was faster to commit. Errors: `ShardWriter.write`."""
        rows = checked_rows(rows)
        stored = encoded(checked_vectors(rows, vectors, self.meta), self.meta)
        with tempfile.TemporaryDirectory() as folder, disk(Path(folder), "this shard"):
            info = write_shard(Path(folder), rows, stored, self.meta)
            return self._commit(Path(folder), info)

    def _commit(self, directory: Path, info: ShardInfo) -> ShardInfo:
        attempt = uuid.uuid4().hex
        for file in info.files:
            self.bucket.put(directory / file, f"{info.name}/{attempt}/{file}")
        self.check_current()
        document = json.dumps({"attempt": attempt, "shard": info.to_json()}, sort_keys=True).encode()
        winner, winning = self._winner(self.agree(f"{info.name}.json", document))
        if winner != attempt:
            self.bucket.remove([f"{info.name}/{attempt}/{file}" for file in info.files])
        return winning

    def agree(self, file: str, content: bytes) -> bytes:
        """What a small file holds; where there is none, it is made of `content`. All who ask are told the same."""
        for _ in range(RETRIES):
            try:
                self.bucket.write(content, file, None)
                return content
            except ChangedMeanwhileError:  # it is there, or is being made: then the server wants another try
                try:
                    return self.bucket.read(file, 0, self.bucket.size(file))
                except FileMissingError:
                    time.sleep(RETRY_SECONDS)
        raise LeafError(f"{self.bucket.url}/{file}: cannot be created; the server refuses every try")

    def fetch(self, name: str, cache: Path) -> None:
        """Bring a finished shard into the directory of a shard cache, where `ShardCache.register` takes note of it.

        Raises:
            LeafError: there is none, or it is damaged.
        """
        attempt, info = self._winner(self.bucket.read(f"{name}.json", 0, self.bucket.size(f"{name}.json")))
        with disk(cache, "this shard"), temporary(cache, TEMPORARY) as directory:
            for file in info.files:
                self._download(f"{name}/{attempt}/{file}", directory / file)
            check_files(directory, info, self.meta)
            move_into_place(directory, cache, info, self.meta)

    def _winner(self, document: bytes) -> tuple[str, ShardInfo]:
        """The attempt that `<shard>.json` names, and its shard."""
        try:
            content = json.loads(document)
            attempt, entry = content["attempt"], content["shard"]
        except (ValueError, KeyError, TypeError):
            attempt, entry = "", None
        if not isinstance(attempt, str) or not _ATTEMPT.fullmatch(attempt):
            raise LeafError(f"{self.bucket.url}: a finished shard's document is damaged; delete it and run again")
        return attempt, parse_shard(entry, self.meta)

    def _download(self, source: str, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("wb") as out:
            for block in self.bucket.blocks(source, self.bucket.size(source)):
                out.write(block)
        sync(target)
