"""A retrieval test collection in BEIR's layout (arXiv 2104.08663): corpus.jsonl, queries.jsonl, and judgments.

Or an index of documents whose texts are elsewhere, or that have none (images, pages): their vectors alone, as a Parquet
file in the place of corpus.jsonl.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from pipeline.base import Array, LeafError, keys
from pipeline.corpus import CORPUS, QUERIES, beir_file, clean, json_objects
from pipeline.evaluate import judgments
from pipeline.evaluate.judgments import Judgments

VECTORS = "vectors.parquet"  # columns id, vector: what stands in the place of corpus.jsonl


@dataclass(frozen=True)
class Collection:
    """Documents and judged queries as frames `key, role, id, source, text`; both are referred to by row number."""

    name: str
    documents: pl.DataFrame
    queries: pl.DataFrame
    """The queries that have at least one relevant document."""
    judged: list[dict[int, int]]
    """For each query, the grade of each judged document, by the document's row; above 0 is relevant."""
    judgments: Judgments
    """Where the grades are from, and what was passed over."""
    itself: np.ndarray
    """`[queries]` int64: the row of the document that is the query itself (same id and text, as in ArguAna and Quora),
    or -1 if there is none."""


@dataclass(frozen=True)
class Index:
    """Documents by their teacher vectors alone, and judged queries as a frame `key, role, id, source, text`."""

    name: str
    vectors: Array
    """`[documents, dim]` float32."""
    queries: pl.DataFrame
    """The queries that have at least one relevant document."""
    judged: list[dict[int, int]]
    """For each query, the grade of each judged document, by the document's row; above 0 is relevant."""
    judgments: Judgments
    """Where the grades are from, and what was passed over."""


def read(directory: Path) -> Collection:
    """Read the collection in a directory, whose name it gets. Texts are cleaned as the corpus stage cleans them.

    Raises:
        LeafError: a file is missing, not UTF-8, malformed or empty, with its place; or nothing can be measured.
    """
    directory = directory.expanduser()
    files = [beir_file(directory, name) for name in (CORPUS, QUERIES)]
    file = judgments.find(directory)
    documents, queries = map(_texts, files)
    row_of = {name: row for row, name in enumerate(documents["id"].to_list())}
    judged = judgments.read(file, row_of, set(queries["id"].to_list()))
    queries = queries.filter(pl.col("id").is_in(list(judged.grades)))
    untitled = documents["text"].to_list()
    same_id = [(row_of.get(name, -1), text) for name, text in queries.select("id", "text").iter_rows()]
    itself = np.array([row if row >= 0 and untitled[row] == text else -1 for row, text in same_id], np.int64)
    name = directory.resolve().name
    titled = documents.with_columns(text=clean(pl.col("title") + " " + pl.col("text")))
    return Collection(
        name=name,
        documents=_frame(titled, "document", name),
        queries=_frame(queries, "query", name),
        judged=[judged.grades[query] for query in queries["id"].to_list()],
        judgments=judged,
        itself=itself,
    )


def is_index(directory: Path) -> bool:
    """Whether the documents of the collection in a directory are vectors alone."""
    return (directory.expanduser() / VECTORS).is_file()


def read_index(directory: Path) -> Index:
    """Read a collection whose documents are vectors alone; raises as `read`, or because there are texts as well."""
    directory = directory.expanduser()
    file = directory / VECTORS
    if any(directory.glob(f"{CORPUS}*")):
        raise LeafError(f"{directory}: has both {CORPUS} and {VECTORS}; move one of them away")
    ids, vectors = _bare_vectors(file)
    queries = _texts(beir_file(directory, QUERIES))
    row_of = {name: row for row, name in enumerate(ids)}
    judged = judgments.read(judgments.find(directory), row_of, set(queries["id"].to_list()))
    queries, name = queries.filter(pl.col("id").is_in(list(judged.grades))), directory.resolve().name
    grades = [judged.grades[query] for query in queries["id"].to_list()]
    return Index(name, vectors, _frame(queries, "query", name), grades, judged)


def _bare_vectors(file: Path) -> tuple[list[str], Array]:
    """Ids, and vectors `[n, dim]` float32, of a Parquet file with the columns `id` and `vector` (lists of numbers)."""
    try:
        frame = pl.read_parquet(file, columns=["id", "vector"])
        frame = frame.with_columns(pl.col("id").cast(pl.String), pl.col("vector").cast(pl.List(pl.Float32)))
    except (OSError, pl.exceptions.PolarsError) as error:
        raise LeafError(f"{file}: must have the columns `id` and `vector`, lists of numbers: {error!s:.200}") from None
    dims = frame["vector"].list.len().unique().to_list()
    if len(dims) != 1 or not dims[0] or frame["id"].null_count():
        raise LeafError(f"{file}: must have an id in each row, and vectors of one length, not of {dims[:5]}")
    if (repeated := frame["id"].is_duplicated()).any():
        raise LeafError(f"{file}: the id {frame['id'].filter(repeated)[0]!r:.60} occurs twice; ids must be unique")
    vectors = np.array(frame["vector"].explode(), np.float32).reshape(len(frame), -1)
    bad = ~np.isfinite(vectors).all(1) | ~vectors.any(1)
    if bad.any():
        raise LeafError(f"{file}: the vector of id {frame['id'][int(bad.argmax())]!r:.60} is zero or not finite")
    return frame["id"].to_list(), vectors


def _frame(texts: pl.DataFrame, role: str, source: str) -> pl.DataFrame:
    listed = texts["text"].to_list()
    key = pl.Series("key", keys([role] * len(listed), listed), dtype=pl.Binary)
    return texts.select(key, pl.lit(role).alias("role"), "id", pl.lit(source).alias("source"), "text")


def _texts(file: Path) -> pl.DataFrame:
    """Frame `id, title, text` of a file of JSON lines, cleaned; a missing title is empty."""
    columns: tuple[list[str], list[str], list[str]] = ([], [], [])
    seen: set[str] = set()
    for place, record in json_objects(file):
        number = _text(place, record, "_id")
        if number in seen:
            raise LeafError(f"{place}: the `_id` {number!r:.60} occurs a second time; ids must be unique")
        seen.add(number)
        title = "" if record.get("title") is None else _text(place, record, "title")
        for column, value in zip(columns, (number, title, _text(place, record, "text")), strict=True):
            column.append(value)
    if not seen:
        raise LeafError(f"{file}: holds no texts")
    frame = pl.DataFrame(dict(zip(("id", "title", "text"), columns, strict=True)))
    return frame.with_columns(clean(pl.col("title")), clean(pl.col("text")))


def _text(place: str, record: dict[str, Any], name: str) -> str:
    """The field as text; the `_id` may also be a whole number."""
    value = record.get(name)
    if name == "_id" and type(value) is int:
        return str(value)
    if not isinstance(value, str):
        raise LeafError(f"{place}: `{name}` must be text, not {value!r:.60}; fields there: {', '.join(record)!s:.120}")
    return value
