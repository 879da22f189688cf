"""The queries whose rankings by teacher and by student differ most, with their first documents, for people to read."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from pipeline.base import Array
from pipeline.evaluate import metrics
from pipeline.evaluate.datasets import TOP, Dataset, sides
from pipeline.params import EvaluateParams

SHOWN = 3  # documents of a ranking that are shown
CHARACTERS = 200  # of a text that are kept


def overlap(first: Array, second: Array) -> Array:
    """`[n]`: average overlap of two rankings `[n, k]` (-1: no document): the mean over depths of the share in both.

    It weighs the top of a ranking most (Webber and others 2010, where it is the bounded form of their measure).
    """
    same = (first[:, :, None] == second[:, None, :]) & (first >= 0)[:, :, None]
    depths = np.arange(1, first.shape[1] + 1)
    shared = np.stack([same[:, :d, :d].sum((1, 2)) for d in depths], axis=1)
    agreement: Array = (shared / depths).mean(1)
    return agreement


def moved_queries(datasets: Sequence[Dataset], params: EvaluateParams) -> list[dict[str, Any]]:
    """The `params.moved` queries whose first ten documents by teacher and by student overlap least, worst first.

    Teacher on both sides against student on both sides. From held-out pairs if there are any, otherwise from BEIR
    directories. Texts are cut to CHARACTERS.
    """
    chosen = [dataset for dataset in datasets if dataset.heldout] or list(datasets)
    candidates: list[tuple[float, int, int]] = []
    rankings: list[dict[str, Array]] = []
    for d, dataset in enumerate(chosen):
        modes = sides(dataset.queries, dataset.documents)
        teacher, student = (dataset.nearest(*modes[mode], metrics.DEPTH) for mode in ("teacher", "standard"))
        rankings.append({"teacher": teacher, "student": student})
        shares = overlap(teacher[:, :TOP], student[:, :TOP]).tolist()
        candidates += [(share, d, row) for row, share in enumerate(shares)]
    return [_entry(chosen[d], row, share, rankings[d]) for share, d, row in sorted(candidates)[: params.moved]]


def _entry(dataset: Dataset, row: int, share: float, rankings: dict[str, Array]) -> dict[str, Any]:
    """The query in `row`, and for each model its first documents and the rank of the first relevant one."""
    queries, texts = dataset.texts
    relevant = {document for document, grade in dataset.judged[row].items() if grade > 0}
    entry: dict[str, Any] = {"dataset": dataset.name, "query": _short(queries[row]), "overlap": round(share, 4)}
    for name, ranking in rankings.items():
        documents = [document for document in ranking[row].tolist() if document >= 0]
        ranks = [rank for rank, document in enumerate(documents, 1) if document in relevant]
        top = [{"text": _short(texts[document]), "relevant": document in relevant} for document in documents[:SHOWN]]
        entry[name] = {"top": top, "rank": ranks[0] if ranks else None}
    return entry


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= CHARACTERS else text[: CHARACTERS - 1].rstrip() + "…"
