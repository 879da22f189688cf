"""Vectors of fewer bits: int8 and binary, on the document side, the query side and both.

The codes are those of sentence-transformers, int8 calibrated on training texts of the same role. The search uses the
values that the codes represent: an int8 code the middle of its step, a bit -1 or 1, so that the cosine of two binary
vectors orders documents as Hamming distance does.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.base import Array
from pipeline.evaluate import metrics
from pipeline.evaluate.datasets import TOP, Dataset, PairedVectors, ndcg, sides
from pipeline.evaluate.profiles import largest_difference, profiles
from pipeline.params import EvaluateParams
from pipeline.serve import MODES

PRECISIONS = ("int8", "binary")
RESCORED = 4  # times TOP: candidates by Hamming distance that are then rescored with the float32 query


@dataclass(frozen=True)
class Calibration:
    """Vectors of training texts, by role, from which int8 takes its ranges."""

    query: PairedVectors
    document: PairedVectors


def ranges(vectors: Array) -> Array:
    """`[2, dim]` float32: the least and the greatest value of each dimension."""
    return np.stack([vectors.min(0), vectors.max(0)]).astype(np.float32)


def dequantised(vectors: Array, precision: str, limits: Array) -> Array:
    """`[n, dim]` float32: the values that the codes of `vectors [n, dim]` represent.

    `limits` are the `ranges` of int8; the other precisions need none.
    """
    vectors = vectors.astype(np.float32)
    if precision == "float32":
        return vectors
    from sentence_transformers.util.quantization import quantize_embeddings  # seconds, for which no --help should wait

    if precision == "int8":
        codes = np.asarray(quantize_embeddings(vectors, "int8", ranges=limits), np.float32)
        steps = (limits[1] - limits[0]) / 255
        middles: Array = codes * steps + (limits[0] + 128.5 * steps)
        return middles
    packed = np.asarray(quantize_embeddings(vectors, "ubinary"), np.uint8)
    signs: Array = np.unpackbits(packed, axis=1, count=vectors.shape[1]).astype(np.float32) * 2 - 1
    return signs


def bytes_of(precision: str, dim: int) -> int:
    """Bytes of one vector of `dim` dimensions."""
    return {"float32": 4 * dim, "int8": dim, "binary": (dim + 7) // 8}[precision]


def quantisation(dataset: Dataset, calibration: Calibration, params: EvaluateParams) -> dict[str, Any]:
    """nDCG@10 of the three modes with quantised vectors.

    `variants` (`float32`, `int8 document`, `int8 query`, `int8 both`, the same of binary, `binary rescored`) are what
    `profiles` returns, and the bytes per vector; `largest` is the largest difference to the teacher's profile, by
    precision and mode.
    """
    dim = dataset.queries.teacher.shape[1]
    limits = {
        mode: (ranges(queries), ranges(documents))
        for mode, (queries, documents) in sides(calibration.query, calibration.document).items()
    }
    variants = _variants()
    values = np.empty((len(dataset.queries), len(variants), len(MODES)))
    for m, (mode, (exact_queries, exact_documents)) in enumerate(sides(dataset.queries, dataset.documents).items()):
        for v, (name, (of_queries, of_documents)) in enumerate(variants.items()):
            queries = dequantised(exact_queries, of_queries, limits[mode][0])
            documents = dequantised(exact_documents, of_documents, limits[mode][1])
            if name == "binary rescored":
                values[:, v, m] = _rescored(exact_queries, queries, documents, dataset)
            else:
                values[:, v, m] = ndcg(queries, documents, dataset)
    by_variant = profiles(values, list(variants), params)
    for name, (of_queries, of_documents) in variants.items():
        by_variant[name]["bytes"] = {"query": bytes_of(of_queries, dim), "document": bytes_of(of_documents, dim)}
    return {"variants": by_variant, "largest": {kind: _largest(by_variant, kind) for kind in PRECISIONS}}


def _largest(variants: dict[str, dict[str, Any]], precision: str) -> dict[str, Any]:
    """By mode, the largest difference to the teacher's profile among the variants of a precision."""
    chosen = {name: modes for name, modes in variants.items() if name.startswith(precision)}
    return {mode: largest_difference(chosen, mode) for mode in MODES[1:]}


def _variants() -> dict[str, tuple[str, str]]:
    """Name -> precision of queries and of documents."""
    variants = {"float32": ("float32", "float32")}
    for precision in PRECISIONS:
        variants[f"{precision} document"] = ("float32", precision)
        variants[f"{precision} query"] = (precision, "float32")
        variants[f"{precision} both"] = (precision, precision)
    # The first search uses the binary query; only the rescoring uses it in float32.
    return {**variants, "binary rescored": ("binary", "binary")}


def _rescored(exact_queries: Array, queries: Array, documents: Array, dataset: Dataset) -> Array:
    """`[queries]`: nDCG@10 of the nearest by Hamming distance, ranked again by float32 query and binary document."""
    candidates = dataset.nearest(queries, documents, TOP * RESCORED)
    scores = np.einsum("qd,qkd->qk", exact_queries, documents[candidates])
    scores[candidates < 0] = -np.inf
    order = np.argsort(-scores, axis=1, kind="stable")[:, :TOP]
    return metrics.ranking_metrics(np.take_along_axis(candidates, order, axis=1), dataset.judged)[:, 0]
