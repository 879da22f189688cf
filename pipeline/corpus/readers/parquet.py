"""Reader of Parquet files, one record per row."""

from collections.abc import Callable, Iterator
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.base import LeafError
from pipeline.corpus.readers.fields import Frames, column_names, records_frame, require_columns, source_files
from pipeline.params import SourceParams

BATCH_ROWS = 16_384


def read(source: SourceParams) -> Frames:
    """Frames of the source's files. Pages are decoded as they are needed, so a row group is never held whole."""
    names, first = column_names(source), 0
    for file in source_files(source):
        start = 0
        for columns in _batches(file, names):
            series = [_series(file, start, name, column) for name, column in zip(names, columns, strict=True)]
            yield records_frame(source, series, first, _place_of_row(file, start))
            start += len(columns[0])
            first += len(columns[0])


def _batches(file: Path, names: list[str]) -> Iterator[list[pa.Array]]:
    """The named columns of a file, up to BATCH_ROWS rows at a time."""
    try:
        with pq.ParquetFile(file, pre_buffer=False, buffer_size=1 << 20) as opened:
            require_columns(file, names, opened.schema_arrow.names)
            for batch in opened.iter_batches(BATCH_ROWS, columns=sorted(set(names))):
                if batch.num_rows:
                    yield [batch.column(name) for name in names]
    except (pa.ArrowException, OSError) as error:
        raise LeafError(f"{file}: not a readable Parquet file, perhaps cut short: {error}") from None


def _place_of_row(file: Path, start: int) -> Callable[[int], str]:
    return lambda row: f"{file}, row {start + row}"


def _series(file: Path, start: int, name: str, column: pa.Array) -> pl.Series:
    """A column of text or whole numbers, checked; it begins at row `start` of the file."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    kind = column.type
    textual = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    if not textual and not pa.types.is_integer(kind):
        raise LeafError(f"{file}: column `{name}` must hold text, not {kind}")
    try:
        column.validate(full=True)  # neither Arrow nor polars checks that the strings of a file are UTF-8
    except pa.ArrowInvalid:
        raise LeafError(f"{file}, row {start + _first_not_utf8(column)}: column `{name}` is not UTF-8") from None
    return pl.Series(name, column)


def _first_not_utf8(column: pa.Array) -> int:
    for row, value in enumerate(column.cast(pa.large_binary()).to_pylist()):
        try:
            (value or b"").decode()
        except UnicodeDecodeError:
            return row
    return 0
