"""Nearest-neighbour search over the teacher's stored vectors: exact here, or through an index (`serve/index.py`)."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from pipeline.base import LeafError, Similarity, contains, key_array
from pipeline.corpus import corpus_keys, scan
from pipeline.store import Store

Encode = Callable[[Sequence[str]], np.ndarray]
"""Queries -> vectors `[queries, dim]`."""
Nearest = Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray]]
"""Query `[dim]` and k -> rows `[k]` and scores `[k]`, best first."""
BLOCK_ROWS = 65_536  # stored vectors that are float32 at a time


@dataclass(frozen=True)
class Hit:
    """A document that was returned for a query."""

    score: float
    id: str
    source: str
    text: str | None
    """None where there is no corpus."""


@dataclass(frozen=True)
class Answer:
    """The hits of a query, and the milliseconds for its vector and for the search (without reading the texts)."""

    hits: tuple[Hit, ...]
    encode_ms: float
    search_ms: float


@dataclass(frozen=True)
class Vectors:
    """Rows `key, id, source, role` and their vectors `[n, dim]`, in the precision of the store.

    The vectors are scaled to length one where they are compared by cosine, so that it is their dot product.
    """

    rows: pl.DataFrame
    vectors: np.ndarray
    similarity: Similarity = "cosine"

    def nearest(self, query: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows of the `k` highest dot products with `query [dim]`, and these, best first; exact."""
        scores = np.empty(len(self.vectors), np.float32)
        for start in range(0, len(scores), BLOCK_ROWS):
            scores[start : start + BLOCK_ROWS] = self.vectors[start : start + BLOCK_ROWS].astype(np.float32) @ query
        k = min(k, len(scores))
        best = np.argpartition(-scores, k - 1)[:k] if k else np.empty(0, np.int64)
        best = best[np.lexsort((best, -scores[best]))]
        return best, scores[best]


def read_vectors(store: Store, role: str | None = "document") -> Vectors:
    """Read all vectors of a role (None: of both) into memory; LeafError where the store holds none."""
    frames, blocks, similarity = [], [], store.meta.similarity
    for shard in range(len(store.shards)):
        frame = store.shard_rows_frame(shard)
        kept = np.arange(len(frame)) if role is None else np.flatnonzero((frame["role"] == role).to_numpy())
        if len(kept):
            frames.append(frame[kept].select("key", "id", "source", "role"))
            blocks.append(comparable(store.read(shard), similarity)[kept])
    if not frames:
        raise LeafError(f"{store.name}: holds no vectors of {role or 'any'} texts to search")
    return Vectors(pl.concat(frames), np.concatenate(blocks), similarity)


def comparable(vectors: np.ndarray, similarity: Similarity) -> np.ndarray:
    """The vectors `[n, dim]` as their dot products are the similarities: of length one for the cosine."""
    return unit_vectors(vectors) if similarity == "cosine" else vectors


def unit_vectors(vectors: np.ndarray) -> np.ndarray:
    """Vectors `[n, dim]` scaled to length one, in the precision of the input."""
    lengths = np.linalg.norm(vectors.astype(np.float32), axis=1, keepdims=True)
    scaled: np.ndarray = (vectors / np.maximum(lengths, np.finfo(np.float32).tiny)).astype(vectors.dtype)
    return scaled


class Searcher:
    """Answers queries with documents: rows `key, id, source`, whose texts are in `corpus`; without one, by id alone.

    A store may hold documents that were taken out of the corpus since: they are passed over (`absent` counts them).
    """

    def __init__(
        self,
        encode: Encode,
        rows: pl.DataFrame,
        nearest: Nearest,
        corpus: Path | None,
        similarity: Similarity = "cosine",
    ) -> None:
        """`nearest` finds rows by the dot product with a query's vector, which has length one for the cosine.

        Raises:
            LeafError: the corpus has none of the documents.
        """
        self._encode, self._rows, self._nearest, self._similarity = encode, rows, nearest, similarity
        self._texts = scan(corpus).select("key", "text") if corpus else None
        self._present = contains(corpus_keys(corpus), key_array(rows["key"])) if corpus else np.ones(len(rows), bool)
        self.documents = int(self._present.sum())
        self.absent = len(rows) - self.documents
        if not self.documents:
            raise LeafError(f"{corpus}: has none of the {len(rows):,} documents: name the corpus that was encoded")

    def search(self, query: str, top: int = 5) -> Answer:
        """The `top` documents of the corpus nearest to the query, best first; LeafError where the query is blank."""
        if not query.strip():
            raise LeafError("the query is empty")
        started = time.perf_counter()
        vector = comparable(self._encode([query]), self._similarity)[0]
        encoded = time.perf_counter()
        rows, scores = self._nearest_present(vector, top)
        searched = time.perf_counter()
        documents = self._rows[rows]
        texts: dict[bytes, str] = {}
        if self._texts is not None:
            texts = dict(self._texts.filter(pl.col("key").is_in(documents["key"].to_list())).collect().iter_rows())
        hits = tuple(
            Hit(float(score), row["id"], row["source"], texts[row["key"]] if self._texts is not None else None)
            for score, row in zip(scores, documents.iter_rows(named=True), strict=True)
        )
        return Answer(hits, 1000 * (encoded - started), 1000 * (searched - encoded))

    def _nearest_present(self, vector: np.ndarray, top: int) -> tuple[np.ndarray, np.ndarray]:
        """The nearest rows whose text is in the corpus. More are asked for until there are enough of these."""
        wanted, asked = min(top, self.documents), top
        while True:
            rows, scores = self._nearest(vector, asked)
            kept = np.flatnonzero(self._present[rows])[:wanted]
            if len(kept) == wanted or asked >= len(self._rows):
                return rows[kept], scores[kept]
            asked = min(4 * asked, len(self._rows))


def check_dim(model_dim: int, index_dim: int, place: Path) -> None:
    """LeafError where the model's vectors do not fit those at `place` (an index or a store)."""
    if model_dim != index_dim:
        raise LeafError(
            f"{place}: holds {index_dim} dimensions, but the model gives {model_dim}: it was fitted to another store"
        )
