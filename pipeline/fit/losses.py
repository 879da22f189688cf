"""Losses of the regression: each takes vectors and targets `[texts, dim]` and gives the mean over the texts."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional


def _l2(vectors: Tensor, targets: Tensor) -> Tensor:
    distances: Tensor = torch.linalg.vector_norm(vectors - targets, dim=1)  # its gradient at 0 is 0
    return distances.mean()


def _mse(vectors: Tensor, targets: Tensor) -> Tensor:
    return (vectors - targets).square().sum(1).mean()


def _cosine(vectors: Tensor, targets: Tensor) -> Tensor:
    return 1 - functional.cosine_similarity(vectors, targets).mean()


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"l2": _l2, "mse": _mse, "cosine": _cosine}
"""By the name in `fit.loss`."""
