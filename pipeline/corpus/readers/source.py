"""A source of texts (an entry of `corpus.sources`): its kind's reader, checks of its parameters, and its texts.

To add a kind: write a reader in a file beside this one, list it in READERS, and name the kind in
`SourceParams.kind`. No reader executes anything of a source, or holds a source whole in memory.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import polars as pl

from pipeline.base import LeafError, first_line
from pipeline.corpus.readers import beir, docstrings, huggingface, jsonl, markdown, parquet, plain_text, table
from pipeline.corpus.readers.fields import Frames, column_names, keeps_titles, require_columns
from pipeline.params import SourceParams


@dataclass(frozen=True)
class Reader:
    """How a kind of source is read, and which parameters it needs."""

    read: Callable[[SourceParams], Frames]
    location: Literal["path", "packages"] = "path"
    """The parameter that says where the texts are."""
    has_fields: bool = True
    """Whether parameters name the fields of a record; otherwise only `role` applies."""
    options: tuple[str, ...] = ()
    """Which of _OPTIONS the kind has: how its files of text are written."""
    has_titles: bool = False
    """Whether the kind itself tells titles, where views want them."""
    knows_roles: bool = False
    """Whether the kind itself tells queries from documents; `role` is then not required, and selects one of them."""


_OPTIONS = ("encoding", "columns", "delimiter", "quote", "escape")

READERS: dict[str, Reader] = {
    "parquet": Reader(parquet.read),
    "arrow": Reader(parquet.read),
    "jsonl": Reader(jsonl.read, options=_OPTIONS[:1]),
    "csv": Reader(table.read, options=_OPTIONS),
    "tsv": Reader(table.read, options=_OPTIONS),
    "text": Reader(plain_text.read, has_fields=False, options=_OPTIONS[:1]),
    "markdown": Reader(markdown.read, has_fields=False, options=_OPTIONS[:1], has_titles=True),
    "beir": Reader(beir.read, has_fields=False, knows_roles=True),
    "huggingface": Reader(huggingface.read),
    "docstrings": Reader(docstrings.read, location="packages", has_fields=False, knows_roles=True),
}


def has_fields(source: SourceParams) -> bool:
    """Whether parameters name the fields of the source's records."""
    return READERS[source.kind].has_fields


def check(source: SourceParams) -> None:
    """Refuse a source whose parameters do not fit its kind.

    Raises:
        LeafError: no role or more than one rule for it, no path, no packages, a parameter that the kind does not have,
            a balance without origins, views of titles without titles, or a suffix that does not compile.
    """
    place, reader = f"corpus.sources `{source.name}`", READERS[source.kind]
    if not getattr(source, reader.location):
        hint = ", a list of names (`stdlib` is one)" if reader.location == "packages" else ""
        raise LeafError(f"{place}: kind {source.kind} needs `{reader.location}`{hint}")
    paired = source.query_field or source.document_field
    role_rules = sum(map(bool, (source.role, source.role_field, paired)))
    others = (source.role_field, source.text_field, source.title_field, source.source_field, source.id_field)
    if not reader.has_fields and (paired or any(others)):
        raise LeafError(f"{place}: kind {source.kind} has no fields to name; only `role` applies to it")
    if role_rules > 1 or (role_rules == 0 and not reader.knows_roles):
        raise LeafError(f"{place}: needs one of `role`, `role_field`, or `query_field` and/or `document_field`")
    if paired and source.text_field:
        raise LeafError(f"{place}: `text_field` and `query_field`/`document_field` exclude each other")
    if source.balance != "cap" and not (source.cap and source.source_field):
        raise LeafError(f"{place}: balance `{source.balance}` is among origins: it needs `source_field` and `cap`")
    if keeps_titles(source) and not (source.title_field or reader.has_titles):
        raise LeafError(f"{place}: views.title needs `title_field`, the field that holds the title")
    _check_options(place, source)
    for name in ("id_suffix", "page_suffix"):
        if (suffix := getattr(source, name)) is not None:
            _check_suffix(f"{place}: {name}", suffix)


def _check_suffix(place: str, suffix: str) -> None:
    """Refuse a regular expression that Polars does not take: its engine needs no more time than a text is long."""
    try:
        pl.Series([""]).str.replace_all(suffix, "")
    except pl.exceptions.PolarsError as error:
        reasons = [line for line in str(error).splitlines() if line.startswith("error: ")] or [first_line(error)]
        raise LeafError(
            f"{place} {suffix!r:.200} is no regular expression that can be used ({reasons[0].removeprefix('error: ')})"
        ) from None


def _check_options(place: str, source: SourceParams) -> None:
    """Refuse what a kind does not have, an encoding that does not exist, and `columns` that lack a field."""
    for name in _OPTIONS:
        if getattr(source, name) not in (None, ()) and name not in READERS[source.kind].options:
            kinds = ", ".join(kind for kind, reader in READERS.items() if name in reader.options)
            raise LeafError(f"{place}: `{name}` belongs to the kinds {kinds}, not to {source.kind}")
    try:
        "".encode(source.encoding or "utf-8")
    except LookupError:
        raise LeafError(f"{place}: encoding `{source.encoding}` is unknown; `cp1252` is one, for instance") from None
    if source.columns:
        require_columns(f"{place}: `columns`", column_names(source), source.columns)
    if source.escape and source.quote == "":
        raise LeafError(f"{place}: `escape` stands before quotes inside fields, and `quote` is empty: leave one out")


def batches(source: SourceParams) -> Frames:
    """Frames `id, text, role, page` of the source's texts, in its own order, each of bounded size.

    `page` is the id of all records of a page (by `page_suffix`, or as the kind knows it); `origin` is there too if the
    source has a `source_field`.

    Raises:
        LeafError: a file is missing, empty, damaged, no text, or lacks a column; the message names the place.
    """
    check(source)
    rows = 0
    for frame in READERS[source.kind].read(source):
        rows += len(frame)
        ids = _without(source.id_suffix, frame["id"])
        has_pages = "page" in frame.columns and source.page_suffix is None
        pages = frame["page"] if has_pages else _without(source.page_suffix, ids).alias("page")
        yield frame.with_columns(ids, pages)
    if rows == 0:
        raise LeafError(f"corpus.sources `{source.name}`: {source.path or ', '.join(source.packages)} has no texts")


def _without(suffix: str | None, ids: pl.Series) -> pl.Series:
    """Ids without what the regular expression matches."""
    if not suffix:
        return ids
    return ids.str.replace_all(suffix, "")
