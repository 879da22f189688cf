"""What every room asks of arrays: their type, and how close the rows of two of them are."""

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def cosines(first: Array, second: Array) -> Array:
    """`[n]` float64: the cosine of each row of `first [n, d]` to the same row of `second [n, d]`; 0 for a zero row."""
    first, second = first.astype(np.float64), second.astype(np.float64)
    lengths = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    products: Array = (first * second).sum(1) / np.maximum(lengths, np.finfo(np.float64).tiny)
    return products
