"""How close vectors are, how well they rank, and how sure that is: functions over arrays alone.

Similarity is the cosine everywhere, in float32, whatever lengths the vectors have.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytrec_eval
import torch
from torch.nn import functional

from pipeline.base.arrays import Array, cosines

QUANTILES = (5, 25, 50, 75, 95)
DEPTH = 100  # documents ranked for a query; recall@100 needs as many
MEASURES = ("ndcg@10", "recall@100", "mrr@10")
DIGITS = 6  # of figures in a file; what follows differs between machines
COVERAGE = 0.95  # of a bootstrap interval
QUERY_ROWS, DOCUMENT_ROWS = 1024, 16_384  # one block of similarities: 64 MiB
RESAMPLED = 4_000_000  # query counts drawn at once by the bootstrap, 32 MB


def distances(student: Array, teacher: Array) -> Array:
    """`[n]` float64: the L2 distance of each row of `student [n, d]` to the same row of `teacher [n, d]`."""
    lengths: Array = np.linalg.norm(student.astype(np.float64) - teacher.astype(np.float64), axis=1)
    return lengths


def spread(values: Array) -> dict[str, float]:
    """Mean and quantiles (`p05` to `p95`) of `values [n]`, n > 0."""
    quantiles = np.percentile(values, QUANTILES)
    named = {f"p{q:02d}": float(value) for q, value in zip(QUANTILES, quantiles, strict=True)}
    return {"mean": float(values.mean())} | named


def alignment(student: Array, teacher: Array) -> dict[str, object]:
    """`n`, and `spread` of cosine and of L2 distance, between two sets of vectors `[n, d]`, row by row; n > 0."""
    return {"n": len(student), "cosine": spread(cosines(student, teacher)), "l2": spread(distances(student, teacher))}


def nearest(queries: Array, documents: Array, k: int, leave_out: Array | None = None) -> Array:
    """`[queries, k]` int64: rows of the `k` documents with the highest cosine, best first; exact.

    `leave_out[i]` is a document that query `i` must not find (itself), -1 for none. A query then finds one document
    fewer where `k` asks for all, and its row ends in -1. Among equals the document that comes first wins.
    """
    k = min(k, len(documents))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    normal = functional.normalize(torch.from_numpy(np.ascontiguousarray(documents, np.float32)), dim=1)
    found = np.empty((len(queries), k), np.int64)
    for start in range(0, len(queries), QUERY_ROWS):
        stop = start + QUERY_ROWS
        block = torch.from_numpy(np.ascontiguousarray(queries[start:stop], np.float32)).to(device)
        own = None if leave_out is None else torch.from_numpy(leave_out[start:stop].astype(np.int64)).to(device)
        found[start:stop] = _search(functional.normalize(block, dim=1), normal, k, own).cpu().numpy()
    return found


def _search(queries: torch.Tensor, documents: torch.Tensor, k: int, own: torch.Tensor | None) -> torch.Tensor:
    scores = torch.empty((len(queries), 0), device=queries.device)
    rows = torch.empty((len(queries), 0), dtype=torch.int64, device=queries.device)
    for start in range(0, len(documents), DOCUMENT_ROWS):
        part = documents[start : start + DOCUMENT_ROWS].to(queries.device)
        similar = queries @ part.T
        if own is not None:
            here = ((own >= start) & (own < start + len(part))).nonzero()[:, 0]
            similar[here, own[here] - start] = -torch.inf
        best, at = similar.topk(min(k, len(part)), dim=1)
        at, order = at.sort(dim=1)
        scores = torch.cat([scores, best.gather(1, order)], dim=1)
        rows = torch.cat([rows, at + start], dim=1)
        # What was found before has the smaller rows, and both parts ascend: a stable sort keeps equals in that order.
        order = scores.sort(dim=1, descending=True, stable=True).indices[:, :k]
        scores, rows = scores.gather(1, order), rows.gather(1, order)
    return rows.masked_fill(scores == -torch.inf, -1)


def shared(found: Array, wanted: Array) -> Array:
    """`[n]`: the share of the rows `wanted[i]` (all valid) that `found[i]` holds too, in any order."""
    hits: Array = (found[:, :, None] == wanted[:, None, :]).any(1).mean(1)
    return hits


def ranking(found: Array, judged: Sequence[Mapping[int, int]]) -> Array:
    """`[queries, 3]`: nDCG@10, recall@100 and reciprocal rank within the first 10, as in MEASURES, by trec_eval.

    `found [queries, <= 100]` is what `nearest` returns; `judged[i]` gives the grade of documents (rows), and names at
    least one above 0 for each query.
    """
    judgments = {str(i): {str(row): grade for row, grade in grades.items()} for i, grades in enumerate(judged)}
    # trec_eval breaks ties by name; scores that fall with the rank keep the order of the search.
    run = {
        str(i): {str(row): float(DEPTH - rank) for rank, row in enumerate(rows) if row >= 0}
        for i, rows in enumerate(found[:, :DEPTH].tolist())
    }
    evaluator = pytrec_eval.RelevanceEvaluator(judgments, {"ndcg_cut.10", "recall.100", "recip_rank"})
    results = evaluator.evaluate(run)
    rows = [[results[str(i)][name] for name in ("ndcg_cut_10", "recall_100", "recip_rank")] for i in range(len(found))]
    values = np.array(rows, np.float64).reshape(-1, len(MEASURES))
    values[values[:, 2] < 0.1 - 1e-9, 2] = 0.0  # trec_eval has no cut-off here: the first hit lies below rank 10
    return values


def bootstrap(values: Array, count: int, seed: int) -> Array:
    """`[count, columns]`: means of `values [n, columns]` over `count` resamples of the rows, with replacement.

    Columns share each resample, so that their ratios are paired.
    """
    rows = len(values)
    random = np.random.default_rng(seed)
    means = np.empty((count, values.shape[1]))
    block = max(1, RESAMPLED // rows)
    for start in range(0, count, block):
        drawn = random.multinomial(rows, np.full(rows, 1 / rows), size=min(block, count - start))
        means[start : start + block] = drawn @ values / rows
    return means


def interval(samples: Array) -> tuple[float, float] | None:
    """The middle 95 % of bootstrap samples; None without any (NaN, a ratio to nothing, does not count)."""
    samples = samples[np.isfinite(samples)]
    if not len(samples):
        return None
    low, high = np.quantile(samples, [(1 - COVERAGE) / 2, (1 + COVERAGE) / 2])
    return float(low), float(high)


def rounded(value: Any) -> Any:
    """Figures as they go into a file: every float, however deep, to DIGITS, and arrays and tuples as lists."""
    if isinstance(value, dict):
        return {name: rounded(one) for name, one in value.items()}
    if isinstance(value, np.ndarray | list | tuple):
        return [rounded(one) for one in value]
    return round(float(value), DIGITS) if isinstance(value, float) else value
