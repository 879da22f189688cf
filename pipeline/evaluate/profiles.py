"""Profiles of compressed vectors: the share of its own full nDCG@10 that each mode keeps, compared with the teacher's.

Shared by truncation (fewer dimensions) and quantisation (fewer bits).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from pipeline.base import Array
from pipeline.evaluate.bootstrap import bootstrap_means, difference, interval
from pipeline.params import EvaluateParams
from pipeline.serve import MODES


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
    samples = bootstrap_means(flat, params.bootstrap, params.seed).reshape(-1, *means.shape)
    with np.errstate(divide="ignore", invalid="ignore"):
        shares, share_samples = means / means[:1], samples / samples[:, :1]
    result: dict[str, dict[str, Any]] = {}
    for v, name in enumerate(names):
        result[name] = {}
        for m, mode in enumerate(MODES):
            entry: dict[str, Any] = {
                "n": n,
                "ndcg@10": float(means[v, m]),
                "interval": interval(samples[:, v, m]),
                "share": float(shares[v, m]) if np.isfinite(shares[v, m]) else None,
                "share_interval": interval(share_samples[:, v, m]),
                "difference": difference(means[v, m] - means[0, m], samples[:, v, m] - samples[:, 0, m]),
            }
            if m and np.isfinite(shares[v, [0, m]]).all():
                to_teacher = share_samples[:, v, m] - share_samples[:, v, 0]
                entry["profile"] = difference(shares[v, m] - shares[v, 0], to_teacher)
            result[name][mode] = entry
    return result


def largest_difference(variants: dict[str, dict[str, Any]], mode: str) -> dict[str, Any] | None:
    """The largest absolute difference of the mode's profile to the teacher's, and `at` which variant; None without any.

    `variants` is what `profiles` returns.
    """
    known = {name: modes[mode]["profile"] for name, modes in variants.items() if "profile" in modes[mode]}
    if not known:
        return None
    name = max(known, key=lambda variant: abs(known[variant]["mean"]))
    return {"at": name, "n": variants[name][mode]["n"], **known[name]}
