"""Reader of Markdown files: a text is a section, with the headings that it stands under before it.

Of CommonMark (https://spec.commonmark.org/0.31.2/) it knows headings and fenced code, and no more: what is in a section
stays as it is written.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

from pipeline.base import LeafError, parse_yaml
from pipeline.corpus.readers.fields import SCHEMA, Frames, is_one_file, keeps_titles, name_in_source, source_files
from pipeline.corpus.readers.lines import lines, text_form
from pipeline.corpus.readers.records import Record, frames_of_texts
from pipeline.params import SourceParams

SUFFIXES = ("md", "markdown")
MOST_FRONT_MATTER = 1000  # lines; a line `---` at the top that none closes within so many is a rule, not front matter
_FRONT_MATTER_ENDS = ("---", "...")
_KEY = re.compile(r"[\w-][^:\n]*:(\s|$)")
LONGEST_HEADING = 500  # characters that are kept of one
_HEADING = re.compile(r" {0,3}(#{1,6})(?=\s|$)(.*)", re.DOTALL)
_UNDERLINE = re.compile(r" {0,3}(=+|--+)$")
_PARAGRAPH = re.compile(r" {0,3}(?!([-*+]|\d+[.)])\s|[>|`~#])\S")  # no list, quotation, table or fence begins the line
# In lists, fences are indented or follow a bullet.
_FENCE = re.compile(r"\s*(?:[-*+]\s+|\d+[.)]\s+)?(`{3,}+(?!.*`)|~{3,})")
_LINK = re.compile(r"!?\[([^\]]*)\](\([^)]*\)|\[[^\]]*\])")
_MARKUP = re.compile(r"[*`]|\\(?=[^\w\s])|</?\w[^>]*>")
_ANCHOR = re.compile(r"\s*\{#([^\s}]+)[^}]*\}$")
_NOT_IN_ANCHOR = re.compile(r"[^\w\- ]")


@dataclass(frozen=True)
class Section:
    """What stands between two headings."""

    anchor: str
    """By which a link leads there (`#anchor`), unique in the file; empty before the first heading."""
    title: str
    """The headings that it stands under, outermost first, with ` > ` between them; the file's title before them."""
    text: str
    """As it is written, without its heading."""


def read(source: SourceParams) -> Frames:
    """Frames of the sections of the source's files, with the column `page`: of several files, each is a page."""
    names = (*SCHEMA, "page", *(["title"] if keeps_titles(source) else []))
    return frames_of_texts(((place, row[: len(names)]) for place, row in _texts(source)), names)


def _texts(source: SourceParams) -> Iterator[tuple[str, Record]]:
    """Id, text, role, page and title of each section, with its file."""
    is_alone = is_one_file(source)
    for file in source_files(source, SUFFIXES):
        name = name_in_source(source, file)
        for section in sections(lines(file, text_form(file, source.encoding))):
            identifier = f"{name}#{section.anchor}" if section.anchor else name
            text = f"{section.title} {section.text}" if section.title else section.text
            page = identifier if is_alone else name
            yield str(file), (identifier, text, source.role, page, section.title or None)


def sections(text: Iterable[str]) -> Iterator[Section]:
    """Sections of a Markdown document, given its lines with their ends; those without a text of their own are left out.

    Front matter (YAML between lines `---` at the top) is dropped, but for its `title`.
    """
    title, body = _without_front_matter(iter(text))
    outline, block, fence = _Outline(title), list[str](), ""
    for line in body:
        if fence:
            fence = "" if _closes(line, fence) else fence
        elif opening := _FENCE.match(line):
            fence = opening[1]
        elif (heading := _heading(line, block)) is not None:
            yield from outline.section(block)
            outline.enter(*heading)
            block = []
            continue
        block.append(line)
    yield from outline.section(block)


def _heading(line: str, block: list[str]) -> tuple[int, str] | None:
    """Level and text of the heading that a line is, or makes of the line before it, which is then taken off `block`."""
    if match := _HEADING.match(line):
        return len(match[1]), _without_closing(match[2].strip())
    is_paragraph = bool(block and _PARAGRAPH.match(block[-1]) and not "".join(block[-2:-1]).strip())
    if is_paragraph and (match := _UNDERLINE.match(line.rstrip())):
        return (1 if match[1][0] == "=" else 2), block.pop().strip()
    return None


def _without_closing(heading: str) -> str:
    """A heading without the `##` that may end it."""
    kept = heading.rstrip("#")
    return kept.rstrip() if not kept or kept[-1].isspace() else heading


def _closes(line: str, fence: str) -> bool:
    """Whether a line ends the code that `fence` began: at least as many of its characters, and nothing else."""
    content = line.strip()
    return len(content) >= len(fence) and not content.strip(fence[0])


class _Outline:
    """The headings over the place that was read up to."""

    def __init__(self, title: str) -> None:
        """`title` is the whole document's, or empty."""
        self._title, self._anchor = title, ""
        self._headings: list[tuple[int, str]] = []
        self._repeated: dict[str, int] = {}
        """By anchor, how many further headings would have it."""

    def enter(self, level: int, heading: str) -> None:
        """Go on beneath a heading."""
        heading = heading[:LONGEST_HEADING]
        marked = _ANCHOR.search(heading)
        plain = " ".join(_MARKUP.sub("", _LINK.sub(r"\1", _ANCHOR.sub("", heading))).split())
        self._headings = [(outer, name) for outer, name in self._headings if outer < level] + [(level, plain)]
        anchor = marked[1] if marked else _NOT_IN_ANCHOR.sub("", plain.lower()).replace(" ", "-") or "section"
        self._anchor = anchor
        while self._anchor in self._repeated:
            self._repeated[anchor] += 1
            self._anchor = f"{anchor}-{self._repeated[anchor]}"
        self._repeated[self._anchor] = 0

    def section(self, block: list[str]) -> Iterator[Section]:
        """The section that the lines of `block` are; none if they are blank."""
        text = "".join(block).strip("\r\n")
        if text.strip():
            headings = [name for _, name in self._headings if name]
            if self._title.casefold() not in map(str.casefold, headings):
                headings = [name for name in (self._title, *headings) if name]
            yield Section(self._anchor, " > ".join(headings), text)


def _without_front_matter(text: Iterator[str]) -> tuple[str, Iterator[str]]:
    """The title that front matter gives, or an empty one, and the lines behind it."""
    head = list(islice(text, 1))
    if head and head[0].rstrip() == "---":
        for line in islice(text, MOST_FRONT_MATTER):
            if line.rstrip() in _FRONT_MATTER_ENDS and _is_mapping(head[1:]):
                return _title("".join(head[1:])), text
            head.append(line)
    return "", chain(head, text)


def _is_mapping(block: list[str]) -> bool:
    """Whether lines are keys and values, not prose between two rules; nobody's templates need be YAML for that."""
    first = next((line for line in block if line.strip() and not line.startswith("#")), None)
    return first is None or _KEY.match(first) is not None


def _title(front_matter: str) -> str:
    try:
        values: Any = parse_yaml(front_matter)
    except LeafError:  # templates of site generators, for instance
        return ""
    title = values.get("title") if isinstance(values, dict) else None
    return "" if title is None or isinstance(title, dict | list) else " ".join(str(title).split())
