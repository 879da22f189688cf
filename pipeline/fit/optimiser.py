"""Optimiser and learning-rate schedule of the fit.

Schedule: the run's steps are split evenly into `cycles`; within each the learning rate falls from `learning_rate` to
`learning_rate_end` by the `schedule`, then starts again. `max_steps` shortens the run: all cycles are kept and become
shorter. Warm-up multiplies the rate over the first `warmup_steps` of the run.
"""

import math
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from pipeline.fit.ranks import Ranks
from pipeline.model import traits_of
from pipeline.params import FitParams


def total_steps(params: FitParams, batches_per_epoch: int) -> int:
    """Steps of the whole run. In a step each of `replicas` trains on a batch."""
    steps = -(-params.cycles * params.epochs_per_cycle * batches_per_epoch // params.replicas)
    return steps if params.max_steps is None else min(steps, params.max_steps)


def learning_rate(step: int, total: int, params: FitParams) -> float:
    """Learning rate of step number `step`, counted from 0, of `total`."""
    cycle = step * params.cycles // total
    start, stop = -(-cycle * total // params.cycles), -(-(cycle + 1) * total // params.cycles)
    share = (step - start) / max(1, stop - start - 1)
    rate = params.learning_rate + _fallen(share, params) * (params.learning_rate_end - params.learning_rate)
    return rate * min(1.0, (step + 1) / params.warmup_steps) if params.warmup_steps else rate


def _fallen(share: float, params: FitParams) -> float:
    """How much of its way down the learning rate has gone, 0 to 1, after this share of a cycle."""
    if params.schedule == "cosine":
        return (1 - math.cos(math.pi * share)) / 2
    if params.schedule == "stable":
        return max(0.0, 1 - (1 - share) / params.decay_share) if params.decay_share else 0.0
    return share


def adamw(student: nn.Module, params: FitParams, **options: Any) -> torch.optim.AdamW:
    """AdamW over all weights that train; biases and norms are not decayed, as is usual for transformers."""
    trained = [p for p in student.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": params.weight_decay},
        {"params": [p for p in trained if p.ndim == 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, fused=True, **options)


class Optimiser(Protocol):
    """AdamW with clipped gradient norm."""

    adamw: torch.optim.AdamW

    def begin(self, *, head_only: bool) -> None:
        """Called before the backward pass of a step, which gives only the head a gradient, or all that trains."""

    def share(self, ranks: Ranks, ids: Tensor, *others: Tensor, head_only: bool) -> None:
        """Make the gradients of a batch with tokens `ids`, and the `others`, the sum over all processes."""

    def step(self, ids: Tensor, rate: float) -> None:
        """One step at learning rate `rate`, after the backward pass of a batch with tokens `ids`; clears gradients."""


def optimiser_for(student: nn.Module, token_embeddings: nn.Embedding, params: FitParams) -> Optimiser:
    """The one that suits the device where `student` is, of which `token_embeddings` is a part."""
    if token_embeddings.weight.device.type == "cpu":
        return RowsOptimiser(student, token_embeddings, params)
    return DeviceOptimiser(student, params)


class RowsOptimiser:
    """The optimiser on a CPU.

    The gradient of the token embeddings is one lasting buffer: a batch writes the rows of its own tokens, and these are
    cleared after the step. Filling and measuring all 30,522 rows, of which a batch touches some 400, would cost a tenth
    of the step. The result is the same.
    """

    def __init__(self, student: nn.Module, token_embeddings: nn.Embedding, params: FitParams) -> None:
        """`token_embeddings` is a part of `student`."""
        self.adamw = adamw(student, params, lr=params.learning_rate)
        self.clip_norm, self.table = params.clip_norm, token_embeddings.weight
        self.by_rows = self.table.requires_grad
        trained = [p for p in student.parameters() if p.requires_grad]
        self.dense = [p for p in trained if not self.by_rows or p is not self.table]
        if self.by_rows:
            token_embeddings.sparse = True
            self.table.grad = self._table_gradient = torch.zeros_like(self.table)

    def begin(self, *, head_only: bool) -> None:
        """See `Optimiser.begin`."""
        if self.by_rows:
            self.table.grad = None if head_only else self._table_gradient  # AdamW decays whatever has a gradient

    def share(self, ranks: Ranks, ids: Tensor, *others: Tensor, head_only: bool) -> None:
        """See `Optimiser.share`. Of the token embeddings only the rows of the batch are exchanged."""
        if not self.by_rows or self.table.grad is None:
            return ranks.sum_gradients(self.dense, others, head_only=head_only)
        rows = torch.unique(ids)
        touched = self.table.grad[rows]
        ranks.sum_gradients(self.dense, [*others, touched], head_only=head_only)
        self.table.grad[rows] = touched

    def step(self, ids: Tensor, rate: float) -> None:
        """See `Optimiser.step`."""
        for group in self.adamw.param_groups:
            group["lr"] = rate
        rows = torch.unique(ids) if self.by_rows else None
        if self.clip_norm is not None:
            # The fused step divides as it reads: scaling the gradients beforehand would pass over them once more.
            self.adamw.grad_scale = self._divisor(self.clip_norm, rows)  # type: ignore[attr-defined]
        self.adamw.step()
        for parameter in self.dense:
            parameter.grad = None
        if rows is not None and self.table.grad is not None:
            self.table.grad.index_fill_(0, rows, 0)

    def _divisor(self, most: float, rows: Tensor | None) -> Tensor | None:
        """What the gradients must be divided by for a norm of at most `most`; None where they need not be.

        `rows` are those of the token embeddings that have a gradient; None for all.
        """
        grads = [p.grad for p in self.dense if p.grad is not None]
        touched = [self.table.grad[rows]] if rows is not None and self.table.grad is not None else []
        norms = torch._foreach_norm([*grads, *touched])
        divisor = ((torch.linalg.vector_norm(torch.stack(norms)) + 1e-6) / most).clamp(min=1.0)
        return None if divisor == 1 else divisor


class DeviceOptimiser:
    """The optimiser on an accelerator: gradients, their norm and the learning rate keep their place there.

    So a step can be recorded and replayed, and the host never waits to learn a number.
    """

    def __init__(self, student: nn.Module, params: FitParams) -> None:
        self.trained = [p for p in student.parameters() if p.requires_grad]
        device = self.trained[0].device
        self.rate = torch.tensor(params.learning_rate, device=device)
        self.adamw = adamw(student, params, lr=self.rate, capturable=traits_of(device).graphs)
        self.clip_norm = params.clip_norm

    def begin(self, *, head_only: bool) -> None:
        """See `Optimiser.begin`; gradients that no backward pass has made yet do not exist."""

    def set_rate(self, rate: float) -> None:
        """Set the learning rate of the steps to come."""
        self.rate.fill_(rate)
        for group in self.adamw.param_groups:
            group["lr"] = self.rate  # a restored state brings a tensor of its own

    def share(self, ranks: Ranks, ids: Tensor, *others: Tensor, head_only: bool) -> None:
        """See `Optimiser.share`."""
        ranks.sum_gradients(self.trained, others, head_only=head_only)

    def step(self, ids: Tensor, rate: float) -> None:
        """See `Optimiser.step`."""
        self.set_rate(rate)
        self.update()

    def update(self) -> None:
        """The part of a step that is the same every time. Gradients stay where the first backward pass put them."""
        gradients = [p.grad for p in self.trained if p.grad is not None]
        if self.clip_norm is not None:
            norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
            torch._foreach_div_(gradients, ((norm + 1e-6) / self.clip_norm).clamp(min=1.0))
        self.adamw.step()
        torch._foreach_zero_(gradients)
