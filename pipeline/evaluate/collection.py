"""A retrieval test collection in BEIR's layout: corpus.jsonl, queries.jsonl, qrels/test.tsv (arXiv 2104.08663)."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from pipeline.base import LeafError, keys
from pipeline.corpus import CORPUS, QUERIES, clean, json_objects, lines

FILES = (CORPUS, QUERIES, "qrels/test.tsv")
JUDGMENT_COLUMNS = ["query-id", "corpus-id", "score"]


@dataclass(frozen=True)
class Collection:
    """Documents and judged queries as frames `key, role, id, source, text`; both are referred to by row number."""

    name: str
    documents: pl.DataFrame
    queries: pl.DataFrame
    """The queries that have at least one relevant document."""
    judged: list[dict[int, int]]
    """For each query, the grade of each judged document, by the document's row; above 0 is relevant."""
    itself: np.ndarray
    """`[queries]` int64: the row of the document that is the query itself (same id and text, as in ArguAna and Quora),
    or -1 if there is none."""


def read(directory: Path) -> Collection:
    """Read the collection in a directory, whose name it gets. Texts are cleaned as the corpus stage cleans them.

    Raises:
        LeafError: a file is missing, not UTF-8, malformed, empty, or names an id that does not exist; with its place.
    """
    directory = directory.expanduser()
    for file in FILES:
        if not (directory / file).is_file():
            raise LeafError(f"evaluate.beir: {directory / file}: no such file; BEIR's layout is {', '.join(FILES)}")
    documents = _texts(directory / FILES[0])
    queries = _texts(directory / FILES[1])
    row_of = {name: row for row, name in enumerate(documents["id"].to_list())}
    judged = _judgments(directory / FILES[2], row_of, set(queries["id"].to_list()))
    queries = queries.filter(pl.col("id").is_in(list(judged)))
    untitled = documents["text"].to_list()
    same_id = [(row_of.get(name, -1), text) for name, text in queries.select("id", "text").iter_rows()]
    itself = np.array([row if row >= 0 and untitled[row] == text else -1 for row, text in same_id], np.int64)
    name = directory.resolve().name
    titled = documents.with_columns(text=clean(pl.col("title") + " " + pl.col("text")))
    return Collection(
        name=name,
        documents=_frame(titled, "document", name),
        queries=_frame(queries, "query", name),
        judged=[judged[query] for query in queries["id"].to_list()],
        itself=itself,
    )


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


def _judgments(file: Path, row_of: dict[str, int], queries: set[str]) -> dict[str, dict[int, int]]:
    """Grades by query id and document row, for the queries with at least one relevant document."""
    judged: dict[str, dict[int, int]] = {}
    rows = enumerate(lines(file), 1)
    header = next(rows, (1, ""))[1].rstrip("\r\n").split("\t")
    if header != JUDGMENT_COLUMNS:
        raise LeafError(
            f"{file}, line 1: the columns must be {', '.join(JUDGMENT_COLUMNS)}, with tabs between, not {header}"
        )
    for number, line in rows:
        if not line.strip():
            continue
        query, document, grade = _judgment(f"{file}, line {number}", line, row_of, queries)
        grades = judged.setdefault(query, {})
        if grades.setdefault(document, grade) != grade:
            raise LeafError(f"{file}, line {number}: judges the same query and document a second time, differently")
    judged = {query: grades for query, grades in judged.items() if max(grades.values()) > 0}
    if not judged:
        raise LeafError(f"{file}: judges no document relevant (score above 0); there is nothing to measure")
    return judged


def _judgment(place: str, line: str, row_of: dict[str, int], queries: set[str]) -> tuple[str, int, int]:
    """Query id, document row and grade of a line."""
    parts = line.rstrip("\r\n").split("\t")
    if len(parts) != len(JUDGMENT_COLUMNS):
        raise LeafError(f"{place}: must have {len(JUDGMENT_COLUMNS)} columns with tabs between, not {len(parts)}")
    query, document, score = parts
    try:
        grade = int(score)
    except ValueError:
        raise LeafError(f"{place}: the score must be a whole number, not {score!r:.40}") from None
    if not -(2**31) <= grade < 2**31:
        raise LeafError(f"{place}: the score {score:.40} is impossible")
    if query not in queries:
        raise LeafError(f"{place}: query {query!r:.60} is not in {FILES[1]}; is a file incomplete?")
    if document not in row_of:
        raise LeafError(f"{place}: document {document!r:.60} is not in {FILES[0]}; is a file incomplete?")
    return query, row_of[document], grade
