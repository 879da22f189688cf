"""Losses of the regression: each takes vectors and targets `[texts, dim]` and gives that of each text."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

Loss = Callable[[Tensor, Tensor], Tensor]


def _l2(vectors: Tensor, targets: Tensor) -> Tensor:
    distances: Tensor = torch.linalg.vector_norm(vectors - targets, dim=1)  # its gradient at 0 is 0
    return distances


def _mse(vectors: Tensor, targets: Tensor) -> Tensor:
    return (vectors - targets).square().sum(1)


def _cosine(vectors: Tensor, targets: Tensor) -> Tensor:
    return 1 - functional.cosine_similarity(vectors, targets)


LOSSES: dict[str, Loss] = {"l2": _l2, "mse": _mse, "cosine": _cosine}
"""By the name in `fit.loss`."""
