"""Files of evaluation tasks: tables whose columns have the types that the task gives them, not guessed ones.

A type that is guessed from a file's first rows can be wrong for the others: labels lose their zeros, and a column that
begins late is not seen.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import polars as pl

from pipeline.base import LeafError, access, first_line
from pipeline.corpus import json_objects, read_table
from pipeline.params import SourceParams

Columns = dict[str, str]
"""Name -> `text` or `number`."""
Reader = Callable[[Path, Sequence[str], Sequence[str]], pl.DataFrame]
"""A file and the names of its required and optional columns -> a frame of these."""


def read(path: Path, required: Columns, task: str, optional: Columns | None = None) -> pl.DataFrame:
    """Columns of a CSV, TSV, JSON Lines or Parquet file: `required`, and those of `optional` that any row has.

    Numbers in a column of text are taken as they are written.

    Raises:
        LeafError: it cannot be read, lacks a column, or a value is missing or not of its kind; names the row.
    """
    place = f"evaluate.{task}: {path}"
    reader = next((READERS[ending] for ending in map(str.lower, path.suffixes[:-3:-1]) if ending in READERS), None)
    if reader is None:
        raise LeafError(f"{place}: the file must be one of {', '.join(READERS)}")
    columns = required | (optional or {})
    try:
        with access(path):
            frame = reader(path, list(required), list(optional or {}))
    except (OSError, pl.exceptions.PolarsError, UnicodeEncodeError) as error:
        raise LeafError(f"{place}: cannot be read: {first_line(error):.160}") from None
    if missing := [name for name in required if name not in frame.columns]:
        raise LeafError(f"{place}: has no column `{missing[0]}`; its columns are {', '.join(frame.columns)!s:.300}")
    return frame.select(_typed(frame[name], kind, place) for name, kind in columns.items() if name in frame.columns)


def _typed(values: pl.Series, kind: str, place: str) -> pl.Series:
    """The column as String or Float64, which every row must have."""
    if values.dtype.is_nested():
        raise LeafError(f"{place}: `{values.name}` must hold {kind}, not {values.dtype}")
    typed = values.cast(pl.Float64 if kind == "number" else pl.String, strict=False)
    good = typed.is_finite().fill_null(False) if kind == "number" else typed.is_not_null()
    if not good.all():
        row = int(good.arg_min() or 0)
        given = "" if values[row] is None else f" ({str(values[row])!r:.40})"
        raise LeafError(f"{place}: row {row + 1}: `{values.name}` is empty or not a {kind}{given}")
    return typed


def _read_table(kind: Literal["csv", "tsv"]) -> Reader:
    """A reader of tables, which finds out how they are written as the sources of a corpus do."""

    def read_columns(path: Path, required: Sequence[str], optional: Sequence[str]) -> pl.DataFrame:
        header, rows = read_table(SourceParams(name=path.name, kind=kind, path=str(path)), path, required)
        if repeated := [name for name in optional if header.count(name) > 1]:
            raise LeafError(f"{path}: has more than one column {repeated[0]}")
        positions = {name: header.index(name) for name in (*required, *optional) if name in header}
        values = [row for _, row in rows]
        return pl.DataFrame({
            name: pl.Series([row[position] or None for row in values], dtype=pl.String)
            for name, position in positions.items()
        })  # fmt: skip

    return read_columns


def _read_objects(path: Path, required: Sequence[str], optional: Sequence[str]) -> pl.DataFrame:
    """The fields of a file of JSON objects, as they are written: empty columns for those that are not named."""
    names = [*required, *optional]
    rows: list[list[str | None]] = []
    fields: dict[str, None] = {}  # in the order in which they are seen
    for place, record in json_objects(path):
        fields.update(dict.fromkeys(record))
        rows.append([_as_written(place, name, record.get(name)) for name in names])
    columns = {name: [row[number] for row in rows] for number, name in enumerate(names) if name in fields}
    return pl.DataFrame({name: columns.get(name, [None] * len(rows)) for name in fields}).cast(pl.String)


def _as_written(place: str, name: str, value: Any) -> str | None:
    """A JSON value as text; null is None."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, dict | list):
        raise LeafError(f"{place}: `{name}` must be text or a number, not {type(value).__name__}")
    return json.dumps(value)


def _read_parquet(path: Path, required: Sequence[str], optional: Sequence[str]) -> pl.DataFrame:
    present = list(pl.read_parquet_schema(path))
    return pl.read_parquet(path, columns=[name for name in present if name in (*required, *optional)] or present)


READERS: dict[str, Reader] = {
    ".csv": _read_table("csv"),
    ".tsv": _read_table("tsv"),
    ".jsonl": _read_objects,
    ".parquet": _read_parquet,
}
"""By the ending of the file's name, or the one before that of its compression. Each gives at least those of the named
columns that the file has."""
