"""A journal of an API's answers that are in no shard yet: an append-only file in the shard cache.

A record is a key, its tokens, its vector and a checksum; all records have the same length. A record that a killed
writer left incomplete is dropped when the file is opened again, and so is a damaged one: its text is asked for again.
"""

import os
import threading
import zlib
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np

from pipeline.base import KEY_DTYPE, disk, key_array, open_own, sync, written_file

_READ_RECORDS = 4096


class Journal:
    """Answers that are in no shard yet. Used by one process at a time (the cache's lock); thread-safe within it."""

    def __init__(self, file: Path, dim: int) -> None:
        """Open or create the file and index its records. LeafError where the disk does not allow it."""
        self.file = file
        self._record = np.dtype([("key", KEY_DTYPE), ("tokens", "<i4"), ("vector", "<f4", (dim,)), ("checksum", "<u4")])
        self._places: dict[bytes, int] = {}
        self._lock = threading.Lock()
        with disk(file):
            self._handle = open_own(file, os.O_RDWR)
            self._end = self._scan()
            os.ftruncate(self._handle, self._end)
            sync(file.parent)  # else a power cut could lose the new file's name

    def keys(self) -> list[bytes]:
        """The keys of all answers in the journal."""
        return list(self._places)

    def __contains__(self, key: bytes) -> bool:
        return key in self._places

    def add(self, keys: Sequence[bytes], tokens: Sequence[int], vectors: np.ndarray) -> None:
        """Append answers, `vectors` [keys, dim]; they have been flushed to the disk when this returns."""
        records = np.zeros(len(keys), self._record)
        records["key"], records["tokens"], records["vector"] = key_array(keys), tokens, vectors
        for record in records:
            record["checksum"] = _checksum(record.tobytes())
        with self._lock, disk(self.file):
            try:
                _write(self._handle, records.tobytes(), self._end)
                os.fdatasync(self._handle)
            except OSError:
                os.ftruncate(self._handle, self._end)
                raise
            for place, key in enumerate(keys):
                self._places[key] = self._end + place * self._record.itemsize
            self._end += records.nbytes

    def read(self, keys: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
        """Tokens [keys] int32 and vectors [keys, dim] float32 of keys in the journal, in the order given."""
        records = np.empty(len(keys), self._record)
        with self._lock, disk(self.file):
            for row, key in enumerate(keys):
                raw = os.pread(self._handle, self._record.itemsize, self._places[key])
                records[row] = np.frombuffer(raw, self._record)[0]
        return records["tokens"].astype(np.int32), np.ascontiguousarray(records["vector"], np.float32)

    def drop(self, keys: Collection[bytes]) -> None:
        """Remove answers that are in a shard by now: the file is rewritten without them."""
        dropped = set(keys)
        with self._lock, disk(self.file):
            kept = [key for key in self._places if key not in dropped]
            if len(kept) == len(self._places):
                return
            size = self._record.itemsize
            with written_file(self.file) as new:
                handle = open_own(new, os.O_RDWR)
                for row, key in enumerate(kept):
                    _write(handle, os.pread(self._handle, size, self._places[key]), row * size)
                os.fsync(handle)
            os.close(self._handle)
            self._handle, self._end = handle, len(kept) * size
            self._places = {key: row * size for row, key in enumerate(kept)}
            sync(self.file.parent)

    def close(self) -> None:
        """Close the file; an empty one is removed."""
        os.close(self._handle)
        if not self._places:
            self.file.unlink(missing_ok=True)

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _scan(self) -> int:
        """Index every valid record; return the length of the file up to the last of them."""
        size = self._record.itemsize
        count = os.fstat(self._handle).st_size // size
        valid = 0
        for start in range(0, count, _READ_RECORDS):
            records = min(_READ_RECORDS, count - start)
            raw = os.pread(self._handle, records * size, start * size)
            for row in range(len(raw) // size):
                record = raw[row * size : (row + 1) * size]
                if _checksum(record) == int.from_bytes(record[-4:], "little"):
                    self._places[record[: KEY_DTYPE.itemsize]] = (start + row) * size
                    valid = start + row + 1
        return valid * size


def _checksum(record: bytes) -> int:
    return zlib.crc32(record[:-4], 0x1EAF)  # with a start value, so that zeros, which a crash may leave, do not match


def _write(handle: int, content: bytes, place: int) -> None:
    view = memoryview(content)
    while view:
        written = os.pwrite(handle, view, place)
        view, place = view[written:], place + written
