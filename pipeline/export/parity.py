"""What an exported model loses against the model that it was made from, and its speed."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import polars as pl

from pipeline.base import Array, LeafError, cosines
from pipeline.evaluate import bootstrap_means, heldout_pairs, interval, metrics
from pipeline.export.exporter import Encode, ExportedEncoder
from pipeline.params import ExportParams
from pipeline.store import VectorSource

DOCUMENTS = 64  # compared with the stored vectors at most: a teacher is slow
SAME_LENGTH = 0.02  # most that the length of a vector may differ, as a share, where lengths count
ROUNDS = 3  # of each encoder, in turn, so that a slow moment of the machine affects all
WARM_UP_TEXTS = 8
SINGLE_QUERIES = 20
TINY = np.finfo(np.float32).tiny


@dataclass(frozen=True)
class Closeness:
    """How close vectors are to those that they should be: `[n]` each."""

    cosines: Array
    lengths: Array | None
    """As shares of the right lengths; None where all have length one."""

    def difference(self, lowest_cosine: float) -> tuple[int, str] | None:
        """The row that differs most, and how, in words; None if all are close enough."""
        row = int(self.cosines.argmin())
        if not self.cosines[row] >= lowest_cosine:
            return row, f"a cosine of {self.cosines[row]:.5f}"
        if self.lengths is not None:
            row = int(np.abs(self.lengths - 1).argmax())
            if not abs(self.lengths[row] - 1) <= SAME_LENGTH:
                return row, f"a vector {self.lengths[row]:.4f} times as long, compared"
        return None

    def figures(self) -> dict[str, Any]:
        """As they are written."""
        figures: dict[str, Any] = {"n": len(self.cosines)}
        figures["cosine"] = {"lowest": float(self.cosines.min()), "mean": float(self.cosines.mean())}
        if self.lengths is not None:
            figures["length"] = {"lowest": float(self.lengths.min()), "highest": float(self.lengths.max())}
        return figures


class Parity:
    """Compares exported encoders with the student in PyTorch and with the stored vectors, on the same texts."""

    def __init__(
        self, reference: Encode, source: VectorSource, texts: pl.DataFrame, further: pl.DataFrame, params: ExportParams
    ) -> None:
        """Of the student in PyTorch, float32, on corpus rows in the order of role and key.

        `further` are the other records that have them (`pipeline.corpus.further_records`).
        """
        self._further = further
        self._encode_reference, self._source, self._texts, self._params = reference, source, texts, params
        self._rows = np.flatnonzero(_sampled(texts, params.rows))
        self._sample = texts["text"][self._rows].to_list()

    def compare(self, encoder: ExportedEncoder, variant: str, place: Path) -> dict[str, Any]:
        """`n`, `cosine` (lowest, mean) and, for a query encoder, `loss` of nDCG@10; `bytes` of the encoder's file.

        Where vectors keep their lengths, also `length` (lowest, highest), as a share of that of the right vector. Empty
        for a document encoder without documents.

        Raises:
            LeafError: a cosine is below `encoder.lowest_cosine`, or a length differs; names `place`, the directory of
                the model.
        """
        if encoder.role == "query":
            figures = self._compare_queries(encoder, variant, place)
        else:
            figures = self._compare_documents(encoder, place)
        if encoder.file is not None:
            figures["bytes"] = encoder.file.stat().st_size
        return figures

    def _compare_queries(self, encoder: ExportedEncoder, variant: str, place: Path) -> dict[str, Any]:
        vectors = encoder.encode(self._sample)
        closeness = self._closeness(vectors, self._reference)
        if encoder.lowest_cosine is not None and (what := closeness.difference(encoder.lowest_cosine)):
            raise LeafError(f"{place}: the {variant} model has {what[1]} to PyTorch; do not use it")
        return {**closeness.figures(), **self._loss(vectors, variant)}

    def _compare_documents(self, encoder: ExportedEncoder, place: Path) -> dict[str, Any]:
        documents = self._texts.filter(pl.col("role") == "document").head(min(self._params.rows, DOCUMENTS))
        if documents.is_empty():
            return {}
        vectors = encoder.encode(documents["text"].to_list())
        closeness = self._closeness(vectors, self._source.lookup(documents["key"].to_list()))
        if encoder.lowest_cosine is not None and (what := closeness.difference(encoder.lowest_cosine)):
            raise LeafError(
                f"{place}: its vector of the document `{documents['id'][what[0]]}` has {what[1]} to the stored one of "
                f"{self._source.name}: the section `teacher` describes another teacher than the one that encoded"
            )
        return closeness.figures()

    def _closeness(self, vectors: Array, expected: Array) -> "Closeness":
        ratios = None
        if not self._source.meta.normalized:
            ratios = np.linalg.norm(vectors, axis=1) / np.maximum(np.linalg.norm(expected, axis=1), TINY)
        return Closeness(cosines(vectors, expected), ratios)

    @cached_property
    def _reference(self) -> Array:
        """`[sample, dim]`: the student's vectors in PyTorch."""
        return self._encode_reference(self._sample)

    @cached_property
    def _reference_ndcg(self) -> Array:
        return self._ndcg(self._reference)

    @cached_property
    def _searches(self) -> list[tuple[Array, Array, list[dict[int, int]]]]:
        return list(self._sampled_pairs())

    def _sampled_pairs(self) -> Iterator[tuple[Array, Array, list[dict[int, int]]]]:
        """For each source with sampled queries: their positions in the sample, stored document vectors, judgments."""
        position = np.full(len(self._texts), -1)
        position[self._rows] = np.arange(len(self._rows))
        for pairs in heldout_pairs(self._texts, self._further):
            kept = position[pairs.queries] >= 0
            if kept.any():
                documents = self._source.lookup(self._texts["key"][pairs.documents].to_list())
                judged = [grades for grades, keep in zip(pairs.judged, kept, strict=True) if keep]
                yield position[pairs.queries[kept]], documents, judged

    def _ndcg(self, vectors: Array) -> Array:
        """`[queries]`: nDCG@10 of the sampled queries, searching all held-out documents of their source."""
        scores = [
            metrics.ranking_metrics(
                metrics.nearest(vectors[queries], documents, metrics.DEPTH, similarity=self._source.meta.similarity),
                judged,
            )[:, 0]
            for queries, documents, judged in self._searches
        ]
        return np.concatenate(scores) if scores else np.empty(0)

    def _loss(self, vectors: Array, variant: str) -> dict[str, Any]:
        """`loss`: the share of PyTorch's nDCG@10 that is lost, with a paired bootstrap interval; None without pairs."""
        if not self._reference_ndcg.any():
            return {"loss": None}
        scores = np.stack([self._reference_ndcg, self._ndcg(vectors)], axis=1)
        samples = bootstrap_means(scores, self._params.bootstrap, self._params.seed)
        means = scores.mean(0)
        return {
            "queries": len(scores),
            "ndcg@10": {"pytorch": float(means[0]), variant: float(means[1])},
            "loss": float(1 - means[1] / means[0]),
            "interval": interval(1 - samples[:, 1] / samples[:, 0]),
        }


def _sampled(texts: pl.DataFrame, rows: int) -> Array:
    """`[n]` bool: the first `rows` queries and a tenth as many documents, which take longer; without queries `rows`."""
    roles = texts["role"].to_numpy()
    queries = np.flatnonzero(roles == "query")[:rows]
    documents = np.flatnonzero(roles == "document")[: max(rows // 10, 1) if len(queries) else rows]
    chosen = np.zeros(len(texts), bool)
    chosen[queries] = chosen[documents] = True
    return chosen


def measure_speed(encoders: Mapping[str, Encode], texts: Sequence[str]) -> dict[str, Any]:
    """By encoder: texts/s in batches and milliseconds for a single query, the median of alternating rounds.

    On all cores of the process.
    """
    rates: dict[str, list[float]] = {name: [] for name in encoders}
    for encode in encoders.values():
        encode(texts[:WARM_UP_TEXTS])
    for _ in range(ROUNDS):
        for name, encode in encoders.items():
            rates[name].append(len(texts) / _seconds(encode, texts))
    single = {
        name: 1000 * median(_seconds(encode, [text]) for text in texts[:SINGLE_QUERIES])
        for name, encode in encoders.items()
    }
    return {
        "texts": len(texts),
        "texts_per_s": {name: round(median(values), 1) for name, values in rates.items()},
        "single_query_ms": {name: round(value, 2) for name, value in single.items()},
    }


def _seconds(encode: Encode, texts: Sequence[str]) -> float:
    start = time.perf_counter()
    encode(texts)
    return time.perf_counter() - start
