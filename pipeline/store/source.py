"""VectorSource: the interface through which fitting and evaluation read stored teacher vectors."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property

import numpy as np
import polars as pl

from pipeline.base import Array, LeafError, key_array
from pipeline.store.chunks import CHUNK_ROWS
from pipeline.store.shard import StoreMeta

PASS_BYTES = 32 * 2**20  # bytes of vectors read at once by `lookup`


class VectorSource(ABC):
    """Teacher vectors by key, for example a `Store`.

    Rows are numbered over all parts in order; a part is a range of rows that is read from a single file (in a store, a
    shard).
    """

    meta: StoreMeta
    """The teacher's identity and fingerprint, dimension, type of the numbers, and the texts without a vector."""

    @property
    @abstractmethod
    def name(self) -> str:
        """What messages call the source: a path or a URL."""

    @property
    @abstractmethod
    def parts(self) -> Sequence[int]:
        """The number of rows of each part."""

    @abstractmethod
    def locate(self, keys: Sequence[bytes] | Array) -> Array:
        """`[n] int64`: the row of each key, -1 for a key that the source lacks."""

    @abstractmethod
    def read(self, part: int, start: int = 0, stop: int | None = None) -> Array:
        """Vectors `[stop - start, dim]` of a part, float16 or float32.

        Fastest where `start` is a multiple of CHUNK_ROWS. LeafError where they are damaged or cannot be reached.
        """

    @abstractmethod
    def verify(self) -> None:
        """Read everything and compare checksums; LeafError names the damage and its repair."""

    @abstractmethod
    def digest(self) -> str:
        """SHA-256 over all that decides which vector stands in which row: a fit continues on equal digests only."""

    @cached_property
    def refused(self) -> Array:
        """`[n] V16`, sorted: keys of texts that the teacher would not embed, so that they have no vector."""
        return np.sort(key_array([bytes.fromhex(key) for key in self.meta.refused or {}]))

    def answered(self, texts: pl.LazyFrame) -> pl.LazyFrame:
        """The rows of a frame with `key`, in their order, without the texts that the teacher refused to embed."""
        if not len(self.refused):
            return texts
        refused = pl.LazyFrame({"key": self.refused.tolist()}, schema={"key": pl.Binary})
        return texts.join(refused, on="key", how="anti", maintain_order="left")

    def lookup(self, keys: Sequence[bytes] | Array) -> Array:
        """Vectors `[n, dim] float32` in the order of `keys`. Each chunk that holds a row of them is read once.

        Raises:
            LeafError: some keys are not there; says how many, and the first.
        """
        queries = key_array(keys)
        rows = self.locate(queries)
        if (rows < 0).any():
            first = queries[int((rows < 0).argmax())].tobytes().hex()
            raise LeafError(
                f"{self.name}: {int((rows < 0).sum())} of {len(rows)} keys are not in the store, first {first}: "
                "run encode for the corpus they come from"
            )
        vectors = np.empty((len(rows), self.meta.dim), np.float32)
        bounds = np.cumsum([0, *self.parts])
        order = np.argsort(rows, kind="stable")
        part = np.searchsorted(bounds, rows[order], side="right") - 1
        for number in np.unique(part).tolist():
            places = order[part == number]
            self._gather(number, rows[places] - bounds[number], places, vectors)
        return vectors

    @property
    def rows_at_once(self) -> int:
        """Rows of as many whole chunks as take about PASS_BYTES, at least of one."""
        chunk = CHUNK_ROWS * self.meta.dim * np.dtype(self.meta.dtype).itemsize
        return CHUNK_ROWS * max(1, PASS_BYTES // chunk)

    def _gather(self, part: int, rows: Array, places: Array, into: Array) -> None:
        """Fill `into[places]` with `rows` (ascending) of a part, reading neighbouring chunks at once."""
        chunk = rows // CHUNK_ROWS
        limit = self.rows_at_once // CHUNK_ROWS
        low = 0
        while low < len(rows):
            rest = chunk[low:]
            breaks = (np.diff(rest) > 1) | (rest[1:] - rest[0] >= limit)
            high = low + (int(breaks.argmax()) + 1 if breaks.any() else len(rest))
            start = int(chunk[low]) * CHUNK_ROWS
            vectors = self.read(part, start, (int(chunk[high - 1]) + 1) * CHUNK_ROWS)
            into[places[low:high]] = vectors[rows[low:high] - start]
            low = high
