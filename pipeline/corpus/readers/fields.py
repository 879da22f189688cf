"""What the parameters of a source name: the files to read, and the columns that become ids, texts and roles."""

import glob
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import polars as pl

from pipeline.base import ROLES, LeafError, glob_root, near
from pipeline.params import SourceParams

SCHEMA = {"id": pl.String, "text": pl.String, "role": pl.String}

Frames = Iterator[pl.DataFrame]
"""Frames with the columns of SCHEMA, `origin` where the source has a `source_field`, `title` where views want it, and
`page` where the kind knows which records are of one page.

`text` may be null; the texts of a record follow each other and share its id."""

Place = Callable[[int], str]
"""Where a row of a batch stands, for an error message."""

Batch = tuple[Place, list[pl.Series]]
"""Rows of records with the columns that `column_names` lists: strings, or lists of strings (several texts)."""

NAMES_SHOWN, NAME_CHARACTERS = 12, 40  # of columns, in a message


def source_files(source: SourceParams, suffixes: tuple[str, ...]) -> list[Path]:
    """Files of the source's `path`, sorted by name: a file, a glob, or all files below a directory.

    Of a directory, those with one of `suffixes` in their name, or all if none has one. What Spark, DVC and others lay
    beside their files (`is_hidden`) is passed over, also by a glob that does not ask for it. A glob that matches
    directories alone means their files.

    Raises:
        LeafError: there is none, or a directory is not one of plain files.
    """
    path = Path(source.path or "").expanduser()
    if path.is_file():
        return [path]
    matches = [path] if path.is_dir() else list(map(Path, glob.glob(str(path), recursive=True)))  # noqa: PTH207
    files = [file for file in matches if file.is_file() and (path.name[:1] in _HIDDEN or not is_hidden(file.name))]
    if not files:
        files = [file for directory in matches if directory.is_dir() for file in _files_below(directory, suffixes)]
    if not files:
        raise LeafError(f"corpus.sources `{source.name}`: {path}: no such file")
    return sorted(files)


def is_one_file(source: SourceParams) -> bool:
    """Whether the source's `path` is a file, not a folder or a glob of files."""
    return Path(source.path or "").expanduser().is_file()


def name_in_source(source: SourceParams, file: Path) -> str:
    """The path of one of `source_files` below the directory, or below what stands before the first wildcard of a glob.

    So it is the same wherever the source lies, and whatever other files are in it.
    """
    path = Path(source.path or "").expanduser()
    root = path.parent if path.is_file() else glob_root(path)
    return file.relative_to(root).as_posix()


_HIDDEN = ("_", ".")


def is_hidden(name: str) -> bool:
    """Whether a file or directory of this name is passed over below a directory: marks of Spark, DVC and git."""
    return name.startswith(_HIDDEN) or name.endswith(".dvc")


def _files_below(directory: Path, suffixes: tuple[str, ...]) -> list[Path]:
    if (directory / "_delta_log").is_dir():
        raise LeafError(
            f"{directory}: is a Delta table, with files of older versions in it; export it as plain Parquet"
        )
    files = [
        file
        for file in directory.rglob("*")
        if file.is_file() and not any(map(is_hidden, file.relative_to(directory).parts))
    ]
    return [file for file in files if not set(suffixes).isdisjoint(file.name.lower().split(".")[1:])] or files


def text_columns(source: SourceParams) -> list[str]:
    """Columns that hold texts: the query's and the document's, or the text's."""
    pair = [name for name in (source.query_field, source.document_field) if name]
    return pair or [source.text_field or "text"]


def column_names(source: SourceParams) -> list[str]:
    """Columns to read: those of texts, then title, role, origin and id if the source names them."""
    others = (source.title_field, source.role_field, source.source_field, source.id_field)
    return [*text_columns(source), *(name for name in others if name)]


def require_columns(place: object, required: Iterable[str], present: Iterable[str], hint: str = "") -> None:
    """Check that all required columns are present; `place` begins the message, `hint` ends it.

    Raises:
        LeafError: a column is missing; the message lists those that are present, not more than a line of them.
    """
    present = list(present)
    if missing := [name for name in required if name not in present]:
        lacking = ", ".join(f"`{name}`{near(name, present)}" for name in missing)
        raise LeafError(f"{place}: has no column {lacking}; columns there: {shown_names(present)}{hint}")


def shown_names(names: Iterable[str]) -> str:
    """Names of columns for a message, each shortened, and not too many of them."""
    names = list(names)
    short = [name if len(name) <= NAME_CHARACTERS else f"{name[:NAME_CHARACTERS]}..." for name in names[:NAMES_SHOWN]]
    more = [f"and {len(names) - NAMES_SHOWN} more"] if len(names) > NAMES_SHOWN else []
    return ", ".join([*(f"`{name}`" for name in short), *more]) or "none"


def frames_of_batches(source: SourceParams, batches: Iterable[Batch]) -> Frames:
    """Frames of a source's batches, whose records are numbered on.

    Raises:
        LeafError: what `records_frame` refuses.
    """
    first = 0
    for place, columns in batches:
        yield records_frame(source, columns, first, place)
        first += len(columns[0])


def records_frame(source: SourceParams, columns: list[pl.Series], first: int, place: Place) -> pl.DataFrame:
    """Frame with the columns of SCHEMA, from the columns that `column_names` lists, one record per row.

    `first` is the number of the first record in the source; record numbers are the ids of a source without `id_field`.

    Raises:
        LeafError: no record has an id, titles do not fit their texts, or a role is neither query nor document.
    """
    texts, others = columns[: len(text_columns(source))], columns[len(text_columns(source)) :]
    ids = _ids(source, others.pop() if source.id_field else None, first, len(texts[0]), place)
    origins = [others.pop().fill_null("").alias("origin")] if source.source_field else []
    roles = _roles(source, others.pop(), place) if source.role_field else None
    parts = []
    for role, text in zip(_text_roles(source), texts, strict=True):
        frame = pl.DataFrame({"id": ids, "text": text}).with_row_index("row")
        frame = frame.with_columns(*origins, role=pl.lit(role) if roles is None else roles)
        # A title belongs to documents: a question that stands beside its document does not have it.
        if source.title_field and not (role == "query" and source.document_field):
            frame = frame.with_columns(others[0].alias("title"))
        elif keeps_titles(source):
            frame = frame.with_columns(title=pl.lit(None, pl.String))
        names = *SCHEMA, *(origin.name for origin in origins), *(["title"] if keeps_titles(source) else [])
        parts.append(_titled(_exploded(source, frame, place)).select("row", *names))
    return parts[0].drop("row") if len(parts) == 1 else pl.concat(parts).sort("row", maintain_order=True).drop("row")


def keeps_titles(source: SourceParams) -> bool:
    """Whether titles are texts of their own too."""
    return source.views is not None and source.views.title


def _text_roles(source: SourceParams) -> list[str]:
    """The role of each of `text_columns`; where `role_field` decides, the value is not used."""
    pair = zip(ROLES, (source.query_field, source.document_field), strict=True)
    return [role for role, name in pair if name] or [source.role or ""]


def _ids(source: SourceParams, ids: pl.Series | None, first: int, rows: int, place: Place) -> pl.Series:
    """The records' ids; a record that has none in a source with ids gets one that belongs to no other."""
    if ids is not None and (is_empty := ids == "").any():
        ids = ids.set(is_empty.fill_null(False), None)
    if ids is not None and ids.null_count() == 0:
        return ids
    numbers = pl.Series(range(first, first + rows)).cast(pl.String)
    if ids is None:
        return numbers
    if first == 0 and ids.null_count() == rows:
        raise LeafError(f"{place(0)}: id_field `{source.id_field}` has no value; leave it out to number the records")
    return ids.fill_null("#" + numbers)


def _roles(source: SourceParams, roles: pl.Series, place: Place) -> pl.Series:
    if (row := _first_true(~roles.is_in(ROLES).fill_null(False))) is not None:
        raise LeafError(f"{place(row)}: role_field `{source.role_field}` is {roles[row]!r}, not query or document")
    return roles


def _exploded(source: SourceParams, frame: pl.DataFrame, place: Place) -> pl.DataFrame:
    """One row for each text, where records hold lists of them; titles go with their texts."""
    lists = [name for name in ("text", "title") if frame.schema.get(name) == pl.List(pl.String)]
    if not lists:
        return frame
    if "title" in lists:
        sizes = pl.col("text").list.len() if "text" in lists else pl.when(pl.col("text").is_null()).then(0).otherwise(1)
        if (
            row := _first_true(frame.select((pl.col("title").list.len() != sizes).fill_null(False))["title"])
        ) is not None:
            raise LeafError(
                f"{place(row)}: title_field `{source.title_field}` has not as many titles as there are texts"
            )
    return frame.filter(pl.col(lists[0]).list.len() > 0).explode(lists)


def _titled(frame: pl.DataFrame) -> pl.DataFrame:
    """Texts with their titles before them, as in BEIR."""
    if "title" not in frame.columns:
        return frame
    title, text = pl.col("title").fill_null(""), pl.col("text")
    return frame.with_columns(text=pl.when(title == "").then(text).otherwise(title + " " + text.fill_null("")))


def _first_true(mask: pl.Series) -> int | None:
    return mask.arg_max() if mask.any() else None
