"""Vectors of fewer bits: int8 and binary, on the document side, the query side and both.

Codes are those of sentence-transformers, int8 calibrated on training texts of the same role. What is searched is what
the codes stand for: an int8 code the middle of its step, a bit -1 or 1, so that binary against binary is the order of
Hamming distance.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from sentence_transformers.util.quantization import quantize_embeddings

from pipeline.base.arrays import Array
from pipeline.evaluate import metrics
from pipeline.evaluate.datasets import TOP, Dataset, PairedVectors, ndcg, sides
from pipeline.evaluate.uncertainty import largest, profiles
from pipeline.params.sections import EvaluateParams
from pipeline.serve.modes import MODES

PRECISIONS = ("int8", "binary")
RESCORED = 4  # times as many candidates by Hamming distance as are wanted, then by the float32 query


@dataclass(frozen=True)
class Calibration:
    """Vectors of training texts, by role: where the ranges of int8 come from."""

    query: PairedVectors
    document: PairedVectors


def ranges(vectors: Array) -> Array:
    """`[2, dim]` float32: the least and the greatest value of each dimension."""
    return np.stack([vectors.min(0), vectors.max(0)]).astype(np.float32)


def coded(vectors: Array, precision: str, limits: Array) -> Array:
    """`[n, dim]` float32: what the codes of `vectors [n, dim]` stand for, `limits` being the `ranges` of int8."""
    vectors = vectors.astype(np.float32)
    if precision == "float32":
        return vectors
    if precision == "int8":
        codes = np.asarray(quantize_embeddings(vectors, "int8", ranges=limits), np.float32)
        steps = (limits[1] - limits[0]) / 255
        middles: Array = codes * steps + (limits[0] + 128.5 * steps)
        return middles
    packed = np.asarray(quantize_embeddings(vectors, "ubinary"), np.uint8)
    signs: Array = np.unpackbits(packed, axis=1, count=vectors.shape[1]).astype(np.float32) * 2 - 1
    return signs


def size(precision: str, dim: int) -> int:
    """Bytes of one vector."""
    return {"float32": 4 * dim, "int8": dim, "binary": (dim + 7) // 8}[precision]


def quantisation(dataset: Dataset, calibration: Calibration, params: EvaluateParams) -> dict[str, Any]:
    """nDCG@10 of the three modes with coded vectors.

    `variants` (`float32`, `int8 document`, `int8 query`, `int8 both`, the same of binary, `binary rescored`) are as
    `uncertainty.profiles` gives them, with bytes per vector beside; `largest` as for `truncation`, by precision.
    """
    dim = dataset.queries.teacher.shape[1]
    limits = {
        mode: (ranges(asking), ranges(asked))
        for mode, (asking, asked) in sides(calibration.query, calibration.document).items()
    }
    variants = _variants()
    values = np.empty((len(dataset.queries), len(variants), len(MODES)))
    for m, (mode, (asking, asked)) in enumerate(sides(dataset.queries, dataset.documents).items()):
        for v, (name, (first, second)) in enumerate(variants.items()):
            queries, documents = coded(asking, first, limits[mode][0]), coded(asked, second, limits[mode][1])
            if name == "binary rescored":
                values[:, v, m] = _rescored(asking, queries, documents, dataset)
            else:
                values[:, v, m] = ndcg(queries, documents, dataset)
    found = profiles(values, list(variants), params)
    for name, (first, second) in variants.items():
        found[name] |= {"bytes": {"query": size(first, dim), "document": size(second, dim)}}
    of = {kind: {name: modes for name, modes in found.items() if name.startswith(kind)} for kind in PRECISIONS}
    biggest = {kind: {mode: largest(of[kind], mode) for mode in MODES[1:]} for kind in PRECISIONS}
    return {"variants": found, "largest": biggest}


def _variants() -> dict[str, tuple[str, str]]:
    """Name -> precision of queries and of documents."""
    found = {"float32": ("float32", "float32")}
    for precision in PRECISIONS:
        found[f"{precision} document"] = ("float32", precision)
        found[f"{precision} query"] = (precision, "float32")
        found[f"{precision} both"] = (precision, precision)
    # The query is at hand in float32, and rescoring uses it; the first search does not.
    return {**found, "binary rescored": ("binary", "binary")}


def _rescored(exact: Array, queries: Array, documents: Array, dataset: Dataset) -> Array:
    """nDCG@10 of the nearest by Hamming distance, ranked again by float32 query against binary documents."""
    candidates = metrics.nearest(queries, documents, TOP * RESCORED, dataset.itself)
    scores = np.einsum("qd,qkd->qk", exact, documents[candidates])
    scores[candidates < 0] = -np.inf
    order = np.argsort(-scores, axis=1, kind="stable")[:, :TOP]
    return metrics.ranking(np.take_along_axis(candidates, order, axis=1), dataset.judged)[:, 0]
