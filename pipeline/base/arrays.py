"""NumPy arrays: their type in annotations, how similar corresponding rows are, and such as lie in files."""

import os
from pathlib import Path
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


def mapped_file(file: Path, dtype: np.dtype[Any], shape: tuple[int, ...]) -> "np.memmap[Any, Any]":
    """A new file of numbers, all 0, mapped for writing.

    Its space is reserved now: a full disk would otherwise end the process, with a signal, at whichever number is
    written to a page that has none.

    Raises:
        OSError: there is no space, or the file cannot be made.
    """
    size = int(np.prod(shape)) * dtype.itemsize
    with file.open("wb") as handle:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(handle.fileno(), 0, size)
        else:
            handle.truncate(size)
    return np.memmap(file, dtype, "r+", shape=shape)
