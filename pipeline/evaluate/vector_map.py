"""A map of the vectors: held-out texts by teacher and student on two principal components."""

import numpy as np
import polars as pl

from pipeline.evaluate.datasets import PairedVectors
from pipeline.params import EvaluateParams

Point = tuple[str, str, str, float, float]  # text (its number), role, model, x, y


def map_points(heldout: pl.DataFrame, vectors: PairedVectors, params: EvaluateParams) -> list[Point]:
    """A seeded sample of texts on the first two principal components of the teacher's vectors.

    The student's vectors are projected with the teacher's mean and components, so that a text's two points are as close
    as the student is to the teacher. Empty for fewer than 3 texts.
    """
    count = min(params.map_texts, len(heldout))
    if count < 3:
        return []
    rows = np.sort(np.random.default_rng(params.seed).choice(len(heldout), count, replace=False))
    sample = vectors[rows]
    mean = sample.teacher.mean(0)
    _, _, components = np.linalg.svd((sample.teacher - mean).astype(np.float64), full_matrices=False)
    axes = components[:2]
    # The sign of a component is arbitrary; without a rule it differs between machines.
    axes = axes * np.sign(axes[np.arange(2), np.abs(axes).argmax(1)])[:, None]
    points: list[Point] = []
    roles = heldout["role"].to_list()
    for model, of_model in (("teacher", sample.teacher), ("student", sample.student)):
        places = np.round((of_model - mean) @ axes.T, 4)
        points += [
            (str(number), roles[row], model, float(x), float(y))
            for number, (row, (x, y)) in enumerate(zip(rows.tolist(), places, strict=True))
        ]
    return points
