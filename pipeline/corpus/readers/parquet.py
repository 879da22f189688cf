"""Reader of files of columns: Parquet, Arrow (IPC, also as a stream) and Feather, one record per row."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.base import LeafError, access
from pipeline.corpus.parts import BLOCK_BYTES, rows_within
from pipeline.corpus.readers.columns import BATCH_ROWS, Columns
from pipeline.corpus.readers.contents import HEAD, nature
from pipeline.corpus.readers.fields import Batch, Frames, frames_of_batches, source_files
from pipeline.params import SourceParams

PARQUET_SUFFIXES = ("parquet", "parq", "pq")
ARROW_SUFFIXES = ("arrow", "feather", "ipc")


def read(source: SourceParams) -> Frames:
    """Frames of the source's files. What is decoded at a time is bounded: of Parquet pages, of Arrow a batch."""
    files = source_files(source, PARQUET_SUFFIXES if source.kind == "parquet" else ARROW_SUFFIXES)
    return frames_of_batches(source, (batch for file in files for batch in _batches(source, file)))


def _batches(source: SourceParams, file: Path) -> Iterator[Batch]:
    """The rows of a file, up to BATCH_ROWS at a time; its first bytes say what it is."""
    try:
        with access(), file.open("rb") as raw:
            head = raw.read(HEAD)
        if head.startswith((b"ARROW1", b"\xff\xff\xff\xff")):
            yield from _arrow(source, file, is_stream=not head.startswith(b"ARROW1"))
        elif (kind := nature(head)) and not head.startswith(b"PAR1"):
            raise LeafError(f"{file}: is {kind}, not Parquet or Arrow")
        else:
            yield from _parquet(source, file)
    except (pa.ArrowException, OSError) as error:
        raise LeafError(f"{file}: not a readable Parquet or Arrow file, perhaps cut short: {error!s:.300}") from None


def _parquet(source: SourceParams, file: Path) -> Iterator[Batch]:
    """Pages are decoded as they are needed, so a row group is never held whole."""
    with pq.ParquetFile(file, pre_buffer=False, buffer_size=1 << 20) as opened:
        columns = Columns(source, file, opened.schema_arrow)
        rows = min(BATCH_ROWS, rows_within(opened.metadata))
        tables = opened.iter_batches(rows, columns=columns.roots)
        yield from columns.batches(table for table in tables if table.num_rows)


def _arrow(source: SourceParams, file: Path, is_stream: bool) -> Iterator[Batch]:
    """The file is mapped into memory; only compressed batches are held, one at a time."""
    with pa.memory_map(str(file)) as mapped:
        open_ = pa.ipc.open_stream if is_stream else pa.ipc.open_file
        with open_(mapped) as opened:
            columns = Columns(source, file, opened.schema)
        options = pa.ipc.IpcReadOptions(included_fields=[opened.schema.names.index(name) for name in columns.roots])
        mapped.seek(0)
        with open_(mapped, options=options) as opened:
            tables = opened if is_stream else map(opened.get_batch, range(opened.num_record_batches))
            yield from columns.batches(part for table in tables for part in _cut(table))


def _cut(table: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    """Parts of a batch, which may be as large as its file."""
    rows = max(1, min(BATCH_ROWS, BLOCK_BYTES * table.num_rows // max(1, table.nbytes)))
    for start in range(0, table.num_rows, rows):
        yield table.slice(start, rows)
