"""Checks on rows and vectors before they are stored, and on the place where a store is published."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from pipeline.base import Array, LeafError, check_replaceable
from pipeline.store.chunks import CHUNK_ROWS
from pipeline.store.output import STORE_KIND
from pipeline.store.shard import ROW_SCHEMA, StoreMeta

SAME_VECTOR = 0.999  # least cosine of two encodings of a text: batch size and hardware change the last bits only
SAME_LENGTH = 0.02  # most that the lengths of two encodings of a text may differ, as a share


def checked_rows(rows: pl.DataFrame) -> pl.DataFrame:
    """The rows with ROW_SCHEMA; LeafError where columns, types or keys are not right for a shard."""
    missing = [name for name in ROW_SCHEMA if name not in rows.columns]
    if missing or not len(rows):
        raise LeafError(f"a shard needs at least one row with {', '.join(ROW_SCHEMA)}; missing: {missing or 'rows'}")
    try:
        rows = rows.select(pl.col(name).cast(dtype) for name, dtype in ROW_SCHEMA.items())
    except pl.exceptions.PolarsError as error:
        raise LeafError(f"the shard's rows have other types than {dict(ROW_SCHEMA)}: {error!s:.200}") from None
    if sum(rows.null_count().row(0)):
        raise LeafError(f"the shard's rows hold nulls: {rows.null_count().row(0, named=True)}")
    repeated = rows.filter(pl.col("key").is_duplicated())
    if len(repeated):
        raise LeafError(f"{len(repeated)} rows of the shard share a key, first id {repeated['id'][0]!r:.100}")
    return rows


def checked_vectors(rows: pl.DataFrame, vectors: Array, meta: StoreMeta) -> Array:
    """The vectors as float16 or float32 (for int8: float32); LeafError unless each is finite and not zero as such."""
    if vectors.shape != (len(rows), meta.dim):
        raise LeafError(f"vectors have the shape {vectors.shape}; the shard needs ({len(rows)}, {meta.dim})")
    if vectors.dtype not in (np.float16, np.float32):
        raise LeafError(f"vectors are {vectors.dtype}; the shard cache takes float32 or float16")
    with np.errstate(over="ignore"):
        stored = np.ascontiguousarray(vectors, np.float16 if meta.dtype == "float16" else np.float32)
    finite, zero = finite_and_zero(stored)
    for what, bad in (("NaN or infinite", ~finite), ("zero", zero)):
        if bad.any():
            first = rows["id"][int(bad.argmax())]
            raise LeafError(f"{int(bad.sum())} vectors are {what} as {meta.dtype}, first that of id {first!r:.100}")
    return stored


def finite_and_zero(vectors: Array) -> tuple[Array, Array]:
    """Two `[n] bool`: rows whose numbers are all finite, and rows whose numbers are all zero.

    Compares the bits as integers, a chunk at a time: NumPy's float16 arithmetic is twenty times slower.
    """
    half = vectors.dtype == np.float16
    unsigned: Any = np.uint16 if half else np.uint32
    magnitude, infinite = (0x7FFF, 0x7C00) if half else (0x7FFFFFFF, 0x7F800000)
    largest: Array = np.empty(len(vectors), unsigned)
    for start in range(0, len(vectors), CHUNK_ROWS):
        bits: Array = vectors[start : start + CHUNK_ROWS].view(unsigned) & unsigned(magnitude)
        largest[start : start + CHUNK_ROWS] = bits.max(axis=1)
    return largest < infinite, largest == 0


def check_free(out: Path, replace: bool) -> None:
    """LeafError unless `out` is absent or empty, or is a store and `replace` says that it may be replaced."""
    check_replaceable(out, STORE_KIND)
    if out.is_dir() and any(out.iterdir()) and not replace:
        raise LeafError(
            f"{out}: holds a store already: name another directory, or add --replace if that store may be lost"
        )
