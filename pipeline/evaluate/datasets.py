"""Retrieval data sets with the vectors of teacher and student, and the vectors that each mode searches with.

The modes (`pipeline.serve.modes`): `teacher` (both sides), `standard` (the student on both sides), `asymmetric` (the
student's queries against the teacher's documents).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl

from pipeline.base import Array, Similarity
from pipeline.evaluate import metrics

StudentVectors = Callable[[Sequence[str], str], Array]  # texts and their role -> [n, dim] float32
TeacherVectors = Callable[[pl.DataFrame], Array]  # frame key, role, id, source, text -> [n, dim] float32
Sides = tuple[Array, Array]
"""The vectors of queries and of documents, `[n, d]` each."""
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
    """Of queries and of documents: what people are shown, their ids where `evaluate.texts` is false."""
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
    start: Sides | None = None
    """Vectors by the untouched checkpoint that the student was made from, of a width of their own; None if unknown."""

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
    untested: int
    """Held-out queries of the source without a held-out document."""

    def figures(self) -> dict[str, Any]:
        """How many queries are left out, for the metrics."""
        return {"queries_without_document": self.untested}

    def notices(self) -> list[str]:
        """The same in words, if there are any."""
        total = self.untested + len(self.queries)
        sentence = f"{self.untested:,} of {total:,} held-out queries are not tested, as their records have no document"
        return [sentence] if self.untested else []


def heldout_pairs(heldout: pl.DataFrame, further: pl.DataFrame) -> Iterator[HeldoutPairs]:
    """The retrieval task in each source of the held-out texts (frame `key, source, id, role`); without pairs: none.

    Relevant to a query are the documents of its records (same source and id). All held-out documents of the source are
    searched. Queries without a document are left out.

    Args:
        heldout: each text once, with the first record that has it.
        further: the others, as `pipeline.corpus.further_records` gives them.
    """
    texts = heldout.select("key", "role", pl.int_range(pl.len()).alias("row"))
    columns = "source", "id", "role", "row"
    records = pl.concat([
        heldout.with_columns(texts["row"]).select(columns),
        further.join(texts, on="key").select(columns),
    ])  # fmt: skip
    for source in sorted(records["source"].unique().to_list()):
        of_source = records.filter(pl.col("source") == source).sort("row", maintain_order=True)
        documents = of_source.filter(pl.col("role") == "document")
        rows = documents["row"].unique().sort()
        relevant = documents.select("id", position=rows.search_sorted(documents["row"]))
        queries = of_source.filter(pl.col("role") == "query")
        judged: dict[int, dict[int, int]] = {}
        pairs = queries.join(relevant, on="id", maintain_order="left_right")
        for row, position in pairs.select("row", "position").iter_rows():
            judged.setdefault(row, {})[position] = 1
        if judged:
            untested = queries["row"].n_unique() - len(judged)
            tested = np.array(list(judged), dtype=np.int64)
            yield HeldoutPairs(source, tested, rows.to_numpy(), list(judged.values()), untested)


def sides(queries: PairedVectors, documents: PairedVectors) -> dict[str, Sides]:
    """The vectors of queries and of documents that each mode compares."""
    return {
        "teacher": (queries.teacher, documents.teacher),
        "standard": (queries.student, documents.student),
        "asymmetric": (queries.student, documents.teacher),
    }


def ndcg(queries: Array, documents: Array, dataset: Dataset) -> Array:
    """`[queries]` float64: nDCG@10 of each query."""
    return metrics.ranking_metrics(dataset.nearest(queries, documents, TOP), dataset.judged)[:, 0]
