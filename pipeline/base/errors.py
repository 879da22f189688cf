"""The exception whose message is shown to the user as it is, and how exceptions and values are quoted in it."""

import re
import reprlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches

LONGEST_MESSAGE = 10_000  # characters
_LONGEST_COMPARED = 60  # of a name with others
_LONGEST_NUMBER = 1000  # bits; Python refuses to write out a few thousand digits
# Control characters but tab and newline; marks that turn the direction of writing or separate lines; halves of
# surrogate pairs; tags, which nothing shows.
_UNPRINTABLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff\U000e0000-\U000e007f]"
)


class LeafError(Exception):
    """Bad input or a damaged file: the message names the place and says what to do about it.

    What it quotes from files of other people reaches no terminal as it is: see `printable`.
    """

    def __init__(self, message: object = "") -> None:
        text = str(message)
        super().__init__(printable(text if len(text) <= LONGEST_MESSAGE else f"{text[:LONGEST_MESSAGE]}..."))


class NoAccessError(LeafError):
    """A file that this user may not read or write: nothing is wrong with it."""


class FileMissingError(LeafError):
    """A remote file is not there."""


def printable(text: str) -> str:
    """The text with what a terminal would obey, or not show, written out: `\\x1b` for the escape character.

    Tabs and newlines stay. JSON that is treated so means the same.
    """
    return _UNPRINTABLE.sub(lambda match: _escaped(ord(match[0])), text)


def _escaped(code: int) -> str:
    if code > 0xFFFF:  # as JSON writes it
        high, low = divmod(code - 0x10000, 0x400)
        return f"\\u{0xD800 + high:04x}\\u{0xDC00 + low:04x}"
    return f"\\u{code:04x}"


def on_one_line(text: str) -> str:
    """`printable`, with spaces in place of tabs and line ends."""
    return printable(" ".join(text.split()))


class _Quotation(reprlib.Repr):
    """`repr` that never makes more than it shows."""

    def __init__(self, length: int) -> None:
        super().__init__()
        self.maxlevel, self.maxstring, self.maxother = 3, length, length

    def repr_int(self, x: int, level: int) -> str:
        """A number that is too long to be written, in words."""
        return f"a number of {x.bit_length():,} bits" if x.bit_length() > _LONGEST_NUMBER else repr(x)


def quoted(value: object, length: int = 60) -> str:
    """A value as Python writes it, in at most `length` characters, however large it is: the rest is never made."""
    text = _Quotation(length).repr(value)
    return text if len(text) <= length else f"{text[: length - 3]}..."


def near(name: str, known: Iterable[str]) -> str:
    """` (did you mean X?)` for the message that a name is unknown, if a known one is much like it; else nothing."""
    matches = get_close_matches(name[:_LONGEST_COMPARED], list(known), n=1)
    return f" (did you mean `{matches[0]}`?)" if matches else ""


@contextmanager
def panics_as_errors() -> Iterator[None]:
    """Have native code that gives up (a panic of Rust) raise a RuntimeError; its own exception passes all handlers."""
    try:
        yield
    except BaseException as error:
        if not is_panic(error):
            raise
        raise RuntimeError(f"a library's native code gave up: {first_line(error)}") from None


def is_panic(error: BaseException) -> bool:
    """Whether an exception is that by which pyo3 carries a panic of Rust; each library has a class of its own."""
    return type(error).__name__ == "PanicException"


def first_line(error: BaseException) -> str:
    """First line of an exception's message, or its class name if it has none; for use in a LeafError's message.

    A line that ends in a colon only announces what went wrong, so the next one is added.
    """
    lines = [line.strip() for line in str(error)[:LONGEST_MESSAGE].strip().splitlines()] or [type(error).__name__]
    return " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
