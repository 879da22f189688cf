"""Caps: at most so many records of each origin, drawn by a hash of their ids (`corpus.sources[].cap`).

A first pass over the source gathers the hashes of its records, 8 bytes each. Those with the smallest are drawn: a fair
sample, which does not depend on the order of the source, and which a larger cap only adds to.
"""

from dataclasses import dataclass
from math import isqrt

import numpy as np
import polars as pl
from tqdm import tqdm

from pipeline.base import Array
from pipeline.corpus.readers.source import batches
from pipeline.corpus.split import below, draw_hashes
from pipeline.params import SourceParams


@dataclass(frozen=True)
class Drawn:
    """The records of a source that its cap takes."""

    hashes: Array
    """`[n]` uint64, sorted: `split.draw_hashes` of these records."""
    origins: dict[str, dict[str, int]]
    """By origin: `records` that are there (of the sample, if there is one), and those that were `drawn`."""

    def contains(self, hashes: Array) -> Array:
        """Which of these records are among them: `[n]` bool."""
        if not len(self.hashes):
            return np.zeros(len(hashes), dtype=bool)
        places = np.searchsorted(self.hashes, hashes).clip(max=len(self.hashes) - 1)
        matches: Array = self.hashes[places] == hashes
        return matches


def draw(source: SourceParams, seed: int) -> Drawn:
    """Draw records by the `cap` of the source: read it once, and keep of each origin those with the smallest hashes.

    A record with texts of several origins (a page of several kinds) is taken whole if any of them draws it.

    Raises:
        LeafError: as `readers.source.batches`.
    """
    gathered: dict[str, list[Array]] = {}
    with tqdm(desc=f"{source.name}: cap", unit=" texts", unit_scale=True, disable=None) as bar:
        for frame in batches(source):
            bar.update(len(frame))
            named = frame if source.source_field else frame.with_columns(origin=pl.lit(""))
            records = named.select("origin", "page").unique(maintain_order=True)
            hashes = draw_hashes(source.name, records["page"].to_list(), seed)
            kept = pl.DataFrame({"origin": records["origin"], "hash": hashes}).filter(below(hashes, source.sample))
            for (origin,), rows in kept.group_by("origin"):
                gathered.setdefault(str(origin), []).append(rows["hash"].to_numpy())
    by_origin = {origin: np.unique(np.concatenate(gathered[origin])) for origin in sorted(gathered)}
    counts = quotas({origin: len(hashes) for origin, hashes in by_origin.items()}, source)
    taken = [hashes[: counts[origin]] for origin, hashes in by_origin.items()]
    return Drawn(
        np.unique(np.concatenate([np.empty(0, np.uint64), *taken])),
        {origin: {"records": len(by_origin[origin]), "drawn": count} for origin, count in counts.items()},
    )


def quotas(records: dict[str, int], source: SourceParams) -> dict[str, int]:
    """How many records to draw of each origin, given how many it has."""
    cap = source.cap or 0
    if source.balance == "cap":
        return {origin: min(count, cap) for origin, count in records.items()}
    most = max(records.values(), default=1)
    shares = {origin: max(1, isqrt(cap * cap * count // most)) for origin, count in records.items()}
    return {origin: min(count, shares[origin]) for origin, count in records.items()}
