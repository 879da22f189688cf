"""Reader of JSON: JSON Lines, one record per line, and documents, whose array or lists hold the records."""

import json
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any, TextIO

import ijson

from pipeline.base import LeafError
from pipeline.corpus.readers.fields import Frames, frames_of_batches, source_files
from pipeline.corpus.readers.lines import TextForm, json_lines, not_decoded, opened_text, text_form
from pipeline.corpus.readers.paths import Fields
from pipeline.corpus.readers.records import batches_of_records
from pipeline.params import SourceParams

SUFFIXES = ("jsonl", "ndjson", "json")
BLOCK = 1 << 16  # characters of a document that are parsed at a time


def read(source: SourceParams) -> Frames:
    """Frames of the source's files. Whole numbers are taken as text; a field that an object lacks is null."""
    fields = Fields(source)
    records = (
        record for file in source_files(source, SUFFIXES) for record in fields.records(_values(source, file, fields))
    )
    return frames_of_batches(source, batches_of_records(records))


def _values(source: SourceParams, file: Path, fields: Fields) -> Iterator[tuple[str, Any]]:
    """What records are in, objects and arrays as a rule, each with its place."""
    form = text_form(file, source.encoding)
    values = _document(file, form, fields) if _is_document(form, fields) else json_lines(file, form)
    first, second = next(values, None), next(values, None)
    if first and not second and (columns := _columns(first[1], fields)):
        place = first[0]
        rows = zip(*columns.values(), strict=True)
        yield from ((f"{place}, row {number}", dict(zip(columns, row, strict=True))) for number, row in enumerate(rows))
        return
    yield from chain((value for value in (first, second) if value), values)


def _columns(value: Any, fields: Fields) -> dict[str, list[Any]] | None:
    """The columns of a table that is one object: lists of one length, or objects with the numbers of rows as keys.

    The latter is what `DataFrame.to_json` of pandas writes; one list alone may be several texts of one record.
    """
    names = dict.fromkeys((*field.steps, field.name)[0] for field in fields.fields)
    columns: dict[str, Any] = {name: value.get(name) if isinstance(value, dict) else None for name in names}
    contents = list(columns.values())
    if all(isinstance(column, dict) and column.keys() == contents[0].keys() for column in contents):
        is_numbered = contents[0] and all(number.isdecimal() for number in contents[0])
        return {name: list(column.values()) for name, column in columns.items()} if is_numbered else None
    is_table = len(columns) > 1 and all(isinstance(column, list) and len(column) > 1 for column in contents)
    return columns if is_table and len({len(column) for column in contents}) == 1 else None


def _is_document(form: TextForm, fields: Fields) -> bool:
    """Whether a file is one document, or several over some lines each, rather than JSON Lines."""
    first, _, rest = form.head.lstrip().partition(form.line_end)
    if not first or (not rest and not form.whole):
        return bool(first)
    try:
        value = json.loads(first)
    except json.JSONDecodeError as error:
        # Cut at the end of the line: the value goes on in the next one. A fault before is one of the line.
        return error.pos >= len(first.rstrip()) or error.msg.startswith("Unterminated string")
    except RecursionError:
        return False
    if not isinstance(value, list) or rest.strip() or not value:
        return False
    # A single line with an array: a record whose fields are positions, or an array of records.
    return isinstance(value[0], dict | list) or not any(field.name.isdecimal() for field in fields.fields)


def _document(file: Path, form: TextForm, fields: Fields) -> Iterator[tuple[str, Any]]:
    """Elements of a document's array, or of the list that all fields lie in, else the values that the file holds."""
    is_array = form.head.lstrip().startswith("[")
    outer = () if is_array else next(iter(fields.outer), ())
    prefix = "item" if is_array else ".".join([*outer, "item"] if outer else [])
    with opened_text(file, form) as text:
        try:
            for number, value in enumerate(_parsed(text, prefix), 1):
                place = f"{file}, record {number}"
                yield place, _inside(outer, [value]) if outer else value
        except ijson.JSONError as error:
            reason = " ".join(str(error).split())  # the parser draws an arrow below the place
            raise LeafError(f"{file}: not JSON: {reason:.120}") from None
        except UnicodeDecodeError as error:
            raise not_decoded(str(file), form, error) from None


def _parsed(text: TextIO, prefix: str) -> Iterator[Any]:
    """Values at a place in a document (https://github.com/ICRAR/ijson), which is never held whole."""
    values = ijson.sendable_list()
    parser = ijson.items_coro(values, prefix, multiple_values=True, use_float=True)
    while block := text.read(BLOCK):
        parser.send(block.encode())
        yield from values
        values.clear()
    parser.close()
    yield from values


def _inside(steps: tuple[str, ...], value: Any) -> Any:
    """Objects with one key each, around a value."""
    for key in reversed(steps):
        value = {key: value}
    return value
