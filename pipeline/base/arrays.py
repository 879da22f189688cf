"""NumPy arrays: their type in annotations, and how similar corresponding rows are."""

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Similarity = Literal["cosine", "dot"]
"""What two vectors are compared by, as sentence-transformers calls it."""


def similarities(first: Array, second: Array, similarity: Similarity) -> Array:
    """Of each row of `first [n, dim]` and the same row of `second [n, dim]`: `[n]` float64."""
    if similarity == "cosine":
        return cosines(first, second)
    products: Array = (first.astype(np.float64) * second.astype(np.float64)).sum(1)
    return products


def cosines(first: Array, second: Array) -> Array:
    """Cosine of each row of `first [n, dim]` and the same row of `second [n, dim]`: `[n]` float64, 0 for a zero row."""
    first, second = first.astype(np.float64), second.astype(np.float64)
    norms = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    products: Array = (first * second).sum(1) / np.maximum(norms, np.finfo(np.float64).tiny)
    return products
