"""Text of a file: unpacked, decoded, in lines; and files of JSON objects, one per line."""

import codecs
import io
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.base import LeafError
from pipeline.corpus.readers.contents import check_text, unpacked
from pipeline.corpus.readers.fields import require_columns

HEAD_BYTES = 1 << 20  # of a file, from which its encoding and line ends are told
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # begins with the mark of UTF-16, so it stands before it
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_NEED_MARK = ("utf-16", "utf-32")
_LINE_END_OF_UTF16 = re.compile(rb"\n\0|\0\n")  # of Chinese, say, it may be all that has a zero byte
_CONVERT = "name its `encoding` (`cp1252`, for instance), or convert the file to UTF-8"


@dataclass(frozen=True)
class TextForm:
    """How a file holds its text."""

    encoding: str
    mark: int
    """Bytes of the byte-order mark before the text."""
    line_end: str
    """What ends a line: a carriage return if the file's beginning has no line feed, else a line feed; empty: both."""
    head: str
    """The text's beginning, of about HEAD_BYTES."""
    whole: bool
    """Whether `head` is the whole text."""


def text_form(file: Path, encoding: str | None = None) -> TextForm:
    """Encoding and line ends of a file, from its beginning.

    `encoding` is that of a file without a byte-order mark; UTF-8 if it is left out.

    Raises:
        LeafError: the file cannot be read, or is no text.
    """
    with unpacked(file) as stream:
        raw = stream.read(HEAD_BYTES)
        whole = not stream.read(1)
    mark, name = next(((mark, name) for mark, name in _MARKS if raw.startswith(mark)), (b"", encoding or "utf-8"))
    if not mark:
        check_text(file, raw)
        if encoding is None and (raw.count(0) > len(raw) // 4 or _LINE_END_OF_UTF16.search(raw)):
            raise LeafError(f"{file}: holds zero bytes, as UTF-16 does, and no byte-order mark; {_CONVERT}")
        if codecs.lookup(name).name in _NEED_MARK:
            raise LeafError(f"{file}: has no byte-order mark; name its encoding as `{name}-le` or `{name}-be`")
    try:
        head = raw[len(mark) :].decode(name, "ignore")
    except UnicodeError as error:  # of codecs that are not for files (idna)
        raise LeafError(f"{file}: cannot be read in the encoding `{name}`: {error!s:.120}") from None
    return TextForm(name, len(mark), "\r" if "\r" in head and "\n" not in head else "\n", head, whole)


@contextmanager
def opened_text(file: Path, form: TextForm) -> Iterator[io.TextIOWrapper]:
    """The text of a file as a stream, which gives lines with their line ends.

    Raises:
        LeafError: the file cannot be read, or is damaged.
    """
    with unpacked(file) as stream:
        stream.read(form.mark)
        with io.TextIOWrapper(io.BufferedReader(stream), form.encoding, newline=form.line_end) as text:  # type: ignore[type-var]
            yield text


def lines(file: Path, form: TextForm | None = None) -> Iterator[str]:
    """Lines of a text file with their line ends, without a byte-order mark; compressed files are unpacked.

    `form` is the file's `text_form`, if it is known already.

    Raises:
        LeafError: the file cannot be read, or a line is not in the encoding that the mark says, else UTF-8.
    """
    form, number = form or text_form(file), 0
    with opened_text(file, form) as text:
        try:
            for number, line in enumerate(text, 1):  # noqa: B007
                yield line
        except UnicodeDecodeError as error:
            # All lines before the block that cannot be decoded are out: it begins in the next one.
            before = error.object[: error.start].decode(form.encoding, "replace")
            within = len(re.findall(form.line_end or "\r\n?|\n", before))
            raise not_decoded(f"{file}, line {number + 1 + within}", form, error) from None


def not_decoded(place: str, form: TextForm, error: UnicodeDecodeError) -> LeafError:
    """The error of text that is not in its encoding."""
    name = form.encoding.upper().removesuffix("-LE").removesuffix("-BE")
    return LeafError(f"{place}: not {name} ({error.reason}); {_CONVERT}")


def json_objects(file: Path, required: Sequence[str] = ()) -> Iterator[tuple[str, dict[str, Any]]]:
    """JSON objects of a file, one per line, each with its place for error messages; blank lines are skipped.

    Raises:
        LeafError: a line is not a JSON object, or the first object lacks a required field.
    """
    first = True
    for place, record in json_lines(file):
        if not isinstance(record, dict):
            raise LeafError(f"{place}: must be a JSON object, not {type(record).__name__}")
        if first:
            require_columns(place, required, record)
            first = False
        yield place, record


def json_lines(file: Path, form: TextForm | None = None) -> Iterator[tuple[str, Any]]:
    """JSON values of a file, one per line, each with its place for error messages; blank lines are skipped.

    Raises:
        LeafError: a line is not JSON.
    """
    for number, line in enumerate(lines(file, form), 1):
        if not line.strip():
            continue
        place = f"{file}, line {number}"
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise LeafError(f"{place}: not JSON: {error!s:.120}") from None
        yield place, value
