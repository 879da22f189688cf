"""The head before the first step, in closed form: ridge regression onto the teacher's vectors, or a rotation."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.base import LeafError

Pairs = Iterable[tuple[Tensor, ...]]
"""Batches of features [n, width], targets [n, dim] and, if rows do not count the same, their weights [n]."""


@torch.no_grad()
def ridge(pairs: Pairs, head: nn.Linear, penalty: float) -> None:
    """Set the head's weight and bias to argmin |XW + b - Y|^2 + penalty * mean feature variance * n * |W|^2.

    The normal equations are summed in float64, so the number of rows costs no memory.

    Raises:
        LeafError: without regularisation, fewer rows than features leave the head undetermined.
    """
    x_sum = y_sum = xx = xy = torch.zeros((), dtype=torch.float64)
    rows = 0.0
    for features, targets, *weights in pairs:
        x, y = features.double().cpu(), targets.double().cpu()
        wx, wy, count = (x, y, len(x)) if not weights else _weighted(x, y, weights[0])
        x_sum, y_sum, xx, xy, rows = x_sum + wx.sum(0), y_sum + wy.sum(0), xx + wx.T @ x, xy + wx.T @ y, rows + count
    x_mean, y_mean = x_sum / rows, y_sum / rows
    covariance, cross = xx / rows, xy / rows
    if head.bias is not None:
        covariance, cross = covariance - torch.outer(x_mean, x_mean), cross - torch.outer(x_mean, y_mean)
    covariance.diagonal().add_(penalty * covariance.diagonal().mean())
    factor, failed = torch.linalg.cholesky_ex(covariance)
    if failed:
        raise LeafError(
            f"fit.student.ridge: {penalty:g} leaves the head undetermined on {rows:g} texts with {head.in_features} "
            "features; set it above 0 or raise fit.student.head_rows"
        )
    weight = torch.cholesky_solve(cross, factor)
    head.weight.copy_(weight.T)
    if head.bias is not None:
        head.bias.copy_(y_mean - x_mean @ weight)


def _weighted(x: Tensor, y: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, float]:
    column = weights.double().cpu()[:, None]
    return x * column, y * column, float(column.sum())


@torch.no_grad()
def rotation(pairs: Pairs, head: nn.Linear) -> None:
    """Set the head to argmin |XW - Y|^2 over W with orthonormal rows, for features X of length one; the bias to zero.

    This is the orthogonal Procrustes problem (Schönemann, 1966). Such a head keeps every angle, so that the student
    ranks as its checkpoint did.

    Raises:
        LeafError: the student is wider than the teacher, so that no such head exists.
    """
    if head.in_features > head.out_features:
        raise LeafError(
            f"fit.student.head: `rotation` cannot take {head.in_features} features into {head.out_features} "
            "dimensions; use `ridge`"
        )
    cross = torch.zeros((), dtype=torch.float64)
    for features, targets, *weights in pairs:
        x, y = functional.normalize(features.double().cpu(), dim=1), targets.double().cpu()
        cross = cross + (x if not weights else _weighted(x, y, weights[0])[0]).T @ y
    left, _, right = torch.linalg.svd(cross, full_matrices=False)
    head.weight.copy_((left @ right).T)
    if head.bias is not None:
        head.bias.zero_()
