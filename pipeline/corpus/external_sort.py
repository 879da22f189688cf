"""Sort the texts by key on disk: write them into partitions by the key's first byte, read each back sorted.

The sorted texts become the corpus's Parquet files.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.base import KEY_BYTES, key_array

PARTITIONS = 256  # with 10 million short texts, each has 40,000 rows, about 10 MB
SPILL_BYTES = 48 << 20  # rows held in memory before they are written into partitions
GROUP_ROWS = 65_536  # rows in a Parquet row group, at most
GROUP_BYTES = 128 << 20  # of text, after which a row group ends: where texts are longer than 2 kB on average

_TEXTS = [
    ("key", pa.binary()),
    ("id", pa.string()),
    ("text", pa.string()),
    ("role", pa.string()),
    ("source", pa.string()),
]
SCHEMA = pa.schema([*_TEXTS, ("split", pa.string())])
SPILLED = pa.schema([*_TEXTS, ("record", pa.uint64()), ("heldout", pa.bool_())])
"""Before it is known which records share a text: the record's hash, and whether it is held out by that alone."""


class Spill:
    """Writes rows into up to PARTITIONS files in a directory, in the order of their arrival; reads them back sorted."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._held: list[pl.DataFrame] = []
        self._bytes = 0
        self._writers: dict[int, pa.ipc.RecordBatchStreamWriter] = {}

    def add(self, rows: pl.DataFrame) -> None:
        """Add rows with the columns of SPILLED."""
        self._held.append(rows)
        self._bytes += int(rows.estimated_size())
        if self._bytes >= SPILL_BYTES:
            self._flush()

    def _flush(self) -> None:
        if not self._held:
            return
        rows = pl.concat(self._held)
        self._held, self._bytes = [], 0
        first_byte = pl.Series("partition", key_array(rows["key"]).view(np.uint8).reshape(-1, KEY_BYTES)[:, 0])
        rows = rows.with_columns(first_byte).sort("partition", maintain_order=True)
        for partition in rows.partition_by("partition"):
            number = partition["partition"][0]
            table = partition.drop("partition").to_arrow().cast(SPILLED)
            if number not in self._writers:
                options = pa.ipc.IpcWriteOptions(compression="lz4")
                self._writers[number] = pa.ipc.new_stream(str(self._file(number)), SPILLED, options=options)
            self._writers[number].write_table(table)

    def _file(self, number: int) -> Path:
        return self._directory / f"{number:03d}.arrows"

    def close(self) -> None:
        """Close the files. Closing twice does no harm."""
        for writer in self._writers.values():
            writer.close()
        self._writers = {}

    def sorted(self) -> Iterator[pl.DataFrame]:
        """Partitions in order, each sorted by key. Rows with equal keys stay in the order in which they were added.

        A partition's file is removed once it is read.
        """
        self._flush()
        partitions = sorted(self._writers)
        self.close()
        for number in partitions:
            with pa.ipc.open_stream(str(self._file(number))) as stream:
                rows = pl.DataFrame(stream.read_all())
            self._file(number).unlink()
            yield rows.sort("key", maintain_order=True)


class Parts:
    """Writes sorted rows as `part-00000.parquet` and so on, `shard_rows` rows each; equal rows give equal bytes."""

    def __init__(self, directory: Path, shard_rows: int) -> None:
        self._directory, self._shard_rows = directory, shard_rows
        self._group_rows = min(GROUP_ROWS, shard_rows)
        self._held: pl.DataFrame | None = None
        self._writer: pq.ParquetWriter | None = None
        self._parts = self._rows = 0
        self._bytes = 0  # of the texts that are held

    def add(self, rows: pl.DataFrame) -> None:
        """Append rows with the columns of SCHEMA."""
        held = rows if self._held is None else pl.concat([self._held, rows])
        self._bytes += int(rows["text"].str.len_bytes().sum())
        while len(held) and (len(held) >= (size := self._most_rows()) or self._bytes >= GROUP_BYTES):
            self._write(held.head(size))
            held = held.slice(size)
            self._bytes = int(held["text"].str.len_bytes().sum())
        self._held = held

    def _most_rows(self) -> int:
        """How many rows the next row group may have."""
        return min(self._group_rows, self._shard_rows - self._rows)

    def _write(self, group: pl.DataFrame) -> None:
        if self._writer is None:
            file = self._directory / f"part-{self._parts:05d}.parquet"
            labels = ["role", "source", "split"]  # a dictionary pays for these only: keys, ids and texts hardly repeat
            self._writer = pq.ParquetWriter(file, SCHEMA, compression="zstd", use_dictionary=labels)
            self._parts += 1
        self._writer.write_table(group.to_arrow().cast(SCHEMA), row_group_size=len(group))
        self._rows += len(group)
        if self._rows == self._shard_rows:
            self.close()

    def finish(self) -> None:
        """Write the remaining rows and close the last file."""
        if self._held is not None and len(self._held):
            self._write(self._held)
        self.close()

    def close(self) -> None:
        """Close the file that is being written, without the rows that are still held."""
        if self._writer is not None:
            self._writer.close()
        self._writer, self._rows = None, 0
