"""Which rows of a store are encoded again before it is believed, and what their agreement proves."""

import secrets
from collections.abc import Sequence

import numpy as np

from pipeline.base import Array

WRONG = 0.01  # share of wrong vectors that `proof` speaks of


def draw(sizes: Sequence[int], count: int) -> list[Array]:
    """For shards of these numbers of rows, the row numbers drawn of each: `count` of all rows, and one of each shard.

    The system's random numbers decide, so that nobody can foresee which rows of a store must be right: keys are digests
    of texts, but whoever makes a store can compute them.
    """
    random = np.random.default_rng(secrets.randbits(256))
    chosen = np.sort(random.choice(sum(sizes), min(count, sum(sizes)), replace=False))
    drawn, first = [], 0
    for size in sizes:
        rows = chosen[np.searchsorted(chosen, first) : np.searchsorted(chosen, first + size)] - first
        drawn.append(rows if len(rows) or not size else random.integers(size, size=1))
        first += size
    return drawn


def proof(compared: int, rows: int) -> str:
    """What it proves that `compared` of `rows` rows, drawn by chance, have the right vectors."""
    if compared >= rows:
        return "every row"
    noticed = 100 * (1 - (1 - WRONG) ** compared)
    return f"{WRONG:.0%} of wrong vectors would have been noticed with {min(noticed, 99.9):.3g} %"
