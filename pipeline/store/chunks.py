"""Reading the chunks of a shard's Zarr array: straight from the file into the array that the caller gets.

The format fixes the one layout that a shard may have (Zarr 3 `sharding_indexed`, one chunk of 1024 rows after another,
`bytes` and `crc32c`, the index at the end), so that a read is a seek and a checksum. Through Zarr itself, which holds
each chunk three times over and crosses into a thread of its own, a chunk takes four times as long.
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import google_crc32c
import numpy as np

from pipeline.base.errors import LeafError

CHUNK_ROWS = 1024  # rows that share one checksum; the unit of reading
CHECKSUM_BYTES = 4
INDEX_ENTRY_BYTES = 16


@dataclass(frozen=True)
class Chunks:
    """The data file of one array, whose index has been read and found sound."""

    path: Path
    rows: int
    row: tuple[int, ...]
    dtype: np.dtype[np.generic]
    """In the file's byte order, which is little-endian."""
    offsets: tuple[int, ...]

    @classmethod
    def open(cls, path: Path, rows: int, row: tuple[int, ...], dtype: str) -> "Chunks":
        """Read the index; LeafError where that fails, or it names a chunk that is missing or lies outside the file."""
        kind, count = np.dtype(dtype).newbyteorder("<"), -(-rows // CHUNK_ROWS)
        size = chunk_bytes(row, kind)
        with _reading(path) as file:
            end = file.seek(0, io.SEEK_END) - index_bytes(rows)
            file.seek(max(end, 0))
            raw = file.read()
        index, checksum = raw[:-CHECKSUM_BYTES], raw[-CHECKSUM_BYTES:]
        if len(raw) != index_bytes(rows) or crc32c(index) != checksum:
            raise LeafError(f"{path}: the checksum of its index of chunks differs")
        offsets, sizes = np.frombuffer(index, "<u8").reshape(count, 2).T.tolist()
        bad = [at for at in range(count) if sizes[at] != size or offsets[at] > end - size]
        if bad:
            what = "is missing" if sizes[bad[0]] == offsets[bad[0]] == 2**64 - 1 else "lies outside the file"
            raise LeafError(f"{path}: the chunk of rows from {bad[0] * CHUNK_ROWS} on {what}")
        return cls(path, rows, row, kind, tuple(offsets))

    def read(self, low: int, high: int) -> np.ndarray:
        """Rows `[high - low, *row]`; LeafError where a chunk's checksum differs. Fastest by whole chunks."""
        out = np.empty((max(high - low, 0), *self.row), self.dtype)
        with _reading(self.path) as file:
            for start in range(low - low % CHUNK_ROWS, high, CHUNK_ROWS):
                first, last = max(low, start), min(high, start + CHUNK_ROWS)
                part = out[first - low : last - low]
                if len(part) == CHUNK_ROWS:
                    self._read_chunk(file, start, part)
                else:
                    whole = np.empty((CHUNK_ROWS, *self.row), self.dtype)
                    self._read_chunk(file, start, whole)
                    part[:] = whole[first - start : last - start]
        return out

    def _read_chunk(self, file: io.FileIO, start: int, into: np.ndarray) -> None:
        raw = into.reshape(-1).view(np.uint8)
        file.seek(self.offsets[start // CHUNK_ROWS])
        got = file.readinto(raw.data)
        checksum = file.read(CHECKSUM_BYTES)
        raw.flags.writeable = False  # the checksum's library takes nothing that could change
        if got != len(raw) or crc32c(raw) != checksum:
            raise LeafError(f"{self.path}: the checksum of the chunk of rows from {start} on differs")


@contextmanager
def _reading(path: Path) -> Iterator[io.FileIO]:
    try:
        with path.open("rb", buffering=0) as file:
            yield file
    except OSError as error:
        raise LeafError(f"{path}: {error.strerror or error}") from None


def chunk_bytes(row: tuple[int, ...], dtype: np.dtype[np.generic]) -> int:
    """Bytes of one chunk with its checksum; the last one is as long as the others."""
    return CHUNK_ROWS * int(np.prod(row, dtype=np.int64)) * dtype.itemsize + CHECKSUM_BYTES


def index_bytes(rows: int) -> int:
    """Bytes of the index of an array of so many rows, with its checksum."""
    return -(-rows // CHUNK_ROWS) * INDEX_ENTRY_BYTES + CHECKSUM_BYTES


def crc32c(raw: bytes | np.ndarray) -> bytes:
    """Checksum of read-only bytes, as it lies in the file."""
    return int(google_crc32c.value(raw)).to_bytes(CHECKSUM_BYTES, "little")
