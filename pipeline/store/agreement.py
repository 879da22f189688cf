"""Compares the vectors that two stores hold of the same texts: all of them, read shard by shard."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from pipeline.base import Array, LeafError, contains, cosines, key_array
from pipeline.store.chunks import CHUNK_ROWS
from pipeline.store.source import VectorSource
from pipeline.store.store import Store
from pipeline.store.validation import SAME_LENGTH, SAME_VECTOR

ROWS_AT_ONCE = 8 * CHUNK_ROWS  # of which there are four copies in float64 while they are compared
NAMED = 10  # texts in a message


@dataclass
class Comparison:
    """Vectors of the same texts in two stores."""

    rows: int = 0
    cosine_sum: float = 0.0
    lowest: float = 1.0
    differing: int = 0
    """Whose cosine is below SAME_VECTOR, or whose lengths differ by more than SAME_LENGTH."""
    ids: tuple[str, ...] = ()
    """Of the first NAMED of these texts."""

    def add(self, ids: list[str], first: Array, second: Array) -> None:
        """Count the vectors `[n, dim]` of the texts `ids`."""
        similarity = cosines(first, second)
        ratio = np.linalg.norm(second.astype(np.float32), axis=1) / np.linalg.norm(first.astype(np.float32), axis=1)
        differing = np.flatnonzero(~((similarity >= SAME_VECTOR) & (np.abs(ratio - 1) <= SAME_LENGTH)))
        self.rows += len(ids)
        self.cosine_sum += float(similarity.sum())
        self.lowest = min(self.lowest, float(similarity.min()))
        self.differing += len(differing)
        self.ids = (*self.ids, *(ids[row] for row in differing[: NAMED - len(self.ids)]))


def compare_shared(first: VectorSource, second: Store, keys: Array) -> Comparison:
    """Compare the two vectors of each of `keys` (sorted; both stores have them). The dimensions must be equal."""
    comparison = Comparison()
    for ids, chunk_keys, vectors in _vectors_of(second, keys):
        comparison.add(ids, first.lookup(chunk_keys), vectors)
    return comparison


def check_agreement(first: VectorSource, second: Store, keys: Array) -> None:
    """LeafError, with counts and ids, where the two stores have other vectors for any of `keys` (sorted)."""
    comparison = compare_shared(first, second, keys)
    if comparison.differing:
        more = ", ..." if comparison.differing > len(comparison.ids) else ""
        raise LeafError(
            f"{second.name}: has other vectors than {first.name} for {comparison.differing:,} of the "
            f"{comparison.rows:,} texts of both (lowest cosine {comparison.lowest:.4f}, at least {SAME_VECTOR} "
            f"expected), with the ids {', '.join(f'`{name:.100}`' for name in comparison.ids)}{more}; one of the two "
            "is not what it says: compare each with the teacher (`leaf store verify STORE --sample 100`)"
        )


def check_same_space(first: Store, second: Store, what: str) -> None:
    """LeafError unless the vectors of the two stores may stand in one; `what` says what cannot be done otherwise."""
    for name in ("fingerprint", "dtype", "dim", "normalized"):
        expected, actual = getattr(first.meta, name), getattr(second.meta, name)
        if actual != expected:
            versions = {store.meta.teacher.get("fingerprint_version") for store in (first, second)}
            hint = "; `leaf store migrate` gives a store of earlier versions today's" if len(versions) > 1 else ""
            raise LeafError(f"{second.name}: {what} {first.name}: {name} {actual!s:.16} is not {expected!s:.16}{hint}")


def _vectors_of(store: Store, keys: Array) -> Iterator[tuple[list[str], Array, Array]]:
    """Ids, keys and vectors of those rows of a store whose key is among `keys`, in passes; other chunks stay unread."""
    for i in range(len(store.shards)):
        frame = store.shard_rows_frame(i)
        shard_keys = key_array(frame["key"])
        wanted = contains(keys, shard_keys)
        for start in range(0, len(wanted), ROWS_AT_ONCE):
            rows = np.flatnonzero(wanted[start : start + ROWS_AT_ONCE])
            if len(rows):
                vectors = store.read(i, start, start + ROWS_AT_ONCE)[rows]
                yield frame["id"][start + rows].to_list(), shard_keys[start + rows], vectors
