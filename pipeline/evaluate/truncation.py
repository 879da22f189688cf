"""Vectors cut to their first dimensions (Matryoshka, arXiv 2205.13147): does the student inherit the profile?"""

from typing import Any

import numpy as np

from pipeline.evaluate.datasets import Dataset, ndcg, sides
from pipeline.evaluate.profiles import largest_difference, profiles
from pipeline.params import EvaluateParams
from pipeline.serve import MODES


def truncation(dataset: Dataset, params: EvaluateParams) -> dict[str, Any]:
    """nDCG@10 of the three modes at the full width and at each of `params.dims` below it.

    Vectors are cut and, where they are compared by cosine, renormalised. `dims` is what `profiles` returns; `largest`
    is the largest difference to the teacher's profile, by mode.
    """
    width = dataset.queries.teacher.shape[1]
    dims = [width, *sorted({dim for dim in params.dims if dim < width}, reverse=True)]
    modes = sides(dataset.queries, dataset.documents).values()
    values = [[ndcg(queries[:, :dim], documents[:, :dim], dataset) for queries, documents in modes] for dim in dims]
    by_dim = profiles(np.array(values).transpose(2, 0, 1), [str(dim) for dim in dims], params)
    return {"dims": by_dim, "largest": {mode: largest_difference(by_dim, mode) for mode in MODES[1:]}}
