"""Readers of CSV and TSV: text files of rows with one record each, whose first line may name the columns.

How a file separates and quotes its fields is what the source says, or else is told from the file's beginning, where
only one way fits.
"""

import csv
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from pipeline.base import LeafError
from pipeline.corpus.readers.fields import Frames, column_names, require_columns, source_files
from pipeline.corpus.readers.lines import TextForm, lines, text_form
from pipeline.corpus.readers.records import Record, frames_of_records
from pipeline.params import SourceParams

FIELD_CHARACTERS = 16_000_000  # so that a quote that is never closed ends here, not at the end of a huge file
SAMPLE_ROWS = 1000  # at the beginning of a file, from which the way of quoting is told
DELIMITERS = ",;\t|"
QUOTE, SINGLE_QUOTE = '"', "'"
ESCAPE = "\\"
ESCAPES = ("", ESCAPE)  # that are looked for
_EXCEL_HINT = re.compile(r"sep=(.)[\r\n]", re.IGNORECASE)  # a first line that tells Excel, and us, the delimiter

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
    files = source_files(source, (source.kind,))
    return frames_of_records(source, (row for file in files for row in _records(source, file)))


def _records(source: SourceParams, file: Path) -> Iterator[tuple[str, Record]]:
    """Values of the named columns in each row that is not the header again, with the row's place."""
    csv.field_size_limit(FIELD_CHARACTERS)
    form = text_form(file, source.encoding)
    dialect = _dialect(source, file, form)
    text, skipped = lines(file, dialect.form(form)), _hint_lines(form)
    rows = dialect.rows(islice(text, skipped, None))
    is_guess = not dialect.quote and source.quote is None
    try:
        header = list(source.columns) or _header(file, rows)
        positions = _positions(source, file, [name.strip() for name in header])
        for number, row in rows:
            if row == header:
                continue
            place = f"{file}, line {number + skipped}"
            if len(row) != len(header):
                raise LeafError(f"{place}: {len(row)} fields where there are {len(header)} columns{_HOW}")
            if is_guess:
                for field in row:
                    if field[:1] == QUOTE:
                        _check_unquoted(place, field)
            yield place, tuple([row[position] for position in positions])
    except _RowError as error:
        number, reason = error.args
        raise LeafError(f"{file}, line {number + skipped}: not {source.kind.upper()}: {reason}{_HOW}") from None


def _header(file: Path, rows: Iterable[tuple[int, Row]]) -> Row:
    header = next((row for _, row in rows), None)
    if header is None:
        raise LeafError(f"{file}: is empty; its first line must name the columns")
    return header


def _positions(source: SourceParams, file: Path, header: Row) -> list[int]:
    """Where the named columns stand in a row."""
    names = column_names(source)
    require_columns(file, names, header, "" if source.columns else _NO_HEADER)
    if repeated := [name for name in names if header.count(name) > 1]:
        raise LeafError(f"{file}: has more than one column {repeated[0]:.40}; name all columns anew with `columns`")
    return [header.index(name) for name in names]


def _dialect(source: SourceParams, file: Path, form: TextForm) -> Dialect:
    """How a file is written: as the source says, and else the first way in which all rows at its beginning fit.

    If they fit in none, because a row is broken, it is the first one that fits the first row.

    Raises:
        LeafError: without a header, the rows fit with more than one delimiter; or they seem to be in single quotes.
    """
    hint = _EXCEL_HINT.match(form.head)
    usual = _usual_delimiter(source)
    told = source.delimiter or (hint[1] if hint else None)
    delimiters = [told] if told else sorted(DELIMITERS, key=lambda delimiter: delimiter != usual)
    ways = [Dialect(delimiter, *quoting) for delimiter in delimiters for quoting in _quotings(source)]
    fitting = (way for first in (False, True) for way in ways if _rows_that_fit(source, way, form, first) is not None)
    chosen = next(fitting, ways[0])
    if source.columns and not chosen.delimiter == usual == "\t":  # people do not type tabs
        _check_only_delimiter(source, file, form, [chosen, *(way for way in ways if way.delimiter != chosen.delimiter)])
    if source.quote is not None:
        return chosen
    rows = _rows_that_fit(source, chosen, form) or []
    if _look_quoted(rows, SINGLE_QUOTE):
        raise LeafError(f"{file}: all of a column is in single quotes; {_SINGLE_QUOTES}")
    if not chosen.quote and _look_quoted(rows):
        quoted = (replace(chosen, quote=QUOTE, escape=escape) for escape in ESCAPES)
        return next((way for way in quoted if _rows_that_fit(source, way, form)), chosen)
    return chosen


def _check_only_delimiter(source: SourceParams, file: Path, form: TextForm, ways: list[Dialect]) -> None:
    """Refuse rows that fit with more than one delimiter: `1;Hello, world` would otherwise be cut at the comma.

    `ways`: the one that was chosen, which fits, and those with other delimiters.
    """
    fitting = dict.fromkeys(way.delimiter for way in ways if _rows_that_fit(source, way, form))
    if len(fitting) > 1:
        shown = " and with ".join(map(repr, fitting))
        raise LeafError(f"{file}: its rows have as many fields as `columns` with {shown} between them; set `delimiter`")


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
    source: SourceParams, dialect: Dialect, form: TextForm, only_first: bool = False
) -> list[Row] | None:
    """Rows at the beginning of a file, without a header, or only what follows the header from the first row.

    None if their numbers of fields differ, or if they do not have the columns.
    """
    sample = list(io.StringIO(form.head, newline=dialect.form(form).line_end))
    whole_lines = sample[_hint_lines(form) : None if form.whole else -1]
    rows: list[Row] = []
    try:
        rows.extend(row for _, row in islice(dialect.rows(whole_lines), 1 if only_first else SAMPLE_ROWS))
    except _RowError as error:
        if _CUT not in error.args[1]:
            return None
    header = list(source.columns) or [name.strip() for name in next(iter(rows), [])]
    # A single column fits with any delimiter that does not occur.
    is_told = source.delimiter or len(header) > 1 or dialect.delimiter == _usual_delimiter(source)
    if not is_told or {len(row) for row in rows} != {len(header)} or not set(column_names(source)) <= set(header):
        return None
    return rows if source.columns else rows[1:]


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
