"""Reads the chunks of a shard's Zarr array, without Zarr: straight from the file into the returned array.

The format fixes the only layout that a shard may have (Zarr 3 `sharding_indexed`, chunks of 1024 rows in order, `bytes`
and `crc32c`, the index at the end), so that a read is a seek and a checksum. Zarr itself takes four times as long for a
chunk: it holds each chunk in memory three times and hands it to a thread of its own.
"""

import io
from dataclasses import dataclass
from pathlib import Path

import google_crc32c
import numpy as np

from pipeline.base import LeafError, checked_file

CHUNK_ROWS = 1024  # rows that share a checksum; the unit of reading
CHECKSUM_BYTES = 4
INDEX_ENTRY_BYTES = 16


@dataclass(frozen=True)
class Chunks:
    """The data file of a Zarr array: its SHA-256 has been compared, and its index read and checked.

    Each read opens the file again, and compares the SHA-256 again unless it is the same file, unchanged.
    """

    path: Path
    sha256: str
    rows: int
    row: tuple[int, ...]
    dtype: np.dtype[np.generic]
    """In the file's byte order, which is little-endian."""
    offsets: tuple[int, ...]

    @classmethod
    def open(cls, path: Path, sha256: str, rows: int, row: tuple[int, ...], dtype: str) -> "Chunks":
        """Read the index; LeafError where that fails, or where a chunk is missing or lies outside the file."""
        little, count = np.dtype(dtype).newbyteorder("<"), -(-rows // CHUNK_ROWS)
        size = chunk_bytes(row, little)
        with checked_file(path, sha256) as file:
            end = file.seek(0, io.SEEK_END) - index_bytes(rows)
            file.seek(max(end, 0))
            raw = file.read()
        index, checksum = raw[:-CHECKSUM_BYTES], raw[-CHECKSUM_BYTES:]
        if len(raw) != index_bytes(rows) or crc32c(index) != checksum:
            raise LeafError(f"{path}: the checksum of its index of chunks differs")
        offsets, sizes = np.frombuffer(index, "<u8").reshape(count, 2).T.tolist()
        for number in range(count):
            if sizes[number] != size or offsets[number] > end - size:
                missing = sizes[number] == offsets[number] == 2**64 - 1
                what = "is missing" if missing else "lies outside the file"
                raise LeafError(f"{path}: the chunk of rows from {number * CHUNK_ROWS} on {what}")
        return cls(path, sha256, rows, row, little, tuple(offsets))

    def read(self, low: int, high: int) -> np.ndarray:
        """Rows `[high - low, *row]`; LeafError where a chunk's checksum differs. Fastest for whole chunks."""
        out = np.empty((max(high - low, 0), *self.row), self.dtype)
        with checked_file(self.path, self.sha256) as file:
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
        length = file.readinto(raw.data)
        checksum = file.read(CHECKSUM_BYTES)
        raw.flags.writeable = False  # google_crc32c accepts read-only buffers alone
        if length != len(raw) or crc32c(raw) != checksum:
            raise LeafError(f"{self.path}: the checksum of the chunk of rows from {start} on differs")


def chunk_bytes(row: tuple[int, ...], dtype: np.dtype[np.generic]) -> int:
    """Bytes of a chunk with its checksum; the last chunk is padded to the same length."""
    return CHUNK_ROWS * int(np.prod(row, dtype=np.int64)) * dtype.itemsize + CHECKSUM_BYTES


def index_bytes(rows: int) -> int:
    """Bytes of the index of an array of `rows` rows, with its checksum."""
    return -(-rows // CHUNK_ROWS) * INDEX_ENTRY_BYTES + CHECKSUM_BYTES


def crc32c(raw: bytes | np.ndarray) -> bytes:
    """The crc32c of read-only bytes, in the 4 bytes that the file holds."""
    return int(google_crc32c.value(raw)).to_bytes(CHECKSUM_BYTES, "little")
