"""Losses, schedule and optimiser of the fit.

Schedule: the run's steps are split evenly into `cycles`; within each the learning rate falls linearly from
`learning_rate` to `learning_rate_end` and starts again. `max_steps` shortens the run: all cycles are kept and become
shorter. Warm-up multiplies the rate over the first `warmup_steps` of the run.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.params import FitParams


def _l2(vectors: Tensor, targets: Tensor) -> Tensor:
    distances: Tensor = torch.linalg.vector_norm(vectors - targets, dim=1)  # its gradient at 0 is 0
    return distances.mean()


def _mse(vectors: Tensor, targets: Tensor) -> Tensor:
    return (vectors - targets).square().sum(1).mean()


def _cosine(vectors: Tensor, targets: Tensor) -> Tensor:
    return 1 - functional.cosine_similarity(vectors, targets).mean()


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"l2": _l2, "mse": _mse, "cosine": _cosine}


def total_steps(params: FitParams, batches_per_epoch: int) -> int:
    """Steps of the whole run."""
    steps = params.cycles * params.epochs_per_cycle * batches_per_epoch
    return steps if params.max_steps is None else min(steps, params.max_steps)


def learning_rate(step: int, total: int, params: FitParams) -> float:
    """Learning rate of step number `step`, counted from 0, of `total`."""
    cycle = step * params.cycles // total
    start, stop = -(-cycle * total // params.cycles), -(-(cycle + 1) * total // params.cycles)
    share = (step - start) / max(1, stop - start - 1)
    rate = params.learning_rate + share * (params.learning_rate_end - params.learning_rate)
    return rate * min(1.0, (step + 1) / params.warmup_steps) if params.warmup_steps else rate


def optimiser(student: nn.Module, params: FitParams) -> torch.optim.Optimizer:
    """AdamW; biases and norms are not decayed, as is usual for transformers."""
    trained = [p for p in student.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": params.weight_decay},
        {"params": [p for p in trained if p.ndim == 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=params.learning_rate, fused=True)
