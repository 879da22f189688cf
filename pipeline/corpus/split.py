"""Which records are held out of training, and which are sampled: decided by a hash of the record's source and id.

So the decision about a record does not depend on what else the corpus holds, and all texts of a record share it. The
records of a page have one hash, that of the page's id (`corpus.sources[].page_suffix`).
Records that share a text are held out together (`pipeline.corpus.shared_texts`): else a held-out text would be trained
on.
"""

from collections.abc import Sequence
from hashlib import blake2b

import numpy as np

from pipeline.base import Array


def record_hashes(source: str, ids: Sequence[str]) -> Array:
    """`[n]` uint64: BLAKE2b-64 of the source, a zero byte and the id; they stand for the records and decide on them."""
    return _hashes(source, ids)


def draw_hashes(source: str, ids: Sequence[str], seed: int) -> Array:
    """`[n]` uint64: by these, records are drawn for samples and caps, the smallest first.

    So a larger share, or cap, draws the same records and more.
    """
    return _hashes(f"{seed}\0{source}", ids)


def below(hashes: Array, share: float) -> Array:
    """`[n]` bool: whether hashes, scaled to [0, 1), are below `share`."""
    limit = int(share * 2**64)
    chosen: Array = np.ones(len(hashes), dtype=bool) if limit >= 2**64 else hashes < np.uint64(limit)
    return chosen


def _hashes(salt: str, ids: Sequence[str]) -> Array:
    prefix = f"{salt}\0".encode()
    digests = b"".join([blake2b(prefix + name.encode(), digest_size=8).digest() for name in ids])
    return np.frombuffer(digests, dtype=">u8").astype(np.uint64)
