"""Which records are held out of training, and which are sampled: decided by a hash of the record's id.

So the decision about a record does not depend on what else the corpus holds, and all texts of a record share it.
"""

from collections.abc import Sequence
from hashlib import blake2b

import polars as pl


def held_out(source: str, ids: Sequence[str], share: float) -> pl.Series:
    """Which records of a source are held out, about `share` of them: `[n]` Boolean."""
    return _selected(source, ids, share)


def sampled(source: str, ids: Sequence[str], share: float, seed: int) -> pl.Series:
    """Which records of a source are kept in a sample of about `share` of them: `[n]` Boolean.

    A larger share selects the same records and more.
    """
    return _selected(f"{seed}\0{source}", ids, share)


def _selected(salt: str, ids: Sequence[str], share: float) -> pl.Series:
    """Whether BLAKE2b-64 of `salt`, a zero byte and the id, scaled to [0, 1), is below `share`."""
    limit, prefix = int(share * 2**64), f"{salt}\0".encode()
    hashes = (int.from_bytes(blake2b(prefix + name.encode(), digest_size=8).digest()) for name in ids)
    return pl.Series([value < limit for value in hashes], dtype=pl.Boolean)
