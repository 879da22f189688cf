"""How close vectors are and how well they rank: functions over arrays alone, in float32."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytrec_eval
import torch
from torch.nn import functional

from pipeline.base import Array, Similarity, cosines
from pipeline.model import best_device, keep_best, none_yet

QUANTILES = (5, 25, 50, 75, 95)
DEPTH = 100  # documents ranked for a query; recall@100 needs as many
RANKING_METRICS = ("ndcg@10", "recall@100", "mrr@10")
DIGITS = 6  # of figures in a file; digits beyond them differ between machines
QUERY_ROWS, DOCUMENT_ROWS = 1024, 16_384  # one block of similarities: 64 MiB


def distances(student: Array, teacher: Array) -> Array:
    """`[n]` float64: the L2 distance of each row of `student [n, d]` to the same row of `teacher [n, d]`."""
    lengths: Array = np.linalg.norm(student.astype(np.float64) - teacher.astype(np.float64), axis=1)
    return lengths


def spread(values: Array) -> dict[str, float]:
    """Mean and quantiles (`p05` to `p95`) of `values [n]`, n > 0."""
    quantiles = np.percentile(values, QUANTILES)
    named = {f"p{q:02d}": float(value) for q, value in zip(QUANTILES, quantiles, strict=True)}
    return {"mean": float(values.mean())} | named


def alignment(student: Array, teacher: Array) -> dict[str, Any]:
    """`n`, and `spread` of cosine and of L2 distance, between two sets of vectors `[n, d]`, row by row; n > 0."""
    return {"n": len(student), "cosine": spread(cosines(student, teacher)), "l2": spread(distances(student, teacher))}


def nearest(
    queries: Array, documents: Array, k: int, leave_out: Array | None = None, similarity: Similarity = "cosine"
) -> Array:
    """`[queries, k]` int64: rows of the `k` documents with the highest similarity, best first; exact search.

    `leave_out[i]` is a document that query `i` must not find (itself), -1 for none. A query then finds one document
    fewer if `k` is the number of documents, and its row ends in -1. Ties go to the document that comes first.
    """
    k = min(k, len(documents))
    device = best_device()
    searched = torch.from_numpy(np.ascontiguousarray(documents, np.float32))
    if similarity == "cosine":
        searched = functional.normalize(searched, dim=1)
    rankings = np.empty((len(queries), k), np.int64)
    for start in range(0, len(queries), QUERY_ROWS):
        stop = start + QUERY_ROWS
        block = torch.from_numpy(np.ascontiguousarray(queries[start:stop], np.float32)).to(device)
        own = None if leave_out is None else torch.from_numpy(leave_out[start:stop].astype(np.int64)).to(device)
        # The length of a query does not change its ranking; of length one, all queries' scores are of one size.
        rankings[start:stop] = _search(functional.normalize(block, dim=1), searched, k, own).cpu().numpy()
    return rankings


def _search(queries: torch.Tensor, documents: torch.Tensor, k: int, own: torch.Tensor | None) -> torch.Tensor:
    """`nearest` for one block of queries, by dot product; documents block by block."""
    best = none_yet(len(queries), queries.device)
    for start in range(0, len(documents), DOCUMENT_ROWS):
        block = documents[start : start + DOCUMENT_ROWS].to(queries.device)
        similarities = queries @ block.T
        if own is not None:
            here = ((own >= start) & (own < start + len(block))).nonzero()[:, 0]
            similarities[here, own[here] - start] = -torch.inf
        best = keep_best(best, similarities, start, k)
    scores, rows = best
    return rows.masked_fill(scores == -torch.inf, -1)


def share_retrieved(rankings: Array, reference: Array) -> Array:
    """`[n]`: the share of the rows in `reference[i]` (all valid) that `rankings[i]` holds too, in any order."""
    shares: Array = (rankings[:, :, None] == reference[:, None, :]).any(1).mean(1)
    return shares


def ranking_metrics(rankings: Array, judged: Sequence[Mapping[int, int]]) -> Array:
    """`[queries, 3]` float64, as in RANKING_METRICS: nDCG@10, recall@100, reciprocal rank within the first 10.

    By trec_eval. `rankings [queries, <= 100]` is what `nearest` returns; `judged[i]` gives the grade of documents, by
    row, at least one of them above 0.
    """
    judgments = {str(i): {str(row): grade for row, grade in grades.items()} for i, grades in enumerate(judged)}
    # trec_eval breaks ties by name; scores that fall with the rank keep the order of the search.
    run = {
        str(i): {str(row): float(DEPTH - rank) for rank, row in enumerate(rows) if row >= 0}
        for i, rows in enumerate(rankings[:, :DEPTH].tolist())
    }
    evaluator = pytrec_eval.RelevanceEvaluator(judgments, {"ndcg_cut.10", "recall.100", "recip_rank"})
    results = evaluator.evaluate(run)
    names = ("ndcg_cut_10", "recall_100", "recip_rank")
    rows = [[results[str(i)][name] for name in names] for i in range(len(rankings))]
    values = np.array(rows, np.float64).reshape(-1, len(RANKING_METRICS))
    values[values[:, 2] < 0.1 - 1e-9, 2] = 0.0  # trec_eval has no cut-off here: the first hit lies below rank 10
    return values


def rounded(value: Any) -> Any:
    """Figures as they are written: every float, however deep, rounded to DIGITS, and arrays and tuples as lists."""
    if isinstance(value, dict):
        return {name: rounded(item) for name, item in value.items()}
    if isinstance(value, np.ndarray | list | tuple):
        return [rounded(item) for item in value]
    return round(float(value), DIGITS) if isinstance(value, float) else value
