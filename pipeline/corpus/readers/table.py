"""Readers of CSV and TSV: text files of rows with one record each, whose first line may name the columns.

How a file separates and quotes its fields is what the source says, or else is told from the file's beginning, where
only one way fits.
"""

import csv
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

from pipeline.base import LeafError, quoted
from pipeline.corpus.readers.fields import Frames, column_names, require_columns, source_files
from pipeline.corpus.readers.lines import TextForm, lines, text_form
from pipeline.corpus.readers.records import Record, frames_of_records
from pipeline.params import SourceParams

FIELD_CHARACTERS = 16_000_000  # so that a quote that is never closed ends here, not at the end of a huge file
SAMPLE_ROWS = 1000  # at the beginning of a file, from which the way of quoting is told
NEARLY_ALL = 0.9  # of the rows at the beginning, if the others are broken
DELIMITERS = ",;\t|"
SUFFIXES = {"csv": ("csv",), "tsv": ("tsv", "tab")}
QUOTE, SINGLE_QUOTE = '"', "'"
ESCAPE = "\\"
ESCAPES = ("", ESCAPE)  # that are looked for
_EXCEL_HINT = re.compile(r"sep=(.)[\r\n]", re.IGNORECASE)  # a first line that tells Excel, and us, the delimiter

_NAMES = re.compile(r"\w+([,;\t|]\w+)+")  # of columns; one column has no such name
_LINE_END = re.compile(r"\r\n?|\n")
_RETURN_INSIDE = re.compile(r"\r(?!\n)")
_CUT = "unexpected end of data"  # the parser's word for a field in quotes that the end of the sample cuts
_HOW = "; `delimiter`, `quote` and `escape` say how fields are written (docs/sources.md)"
_SINGLE_QUOTES = """set `quote: "'"` if they stand around fields, or `quote: '"'` if they are part of the texts"""
_NO_HEADER = "; if the first line is a record, name the columns: `columns: [id, text]` (docs/sources.md)"

Row = list[str]


@dataclass(frozen=True)
class Dialect:
    """How a file writes its fields."""

    delimiter: str
    quote: str = ""
    """Stands around fields, and twice for itself inside; empty if it is a character like any other."""
    escape: str = ""
    """Stands before a quote inside a field, as Spark writes it."""

    def rows(self, text: Iterable[str]) -> Iterator[tuple[int, Row]]:
        """Rows that are not blank, each with the number of its last line.

        Raises:
            _RowError: one is not in this dialect.
        """
        if not self.quote:
            for number, line in enumerate(text, 1):
                if content := line.rstrip("\r\n"):
                    yield number, content.split(self.delimiter)
            return
        reader = self._parser(text)
        try:
            for row in reader:
                if row:
                    yield reader.line_num, row
        except csv.Error as error:
            raise _RowError(reader.line_num, str(error)) from None

    def _parser(self, text: Iterable[str]) -> Any:
        """A `csv.reader`."""
        how: dict[str, Any] = {"delimiter": self.delimiter, "quotechar": self.quote, "strict": True}
        how["skipinitialspace"] = self.delimiter != " "  # people write `1, "a text"`, and the quotes are no letters
        if not self.escape:
            return csv.reader(_without_returns(text), **how)
        # It drops every escape, which before ordinary characters is part of the text (`C:\\new`).
        mark, quote = re.escape(self.escape), re.escape(self.quote)
        escapes = re.compile(f"{mark}({mark}|{quote})|{mark}")
        kept = (
            escapes.sub(lambda found: found[0] if found[1] else self.escape * 2, line)
            for line in _without_returns(text)
        )
        return csv.reader(kept, escapechar=self.escape, **how)

    def form(self, form: TextForm) -> TextForm:
        """How lines end: where the first ends in a carriage return, cells in quotes may yet have line feeds."""
        first_end = _LINE_END.search(form.head)
        return replace(form, line_end="") if self.quote and first_end and first_end[0] == "\r" else form


def _without_returns(text: Iterable[str]) -> Iterator[str]:
    """Lines without carriage returns inside, which the parser refuses; in texts they are white space."""
    for line in text:
        position = line.find("\r")
        yield line if position < 0 or position >= len(line) - 2 else _RETURN_INSIDE.sub(" ", line)


class _RowError(Exception):
    """A row that is not in the dialect: the number of its last line, and why."""


def read(source: SourceParams) -> Frames:
    """Frames of CSV (RFC 4180) or TSV files. Quoted fields may hold delimiters and line ends."""
    files = source_files(source, SUFFIXES[source.kind])
    return frames_of_records(source, (row for file in files for row in _records(source, file)))


def _records(source: SourceParams, file: Path) -> Iterator[tuple[str, Record]]:
    """Values of the named columns in each row, with the row's place."""
    names = column_names(source)
    header, rows = read_table(source, file, names, "" if source.columns else _NO_HEADER)
    positions = [header.index(name) for name in names]
    for place, row in rows:
        yield place, tuple([row[position] for position in positions])


def read_table(
    source: SourceParams, file: Path, required: Sequence[str], hint: str = ""
) -> tuple[list[str], Iterator[tuple[str, Row]]]:
    """The names of a file's columns, and its rows, each with its place, but for the header where it is repeated.

    `source` says how the file is written, as far as it is not told from its beginning; `hint` ends the message that a
    `required` column is missing.

    Raises:
        LeafError: a required column is missing or there twice; a row is not like the others.
    """
    csv.field_size_limit(FIELD_CHARACTERS)
    form = text_form(file, source.encoding)
    dialect = _dialect(source, required, file, form)
    skipped = _hint_lines(form)
    rows = _numbered(source, file, dialect.rows(islice(lines(file, dialect.form(form)), skipped, None)), skipped)
    first: Row | None = list(source.columns) or next((row for _, row in rows), None)
    if first is None:
        raise LeafError(f"{file}: is empty; its first line must name the columns")
    header = [name.strip() for name in first]
    require_columns(file, required, header, hint)
    if repeated := [name for name in required if header.count(name) > 1]:
        raise LeafError(f"{file}: has more than one column {repeated[0]:.40}; name all columns anew with `columns`")
    return header, _checked(rows, first, is_guess=not dialect.quote and source.quote is None)


def _numbered(
    source: SourceParams, file: Path, rows: Iterator[tuple[int, Row]], skipped: int
) -> Iterator[tuple[str, Row]]:
    """Rows with their places in the file, of which the first lines are `skipped`."""
    try:
        for number, row in rows:
            yield f"{file}, line {number + skipped}", row
    except _RowError as error:
        number, reason = error.args
        raise LeafError(f"{file}, line {number + skipped}: not {source.kind.upper()}: {reason}{_HOW}") from None


def _checked(rows: Iterator[tuple[str, Row]], header: Row, is_guess: bool) -> Iterator[tuple[str, Row]]:
    """Rows that are not the header again; `is_guess`: whether quotes are taken for letters without being told so."""
    for place, row in rows:
        if row == header:
            continue
        if len(row) != len(header):
            begins = f", in the row that begins {quoted(row[0])}" if row else ""
            raise LeafError(f"{place}: {len(row)} fields where there are {len(header)} columns{begins}{_HOW}")
        if is_guess:
            for field in row:
                if field[:1] == QUOTE:
                    _check_unquoted(place, field)
        yield place, row


def _dialect(source: SourceParams, names: Sequence[str], file: Path, form: TextForm) -> Dialect:
    """How a file is written: as the source says, and else the first way in which all rows at its beginning fit.

    If they fit in none, because a row is broken, it is the first one that fits the first row; if that lacks a column,
    the first in which all rows have several fields.

    Raises:
        LeafError: without a header, the rows fit with more than one delimiter; or they seem to be in single quotes.
    """
    hint = _EXCEL_HINT.match(form.head)
    usual = _usual_delimiter(source)
    told = source.delimiter or (hint[1] if hint else None)
    delimiters = [told] if told else sorted(DELIMITERS, key=lambda delimiter: delimiter != usual)
    ways = [Dialect(delimiter, *quoting) for delimiter in delimiters for quoting in _quotings(source)]
    rows_that_fit = partial(_rows_that_fit, source, form=form, names=names)
    fitting = (way for first in (False, True) for way in ways if rows_that_fit(way, only_first=first) is not None)
    whole = (way for way in ways if (rows := rows_that_fit(way, names=())) and len(rows[0]) > 1)
    chosen = next(chain(fitting, whole), ways[0])
    if source.columns and not chosen.delimiter == usual == "\t":  # people do not type tabs
        others = (way for way in ways if way.delimiter != chosen.delimiter)
        if rows_that_fit(chosen) and (other := next((way for way in others if rows_that_fit(way)), None)):
            raise LeafError(
                f"{file}: its rows have as many fields as `columns` with {chosen.delimiter!r} and with "
                f"{other.delimiter!r} between them; set `delimiter`"
            )
    if source.quote is not None:
        return chosen
    rows = rows_that_fit(chosen) or []
    if _look_quoted(rows, SINGLE_QUOTE):
        raise LeafError(f"{file}: all of a column is in single quotes; {_SINGLE_QUOTES}")
    if not chosen.quote and _look_quoted(rows):
        quoted = (replace(chosen, quote=QUOTE, escape=escape) for escape in ESCAPES)
        return next((way for way in quoted if rows_that_fit(way)), chosen)
    return chosen


def _usual_delimiter(source: SourceParams) -> str:
    return "\t" if source.kind == "tsv" else ","


def _hint_lines(form: TextForm) -> int:
    """Lines before the table: one, if it is a hint for Excel."""
    return 1 if _EXCEL_HINT.match(form.head) else 0


def _quotings(source: SourceParams) -> list[tuple[str, str]]:
    """Quotes and escapes that come into question, the usual ones of the kind first."""
    quote = QUOTE if source.quote is None else source.quote
    plain = [("", "")] if source.quote is None and source.escape is None and source.kind == "tsv" else []
    escapes = ESCAPES if source.escape is None and quote else (source.escape or "",)
    return [*plain, *((quote, escape) for escape in escapes)]


def _rows_that_fit(
    source: SourceParams, dialect: Dialect, *, form: TextForm, names: Sequence[str], only_first: bool = False
) -> list[Row] | None:
    """Rows at the beginning of a file, without a header, or only what follows the header from the first row.

    None if their numbers of fields differ, or if they do not have the columns.
    """
    rows = _sampled_rows(dialect, form, 1 if only_first else SAMPLE_ROWS)
    if rows is None:
        return None
    header = list(source.columns) or [name.strip() for name in next(iter(rows), [])]
    # A single column fits with any delimiter that does not occur.
    is_told = source.delimiter or len(header) > 1 or dialect.delimiter == _usual_delimiter(source)
    if not is_told or {len(row) for row in rows} != {len(header)} or not set(names) <= set(header):
        return None
    return rows if source.columns else rows[1:]


def _sampled_rows(dialect: Dialect, form: TextForm, limit: int) -> list[Row] | None:
    """Rows at the beginning of a file, the header among them; None if they are not in the dialect."""
    rows: list[Row] = []
    try:
        rows.extend(row for _, row in islice(dialect.rows(_sampled_lines(dialect, form)), limit))
    except _RowError as error:
        if _CUT not in error.args[1]:
            return None
    return rows


def _sampled_lines(dialect: Dialect, form: TextForm) -> list[str]:
    """Whole lines at the beginning of a file."""
    sample = list(io.StringIO(form.head, newline=dialect.form(form).line_end))
    return sample[_hint_lines(form) : None if form.whole else -1]


def first_rows(source: SourceParams, file: Path) -> list[Row]:
    """Rows at the beginning of a file whose columns nobody has named yet.

    In the first way of writing in which all have equally many fields, more than one where that can be.

    If there is none, in the way in which nearly all have as many fields as the first, and those rows alone: a broken
    row is for the reader to refuse, which knows its line.

    Raises:
        LeafError: the file cannot be read, is no text or empty, or its rows are of different lengths in any way.
    """
    csv.field_size_limit(FIELD_CHARACTERS)
    form = text_form(file, source.encoding)
    if form.whole and not form.head.strip():
        raise LeafError(f"{file}: is empty; its first line must name the columns")
    usual = _usual_delimiter(source)
    delimiters = sorted(DELIMITERS, key=lambda delimiter: delimiter != usual)
    ways = [Dialect(delimiter, *quoting) for delimiter in delimiters for quoting in _quotings(source)]
    tables = [rows for way in ways if (rows := _sampled_rows(way, form, SAMPLE_ROWS)) and len({*map(len, rows)}) == 1]
    if found := next((rows for rows in tables if len(rows[0]) > 1), None):
        return found
    if found := max((_rows_like_first(way, form) for way in ways), key=len):
        return found
    if not tables or _NAMES.fullmatch(tables[0][0][0]):
        raise LeafError(f"{file}: its rows have different numbers of fields in every usual way of writing{_HOW}")
    return tables[0]


def _rows_like_first(dialect: Dialect, form: TextForm) -> list[Row]:
    """Rows at the beginning of a file with as many fields as the first, if these are several and nearly all rows."""
    rows: list[Row] = []
    with suppress(_RowError):
        rows.extend(row for _, row in islice(dialect.rows(_sampled_lines(dialect, form)), SAMPLE_ROWS))
    like_first = [row for row in rows if len(row) == len(rows[0]) > 1]
    return like_first if len(like_first) > max(2, NEARLY_ALL * len(rows)) else []


def _look_quoted(rows: list[Row], quote: str = QUOTE) -> bool:
    """Whether quotes around fields are a way of writing.

    So it is if all fields of a column, most of which is filled, or all of a single row are in them; or if those inside
    of a field in quotes are doubled or escaped.
    """
    whole = any(_are_in_quotes(column, quote) for column in (zip(*rows, strict=True) if len(rows) > 1 else rows))
    return whole or any(_are_quotes_marked(field, quote) for row in rows for field in row)


def _are_in_quotes(fields: Sequence[str], quote: str) -> bool:
    filled = [field for field in fields if field]
    return len(filled) > 1 and 2 * len(filled) > len(fields) and all(_is_in_quotes(field, quote) for field in filled)


def _is_in_quotes(field: str, quote: str) -> bool:
    """Whether a field, read as it stands, is one in quotes: with any inside of it doubled, or each escaped."""
    if len(field) < 2 or not field[0] == field[-1] == quote:
        return False
    return any(quote not in field[1:-1].replace(mark + quote, "") for mark in (quote, ESCAPE))


def _are_quotes_marked(field: str, quote: str = QUOTE) -> bool:
    """Whether a field is in quotes that could be no letters: it has doubled or escaped ones inside."""
    return quote in field[1:-1] and _is_in_quotes(field, quote)


def _check_unquoted(place: str, field: str) -> None:
    """Refuse a field that shows, too late to be read so, that the file is quoted."""
    if _are_quotes_marked(field):
        raise LeafError(
            f"{place}: a field in quotes, with quotes doubled or escaped inside, in a file that began without: set "
            "`quote: '\"'` if it is quoted as CSV, or `quote: ''` if quotes are part of the texts"
        )
