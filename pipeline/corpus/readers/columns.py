"""Batches of Arrow columns (Parquet, Arrow, data sets of the hub) as records.

Columns of strings go through as they are; if a field lies in lists or objects, rows become records as those of JSON.
"""

from collections.abc import Iterable, Iterator
from itertools import chain, count
from typing import Any

import polars as pl
import pyarrow as pa

from pipeline.base import LeafError
from pipeline.corpus.readers.fields import Batch, Place, column_names, require_columns
from pipeline.corpus.readers.paths import EXACT, Fields, parse
from pipeline.corpus.readers.records import batches_of_records
from pipeline.params import SourceParams

BATCH_ROWS = 16_384


class Columns:
    """The columns that a source names, in a file or data set with a schema."""

    def __init__(self, source: SourceParams, place: object, schema: pa.Schema) -> None:
        """Look for the columns in the schema of what `place` names.

        Raises:
            LeafError: one is missing, or there are two of its name.
        """
        self._source, self._place = source, place
        self._names = column_names(source)
        roots = [name if name in schema.names else _root(name) for name in self._names]
        missing = [name for name, root in zip(self._names, roots, strict=True) if root not in schema.names]
        require_columns(place, missing, schema.names)
        if repeated := [root for root in roots if schema.names.count(root) > 1]:
            raise LeafError(f"{place}: has more than one column {repeated[0]:.40}")
        self.roots = list(dict.fromkeys(roots))
        """The columns to read, each once."""
        self._is_nested = roots != self._names or any(pa.types.is_nested(schema.field(name).type) for name in roots)

    def batches(self, tables: Iterable[pa.RecordBatch]) -> Iterator[Batch]:
        """What `tables` hold, which have the columns `roots`, in the order of `column_names`.

        Raises:
            LeafError: a column does not hold text.
        """
        if self._is_nested:
            yield from batches_of_records(Fields(self._source, typed=True).records(self._rows(tables)))
            return
        start = 0
        for table in tables:
            place = _place_of_row(self._place, start)
            yield place, [self._series(name, table.column(name), place) for name in self._names]
            start += table.num_rows

    def _rows(self, tables: Iterable[pa.RecordBatch]) -> Iterator[tuple[str, dict[str, Any]]]:
        numbers = count()
        for table in tables:
            try:
                rows = table.to_pylist(maps_as_pydicts="strict")
            except KeyError as error:
                raise LeafError(f"{self._place}: a map has the same key twice ({error!s:.80})") from None
            for row in rows:
                yield f"{self._place}, row {next(numbers)}", row

    def _series(self, name: str, column: pa.Array, place: Place) -> pl.Series:
        """A column as strings: text, and in ids, roles and origins whole numbers."""
        if pa.types.is_dictionary(column.type):
            column = _decoded(column)
        if isinstance(column.type, pa.UuidType):
            column = pa.array([value and str(value) for value in column.to_pylist()], pa.string())
        kind = column.type
        if pa.types.is_null(kind) or (pa.types.is_floating(kind) and _is_all_missing(column)):
            return pl.Series(name, [None] * len(column), dtype=pl.String)
        if any(is_kind(kind) for is_kind in _TEXT):
            return _checked_text(name, column, place)
        labels = (self._source.id_field, self._source.role_field, self._source.source_field)
        if name in labels and any(is_kind(kind) for is_kind in _NUMBER):
            return _whole_numbers(name, column, place)
        raise LeafError(f"{self._place}: column `{name}` must hold text, not {kind}")


_TEXT = (
    pa.types.is_string,
    pa.types.is_large_string,
    pa.types.is_string_view,
    pa.types.is_binary,  # how Spark and Hive write strings, if no schema says that they are text
    pa.types.is_large_binary,
    pa.types.is_binary_view,
)
_NUMBER = (pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal)


def _root(name: str) -> str:
    """The column that a path begins with."""
    path = parse(name)
    return next(chain(*path.lists, path.rest))


def _decoded(column: pa.DictionaryArray) -> pa.Array:
    """The values of a column of categories. Arrow cannot take them from views, in which polars keeps its strings."""
    values = column.dictionary
    views = {pa.string_view(): pa.large_string(), pa.binary_view(): pa.large_binary()}
    return pa.DictionaryArray.from_arrays(
        column.indices, values.cast(views.get(values.type, values.type))
    ).dictionary_decode()


def _place_of_row(place: object, start: int) -> Place:
    return lambda row: f"{place}, row {start + row}"


def _checked_text(name: str, column: pa.Array, place: Place) -> pl.Series:
    """A column of strings or bytes, checked: neither Arrow nor polars checks that the strings of a file are UTF-8."""
    try:
        if any(is_kind(column.type) for is_kind in _TEXT[3:]):
            column = column.cast(pa.large_string())
        column.validate(full=True)
    except pa.ArrowInvalid:
        raise LeafError(f"{place(_first_not_utf8(column))}: column `{name}` is not UTF-8") from None
    return pl.Series(name, column)


def _first_not_utf8(column: pa.Array) -> int:
    for row, value in enumerate(column.cast(pa.large_binary()).to_pylist()):
        try:
            (value or b"").decode()
        except UnicodeDecodeError:
            return row
    return 0


def _is_all_missing(column: pa.Array) -> bool:
    """Whether a column of numbers holds none, as those of pandas for texts that are all missing."""
    return bool(pl.Series(column).fill_nan(None).null_count() == len(column))


def _whole_numbers(name: str, column: pa.Array, place: Place) -> pl.Series:
    """Whole numbers, written out; NaN is no value. pandas stores them as doubles if some are missing."""
    numbers = pl.Series(name, column)
    if numbers.dtype.is_integer():
        return numbers.cast(pl.String)
    if numbers.dtype.is_float():
        numbers = numbers.fill_nan(None)
        broken = (numbers.abs() >= EXACT) | (numbers != numbers.floor())
    else:
        broken = numbers != numbers.floor()
    if broken.any():
        row = broken.arg_max() or 0
        raise LeafError(f"{place(row)}: column `{name}` must hold text or whole numbers, not {numbers[row]!r:.40}")
    return numbers.cast(pl.Int64 if numbers.dtype.is_float() else pl.Int128).cast(pl.String)
