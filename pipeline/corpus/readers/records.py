"""Gather records, which come a few strings at a time, into frames of bounded size."""

import re
from collections.abc import Iterable, Iterator
from typing import Any

import polars as pl

from pipeline.base import LeafError
from pipeline.corpus.readers.fields import SCHEMA, Frames, records_frame
from pipeline.params import SourceParams

BATCH_ROWS = 32_768
BATCH_CHARACTERS = 16_000_000  # 16 to 64 MB of text; a batch ends at the first of the two limits

Record = tuple[Any, ...]
"""A string or None for each column."""


def frames_of_records(source: SourceParams, records: Iterable[tuple[str, Record]]) -> Frames:
    """Frames of records that have the columns of `column_names`, each with its place for error messages.

    Raises:
        LeafError: a text is not valid Unicode, or what `records_frame` refuses.
    """
    first = 0
    for places, columns in _batches(records):
        yield records_frame(source, _series(places, columns), first, places.__getitem__)
        first += len(places)


def frames_of_texts(texts: Iterable[tuple[str, Record]]) -> Frames:
    """Frames of texts that have the columns of SCHEMA already (id, text, role), each with its place.

    Raises:
        LeafError: a text is not valid Unicode.
    """
    for places, columns in _batches(texts):
        yield pl.DataFrame(dict(zip(SCHEMA, _series(places, columns), strict=True)), schema=SCHEMA)


def _batches(records: Iterable[tuple[str, Record]]) -> Iterator[tuple[list[str], list[list[Any]]]]:
    """Places and columns of as many records as the limits of a batch allow."""
    places: list[str] = []
    rows: list[Record] = []
    characters = 0
    for place, record in records:
        places.append(place)
        rows.append(record)
        characters += sum(len(value) for value in record if value)
        if len(rows) >= BATCH_ROWS or characters >= BATCH_CHARACTERS:
            yield places, [list(column) for column in zip(*rows, strict=True)]
            places, rows, characters = [], [], 0
    if rows:
        yield places, [list(column) for column in zip(*rows, strict=True)]


def _series(places: list[str], columns: list[list[Any]]) -> list[pl.Series]:
    try:
        return [pl.Series(column, dtype=pl.String) for column in columns]
    except UnicodeEncodeError:  # JSON can escape half of a surrogate pair
        place = _place_of_surrogate(places, columns)
        raise LeafError(f"{place}: half a surrogate pair, which is not Unicode text") from None


def _place_of_surrogate(places: list[str], columns: list[list[Any]]) -> str:
    surrogate = re.compile("[\ud800-\udfff]")
    rows = (row for row in range(len(places)) for column in columns if surrogate.search(column[row] or ""))
    return places[next(rows, 0)]
