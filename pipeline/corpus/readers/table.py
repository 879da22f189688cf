"""Readers of CSV and TSV: text files whose first line names the columns, one record per row."""

import csv
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from pipeline.base import LeafError
from pipeline.corpus.readers.fields import Frames, column_names, require_columns, source_files
from pipeline.corpus.readers.lines import lines
from pipeline.corpus.readers.records import Record, frames_of_records
from pipeline.params import SourceParams

FIELD_CHARACTERS = 16_000_000  # so that a quote that is never closed ends here, not at the end of a huge file

Parser = Callable[[Iterable[str]], Any]
"""Makes a `csv.reader` of lines."""


def read_csv(source: SourceParams) -> Frames:
    """Frames of CSV files. Quoted fields may hold commas and line ends (RFC 4180)."""
    return _read(source, "CSV", lambda text: csv.reader(text, strict=True))


def read_tsv(source: SourceParams) -> Frames:
    """Frames of TSV files. A quote is a character like any other (IANA's text/tab-separated-values)."""
    return _read(source, "TSV", lambda text: csv.reader(text, delimiter="\t", quoting=csv.QUOTE_NONE))


def _read(source: SourceParams, kind: str, parser: Parser) -> Frames:
    names = column_names(source)
    return frames_of_records(source, (row for file in source_files(source) for row in _rows(file, names, kind, parser)))


def _rows(file: Path, names: list[str], kind: str, parser: Parser) -> Iterator[tuple[str, Record]]:
    """Values of the named columns in each row that is not blank, with the row's place."""
    csv.field_size_limit(FIELD_CHARACTERS)
    reader = parser(lines(file))
    try:
        header = next(reader, None)
        if header is None:
            raise LeafError(f"{file}: is empty; its first line must name the columns")
        require_columns(file, names, header)
        positions = [header.index(name) for name in names]
        for row in reader:
            if row and len(row) != len(header):
                raise LeafError(f"{file}, line {reader.line_num}: {len(row)} fields where the header has {len(header)}")
            if row:
                yield f"{file}, line {reader.line_num}", tuple(row[position] for position in positions)
    except csv.Error as error:
        raise LeafError(f"{file}, line {reader.line_num}: not {kind}: {error}") from None
