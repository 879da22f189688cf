"""What an exported graph loses against PyTorch, and what it gains in speed."""

import time
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any

import numpy as np
import polars as pl

from pipeline.base.arrays import cosines
from pipeline.evaluate import metrics
from pipeline.evaluate.datasets import pairs
from pipeline.model.student import Student, StudentEncoder
from pipeline.params.sections import ExportParams
from pipeline.serve.onnx_encoder import OnnxEncoder
from pipeline.store.store import Store

ROUNDS = 3  # of each encoder, in turn, so that a slow moment of the machine hits all
SINGLE_QUERIES = 20
Encode = Callable[[Sequence[str]], np.ndarray]


def summary(cosines: np.ndarray) -> dict[str, float]:
    """Lowest and mean of `cosines [n]`."""
    return {"lowest": float(cosines.min()), "mean": float(cosines.mean())}


def compare(
    model: Any, graphs: Mapping[str, OnnxEncoder], store: Store, held: pl.DataFrame, params: ExportParams
) -> dict[str, Any]:
    """By precision: cosine to PyTorch in float32 of the held-out texts, and nDCG@10 lost in asymmetric retrieval.

    Queries search the stored vectors of all held-out documents of their source. `loss` is the share of PyTorch's
    nDCG@10, with a paired bootstrap interval; None where there are no held-out pairs.
    """
    ours = _sampled(held, params.rows)
    rows = np.flatnonzero(ours)
    texts = held["text"][rows].to_list()
    vectors = {"pytorch": model.encode_query(texts, show_progress_bar=False)}
    vectors |= {precision: graph.encode(texts) for precision, graph in graphs.items()}
    place = np.full(len(held), -1)
    place[rows] = np.arange(len(rows))
    scores = _scores(vectors, place, store, held)
    result: dict[str, Any] = {}
    for precision in graphs:
        similar = cosines(vectors[precision], vectors["pytorch"])
        result[precision] = {"n": len(similar), "cosine": summary(similar), **_loss(scores, precision, params)}
    return result


def _sampled(held: pl.DataFrame, rows: int) -> np.ndarray:
    """`[n]` bool: the first `rows` queries and a tenth as many documents, which take longer; without queries `rows`."""
    roles = held["role"].to_numpy()
    queries = np.flatnonzero(roles == "query")[:rows]
    documents = np.flatnonzero(roles == "document")[: max(rows // 10, 1) if len(queries) else rows]
    chosen = np.zeros(len(held), bool)
    chosen[queries] = chosen[documents] = True
    return chosen


def _scores(vectors: Mapping[str, np.ndarray], place: np.ndarray, store: Store, held: pl.DataFrame) -> dict[str, Any]:
    """nDCG@10 `[queries]` of each encoder, over the sources that have pairs."""
    found: dict[str, list[np.ndarray]] = {name: [] for name in vectors}
    for _, asking, asked, judged in pairs(held):
        kept = place[asking] >= 0
        if not kept.any():
            continue
        documents = store.lookup(held["key"][asked].to_list())
        wanted = [one for one, keep in zip(judged, kept, strict=True) if keep]
        for name, of in vectors.items():
            best = metrics.nearest(of[place[asking[kept]]], documents, metrics.DEPTH)
            found[name].append(metrics.ranking(best, wanted)[:, 0])
    return {name: np.concatenate(values) for name, values in found.items() if values}


def _loss(scores: dict[str, Any], precision: str, params: ExportParams) -> dict[str, Any]:
    if not scores or not scores["pytorch"].any():
        return {"loss": None}
    both = np.stack([scores["pytorch"], scores[precision]], axis=1)
    samples = metrics.bootstrap(both, params.bootstrap, params.seed)
    means = both.mean(0)
    return {
        "queries": len(both),
        "ndcg@10": {"pytorch": float(means[0]), precision: float(means[1])},
        "loss": float(1 - means[1] / means[0]),
        "interval": metrics.interval(1 - samples[:, 1] / samples[:, 0]),
    }


def speed(model: Any, student: Student, graphs: Mapping[str, OnnxEncoder], texts: Sequence[str]) -> dict[str, Any]:
    """By encoder: texts/s in batches and milliseconds for a single query, the median of alternating rounds.

    `pytorch` is sentence-transformers in float32, `packed` this project's encoder. On the process's cores.
    """
    packed = StudentEncoder(student)
    encoders: dict[str, Encode] = {
        "pytorch": lambda some: np.asarray(model.encode_query(list(some), show_progress_bar=False)),
        "packed": packed.encode,
        **{f"onnx_{precision}": graph.encode for precision, graph in graphs.items()},
    }
    rates: dict[str, list[float]] = {name: [] for name in encoders}
    for encode in encoders.values():
        encode(texts[:8])
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
