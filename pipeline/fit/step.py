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
from pipeline.fit.ranks import ALONE, Ranks, check_separable
from pipeline.model import (
    Batch,
    Graphs,
    Student,
    bf16_is_fast,
    overwrite,
    pad,
    portion,
    split,
    staged,
    traits_of,
    upload,
)
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

    def run(self, prepared: Any, rate: float) -> Tensor:
        """Update all weights at learning rate `rate`; returns the batch's loss before that, until the next call."""


def step_for(student: Student, params: FitParams, dtype: torch.dtype, ranks: Ranks = ALONE) -> Step:
    """The way that suits the device where `student` is; forward and backward passes are computed in `dtype`.

    With several `ranks`, each computes its share of every batch.
    """
    if not ranks.alone:
        check_separable(LOSSES[params.loss], params.loss, student.dim)
    device = student.head.weight.device
    traits = traits_of(device)
    if traits.packed or not student.backbone.takes_padding:
        return PackedStep(student, params, dtype, ranks)
    recorder = Graphs(device).recorded if traits.graphs else lambda run: run
    return PaddedStep(student, params, dtype, recorder, ranks)


def compute_dtype(params: FitParams, device: torch.device) -> torch.dtype:
    """Type of the forward and backward passes (`fit.precision`) on a device."""
    if params.precision == "auto":
        return torch.bfloat16 if bf16_is_fast(device) else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[params.precision]


@dataclass(frozen=True)
class Share:
    """What one process computes of a batch."""

    texts: Batch | None
    """None where there are fewer texts than processes."""
    targets: Tensor
    """`[texts, dim]`, those of the share."""
    of: int
    """Texts of the whole batch."""
    ids: Tensor
    """Token ids of the whole batch."""

    @classmethod
    def of_batch(cls, batch: TrainingBatch, ranks: Ranks) -> "Share":
        """That of this process."""
        if ranks.alone:
            return cls(batch.texts, batch.targets, len(batch.targets), batch.texts.ids)
        texts, rows = portion(batch.texts, ranks.rank, ranks.size)
        return cls(texts, batch.targets[rows], len(batch.targets), batch.texts.ids)


class PackedStep:
    """A step over texts laid end to end."""

    def __init__(self, student: Student, params: FitParams, dtype: torch.dtype, ranks: Ranks = ALONE) -> None:
        self.student, self.dtype, self.loss, self.ranks = student, dtype, LOSSES[params.loss], ranks
        self.device = student.head.weight.device
        self.optimiser = optimiser_for(student, student.backbone.token_embeddings, params)
        self.adamw = self.optimiser.adamw

    def prepare(self, batch: TrainingBatch) -> Share:
        """See `Step.prepare`."""
        return Share.of_batch(batch, self.ranks)

    def run(self, prepared: Share, rate: float) -> Tensor:
        """See `Step.run`."""
        self.student.train()
        total = torch.zeros((), device=self.device)
        for texts, rows in split(prepared.texts, traits_of(self.device).fit_tokens) if prepared.texts else ():
            vectors = self.student(texts.to(self.device), self.dtype)
            losses = self.loss(vectors, upload(prepared.targets[rows], self.device))
            loss = losses.mean() * (len(rows) / prepared.of)
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        if not self.ranks.alone:
            self.optimiser.share(self.ranks, prepared.ids, total)
        self.optimiser.step(prepared.ids, rate)
        return total


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

    def __init__(
        self, student: Student, params: FitParams, dtype: torch.dtype, recorder: Recorder, ranks: Ranks = ALONE
    ) -> None:
        """`recorder` is given the two functions of a step: the gradients of a part, and the update."""
        self.student, self.dtype, self.loss, self.ranks = student, dtype, LOSSES[params.loss], ranks
        self.batch_size, self.recorder = -(-params.batch_size // ranks.size), recorder
        self.device = student.head.weight.device
        self.optimiser = DeviceOptimiser(student, params)
        self.adamw = self.optimiser.adamw
        self.total = torch.zeros((), device=self.device)
        self._gradients: dict[int, tuple[PaddedPart, Callable[[], None]]] = {}
        self._update = recorder(self.optimiser.update)

    def prepare(self, batch: TrainingBatch) -> list[PaddedPart]:
        """See `Step.prepare`."""
        share = Share.of_batch(batch, self.ranks)
        if share.texts is None:
            return []
        length = padded_length(share.texts.length_groups[-1][1], self.student.max_length)
        size = min(self.batch_size, max(1, traits_of(self.device).fit_tokens // length))  # texts of a part
        rows = len(share.targets)
        texts = -(-rows // size) * size
        ids, lengths = pad(share.texts, texts, length)
        targets, weights = torch.zeros(texts, share.targets.shape[1]), torch.zeros(texts)
        targets[:rows], weights[:rows] = share.targets, 1 / share.of
        parts = zip(*(torch.split(tensor, size) for tensor in (ids, lengths, targets, weights)), strict=True)
        return [PaddedPart(*part).each(lambda tensor: staged(tensor, self.device)) for part in parts]

    def run(self, prepared: list[PaddedPart], rate: float) -> Tensor:
        """See `Step.run`."""
        self.student.train()
        self.total.zero_()
        self.optimiser.set_rate(rate)
        for part in prepared:
            length = part.ids.shape[1]
            if length not in self._gradients:
                self._gradients[length] = self._for_shape_of(part)
            buffers, add_gradients = self._gradients[length]
            for own, new in zip(buffers.tensors(), part.tensors(), strict=True):
                overwrite(own, new)
            add_gradients()
        if not self.ranks.alone:
            self.ranks.sum_gradients(self.optimiser.trained, [self.total])
        self._update()
        return self.total

    def _for_shape_of(self, part: PaddedPart) -> tuple[PaddedPart, Callable[[], None]]:
        """Memory on the device for such a part, and the function that adds the gradients of what lies there."""
        buffers = part.each(lambda tensor: torch.empty_like(tensor, device=self.device))

        def add_gradients() -> None:
            vectors = self.student(Batch.padded(buffers.ids, buffers.lengths), self.dtype)
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
