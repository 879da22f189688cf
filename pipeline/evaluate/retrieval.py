"""How well the student retrieves: ranking metrics against judgments, and agreement with the teacher's neighbours."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pipeline.base import Array, Similarity
from pipeline.evaluate import metrics
from pipeline.evaluate.bootstrap import bootstrap_means, difference, interval
from pipeline.evaluate.datasets import PairedVectors, Sides, sides
from pipeline.params import EvaluateParams
from pipeline.serve import MODES, START

NEIGHBOURS = 10


def retrieval(
    queries: PairedVectors,
    documents: PairedVectors,
    judged: Sequence[dict[int, int]],
    params: EvaluateParams,
    itself: Array | None = None,
    *,
    similarity: Similarity = "cosine",
    start: Sides | None = None,
) -> dict[str, Any]:
    """nDCG@10, recall@100 and MRR@10 of the three modes, with 95 % bootstrap intervals over the queries.

    `retention` is the share of the teacher's nDCG@10, its interval paired by query; None where the teacher has 0.
    `difference` is that of nDCG@10 to the teacher's, paired likewise; `gain` that of asymmetric to standard, and
    `since_start` that of standard mode to the untouched checkpoint.

    Args:
        judged: for each query, the grade of documents, by row of `documents`; above 0 is relevant.
        itself: for each query, the document that must not be found because it is the query; -1 for none.
        similarity: what vectors are compared by.
        start: vectors of queries and documents by the untouched checkpoint, where it is at hand; a fourth mode.
    """
    modes = sides(queries, documents) | ({} if start is None else {START: start})
    return ranking_figures(modes, judged, params, itself, similarity)


def ranking_figures(
    modes: Mapping[str, Sides],
    judged: Sequence[dict[int, int]],
    params: EvaluateParams,
    itself: Array | None,
    similarity: Similarity,
) -> dict[str, Any]:
    """What `retrieval` returns, of these modes, of which `teacher` is the first; by the vectors of both sides."""
    # [queries, modes, metrics]
    values = np.stack(
        [
            metrics.ranking_metrics(metrics.nearest(*vectors, metrics.DEPTH, itself, similarity), judged)
            for vectors in modes.values()
        ],
        axis=1,
    )
    means = values.mean(0)
    flat = values.reshape(len(values), -1)
    samples = bootstrap_means(flat, params.bootstrap, params.seed).reshape(-1, *means.shape)
    queries, documents = modes["teacher"]
    result: dict[str, Any] = {"queries": len(queries), "documents": len(documents)}
    for m, mode in enumerate(modes):
        intervals = {name: interval(samples[:, m, i]) for i, name in enumerate(metrics.RANKING_METRICS)}
        result[mode] = {"n": len(queries), **dict(zip(metrics.RANKING_METRICS, means[m].tolist(), strict=True))}
        if mode != "teacher":
            result[mode]["retention"] = float(means[m, 0] / means[0, 0]) if means[0, 0] > 0 else None
            with np.errstate(divide="ignore", invalid="ignore"):
                intervals["retention"] = interval(samples[:, m, 0] / samples[:, 0, 0])
            result[mode]["difference"] = difference(means[m, 0] - means[0, 0], samples[:, m, 0] - samples[:, 0, 0])
        result[mode]["interval"] = intervals
    place = {mode: m for m, mode in enumerate(modes)}
    for mode, name, other in (("asymmetric", "gain", "standard"), ("standard", "since_start", START)):
        if {mode, other} <= set(place):
            m, o = place[mode], place[other]
            result[mode][name] = difference(means[m, 0] - means[o, 0], samples[:, m, 0] - samples[:, o, 0])
    return result


def neighbours(
    queries: PairedVectors | None,
    documents: PairedVectors | None,
    params: EvaluateParams,
    *,
    similarity: Similarity = "cosine",
) -> dict[str, Any]:
    """Share of the teacher's 10 nearest documents that the student finds, among a seeded sample of documents.

    Without queries the documents are the queries, and do not find themselves. Empty for fewer than 12 documents.
    """
    if documents is None or min(len(documents), params.neighbours_rows) < NEIGHBOURS + 2:
        return {}
    documents = _sample(documents, params)
    itself = np.arange(len(documents)) if queries is None else None
    queries = documents if queries is None else _sample(queries, params)
    nearest = {
        mode: metrics.nearest(*vectors, NEIGHBOURS, itself, similarity)
        for mode, vectors in sides(queries, documents).items()
    }
    shares = {mode: metrics.share_retrieved(nearest[mode], nearest["teacher"]) for mode in MODES[1:]}
    samples = bootstrap_means(np.stack(list(shares.values()), axis=1), params.bootstrap, params.seed)
    return {
        "k": NEIGHBOURS,
        "queries": len(queries),
        "documents": len(documents),
        **{mode: float(share.mean()) for mode, share in shares.items()},
        "interval": {mode: interval(samples[:, m]) for m, mode in enumerate(shares)},
    }


def _sample(vectors: PairedVectors, params: EvaluateParams) -> PairedVectors:
    if len(vectors) <= params.neighbours_rows:
        return vectors
    rows = np.random.default_rng(params.seed).choice(len(vectors), params.neighbours_rows, replace=False)
    return vectors[np.sort(rows)]
