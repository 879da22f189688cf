"""Lines of UTF-8 files, and files of JSON objects, one per line."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pipeline.base import LeafError
from pipeline.corpus.readers.fields import require_columns


def lines(file: Path) -> Iterator[str]:
    """Lines of a UTF-8 file with their line ends, without a byte-order mark.

    Raises:
        LeafError: the file cannot be read, or a line is not UTF-8.
    """
    try:
        with file.open("rb") as stream:
            for number, raw in enumerate(stream, 1):
                try:
                    yield raw.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError as error:
                    raise LeafError(f"{file}, line {number}: not UTF-8 ({error.reason}); convert the file") from None
    except OSError as error:
        raise LeafError(f"{file}: cannot be read: {error.strerror}") from None


def json_objects(file: Path, required: Sequence[str] = ()) -> Iterator[tuple[str, dict[str, Any]]]:
    """JSON objects of a file, one per line, each with its place for error messages; blank lines are skipped.

    Raises:
        LeafError: a line is not a JSON object, or the first object lacks a required field.
    """
    first = True
    for number, line in enumerate(lines(file), 1):
        if not line.strip():
            continue
        place = f"{file}, line {number}"
        try:
            record: object = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise LeafError(f"{place}: not JSON: {error!s:.120}") from None
        if not isinstance(record, dict):
            raise LeafError(f"{place}: must be a JSON object, not {type(record).__name__}")
        if first:
            require_columns(place, required, record)
            first = False
        yield place, record


def optional_text(place: str, name: str, value: object) -> str | None:
    """The value of a JSON field as text: a whole number is written out, null stays None.

    Raises:
        LeafError: the value is of another type.
    """
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    raise LeafError(f"{place}: field `{name}` must be text, not {type(value).__name__}")
