"""Uncertainty by the bootstrap: resampled means, 95 % intervals, paired differences and their verdict."""

from typing import Any

import numpy as np

from pipeline.base import Array

COVERAGE = 0.95  # of an interval
BLOCK_COUNTS = 4_000_000  # resampling counts held in memory at once, 32 MB


def bootstrap_means(values: Array, count: int, seed: int) -> Array:
    """`[count, columns]`: means of `values [n, columns]` over `count` resamples of the rows, with replacement.

    All columns share each resample, so that differences and ratios of columns are paired.
    """
    rows = len(values)
    random = np.random.default_rng(seed)
    means = np.empty((count, values.shape[1]))
    block = max(1, BLOCK_COUNTS // rows)
    for start in range(0, count, block):
        counts = random.multinomial(rows, np.full(rows, 1 / rows), size=min(block, count - start))
        means[start : start + block] = counts @ values / rows
    return means


def interval(samples: Array) -> tuple[float, float] | None:
    """The middle 95 % of bootstrap samples; None without any. NaN and infinity (a ratio to zero) are left out."""
    samples = samples[np.isfinite(samples)]
    if not len(samples):
        return None
    low, high = np.quantile(samples, [(1 - COVERAGE) / 2, (1 + COVERAGE) / 2])
    return float(low), float(high)


def verdict(span: tuple[float, float] | None) -> str:
    """`lower`, `higher`, or `unresolved` where the interval of a difference straddles zero or is unknown."""
    if span is None or span[0] <= 0 <= span[1]:
        return "unresolved"
    return "lower" if span[1] < 0 else "higher"


def difference(value: float, samples: Array) -> dict[str, Any]:
    """Entry for a paired difference: its `mean`, the `interval` of its bootstrap `samples`, and its `verdict`."""
    span = interval(samples)
    return {"mean": float(value), "interval": span, "verdict": verdict(span)}
