"""Gather records, which come a few strings at a time, into batches of bounded size."""

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import polars as pl

from pipeline.base import LeafError
from pipeline.corpus.readers.fields import SCHEMA, Batch, Frames, frames_of_batches
from pipeline.params import SourceParams

BATCH_ROWS = 32_768
BATCH_CHARACTERS = 16_000_000  # 16 to 64 MB of text; a batch ends at the first of the two limits

Record = tuple[Any, ...]
"""A string, a list of strings (several texts), or None for each column."""


def frames_of_records(source: SourceParams, records: Iterable[tuple[str, Record]]) -> Frames:
    """Frames of records that have the columns of `column_names`, each with its place for error messages.

    Raises:
        LeafError: a text is not valid Unicode, or what `records_frame` refuses.
    """
    return frames_of_batches(source, batches_of_records(records))


def frames_of_texts(texts: Iterable[tuple[str, Record]], names: Sequence[str] = tuple(SCHEMA)) -> Frames:
    """Frames of texts that have the columns of a frame already (id, text, role, and more if named), with their places.

    Raises:
        LeafError: a text is not valid Unicode.
    """
    for _, columns in batches_of_records(texts):
        yield pl.DataFrame(dict(zip(names, columns, strict=True)), schema=dict.fromkeys(names, pl.String))


def batches_of_records(records: Iterable[tuple[str, Record]]) -> Iterator[Batch]:
    """As many records at a time as the limits of a batch allow.

    Raises:
        LeafError: a text is not valid Unicode.
    """
    places: list[str] = []
    rows: list[Record] = []
    characters = 0
    for place, record in records:
        places.append(place)
        rows.append(record)
        for value in record:
            if value:
                characters += len(value) if type(value) is str else _characters(value)
        if len(rows) >= BATCH_ROWS or characters >= BATCH_CHARACTERS:
            yield _batch(places, rows)
            places, rows, characters = [], [], 0
    if rows:
        yield _batch(places, rows)


def _characters(texts: list[str | None]) -> int:
    return sum(len(text) for text in texts if text)


def _batch(places: list[str], rows: list[Record]) -> Batch:
    columns = [list(column) for column in zip(*rows, strict=True)]
    try:
        return places.__getitem__, [_series(column) for column in columns]
    except UnicodeEncodeError:  # JSON can escape half of a surrogate pair
        place = _place_of_surrogate(places, columns)
        raise LeafError(f"{place}: half a surrogate pair, which is not Unicode text") from None


def _series(column: list[Any]) -> pl.Series:
    """A column of strings, or of lists if a record has several in it."""
    if any(type(value) is list for value in column):
        return pl.Series([value if type(value) is list else [value] for value in column], dtype=pl.List(pl.String))
    return pl.Series(column, dtype=pl.String)


def _place_of_surrogate(places: list[str], columns: list[list[Any]]) -> str:
    surrogate = re.compile("[\ud800-\udfff]")
    texts = (
        (row, text)
        for row in range(len(places))
        for column in columns
        for text in (column[row] if type(column[row]) is list else [column[row]])
    )
    return places[next((row for row, text in texts if surrogate.search(text or "")), 0)]
