"""NumPy arrays: their type in annotations, and the cosine of corresponding rows."""

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def cosines(first: Array, second: Array) -> Array:
    """Cosine of each row of `first [n, dim]` and the same row of `second [n, dim]`: `[n]` float64, 0 for a zero row."""
    first, second = first.astype(np.float64), second.astype(np.float64)
    norms = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    products: Array = (first * second).sum(1) / np.maximum(norms, np.finfo(np.float64).tiny)
    return products
