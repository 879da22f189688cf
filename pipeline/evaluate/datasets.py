"""What is searched, and the three modes it is searched in.

`teacher` (both sides), `standard` (the student on both sides), `asymmetric` (the student's queries against the
teacher's documents).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from pipeline import metrics

Array = np.ndarray
StudentVectors = Callable[[Sequence[str], str], Array]  # texts and their role -> [n, dim] float32
TeacherVectors = Callable[[pl.DataFrame], Array]  # frame key, role, id, source, text -> [n, dim] float32
MODES = ("teacher", "standard", "asymmetric")
TOP = 10  # documents looked at by nDCG@10


@dataclass(frozen=True)
class Both:
    """Vectors `[n, dim]` of the same texts, by teacher and by student."""

    teacher: Array
    student: Array

    def __getitem__(self, rows: Array) -> "Both":
        return Both(self.teacher[rows], self.student[rows])

    def __len__(self) -> int:
        return len(self.teacher)


@dataclass(frozen=True)
class Dataset:
    """Queries, documents and judgments of one name.

    `judged[i]` is the grade of documents (rows) for query `i`, above 0 relevant; `itself[i]` the document that query
    `i` must not find because it is the query, -1 for none. `texts` are those of queries and of documents.
    """

    name: str
    queries: Both
    documents: Both
    judged: Sequence[dict[int, int]]
    texts: tuple[Sequence[str], Sequence[str]] = ((), ())
    itself: Array | None = None
    heldout: bool = True
    """Made of the corpus's held-out pairs, not read from a BEIR directory."""


def sides(queries: Both, documents: Both) -> dict[str, tuple[Array, Array]]:
    """The vectors of queries and documents in each mode."""
    return {
        "teacher": (queries.teacher, documents.teacher),
        "standard": (queries.student, documents.student),
        "asymmetric": (queries.student, documents.teacher),
    }


def ndcg(queries: Array, documents: Array, dataset: Dataset) -> Array:
    """`[queries]` float64: nDCG@10 of each query by cosine."""
    return metrics.ranking(metrics.nearest(queries, documents, TOP, dataset.itself), dataset.judged)[:, 0]
