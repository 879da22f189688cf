"""What a person looks at: queries whose ranking moved most, and a map of the vectors."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl

from pipeline.base.arrays import Array
from pipeline.evaluate import metrics
from pipeline.evaluate.datasets import TOP, Dataset, PairedVectors
from pipeline.params.sections import EvaluateParams

SHOWN = 3  # documents of a ranking that are shown
CHARACTERS = 200  # of a text that are kept


def overlap(first: Array, second: Array) -> Array:
    """`[n]`: average overlap of two rankings `[n, k]` (-1 is none): the mean over depths of the share in both.

    It counts the top of a ranking most (Webber and others 2010, where it is the bounded form of their measure).
    """
    same = (first[:, :, None] == second[:, None, :]) & (first >= 0)[:, :, None]
    depths = np.arange(1, first.shape[1] + 1)
    shared = np.stack([same[:, :d, :d].sum((1, 2)) for d in depths], axis=1)
    agreement: Array = (shared / depths).mean(1)
    return agreement


def moved(datasets: Sequence[Dataset], params: EvaluateParams) -> list[dict[str, Any]]:
    """The `params.moved` queries with the lowest overlap of the teacher's and the student's first ten, worst first.

    Both sides by the teacher, against both sides by the student. Of held-out pairs where there are any, otherwise of
    BEIR directories. Texts are cut to CHARACTERS.
    """
    of = [one for one in datasets if one.heldout] or list(datasets)
    entries: list[tuple[float, int, int]] = []
    found: list[tuple[Array, Array]] = []
    for d, one in enumerate(of):
        rankings = [
            metrics.nearest(asking, asked, metrics.DEPTH, one.itself)
            for asking, asked in (
                (one.queries.teacher, one.documents.teacher),
                (one.queries.student, one.documents.student),
            )
        ]
        found.append((rankings[0], rankings[1]))
        entries += [(share, d, row) for row, share in enumerate(overlap(*(r[:, :TOP] for r in rankings)).tolist())]
    return [
        _entry(of[d], row, share, dict(zip(("teacher", "student"), found[d], strict=True)))
        for share, d, row in sorted(entries)[: params.moved]
    ]


def _entry(dataset: Dataset, row: int, share: float, rankings: dict[str, Array]) -> dict[str, Any]:
    asking, asked = dataset.texts
    relevant = {document for document, grade in dataset.judged[row].items() if grade > 0}
    entry: dict[str, Any] = {"dataset": dataset.name, "query": _short(asking[row]), "overlap": round(share, 4)}
    for name, ranking in rankings.items():
        documents = [document for document in ranking[row].tolist() if document >= 0]
        ranks = [rank for rank, document in enumerate(documents, 1) if document in relevant]
        top = [{"text": _short(asked[one]), "relevant": one in relevant} for one in documents[:SHOWN]]
        entry[name] = {"top": top, "rank": ranks[0] if ranks else None}
    return entry


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= CHARACTERS else text[: CHARACTERS - 1].rstrip() + "…"


def project(
    held: pl.DataFrame, vectors: PairedVectors, params: EvaluateParams
) -> list[tuple[str, str, str, float, float]]:
    """Rows `text, role, model, x, y`: a sample of texts on the teacher's first two principal components.

    The student's vectors are projected with the teacher's mean and components, so that a text's two points lie
    together as far as the student is right. `text` is a number.
    """
    count = min(params.map_texts, len(held))
    if count < 3:
        return []
    rows = np.sort(np.random.default_rng(params.seed).choice(len(held), count, replace=False))
    sample = vectors[rows]
    mean = sample.teacher.mean(0)
    _, _, components = np.linalg.svd((sample.teacher - mean).astype(np.float64), full_matrices=False)
    axes = components[:2]
    # The sign of a component is arbitrary; without a rule it differs between machines.
    axes = axes * np.sign(axes[np.arange(2), np.abs(axes).argmax(1)])[:, None]
    found = []
    roles = held["role"].to_list()
    for name, points in (("teacher", sample.teacher), ("student", sample.student)):
        places = np.round((points - mean) @ axes.T, 4)
        found += [
            (str(at), roles[row], name, float(x), float(y))
            for at, (row, (x, y)) in enumerate(zip(rows.tolist(), places, strict=True))
        ]
    return found
