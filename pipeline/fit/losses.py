"""Losses of the fit, and the terms that may stand beside them.

A loss of texts takes vectors and targets `[texts, dim]` and gives that of each text. A loss of a batch compares its
texts with each other, and gives one number; `weights` [texts] add up to 1 and are equal, or 0 for a text that only
fills the shape of its batch.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

Loss = Callable[[Tensor, Tensor], Tensor]
NONE = -1e4  # in place of the logarithm of 0


def _l2(vectors: Tensor, targets: Tensor) -> Tensor:
    distances: Tensor = torch.linalg.vector_norm(vectors - targets, dim=1)  # its gradient at 0 is 0
    return distances


def _mse(vectors: Tensor, targets: Tensor) -> Tensor:
    return (vectors - targets).square().sum(1)


def _cosine(vectors: Tensor, targets: Tensor) -> Tensor:
    return 1 - functional.cosine_similarity(vectors, targets)


LOSSES: dict[str, Loss] = {"l2": _l2, "mse": _mse, "cosine": _cosine}
"""By the name in `fit.loss`."""


def similarity_loss(vectors: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """The mean squared difference of cosines over all pairs of texts: MSE(S S^T, T T^T) (Jasper, arXiv 2412.19048)."""
    ours, theirs = (functional.normalize(rows, dim=1) for rows in (vectors, targets))
    differences: Tensor = ours @ ours.T - theirs @ theirs.T
    mean: Tensor = weights @ differences.square() @ weights
    return mean


def relative_loss(vectors: Tensor, targets: Tensor, pairs: Tensor, margin: float) -> Tensor:
    """The mean of max(0, s_mn - s_ij + margin) over pairs of pairs of texts with t_ij > t_mn (Jasper).

    Args:
        vectors: `[texts, dim]` of the student.
        targets: `[texts, dim]`.
        pairs: `[2, 2, n]`, the numbers i and j of n pairs, and m and n of as many; in either order.
        margin: by which the first must be the more similar.
    """
    ours, theirs = (functional.normalize(rows, dim=1) for rows in (vectors, targets))
    (s_one, s_other), (t_one, t_other) = (
        (_chosen(rows, pairs[:, 0]) * _chosen(rows, pairs[:, 1])).sum(2) for rows in (ours, theirs)
    )
    sign = (t_one - t_other).sign()
    hinges = functional.relu(margin - sign * (s_one - s_other)) * sign.abs()
    mean: Tensor = hinges.sum() / sign.abs().sum().clamp(min=1)
    return mean


def _chosen(rows: Tensor, numbers: Tensor) -> Tensor:
    """`rows[numbers]`, whose gradient is added up in one order: that of indexing depends on how many threads add."""
    return rows.index_select(0, numbers.reshape(-1)).view(*numbers.shape, -1)


def draw_pairs(weights: Tensor, draws: int) -> Tensor:
    """`[2, 2, draws]` for `relative_loss`: pairs of two different texts of those that count, which come first."""
    count = (weights > 0).sum()
    one, step = torch.rand(2, 2, draws, device=weights.device)
    first = (one * count).long()
    second = (first + 1 + (step * (count - 1)).long()) % count
    return torch.stack([first, second], 1)


def soft_distillation(vectors: Tensor, candidates: Tensor, cosines: Tensor, temperature: float) -> Tensor:
    """KL(softmax(teacher's cosines / t) || softmax(student's / t)) of each text's candidates (KaLM, arXiv 2506.20923).

    Args:
        vectors: `[texts, dim]` of the student.
        candidates: `[texts, n, dim]`, the teacher's vectors of each text's candidates.
        cosines: `[texts, n]`, the teacher's; -inf where a text has fewer. A text without any has the loss 0.
        temperature: t.
    """
    there = cosines.isfinite()
    ours = torch.bmm(functional.normalize(candidates, dim=2), functional.normalize(vectors, dim=1)[:, :, None])
    logits = (torch.where(there, scores / temperature, NONE) for scores in (ours.squeeze(2), cosines))
    s, t = (functional.log_softmax(scores, dim=1) for scores in logits)
    return (t.exp() * (t - s) * there).sum(1)
