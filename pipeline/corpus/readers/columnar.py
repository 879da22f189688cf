"""Readers of sources that come in columns: Parquet files and Hugging Face data sets."""

from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.base.errors import LeafError
from pipeline.base.optional import import_optional
from pipeline.corpus.readers.reading import fields, require, texts_of
from pipeline.params.sections import SourceParams

BATCH_ROWS = 16_384


def parquet(source: SourceParams, files: list[Path]) -> Iterator[pl.DataFrame]:
    """Frames `id, text, role` of Parquet files; pages are decoded as they are needed, not row groups whole."""
    first = 0
    for file in files:
        start = 0
        for columns in _columns(file, fields(source)):
            series = [_series(file, start, name, column) for name, column in zip(fields(source), columns, strict=True)]
            yield texts_of(source, series, first, lambda row, at=start, name=file: f"{name}, row {at + row}")  # type: ignore[misc]
            start += len(columns[0])
            first += len(columns[0])


def _columns(file: Path, wanted: list[str]) -> Iterator[list[pa.Array]]:
    try:
        with pq.ParquetFile(file, pre_buffer=False, buffer_size=1 << 20) as opened:
            require(file, wanted, opened.schema_arrow.names)
            for batch in opened.iter_batches(BATCH_ROWS, columns=sorted(set(wanted))):
                if batch.num_rows:
                    yield [batch.column(name) for name in wanted]
    except (pa.ArrowException, OSError) as error:
        raise LeafError(f"{file}: not a readable Parquet file, perhaps cut short: {error}") from None


def _series(file: Path, start: int, name: str, column: pa.Array) -> pl.Series:
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    kind = column.type
    textual = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    if not textual and not pa.types.is_integer(kind):
        raise LeafError(f"{file}: column `{name}` must hold text, not {kind}")
    try:
        column.validate(full=True)  # Arrow trusts the file that its strings are UTF-8, and polars trusts Arrow
    except pa.ArrowInvalid:
        raise LeafError(f"{file}, row {start + _broken(column)}: column `{name}` is not UTF-8") from None
    return pl.Series(name, column)


def _broken(column: pa.Array) -> int:
    for row, value in enumerate(column.cast(pa.large_binary()).to_pylist()):
        try:
            (value or b"").decode()
        except UnicodeDecodeError:
            return row
    return 0


def huggingface(source: SourceParams) -> Iterator[pl.DataFrame]:
    """Frames of a data set on the hub, or in a local directory; streamed, and code in it is never run."""
    datasets = import_optional("datasets", "hub", f"corpus.sources `{source.name}`: kind huggingface")
    wanted, first = fields(source), 0
    try:
        stream = datasets.load_dataset(
            source.path, source.config, split=source.split, revision=source.revision, streaming=True
        )
        for batch in stream.iter(batch_size=BATCH_ROWS):
            require(source.path, wanted, batch)
            series = [pl.Series(name, batch[name]) for name in wanted]
            yield texts_of(source, series, first, lambda row, at=first: f"{source.path}, row {at + row}")  # type: ignore[misc]
            first += len(series[0])
    except LeafError:
        raise
    except Exception as error:  # the library's errors have no common base: network, credentials, layout, name
        raise LeafError(f"data set {source.path}: cannot be read: {type(error).__name__}: {error}") from error
