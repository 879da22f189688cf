"""Readers of texts, one per kind of source.

`batches` yields frames `id, text, role` (strings; `text` may be null) of bounded size. The texts of one record
follow each other and share its id. Nothing of a source is executed, and no source is held whole.
"""

import csv
import glob
import json
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import polars as pl

from pipeline.base.errors import LeafError
from pipeline.base.keys import ROLES
from pipeline.corpus.readers import docstrings
from pipeline.params.sections import SourceParams

BATCH_ROWS = 32_768
BATCH_CHARACTERS = 16_000_000  # about 16 to 64 MB, whichever of the two comes first
CSV_FIELD_CHARACTERS = 16_000_000  # a quote that is never closed stops here, not at the end of a huge file
SCHEMA = {"id": pl.String, "text": pl.String, "role": pl.String}

Frames = Iterator[pl.DataFrame]
Record = tuple[Any, ...]


def check(source: SourceParams) -> None:
    """Refuse a source whose fields do not fit its kind.

    Raises:
        LeafError: no role or more than one rule for it, no path, no packages, or an `id_suffix` that does not compile.
    """
    where = f"corpus.sources `{source.name}`"
    if source.kind == "docstrings":
        if not source.packages:
            raise LeafError(f"{where}: kind docstrings needs `packages`, a list of names (`stdlib` is one)")
    elif not source.path:
        raise LeafError(f"{where}: kind {source.kind} needs `path`")
    paired = source.query_field or source.document_field
    rules = sum(map(bool, (source.role, source.role_field, paired)))
    if source.kind in ("beir", "docstrings", "text") and (paired or source.role_field or source.text_field):
        raise LeafError(f"{where}: kind {source.kind} has no fields to name; only `role` applies to it")
    if rules > 1 or (rules == 0 and source.kind not in ("beir", "docstrings")):
        raise LeafError(f"{where}: needs one of `role`, `role_field`, or `query_field` and/or `document_field`")
    if paired and source.text_field:
        raise LeafError(f"{where}: `text_field` and `query_field`/`document_field` exclude each other")
    try:
        re.compile(source.id_suffix or "")
    except re.error as error:
        raise LeafError(f"{where}: id_suffix {source.id_suffix!r} is not a regular expression: {error}") from None


def batches(source: SourceParams) -> Frames:
    """Frames `id, text, role` of the source, in its own order.

    Raises:
        LeafError: a file is missing, empty, damaged, not UTF-8, or lacks a column; the message names the place.
    """
    check(source)
    suffix = re.compile(source.id_suffix) if source.id_suffix else None
    rows = 0
    for frame in _READERS[source.kind](source):
        rows += len(frame)
        if suffix:
            ids = pl.Series("id", [suffix.sub("", value) for value in frame["id"].to_list()], dtype=pl.String)
            frame = frame.with_columns(ids)  # noqa: PLW2901
        yield frame
    if rows == 0:
        raise LeafError(f"corpus.sources `{source.name}`: {source.path or ', '.join(source.packages)} has no texts")


def fields(source: SourceParams) -> list[str]:
    """Columns to read: the texts' (one, or query and document), then the role's and the id's where they are named."""
    texts = [source.query_field, source.document_field]
    texts = texts if any(texts) else [source.text_field or "text"]
    return [name for name in (*texts, source.role_field, source.id_field) if name]


def texts_of(source: SourceParams, columns: list[pl.Series], first: int, where: Callable[[int], str]) -> pl.DataFrame:
    """Frame `id, text, role` from the columns of `fields(source)`; `first` is the number of their first row.

    `where` names the place of a row of `columns` in an error message.
    """
    rows = len(columns[0])
    columns = [column.cast(pl.String) for column in columns]
    ids = columns.pop() if source.id_field else pl.Series(range(first, first + rows)).cast(pl.String)
    if (row := _first(ids.is_null())) is not None:
        raise LeafError(f"{where(row)}: id_field `{source.id_field}` has no value")
    if source.role_field:
        roles = columns.pop()
        if (row := _first(~roles.is_in(ROLES).fill_null(False))) is not None:
            raise LeafError(f"{where(row)}: role_field `{source.role_field}` is {roles[row]!r}, not query or document")
        return pl.DataFrame({"id": ids, "text": columns[0], "role": roles}, schema=SCHEMA)
    pair = zip(ROLES, (source.query_field, source.document_field), strict=True)
    names = [source.role] if source.role else [role for role, name in pair if name]
    parts = [
        pl.DataFrame({"id": ids, "text": column}).select(pl.all(), role=pl.lit(name), row=pl.int_range(pl.len()))
        for name, column in zip(names, columns, strict=True)
    ]
    return pl.concat(parts).sort("row", maintain_order=True).drop("row")


def _first(mask: pl.Series) -> int | None:
    return mask.arg_max() if mask.any() else None


def files(source: SourceParams) -> list[Path]:
    """Files of `path`, which may be a glob; sorted by name."""
    path = Path(source.path or "").expanduser()
    found = [path] if path.is_file() else sorted(map(Path, glob.glob(str(path), recursive=True)))  # noqa: PTH207
    found = [file for file in found if file.is_file()]
    if not found:
        raise LeafError(f"corpus.sources `{source.name}`: {path}: no such file")
    return found


def lines(file: Path) -> Iterator[str]:
    """Lines of a UTF-8 file with their line ends, without a byte-order mark."""
    try:
        with file.open("rb") as stream:
            for number, raw in enumerate(stream, 1):
                try:
                    yield raw.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError as error:
                    raise LeafError(f"{file}, line {number}: not UTF-8 ({error.reason}); convert the file") from None
    except OSError as error:
        raise LeafError(f"{file}: cannot be read: {error.strerror}") from None


def require(where: object, wanted: Iterable[str], there: Iterable[str]) -> None:
    """Raise a LeafError that lists the columns there are, unless all that are wanted are among them."""
    there = list(there)
    if missing := [name for name in wanted if name not in there]:
        raise LeafError(f"{where}: has no column {', '.join(missing)}; columns there: {', '.join(there) or 'none'}")


def _chunks(records: Iterable[tuple[str, Record]]) -> Iterator[tuple[list[str], list[list[Any]]]]:
    """Records with their places, gathered into columns of bounded size."""
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


def _framed(source: SourceParams, records: Iterable[tuple[str, Record]]) -> Frames:
    first = 0
    for places, columns in _chunks(records):
        try:
            series = [pl.Series(column, dtype=pl.String) for column in columns]
        except UnicodeEncodeError:  # JSON can escape half of a surrogate pair
            raise LeafError(
                f"{_surrogate(places, columns)}: half a surrogate pair, which is not Unicode text"
            ) from None
        yield texts_of(source, series, first, places.__getitem__)
        first += len(places)


def _surrogate(places: list[str], columns: list[list[Any]]) -> str:
    broken = re.compile("[\ud800-\udfff]")
    rows = (row for row in range(len(places)) for column in columns if broken.search(column[row] or ""))
    return places[next(rows, 0)]


def _objects(file: Path, wanted: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """JSON objects of a file, one a line; the first must have all fields."""
    first = True
    for number, line in enumerate(lines(file), 1):
        if not line.strip():
            continue
        place = f"{file}, line {number}"
        try:
            record: object = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise LeafError(f"{place}: not JSON: {error}") from None
        if not isinstance(record, dict):
            raise LeafError(f"{place}: must be a JSON object, not {type(record).__name__}")
        if first:
            require(place, wanted, record)
            first = False
        yield place, record


def _string(place: str, name: str, value: object) -> str | None:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    raise LeafError(f"{place}: field `{name}` must be text, not {type(value).__name__}")


def _jsonl(source: SourceParams) -> Frames:
    wanted = fields(source)
    objects = (pair for file in files(source) for pair in _objects(file, wanted))
    return _framed(source, ((at, tuple(_string(at, name, one.get(name)) for name in wanted)) for at, one in objects))


def _table(source: SourceParams) -> Frames:
    """CSV with quotes (RFC 4180), or TSV, in which a quote is a letter like any other (IANA); both with a header."""
    return _framed(source, (row for file in files(source) for row in _rows(file, source.kind, fields(source))))


def _rows(file: Path, kind: str, wanted: list[str]) -> Iterator[tuple[str, Record]]:
    csv.field_size_limit(CSV_FIELD_CHARACTERS)
    reader = (
        csv.reader(lines(file), delimiter="\t", quoting=csv.QUOTE_NONE)
        if kind == "tsv"
        else csv.reader(lines(file), strict=True)
    )
    try:
        header = next(reader, None)
        if header is None:
            raise LeafError(f"{file}: is empty; its first line must name the columns")
        require(file, wanted, header)
        places = [header.index(name) for name in wanted]
        for row in reader:
            if row and len(row) != len(header):
                raise LeafError(f"{file}, line {reader.line_num}: {len(row)} fields where the header has {len(header)}")
            if row:
                yield f"{file}, line {reader.line_num}", tuple(row[place] for place in places)
    except csv.Error as error:
        raise LeafError(f"{file}, line {reader.line_num}: not {kind.upper()}: {error}") from None


def _text(source: SourceParams) -> Frames:
    split = lines if source.unit == "line" else _paragraphs
    return _framed(source, ((str(file), (text,)) for file in files(source) for text in split(file)))


def _paragraphs(file: Path) -> Iterator[str]:
    held: list[str] = []
    for line in lines(file):
        if line.strip():
            held.append(line)
        elif held:
            yield "".join(held)
            held = []
    if held:
        yield "".join(held)


def _beir(source: SourceParams) -> Frames:
    directory = Path(source.path or "").expanduser()
    if not directory.is_dir():
        raise LeafError(f"corpus.sources `{source.name}`: {directory}: no such directory")
    for role, name in (("document", "corpus.jsonl"), ("query", "queries.jsonl")):
        if source.role in (None, role):
            for _, columns in _chunks(_beir_texts(directory / name, role)):
                yield pl.DataFrame(dict(zip(SCHEMA, columns, strict=True)), schema=SCHEMA)


def _beir_texts(file: Path, role: str) -> Iterator[tuple[str, Record]]:
    if not file.is_file():
        raise LeafError(f"{file}: no such file; a BEIR directory has corpus.jsonl and queries.jsonl")
    for place, record in _objects(file, ["_id", "text"]):
        number, title, text = (_string(place, name, record.get(name)) or "" for name in ("_id", "title", "text"))
        # Query 7 and document 7 are strangers, and equal ids would make them a pair.
        yield place, (f"query/{number}", text, role) if role == "query" else (number, f"{title} {text}", role)


def _docstrings(source: SourceParams) -> Frames:
    wanted = (row for row in docstrings.texts(source.packages) if source.role in (None, row[2]))
    for _, columns in _chunks(("", row) for row in wanted):
        yield pl.DataFrame(dict(zip(SCHEMA, columns, strict=True)), schema=SCHEMA)


def _parquet(source: SourceParams) -> Frames:
    from pipeline.corpus.readers.columnar import parquet

    return parquet(source, files(source))


def _huggingface(source: SourceParams) -> Frames:
    from pipeline.corpus.readers.columnar import huggingface

    return huggingface(source)


_READERS: dict[str, Callable[[SourceParams], Frames]] = {
    "parquet": _parquet,
    "jsonl": _jsonl,
    "csv": _table,
    "tsv": _table,
    "text": _text,
    "beir": _beir,
    "huggingface": _huggingface,
    "docstrings": _docstrings,
}
