"""The key that joins a text to its vector: BLAKE2b-128 over role and text."""

from collections.abc import Iterable, Sequence
from hashlib import blake2b

import numpy as np
import polars as pl
import pyarrow as pa

from pipeline.base.arrays import Array
from pipeline.base.errors import LeafError

KEY_BYTES = 16
ROLES = ("query", "document")


def key(role: str, text: str) -> bytes:
    """16 bytes over role and text; the zero byte keeps (`query`, `x`) apart from every other split of the same letters.

    The role is part of it because a teacher's prompts differ by role (mteb #5383 shows what happens otherwise).
    """
    return blake2b(f"{role}\0{text}".encode(), digest_size=KEY_BYTES).digest()


def keys(roles: Iterable[str], texts: Iterable[str]) -> list[bytes]:
    """Keys of many texts, in order."""
    return [key(role, text) for role, text in zip(roles, texts, strict=True)]


def merge_sorted(runs: Sequence[Array]) -> Array:
    """All keys of these arrays in order. The stable sort takes sorted runs, as most keys come, in one pass."""
    return np.sort(np.concatenate(runs), kind="stable")


KEY_DTYPE = np.dtype(f"V{KEY_BYTES}")


def key_array(keys: Sequence[bytes] | Array | pl.Series) -> Array:
    """Keys as `[n] V16`, which NumPy sorts and searches bytewise (an `S16` would lose trailing zeros).

    Raises:
        LeafError: a key is missing or not 16 bytes long.
    """
    if isinstance(keys, np.ndarray) and keys.dtype == KEY_DTYPE:
        return keys
    if isinstance(keys, pl.Series) and len(keys) and _all_keys(keys):
        # Without an object of Python's for every key: those take four times the memory of the keys themselves.
        values = keys.rechunk().to_arrow().cast(pa.binary(KEY_BYTES))
        first = values.offset * KEY_BYTES
        return np.frombuffer(values.buffers()[1], np.uint8)[first : first + len(keys) * KEY_BYTES].view(KEY_DTYPE)
    listed: list[bytes] = list(keys)
    for row, entry in enumerate(listed):
        if not isinstance(entry, bytes) or len(entry) != KEY_BYTES:
            raise LeafError(f"row {row}: a key must be {KEY_BYTES} bytes, not {entry!r:.60}")
    return np.frombuffer(b"".join(listed), dtype=KEY_DTYPE)


def _all_keys(keys: pl.Series) -> bool:
    return keys.dtype == pl.Binary and bool((keys.bin.size() == KEY_BYTES).fill_null(False).all())


def contains(ordered: Array, keys: Array) -> Array:
    """`[n] bool`: which of `keys` are among the sorted `ordered`; both as `key_array` gives them."""
    if not len(ordered) or not len(keys):
        return np.zeros(len(keys), dtype=bool)
    first = int(np.searchsorted(ordered, keys[0]))
    if np.array_equal(ordered[first : first + len(keys)], keys):  # as of a corpus that the pool holds: no search
        return np.ones(len(keys), dtype=bool)
    place = np.minimum(np.searchsorted(ordered, keys), len(ordered) - 1)
    found: Array = ordered[place] == keys
    return found
