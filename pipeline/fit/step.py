"""One step of the fit: forward, loss, backward, and the update of all weights. There are two ways of doing it.

On a CPU texts lie end to end, and every batch has a shape of its own (`PackedStep`). On an accelerator a batch of 32
texts is so little work that launching it would take longer than doing it. There texts are padded to one of a few
lengths (`PaddedStep`): a step then repeats, on the same memory, what the last one of that length did, and it can be
recorded once and replayed. Nothing in it waits for the device.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from pipeline.fit.loader import TrainingBatch
from pipeline.fit.losses import LOSSES, Loss
from pipeline.fit.optimiser import DeviceOptimiser, optimiser_for
from pipeline.model import Batch, Graphs, Student, overwrite, pad, split, staged, traits_of, upload
from pipeline.params import FitParams

SHORTEST = 8  # tokens that the shortest texts are padded to

Recorder = Callable[[Callable[[], None]], Callable[[], None]]
"""Makes of a function one that does the same, but may replay what it did before."""


class Step(Protocol):
    """Trains on one batch."""

    adamw: torch.optim.AdamW
    loss: Loss

    def prepare(self, batch: TrainingBatch) -> Any:
        """The batch as `run` takes it. Called ahead and in another thread."""

    def run(self, prepared: Any, rate: float, *, head_only: bool = False) -> Tensor:
        """Update all weights, or the head's alone, at learning rate `rate`.

        Returns the batch's loss before that; it holds until the next call.
        """


def step_for(student: Student, params: FitParams, dtype: torch.dtype) -> Step:
    """The way that suits the device where `student` is; forward and backward passes are computed in `dtype`."""
    device = student.head.weight.device
    traits = traits_of(device)
    if traits.packed or not student.backbone.takes_padding:
        return PackedStep(student, params, dtype)
    return PaddedStep(student, params, dtype, Graphs(device).recorded if traits.graphs else lambda run: run)


class PackedStep:
    """A step over texts laid end to end."""

    def __init__(self, student: Student, params: FitParams, dtype: torch.dtype) -> None:
        self.student, self.dtype, self.loss = student, dtype, LOSSES[params.loss]
        self.device = student.head.weight.device
        self.optimiser = optimiser_for(student, student.backbone.token_embeddings, params)
        self.adamw = self.optimiser.adamw

    def prepare(self, batch: TrainingBatch) -> TrainingBatch:
        """See `Step.prepare`."""
        return batch

    def run(self, prepared: TrainingBatch, rate: float, *, head_only: bool = False) -> Tensor:
        """See `Step.run`."""
        self.student.train()
        self.optimiser.begin(head_only=head_only)
        total = torch.zeros((), device=self.device)
        for texts, rows in split(prepared.texts, traits_of(self.device).fit_tokens):
            vectors = _vectors(self.student, texts.to(self.device), self.dtype, head_only=head_only)
            losses = self.loss(vectors, upload(prepared.targets[rows], self.device))
            loss = losses.mean() * (len(rows) / len(prepared.targets))
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        self.optimiser.step(prepared.texts.ids, rate)
        return total


def _vectors(student: Student, texts: Batch, dtype: torch.dtype, *, head_only: bool) -> Tensor:
    """`[texts, dim]`, with gradients for all that trains, or for the head alone."""
    with torch.set_grad_enabled(not head_only):
        features = student.features(texts, dtype)
    return student.finish(features)


@dataclass(frozen=True)
class PaddedPart:
    """Texts of a batch that are computed together, padded to one length, and their share of the batch's loss."""

    ids: Tensor
    """`[texts, length]`."""
    lengths: Tensor
    """`[texts]`: tokens of each without padding."""
    targets: Tensor
    """`[texts, dim]`."""
    weights: Tensor
    """`[texts]`: share of each text in the loss; 0 for texts that only fill the shape."""

    def each(self, change: Callable[[Tensor], Tensor]) -> "PaddedPart":
        """The part with all its tensors changed."""
        return PaddedPart(*map(change, self.tensors()))

    def tensors(self) -> tuple[Tensor, ...]:
        """All of them, in order."""
        return self.ids, self.lengths, self.targets, self.weights


class PaddedStep:
    """A step over texts padded to one of a few lengths, always the same number of them."""

    def __init__(self, student: Student, params: FitParams, dtype: torch.dtype, recorder: Recorder) -> None:
        """`recorder` is given the two functions of a step: the gradients of a part, and the update."""
        self.student, self.dtype, self.loss = student, dtype, LOSSES[params.loss]
        self.batch_size, self.recorder = params.batch_size, recorder
        self.device = student.head.weight.device
        self.optimiser = DeviceOptimiser(student, params)
        self.adamw = self.optimiser.adamw
        self.total = torch.zeros((), device=self.device)
        # Recorded for each length, and for steps of the head alone.
        self._gradients: dict[tuple[int, bool], tuple[PaddedPart, Callable[[], None]]] = {}
        self._updates = {head_only: recorder(self.optimiser.update) for head_only in (False, True)}

    def prepare(self, batch: TrainingBatch) -> list[PaddedPart]:
        """See `Step.prepare`."""
        length = padded_length(batch.texts.length_groups[-1][1], self.student.max_length)
        size = min(self.batch_size, max(1, traits_of(self.device).fit_tokens // length))  # texts of a part
        rows = len(batch.targets)
        texts = -(-rows // size) * size
        ids, lengths = pad(batch.texts, texts, length)
        targets, weights = torch.zeros(texts, batch.targets.shape[1]), torch.zeros(texts)
        targets[:rows], weights[:rows] = batch.targets, 1 / rows
        parts = zip(*(torch.split(tensor, size) for tensor in (ids, lengths, targets, weights)), strict=True)
        return [PaddedPart(*part).each(lambda tensor: staged(tensor, self.device)) for part in parts]

    def run(self, prepared: list[PaddedPart], rate: float, *, head_only: bool = False) -> Tensor:
        """See `Step.run`."""
        self.student.train()
        self.total.zero_()
        self.optimiser.set_rate(rate)
        for part in prepared:
            kind = part.ids.shape[1], head_only
            if kind not in self._gradients:
                self._gradients[kind] = self._for_shape_of(part, head_only=head_only)
            buffers, add_gradients = self._gradients[kind]
            for own, new in zip(buffers.tensors(), part.tensors(), strict=True):
                overwrite(own, new)
            add_gradients()
        self._updates[head_only]()
        return self.total

    def _for_shape_of(self, part: PaddedPart, *, head_only: bool) -> tuple[PaddedPart, Callable[[], None]]:
        """Memory on the device for such a part, and the function that adds the gradients of what lies there."""
        buffers = part.each(lambda tensor: torch.empty_like(tensor, device=self.device))

        def add_gradients() -> None:
            texts = Batch.padded(buffers.ids, buffers.lengths)
            vectors = _vectors(self.student, texts, self.dtype, head_only=head_only)
            loss = (self.loss(vectors, buffers.targets) * buffers.weights).sum()
            loss.backward()  # type: ignore[no-untyped-call]
            self.total.add_(loss.detach())

        return buffers, self.recorder(add_gradients)


def padded_length(longest: int, most: int) -> int:
    """The length that texts of up to `longest` tokens are padded to: 8, 16, 24, 32, 48, 64, 96 and so on, or `most`.

    Two for each doubling are few shapes, and at most half as many tokens again.
    """
    power = 1 << max(longest - 1, SHORTEST - 1).bit_length()
    between = power * 3 // 4
    return min(between if longest <= between and between % SHORTEST == 0 else power, most)
