"""Search the stored vectors of the teacher: exactly, or through an index that `pipeline.index` wrote."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from pipeline.base.errors import LeafError
from pipeline.corpus.files import scan
from pipeline.store.store import Store

Encode = Callable[[Sequence[str]], np.ndarray]
Nearest = Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray]]  # query [dim], k -> rows [k], scores [k]
BLOCK_ROWS = 65_536  # stored vectors that are float32 at a time


@dataclass(frozen=True)
class Hit:
    """One document found."""

    score: float
    id: str
    source: str
    text: str


@dataclass(frozen=True)
class Answer:
    """What was found, and the milliseconds for the query's vector and for the search (texts are read afterwards)."""

    hits: tuple[Hit, ...]
    encode_ms: float
    search_ms: float


@dataclass(frozen=True)
class Vectors:
    """Rows `key, id, source` and their vectors `[n, dim]`, of length one, as precise as they are stored."""

    rows: pl.DataFrame
    vectors: np.ndarray

    def nearest(self, query: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows and cosines of the `k` nearest to `query [dim]` (of length one), best first; exact."""
        scores = np.empty(len(self.vectors), np.float32)
        for start in range(0, len(scores), BLOCK_ROWS):
            scores[start : start + BLOCK_ROWS] = self.vectors[start : start + BLOCK_ROWS].astype(np.float32) @ query
        k = min(k, len(scores))
        best = np.argpartition(-scores, k - 1)[:k] if k else np.empty(0, np.int64)
        best = best[np.lexsort((best, -scores[best]))]
        return best, scores[best]


def read(store: Store, role: str | None = "document") -> Vectors:
    """All vectors of a role (None: of both) of a store, in memory; LeafError where it holds none."""
    frames, blocks = [], []
    for shard in range(len(store.shards)):
        frame = store.shard_rows_frame(shard)
        kept = np.arange(len(frame)) if role is None else np.flatnonzero((frame["role"] == role).to_numpy())
        if len(kept):
            frames.append(frame[kept].select("key", "id", "source", "role"))
            blocks.append(unit(store.read(shard))[kept])
    if not frames:
        raise LeafError(f"{store.path}: holds no vectors of {role or 'any'} texts to search")
    return Vectors(pl.concat(frames), np.concatenate(blocks))


def unit(vectors: np.ndarray) -> np.ndarray:
    """Vectors `[n, dim]` of length one, in the precision that they came in."""
    lengths = np.linalg.norm(vectors.astype(np.float32), axis=1, keepdims=True)
    scaled: np.ndarray = (vectors / np.maximum(lengths, np.finfo(np.float32).tiny)).astype(vectors.dtype)
    return scaled


class Searcher:
    """Answers queries over rows `key, id, source` whose texts lie in `corpus`."""

    def __init__(self, encode: Encode, rows: pl.DataFrame, nearest: Nearest, corpus: Path) -> None:
        self._encode, self._rows, self._nearest = encode, rows, nearest
        self._texts = scan(corpus).select("key", "text")

    def search(self, query: str, top: int = 5) -> Answer:
        """The `top` documents nearest to the query, best first; LeafError if it is blank or one's text is not there."""
        if not query.strip():
            raise LeafError("the query is empty")
        started = time.perf_counter()
        vector = unit(self._encode([query]))[0]
        encoded = time.perf_counter()
        rows, scores = self._nearest(vector, top)
        searched = time.perf_counter()
        found = self._rows[rows]
        texts = dict(self._texts.filter(pl.col("key").is_in(found["key"].to_list())).collect().iter_rows())
        if missing := [name for name, key in zip(found["id"], found["key"], strict=True) if key not in texts]:
            raise LeafError(f"the corpus lacks the text of `{missing[0]}`: name the corpus that was encoded (--corpus)")
        hits = tuple(
            Hit(float(score), row["id"], row["source"], texts[row["key"]])
            for score, row in zip(scores, found.iter_rows(named=True), strict=True)
        )
        return Answer(hits, 1000 * (encoded - started), 1000 * (searched - encoded))


def check_dim(found: int, wanted: int, place: Path) -> None:
    """LeafError where the student's vectors do not fit those of the index at `place`."""
    if found != wanted:
        raise LeafError(
            f"{place}: holds {wanted} dimensions, but the model gives {found}: it was fitted to another store"
        )
