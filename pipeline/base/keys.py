"""Keys, which join texts to their vectors: BLAKE2b-128 over role and text."""

from collections.abc import Iterable, Sequence
from hashlib import blake2b

import numpy as np
import polars as pl
import pyarrow as pa

from pipeline.base.arrays import Array
from pipeline.base.errors import LeafError

ROLES = ("query", "document")
KEY_BYTES = 16
KEY_DTYPE = np.dtype(f"V{KEY_BYTES}")


def key(role: str, text: str) -> bytes:
    """Key of a text: the 16 bytes of BLAKE2b-128 over role, a zero byte and the text.

    The role is part of it because a teacher's prompts differ by role (mteb #5383 shows what happens otherwise). The
    zero byte keeps role and text apart: no other role and text give the same bytes.
    """
    return blake2b(f"{role}\0{text}".encode(), digest_size=KEY_BYTES).digest()


def keys(roles: Iterable[str], texts: Iterable[str]) -> list[bytes]:
    """Keys of many texts, in their order."""
    given = zip(roles, texts, strict=True)
    return [blake2b(f"{role}\0{text}".encode(), digest_size=KEY_BYTES).digest() for role, text in given]


def key_array(keys: Sequence[bytes] | Array | pl.Series) -> Array:
    """Keys as `[n] V16`, which NumPy sorts and searches bytewise (an `S16` would lose trailing zeros).

    Raises:
        LeafError: a key is missing or not 16 bytes long.
    """
    if isinstance(keys, np.ndarray) and keys.dtype == KEY_DTYPE:
        return keys
    if isinstance(keys, pl.Series) and len(keys) and _all_valid(keys):
        # Without a Python object for each key, which would take four times the memory of the keys themselves.
        values = keys.rechunk().to_arrow().cast(pa.binary(KEY_BYTES))
        start = values.offset * KEY_BYTES
        return np.frombuffer(values.buffers()[1], np.uint8)[start : start + len(keys) * KEY_BYTES].view(KEY_DTYPE)
    listed: list[bytes] = list(keys)
    for row, entry in enumerate(listed):
        if not isinstance(entry, bytes) or len(entry) != KEY_BYTES:
            raise LeafError(f"row {row}: a key must be {KEY_BYTES} bytes, not {entry!r:.60}")
    return np.frombuffer(b"".join(listed), dtype=KEY_DTYPE)


def _all_valid(keys: pl.Series) -> bool:
    return keys.dtype == pl.Binary and bool((keys.bin.size() == KEY_BYTES).fill_null(False).all())


def merge_sorted(arrays: Sequence[Array]) -> Array:
    """All keys of several arrays, sorted. The stable sort merges arrays that are sorted already, as most are."""
    return np.sort(np.concatenate(arrays), kind="stable")


def contains(sorted_keys: Array, keys: Array) -> Array:
    """Which of `keys` are among `sorted_keys`: `[n] bool`. Both are arrays as `key_array` returns them."""
    if not len(sorted_keys) or not len(keys):
        return np.zeros(len(keys), dtype=bool)
    start = int(np.searchsorted(sorted_keys, keys[0]))
    if np.array_equal(sorted_keys[start : start + len(keys)], keys):
        return np.ones(len(keys), dtype=bool)  # the usual case, a whole corpus in the shard cache, needs no search
    nearest = np.minimum(np.searchsorted(sorted_keys, keys), len(sorted_keys) - 1)
    matches: Array = sorted_keys[nearest] == keys
    return matches
