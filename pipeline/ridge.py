"""The head's start: the ridge regression from the student's features to the teacher's vectors, in closed form."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from pipeline.errors import LeafError


@torch.no_grad()
def solve(pairs: Iterable[tuple[Tensor, Tensor]], head: nn.Linear, ridge: float) -> None:
    """Set the head's weight and bias to argmin |XW + b - Y|^2 + ridge * mean feature variance * n * |W|^2.

    `pairs` are batches of features [n, width] and targets [n, dim]; the normal equations are summed in float64, so the
    number of rows costs no memory.

    Raises:
        LeafError: without regularisation, fewer rows than features leave the head undetermined.
    """
    x_sum = y_sum = xx = xy = torch.zeros((), dtype=torch.float64)
    rows = 0
    for features, targets in pairs:
        x, y = features.double().cpu(), targets.double().cpu()
        x_sum, y_sum, xx, xy, rows = x_sum + x.sum(0), y_sum + y.sum(0), xx + x.T @ x, xy + x.T @ y, rows + len(x)
    x_mean, y_mean = x_sum / rows, y_sum / rows
    covariance, cross = xx / rows, xy / rows
    if head.bias is not None:
        covariance, cross = covariance - torch.outer(x_mean, x_mean), cross - torch.outer(x_mean, y_mean)
    covariance.diagonal().add_(ridge * covariance.diagonal().mean())
    factor, failed = torch.linalg.cholesky_ex(covariance)
    if failed:
        raise LeafError(
            f"fit.student.ridge: {ridge:g} leaves the head undetermined on {rows} texts with {head.in_features} "
            "features; set it above 0 or raise fit.student.ridge_rows"
        )
    weight = torch.cholesky_solve(cross, factor)
    head.weight.copy_(weight.T)
    if head.bias is not None:
        head.bias.copy_(y_mean - x_mean @ weight)
