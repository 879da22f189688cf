"""Figures with their n and 95 % bootstrap interval, paired differences, and what they decide."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from pipeline.base.arrays import Array
from pipeline.evaluate import metrics
from pipeline.params.sections import EvaluateParams
from pipeline.serve.modes import MODES


def verdict(span: tuple[float, float] | None) -> str:
    """`lower`, `higher`, or `unresolved` where the interval of a difference straddles zero or is unknown."""
    if span is None or span[0] <= 0 <= span[1]:
        return "unresolved"
    return "lower" if span[1] < 0 else "higher"


def difference(value: float, samples: Array) -> dict[str, Any]:
    """A paired difference `value`, its interval from the bootstrap `samples` of it, and its verdict."""
    span = metrics.interval(samples)
    return {"mean": float(value), "interval": span, "verdict": verdict(span)}


def profiles(values: Array, names: Sequence[str], params: EvaluateParams) -> dict[str, dict[str, Any]]:
    """Figures of variants (dimensions, precisions) against the first of them, by mode.

    Args:
        values: `[queries, variants, modes]` nDCG@10; the modes are MODES.
        names: of the variants.

    Returns:
        name -> mode -> `n`, `ndcg@10`, its `interval`, its `share` of the mode's own first variant, `difference` to
        that variant and, for all but the teacher, `profile`: the share less the teacher's share.
    """
    n, means = len(values), values.mean(0)
    flat = values.reshape(n, -1)
    samples = metrics.bootstrap(flat, params.bootstrap, params.seed).reshape(-1, *means.shape)
    with np.errstate(divide="ignore", invalid="ignore"):
        shares, drawn = means / means[:1], samples / samples[:, :1]
    found: dict[str, dict[str, Any]] = {}
    for at, name in enumerate(names):
        found[name] = {}
        for m, mode in enumerate(MODES):
            entry: dict[str, Any] = {
                "n": n,
                "ndcg@10": float(means[at, m]),
                "interval": metrics.interval(samples[:, at, m]),
                "share": finite(shares[at, m]),
                "share_interval": metrics.interval(drawn[:, at, m]),
                "difference": difference(means[at, m] - means[0, m], samples[:, at, m] - samples[:, 0, m]),
            }
            if m and np.isfinite(shares[at, [0, m]]).all():
                entry["profile"] = difference(shares[at, m] - shares[at, 0], drawn[:, at, m] - drawn[:, at, 0])
            found[name][mode] = entry
    return found


def largest(variants: dict[str, dict[str, Any]], mode: str) -> dict[str, Any] | None:
    """The largest difference in size between the mode's profile and the teacher's, and the variant it is at."""
    known = {name: modes[mode]["profile"] for name, modes in variants.items() if "profile" in modes[mode]}
    if not known:
        return None
    name = max(known, key=lambda one: abs(known[one]["mean"]))
    return {"at": name, "n": variants[name][mode]["n"], **known[name]}


def finite(value: float) -> float | None:
    """`value`, or None for a ratio to nothing."""
    return float(value) if np.isfinite(value) else None
