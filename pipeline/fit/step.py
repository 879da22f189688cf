"""One step of the fit: forward, loss, backward, and the update of all weights. There are two ways of doing it.

On a CPU texts lie end to end, and every batch has shapes of its own (`PackedStep`). On an accelerator a batch of 32
texts is so little work that launching it would take longer than doing it. There texts are padded to one of a few
lengths, so that a step does the same work on the same memory as the last one of that length; it is recorded once and
replayed (`PaddedStep`), and nothing in it waits for the device.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from pipeline.fit.loader import TrainingBatch
from pipeline.fit.losses import LOSSES
from pipeline.fit.optimiser import DeviceOptimiser, Optimiser
from pipeline.model import Batch, Graphs, Student, pad, split, traits_of, upload
from pipeline.params import FitParams

SHORTEST = 8
"""Least padded length; all but the longest are 8 times a power of 2, or half as much again."""


@dataclass(frozen=True)
class Part:
    """Texts of a batch that are computed together."""

    texts: Batch
    targets: Tensor
    """`[texts, dim]`."""
    weights: Tensor
    """`[texts]`: share of each in the batch's loss."""


class Step(Protocol):
    """Trains on one batch."""

    optimiser: Optimiser | DeviceOptimiser

    def prepare(self, batch: TrainingBatch) -> list[Part]:
        """The batch as `run` takes it; called ahead, in another thread."""

    def run(self, parts: list[Part], rate: float) -> Tensor:
        """Update all weights at learning rate `rate`; the batch's loss before that, which the next call may change."""


def step_for(student: Student, params: FitParams, dtype: torch.dtype) -> Step:
    """The way that suits the device where `student` is; forward and backward passes are computed in `dtype`."""
    device = student.head.weight.device
    traits = traits_of(device)
    if traits.packed or not student.backbone.takes_padding:
        return PackedStep(student, params, dtype)
    return PaddedStep(student, params, dtype, Graphs(device).recorded if traits.graphs else _as_it_is)


def _as_it_is(run: Callable[[], None]) -> Callable[[], None]:
    return run


class PackedStep:
    """A step over texts laid end to end."""

    def __init__(self, student: Student, params: FitParams, dtype: torch.dtype) -> None:
        self.student, self.dtype, self.loss = student, dtype, LOSSES[params.loss]
        self.device = student.head.weight.device
        self.optimiser = Optimiser(student, student.backbone.token_embeddings, params)

    def prepare(self, batch: TrainingBatch) -> list[Part]:
        """See `Step.prepare`."""
        texts, share = len(batch.targets), 1 / len(batch.targets)
        parts = split(batch.texts, traits_of(self.device).fit_tokens)
        return [Part(part, batch.targets[rows], torch.full((len(rows),), share)) for part, rows in parts]

    def run(self, parts: list[Part], rate: float) -> Tensor:
        """See `Step.run`."""
        self.student.train()
        total = torch.zeros((), device=self.device)
        texts = sum(len(part.targets) for part in parts)
        for part in parts:
            vectors = self.student(part.texts.to(self.device), self.dtype)
            share = len(part.targets) / texts
            loss = self.loss(vectors, upload(part.targets, self.device)).mean() * share
            loss.backward()
            total += loss.detach()
        self.optimiser.step(torch.cat([part.texts.ids for part in parts]), rate)
        return total
