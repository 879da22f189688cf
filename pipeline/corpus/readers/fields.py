"""What the parameters of a source name: the files to read, and the columns that become ids, texts and roles."""

import glob
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import polars as pl

from pipeline.base import ROLES, LeafError
from pipeline.params import SourceParams

SCHEMA = {"id": pl.String, "text": pl.String, "role": pl.String}

Frames = Iterator[pl.DataFrame]
"""Frames with the columns of SCHEMA. `text` may be null; the texts of a record follow each other and share its id."""


def source_files(source: SourceParams) -> list[Path]:
    """Files that match the source's `path`, which may be a glob, sorted by name.

    Raises:
        LeafError: there is none.
    """
    path = Path(source.path or "").expanduser()
    matches = [path] if path.is_file() else sorted(map(Path, glob.glob(str(path), recursive=True)))  # noqa: PTH207
    files = [file for file in matches if file.is_file()]
    if not files:
        raise LeafError(f"corpus.sources `{source.name}`: {path}: no such file")
    return files


def column_names(source: SourceParams) -> list[str]:
    """Columns to read: the text (or query and document), then the role and the id if the source names them."""
    texts = [source.query_field, source.document_field]
    texts = texts if any(texts) else [source.text_field or "text"]
    return [name for name in (*texts, source.role_field, source.id_field) if name]


def require_columns(place: object, required: Iterable[str], present: Iterable[str]) -> None:
    """Check that all required columns are present; `place` begins the message.

    Raises:
        LeafError: a column is missing; the message lists those that are present.
    """
    present = list(present)
    if missing := [name for name in required if name not in present]:
        raise LeafError(f"{place}: has no column {', '.join(missing)}; columns there: {', '.join(present) or 'none'}")


def records_frame(
    source: SourceParams, columns: list[pl.Series], first: int, place: Callable[[int], str]
) -> pl.DataFrame:
    """Frame with the columns of SCHEMA, from the columns that `column_names` lists, one record per row.

    `first` is the number of the first record in the source; record numbers are the ids of a source without `id_field`.
    `place` gives the place of a row of `columns` for an error message.

    Raises:
        LeafError: a record has no id, or a role that is neither query nor document.
    """
    rows = len(columns[0])
    columns = [column.cast(pl.String) for column in columns]
    ids = columns.pop() if source.id_field else pl.Series(range(first, first + rows)).cast(pl.String)
    if (row := _first_true(ids.is_null())) is not None:
        raise LeafError(f"{place(row)}: id_field `{source.id_field}` has no value")
    if source.role_field:
        roles = columns.pop()
        if (row := _first_true(~roles.is_in(ROLES).fill_null(False))) is not None:
            raise LeafError(f"{place(row)}: role_field `{source.role_field}` is {roles[row]!r}, not query or document")
        return pl.DataFrame({"id": ids, "text": columns[0], "role": roles}, schema=SCHEMA)
    pair = zip(ROLES, (source.query_field, source.document_field), strict=True)
    names = [source.role] if source.role else [role for role, name in pair if name]
    parts = [
        pl.DataFrame({"id": ids, "text": column}).select(pl.all(), role=pl.lit(name), row=pl.int_range(pl.len()))
        for name, column in zip(names, columns, strict=True)
    ]
    return pl.concat(parts).sort("row", maintain_order=True).drop("row")


def _first_true(mask: pl.Series) -> int | None:
    return mask.arg_max() if mask.any() else None
