"""Names, licences and prompts of other people, quoted for where they stand in a document: Markdown, code, a figure."""

import json
import re

from pipeline.base.errors import on_one_line, printable

LONGEST_NAME = 200  # characters
LONGEST_PROMPT = 500
LONGEST_LABEL = 40  # in a figure
_MARKUP = re.compile(r"[\\`*|\[\]$~&<>@]|(?<!\w)_|_(?!\w)|:(?=//)|#(?=#*$)")
_AS_ENTITIES = frozenset("&<>@:")


def shortened(text: str, length: int = LONGEST_NAME) -> str:
    """The text on one line, with nothing that a terminal would obey, cut to so many characters."""
    line = on_one_line(text[: 4 * length])
    return line if len(line) <= length else f"{line[: length - 1]}…"


def markdown(text: str, length: int = LONGEST_NAME) -> str:
    """The text for Markdown, in a sentence, a heading or a cell of a table: no markup, link or HTML comes of it."""
    return _MARKUP.sub(lambda match: _quoted(match[0]), shortened(text, length))


def _quoted(character: str) -> str:
    return f"&#{ord(character)};" if character in _AS_ENTITIES else f"\\{character}"


def code_span(text: str, length: int = LONGEST_PROMPT) -> str:
    """The text as code inside a line of Markdown, in a cell of a table too."""
    shown = shortened(text, length).replace("|", "\\|")
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", shown)), default=0))
    space = " " if shown.startswith(("`", " ")) or shown.endswith(("`", " ")) or not shown else ""
    return f"{fence}{space}{shown}{space}{fence}"


def string_literal(text: str) -> str:
    """The text as a string of Python and of JSON, on one line."""
    return printable(json.dumps(text, ensure_ascii=False))
