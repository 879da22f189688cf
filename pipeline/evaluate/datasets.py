"""Retrieval data sets with the vectors of teacher and student, and the vectors that each mode searches with.

The modes (`pipeline.serve.modes`): `teacher` (both sides), `standard` (the student on both sides), `asymmetric` (the
student's queries against the teacher's documents).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from pipeline.base import Array, Similarity
from pipeline.evaluate import metrics

StudentVectors = Callable[[Sequence[str], str], Array]  # texts and their role -> [n, dim] float32
TeacherVectors = Callable[[pl.DataFrame], Array]  # frame key, role, id, source, text -> [n, dim] float32
TOP = 10  # documents that nDCG@10 looks at


@dataclass(frozen=True)
class PairedVectors:
    """Vectors `[n, dim]` of the same texts, by teacher and by student."""

    teacher: Array
    student: Array

    def __getitem__(self, rows: Array) -> "PairedVectors":
        return PairedVectors(self.teacher[rows], self.student[rows])

    def __len__(self) -> int:
        return len(self.teacher)


@dataclass(frozen=True)
class Dataset:
    """Queries, documents and relevance judgments under one name."""

    name: str
    queries: PairedVectors
    documents: PairedVectors
    judged: Sequence[dict[int, int]]
    """For each query, the grade of documents, by row; above 0 is relevant."""
    texts: tuple[Sequence[str], Sequence[str]] = ((), ())
    """Of queries and of documents."""
    itself: Array | None = None
    """`[queries]`: the document that a query must not find because it is the query itself; -1 for none."""
    heldout: bool = True
    """Made of the corpus's held-out pairs, not read from a BEIR directory."""
    similarity: Similarity = "cosine"
    """What vectors are compared by."""
    judgments: dict[str, Any] = field(default_factory=dict)
    """How many were read and passed over, for the metrics."""
    notices: Sequence[str] = ()
    """What a person should know about them, a sentence each."""

    def nearest(self, queries: Array, documents: Array, k: int) -> Array:
        """`metrics.nearest` of vectors of these queries and documents, which may be shortened or quantised."""
        return metrics.nearest(queries, documents, k, self.itself, self.similarity)


@dataclass(frozen=True)
class HeldoutPairs:
    """A source's held-out queries and documents, as row numbers of the held-out texts."""

    source: str
    queries: Array
    documents: Array
    judged: list[dict[int, int]]
    """For each query, grade 1 for each relevant document, by its position in `documents`."""


def heldout_pairs(heldout: pl.DataFrame) -> Iterator[HeldoutPairs]:
    """The retrieval task in each source of the held-out texts (frame `source, id, role`); sources without pairs: none.

    Relevant to a query are the documents of its record (same source and id). All held-out documents of the source are
    searched. Queries without a document are left out.
    """
    for source in sorted(heldout["source"].unique().to_list()):
        texts = heldout.with_row_index("row").filter(pl.col("source") == source)
        documents = texts.filter(pl.col("role") == "document")
        positions: dict[str, list[int]] = {}
        for position, record in enumerate(documents["id"].to_list()):
            positions.setdefault(record, []).append(position)
        queries = texts.filter((pl.col("role") == "query") & pl.col("id").is_in(list(positions)))
        if len(queries):
            judged = [dict.fromkeys(positions[record], 1) for record in queries["id"].to_list()]
            yield HeldoutPairs(source, queries["row"].to_numpy(), documents["row"].to_numpy(), judged)


def sides(queries: PairedVectors, documents: PairedVectors) -> dict[str, tuple[Array, Array]]:
    """The vectors of queries and of documents that each mode compares."""
    return {
        "teacher": (queries.teacher, documents.teacher),
        "standard": (queries.student, documents.student),
        "asymmetric": (queries.student, documents.teacher),
    }


def ndcg(queries: Array, documents: Array, dataset: Dataset) -> Array:
    """`[queries]` float64: nDCG@10 of each query."""
    return metrics.ranking_metrics(dataset.nearest(queries, documents, TOP), dataset.judged)[:, 0]
