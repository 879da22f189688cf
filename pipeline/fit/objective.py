"""What a step minimises: the regression onto the teacher's vectors, and the terms that `fit` adds to it.

Most terms are of single texts, whose gradients can be computed in parts of a batch. Two compare the texts of a batch
with each other (`fit.similarity`, `fit.relative`) and need the vectors of all of them.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from pipeline.fit.losses import LOSSES, draw_pairs, relative_loss, similarity_loss, soft_distillation
from pipeline.params import FitParams


@dataclass(frozen=True)
class Outputs:
    """What the student gives for texts."""

    features: Tensor
    """`[texts, width]`: of the backbone."""
    vectors: Tensor
    """`[texts, dim]`."""
    further: tuple[Tensor, ...] = ()
    """`[texts, dim]` each: vectors of the students of fewer layers."""


@dataclass(frozen=True)
class Expected:
    """What the stores say of the same texts."""

    targets: Tensor
    """`[texts, dim]`; behind these columns, with `fit.anchor`, the vectors that features are kept near."""
    candidates: Tensor | None = None
    """`[texts, n, dim of the first teacher]`: its vectors of each text's candidates."""
    cosines: Tensor | None = None
    """`[texts, n]`: the teacher's cosines of these; -inf where a text has fewer."""

    def each(self, change: Callable[[Tensor], Tensor]) -> "Expected":
        """The same with all tensors changed."""
        return Expected(*map(change, self.present()))

    def rows(self, rows: Tensor) -> "Expected":
        """Those of some texts."""
        return self.each(lambda tensor: tensor[rows])

    def filled(self, texts: int) -> "Expected":
        """With rows of zeros behind them, for as many texts; these have no candidates."""
        more = self.each(lambda tensor: tensor.new_zeros(texts - len(tensor), *tensor.shape[1:]))
        if more.cosines is not None:
            more.cosines.fill_(float("-inf"))
        both = zip(self.present(), more.present(), strict=True)
        return Expected(*(torch.cat(tensors) for tensors in both))

    def present(self) -> tuple[Tensor, ...]:
        """All that are there, in order."""
        return tuple(tensor for tensor in (self.targets, self.candidates, self.cosines) if tensor is not None)


class Objective:
    """The loss of a step. The weights that change during a run are tensors, so that a recorded step reads them anew."""

    def __init__(self, params: FitParams, dim: int, device: torch.device) -> None:
        """For a student of vectors of `dim` dimensions on `device`."""
        self.params, self.dim, self.loss = params, dim, LOSSES[params.loss]
        self.compares = bool(params.similarity.weight or params.relative.weight)
        self._similarity, self._distill = torch.zeros(2, device=device).unbind()

    def set_progress(self, done: float) -> None:
        """Set the weights to those after a share `done` of the run's steps."""
        fade = self.params.similarity.fade
        self._similarity.fill_(self.params.similarity.weight * (1 if fade is None else max(0.0, 1 - done / fade)))
        self._distill.fill_(self.params.assistants.distill * done)

    def of_texts(self, outputs: Outputs, expected: Expected) -> Tensor:
        """`[texts]`: the terms of single texts."""
        params, targets = self.params, expected.targets[:, : self.dim]
        losses = self._weighted(self.loss(outputs.vectors, targets))
        for vectors in outputs.further:
            losses = losses + params.assistants.weight * self._weighted(self.loss(vectors, targets))
            if params.assistants.distill:
                losses = losses + self._distill * self.loss(vectors, outputs.vectors.detach())
        if params.anchor is not None:
            kept = LOSSES["l2"](functional.normalize(outputs.features, dim=1), expected.targets[:, self.dim :])
            losses = losses + params.anchor.weight * kept
        if params.candidates is not None and expected.candidates is not None and expected.cosines is not None:
            own = outputs.vectors[:, : expected.candidates.shape[2]]
            settings = params.candidates
            soft = soft_distillation(own, expected.candidates.float(), expected.cosines, settings.temperature)
            losses = losses + settings.weight * soft
        return losses

    def _weighted(self, losses: Tensor) -> Tensor:
        return losses if self.params.loss_weight == 1 else losses * self.params.loss_weight

    def of_batch(self, vectors: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        """The terms that compare texts, as one number: means over the whole vectors and their `fit.prefixes`.

        `weights` are as in `pipeline.fit.losses`.
        """
        params, targets = self.params, targets[:, : self.dim]
        pairs = draw_pairs(weights, params.relative.draws) if params.relative.weight else None
        total = torch.zeros((), device=vectors.device)
        for dim in (self.dim, *params.prefixes):
            if params.similarity.weight:
                total = total + self._similarity * similarity_loss(vectors[:, :dim], targets, weights)
            if pairs is not None:
                relative = relative_loss(vectors[:, :dim], targets, pairs, params.relative.margin)
                total = total + params.relative.weight * relative
        return total / (1 + len(params.prefixes))
