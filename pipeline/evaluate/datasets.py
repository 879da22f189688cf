"""What is searched, and the three modes it is searched in.

`teacher` (both sides), `standard` (the student on both sides), `asymmetric` (the student's queries against the
teacher's documents).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import polars as pl

from pipeline.base.arrays import Array
from pipeline.evaluate import metrics

StudentVectors = Callable[[Sequence[str], str], Array]  # texts and their role -> [n, dim] float32
TeacherVectors = Callable[[pl.DataFrame], Array]  # frame key, role, id, source, text -> [n, dim] float32
TOP = 10  # documents looked at by nDCG@10


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
    """Queries, documents and judgments of one name.

    `judged[i]` is the grade of documents (rows) for query `i`, above 0 relevant; `itself[i]` the document that query
    `i` must not find because it is the query, -1 for none. `texts` are those of queries and of documents.
    """

    name: str
    queries: PairedVectors
    documents: PairedVectors
    judged: Sequence[dict[int, int]]
    texts: tuple[Sequence[str], Sequence[str]] = ((), ())
    itself: Array | None = None
    heldout: bool = True
    """Made of the corpus's held-out pairs, not read from a BEIR directory."""


def sides(queries: PairedVectors, documents: PairedVectors) -> dict[str, tuple[Array, Array]]:
    """The vectors of queries and documents in each mode."""
    return {
        "teacher": (queries.teacher, documents.teacher),
        "standard": (queries.student, documents.student),
        "asymmetric": (queries.student, documents.teacher),
    }


def ndcg(queries: Array, documents: Array, dataset: Dataset) -> Array:
    """`[queries]` float64: nDCG@10 of each query by cosine."""
    return metrics.ranking(metrics.nearest(queries, documents, TOP, dataset.itself), dataset.judged)[:, 0]


def pairs(held: pl.DataFrame) -> Iterator[tuple[str, Array, Array, list[dict[int, int]]]]:
    """For each source that has pairs: its name, rows of the queries, rows of the documents, judgments.

    Relevant to a query are the documents of its record (same source and id); the collection is all of the source's
    held-out documents. Judgments are as in `retrieval`.
    """
    for name in sorted(held["source"].unique().to_list()):
        of = held.with_row_index("row").filter(pl.col("source") == name)
        documents = of.filter(pl.col("role") == "document")
        places: dict[str, list[int]] = {}
        for place, record in enumerate(documents["id"].to_list()):
            places.setdefault(record, []).append(place)
        queries = of.filter((pl.col("role") == "query") & pl.col("id").is_in(list(places)))
        if len(queries):
            judged = [dict.fromkeys(places[record], 1) for record in queries["id"].to_list()]
            yield name, queries["row"].to_numpy(), documents["row"].to_numpy(), judged
