"""One step of the fit: forward, loss, backward, and the update of all weights. There are two ways of doing it.

On a CPU texts lie end to end, and every batch has a shape of its own (`PackedStep`). On an accelerator a batch of 32
texts is so little work that launching it would take longer than doing it. There texts are padded to one of a few
lengths (`PaddedStep`): a step then repeats, on the same memory, what the last one of that length did, and it can be
recorded once and replayed. Nothing in it waits for the device.

A batch that is too large for one pass is computed in parts, whose gradients add up to the batch's. Where the loss
compares texts, the vectors of all parts are computed first, without gradients; the loss of the whole batch gives the
gradient of each vector, which every part, computed once more, sends back (GradCache, arXiv 2101.06983).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from pipeline.base import LeafError
from pipeline.fit.loader import TrainingBatch
from pipeline.fit.losses import LOSSES
from pipeline.fit.objective import Expected, Objective, Outputs
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
    objective: Objective

    def prepare(self, batch: TrainingBatch) -> Any:
        """The batch as `run` takes it. Called ahead and in another thread."""

    def run(self, prepared: Any, rate: float, done: float = 0.0, *, head_only: bool = False) -> Tensor:
        """Update all weights, or the head's alone, at learning rate `rate`, after a share `done` of the run's steps.

        Returns the batch's loss before that; it holds until the next call.
        """


def step_for(student: Student, params: FitParams, dtype: torch.dtype, ranks: Ranks = ALONE) -> Step:
    """The way that suits the device where `student` is; forward and backward passes are computed in `dtype`.

    With several `ranks`, each computes its share of every batch.
    """
    if not ranks.alone:
        check_separable(LOSSES[params.loss], params.loss, student.dim)
        for name in ("similarity", "relative"):
            if getattr(params, name).weight:
                raise LeafError(
                    f"fit.{name}: compares the texts of a batch with each other, so that several processes cannot have "
                    "a share of a batch each: set cluster.fit_ranks to 1 (fit.replicas has whole batches)"
                )
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
    expected: Expected
    """That of the share."""
    of: int
    """Texts of the whole batch."""
    ids: Tensor
    """Token ids of the whole batch."""

    @classmethod
    def of_batch(cls, batch: TrainingBatch, ranks: Ranks) -> "Share":
        """That of this process."""
        if ranks.alone:
            return cls(batch.texts, batch.expected, len(batch.targets), batch.texts.ids)
        texts, rows = portion(batch.texts, ranks.rank, ranks.size)
        return cls(texts, batch.expected.rows(rows), len(batch.targets), batch.texts.ids)


def _outputs(student: Student, texts: Batch, dtype: torch.dtype, *, head_only: bool = False) -> Outputs:
    """The student's outputs, with gradients for all that trains, or for the heads alone."""
    with torch.set_grad_enabled(not head_only and torch.is_grad_enabled()):
        *further, features = student.all_features(texts, dtype)
    return Outputs(features, student.finish(features), student.finish_further(further))


@dataclass(frozen=True)
class Comparison:
    """What a batch that is compared with itself, but computed in parts, keeps between its two passes."""

    loss: Tensor
    """Of the whole batch."""
    gradients: Tensor
    """`[texts, dim]`: of each vector."""
    states: list[Tensor]
    """The random state before each part, so that dropout is repeated, and that behind the first pass."""


def _compare(
    parts: Sequence[Callable[[], Tensor]], loss: Callable[[Tensor], Tensor], device: torch.device
) -> Comparison:
    """The first pass: `loss` of the vectors that all parts give together."""
    vectors, states = [], []
    with torch.no_grad():
        for part in parts:
            states.append(_random(device).get_rng_state())
            vectors.append(part())
    whole = torch.cat(vectors).requires_grad_()
    value = loss(whole)
    gradients = torch.autograd.grad(value, whole)[0]
    return Comparison(value.detach(), gradients, [*states, _random(device).get_rng_state()])


def _random(device: torch.device) -> Any:
    """The module that holds the device's random state."""
    return torch if device.type == "cpu" else torch.get_device_module(device)


class PackedStep:
    """A step over texts laid end to end."""

    def __init__(self, student: Student, params: FitParams, dtype: torch.dtype, ranks: Ranks = ALONE) -> None:
        self.student, self.dtype, self.ranks = student, dtype, ranks
        self.device = student.head.weight.device
        self.objective = Objective(params, student.dim, self.device)
        self.optimiser = optimiser_for(student, student.backbone.token_embeddings, params)
        self.adamw = self.optimiser.adamw

    def prepare(self, batch: TrainingBatch) -> Share:
        """See `Step.prepare`."""
        return Share.of_batch(batch, self.ranks)

    def run(self, prepared: Share, rate: float, done: float = 0.0, *, head_only: bool = False) -> Tensor:
        """See `Step.run`."""
        self.student.train()
        self.optimiser.begin(head_only=head_only)
        self.objective.set_progress(done)
        total = torch.zeros((), device=self.device)
        parts = split(prepared.texts, traits_of(self.device).fit_tokens) if prepared.texts else []
        if self.objective.compares and len(parts) > 1:
            self._add_compared(parts, prepared.expected, total, head_only=head_only)
        else:
            for texts, rows in parts:
                outputs = self._outputs(texts, head_only=head_only)
                expected = self._upload(prepared.expected.rows(rows))
                loss = self.objective.of_texts(outputs, expected).mean() * (len(rows) / prepared.of)
                if self.objective.compares:
                    loss = loss + self._of_batch(outputs.vectors, expected.targets)
                loss.backward()  # type: ignore[no-untyped-call]
                total += loss.detach()
        if not self.ranks.alone:
            self.optimiser.share(self.ranks, prepared.ids, total, head_only=head_only)
        self.optimiser.step(prepared.ids, rate)
        return total

    def _add_compared(
        self, parts: list[tuple[Batch, Tensor]], expected: Expected, total: Tensor, *, head_only: bool
    ) -> None:
        """Add the gradients, and to `total` the loss, of a batch in several parts that are compared with each other."""
        rows = torch.cat([rows for _, rows in parts])
        expected = self._upload(expected.rows(rows))  # in the order of the parts
        runs = [partial(self._vectors, texts) for texts, _ in parts]
        compared = _compare(runs, lambda vectors: self._of_batch(vectors, expected.targets), self.device)
        total += compared.loss
        start = 0
        for (texts, own), state in zip(parts, compared.states, strict=False):
            _random(self.device).set_rng_state(state)
            place = torch.arange(start, start := start + len(own), device=self.device)
            outputs = self._outputs(texts, head_only=head_only)
            loss = self.objective.of_texts(outputs, expected.rows(place)).sum() / len(rows)
            (loss + (outputs.vectors * compared.gradients[place]).sum()).backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        _random(self.device).set_rng_state(compared.states[-1])

    def _outputs(self, texts: Batch, *, head_only: bool) -> Outputs:
        return _outputs(self.student, texts.to(self.device), self.dtype, head_only=head_only)

    def _vectors(self, texts: Batch) -> Tensor:
        return self._outputs(texts, head_only=True).vectors

    def _upload(self, expected: Expected) -> Expected:
        return expected.each(lambda tensor: upload(tensor, self.device))

    def _of_batch(self, vectors: Tensor, targets: Tensor) -> Tensor:
        weights = torch.full((len(vectors),), 1 / len(vectors), device=self.device)
        return self.objective.of_batch(vectors, targets, weights)


@dataclass(frozen=True)
class PaddedPart:
    """Texts of a batch that are computed together, padded to one length, and their share of the batch's loss."""

    ids: Tensor
    """`[texts, length]`."""
    lengths: Tensor
    """`[texts]`: tokens of each without padding."""
    weights: Tensor
    """`[texts]`: share of each text in the loss; 0 for texts that only fill the shape."""
    expected: Expected

    def each(self, change: Callable[[Tensor], Tensor]) -> "PaddedPart":
        """The part with all its tensors changed."""
        ids, lengths, weights = map(change, (self.ids, self.lengths, self.weights))
        return PaddedPart(ids, lengths, weights, self.expected.each(change))

    def tensors(self) -> tuple[Tensor, ...]:
        """All of them, in order."""
        return self.ids, self.lengths, self.weights, *self.expected.present()

    @property
    def texts(self) -> Batch:
        """As the student takes them."""
        return Batch.padded(self.ids, self.lengths)


class PaddedStep:
    """A step over texts padded to one of a few lengths, always the same number of them."""

    def __init__(
        self, student: Student, params: FitParams, dtype: torch.dtype, recorder: Recorder, ranks: Ranks = ALONE
    ) -> None:
        """`recorder` is given the two functions of a step: the gradients of a part, and the update."""
        self.student, self.dtype, self.ranks = student, dtype, ranks
        self.batch_size, self.recorder = -(-params.batch_size // ranks.size), recorder
        self.device = student.head.weight.device
        self.objective = Objective(params, student.dim, self.device)
        self.optimiser = DeviceOptimiser(student, params)
        self.adamw = self.optimiser.adamw
        self.total = torch.zeros((), device=self.device)
        # Recorded for each length, and for steps of the head alone.
        self._gradients: dict[tuple[int, bool], tuple[PaddedPart, Callable[[], None]]] = {}
        self._updates = {head_only: recorder(self.optimiser.update) for head_only in (False, True)}

    def prepare(self, batch: TrainingBatch) -> list[PaddedPart]:
        """See `Step.prepare`."""
        share = Share.of_batch(batch, self.ranks)
        if share.texts is None:
            return []
        length = padded_length(share.texts.length_groups[-1][1], self.student.max_length)
        size = min(self.batch_size, max(1, traits_of(self.device).fit_tokens // length))  # texts of a part
        rows = len(share.expected.targets)
        texts = -(-rows // size) * size
        ids, lengths = pad(share.texts, texts, length)
        weights = torch.zeros(texts)
        weights[:rows] = 1 / share.of
        cuts = torch.split(torch.arange(texts), size)
        expected = share.expected.filled(texts)
        parts = [PaddedPart(ids[cut], lengths[cut], weights[cut], expected.rows(cut)) for cut in cuts]
        return [part.each(lambda tensor: staged(tensor, self.device)) for part in parts]

    def run(self, prepared: list[PaddedPart], rate: float, done: float = 0.0, *, head_only: bool = False) -> Tensor:
        """See `Step.run`."""
        self.student.train()
        self.total.zero_()
        self.optimiser.set_rate(rate)
        self.objective.set_progress(done)
        if self.objective.compares and len(prepared) > 1:
            self._add_compared(prepared, head_only=head_only)
        else:
            for part in prepared:
                kind = part.ids.shape[1], head_only
                if kind not in self._gradients:
                    self._gradients[kind] = self._for_shape_of(part, head_only=head_only)
                buffers, add_gradients = self._gradients[kind]
                for own, new in zip(buffers.tensors(), part.tensors(), strict=True):
                    overwrite(own, new)
                add_gradients()
        if not self.ranks.alone:
            self.ranks.sum_gradients(self.optimiser.trained, [self.total], head_only=head_only)
        self._updates[head_only]()
        return self.total

    def _for_shape_of(self, part: PaddedPart, *, head_only: bool) -> tuple[PaddedPart, Callable[[], None]]:
        """Memory on the device for such a part, and the function that adds the gradients of what lies there."""
        buffers = part.each(lambda tensor: torch.empty_like(tensor, device=self.device))

        def add_gradients() -> None:
            outputs = _outputs(self.student, buffers.texts, self.dtype, head_only=head_only)
            loss = (self.objective.of_texts(outputs, buffers.expected) * buffers.weights).sum()
            if self.objective.compares:
                loss = loss + self.objective.of_batch(outputs.vectors, buffers.expected.targets, buffers.weights)
            loss.backward()  # type: ignore[no-untyped-call]
            self.total.add_(loss.detach())

        return buffers, self.recorder(add_gradients)

    def _add_compared(self, prepared: list[PaddedPart], *, head_only: bool) -> None:
        """Add the gradients of a batch in several parts that are compared with each other. It is not recorded."""
        parts = [part.each(lambda tensor: upload(tensor, self.device)) for part in prepared]
        targets = torch.cat([part.expected.targets for part in parts])
        weights = torch.cat([part.weights for part in parts])
        runs = [partial(self._vectors, part) for part in parts]
        loss = partial(self.objective.of_batch, targets=targets, weights=weights)
        compared = _compare(runs, loss, self.device)
        self.total.add_(compared.loss)
        sizes = [len(part.weights) for part in parts]
        for part, state, gradients in zip(parts, compared.states, torch.split(compared.gradients, sizes), strict=False):
            _random(self.device).set_rng_state(state)
            outputs = _outputs(self.student, part.texts, self.dtype, head_only=head_only)
            own = (self.objective.of_texts(outputs, part.expected) * part.weights).sum()
            (own + (outputs.vectors * gradients).sum()).backward()  # type: ignore[no-untyped-call]
            self.total.add_(own.detach())
        _random(self.device).set_rng_state(compared.states[-1])

    def _vectors(self, part: PaddedPart) -> Tensor:
        return _outputs(self.student, part.texts, self.dtype).vectors


def padded_length(longest: int, most: int) -> int:
    """The length that texts of up to `longest` tokens are padded to: 8, 16, 24, 32, 48, 64, 96 and so on, or `most`.

    Two for each doubling are few shapes, and at most half as many tokens again.
    """
    power = 1 << max(longest - 1, SHORTEST - 1).bit_length()
    between = power * 3 // 4
    return min(between if longest <= between and between % SHORTEST == 0 else power, most)
