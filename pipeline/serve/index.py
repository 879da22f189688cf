"""Writes the vectors of a store for other search engines: faiss, usearch, Parquet, a database; loads an index.

An index is a directory: `index.json` (kind, rows, dim, what vectors are compared by, fingerprint of the teacher's
vectors, digest of the store), `rows.parquet` (key, id, source, role; row i belongs to entry i) and the library's own
file. A database (`databases.py`) has `index.json` beside its own files.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

import numpy as np
import polars as pl

from pipeline.base import LeafError, Similarity, access, import_optional, written_directory
from pipeline.corpus import scan
from pipeline.serve.databases import WRITERS, blocks
from pipeline.serve.output import ABOUT, INDEX_KIND
from pipeline.serve.search import Nearest, Vectors, read_vectors
from pipeline.store import Store

Kind = Literal["faiss", "usearch", "parquet", "lancedb", "qdrant"]
WITH_TEXTS: tuple[Kind, ...] = ("parquet", "lancedb", "qdrant")
FILES = {"faiss": "vectors.faiss", "usearch": "vectors.usearch"}
GRAPH_LINKS = 32  # per node of the HNSW graph, in both libraries
SEARCH_NODES = 128  # candidates of a query, at least (efSearch)
BUILD_NODES = 200  # candidates of an entry while the graph is built (efConstruction)
ADDED_ROWS = 16_384  # rows added at once, as float32
PARQUET_ROWS = 65_536  # rows of a Parquet file
INSTEAD = (
    "`leaf search` needs no index: leave out --index for exact search, or name one written by `leaf index --to faiss` "
    "or `--to usearch`"
)


def write(store: Store, corpus: Path | None, kind: Kind, out: Path, *, role: str | None = "document") -> int:
    """Write the vectors of a role (None: of both) to the directory `out`, whole or not at all; returns how many.

    Those of `WITH_TEXTS` also get the texts where `corpus` is given.

    Raises:
        LeafError: the library is missing, the store holds no such vectors, a database's texts are not in the corpus, or
            something else than an index is at `out`.
    """
    with written_directory(out, INDEX_KIND) as temporary:
        if kind in WRITERS:
            count = WRITERS[kind](blocks(store, corpus, role), store.meta, temporary)
            _write_about(store, kind, count, temporary)
            return count
        vectors = read_vectors(store, role)
        count = len(vectors.rows)
        if kind == "parquet":
            _write_parquet(vectors, corpus, temporary)
        else:
            _build(vectors, kind, temporary / FILES[kind])
            vectors.rows.write_parquet(temporary / "rows.parquet")
            _write_about(store, kind, count, temporary)
    return count


def _write_about(store: Store, kind: Kind, count: int, directory: Path) -> None:
    about = {
        "kind": kind,
        "rows": count,
        "dim": store.meta.dim,
        "similarity": store.meta.similarity,
        "fingerprint": store.meta.fingerprint,
        "store": store.digest(),
    }
    (directory / ABOUT).write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")


def _write_parquet(vectors: Vectors, corpus: Path | None, out: Path) -> None:
    rows = vectors.rows
    if corpus is not None:
        texts = scan(corpus).select("key", "text")
        rows = rows.lazy().join(texts, on="key", how="left", maintain_order="left").collect()
    rows = rows.with_columns(pl.col("key").bin.encode("hex"))
    for number, start in enumerate(range(0, len(rows), PARQUET_ROWS)):
        part = np.ascontiguousarray(vectors.vectors[start : start + PARQUET_ROWS], np.float32)
        column = pl.Series("vector", part, dtype=pl.Array(pl.Float32, part.shape[1]))
        rows[start : start + PARQUET_ROWS].with_columns(column).write_parquet(out / f"part-{number:05d}.parquet")


def _build(vectors: Vectors, kind: str, file: Path) -> None:
    rows, dim = vectors.vectors.shape
    index: Any
    if kind == "faiss":
        faiss = _library("faiss", "faiss-cpu")
        index = faiss.IndexHNSWFlat(dim, GRAPH_LINKS, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = BUILD_NODES
    else:
        index = _library("usearch.index", "usearch").Index(
            ndim=dim, metric="ip", dtype="f16", connectivity=GRAPH_LINKS, expansion_add=BUILD_NODES
        )
    for start in range(0, rows, ADDED_ROWS):
        part = np.ascontiguousarray(vectors.vectors[start : start + ADDED_ROWS], np.float32)
        if kind == "faiss":
            index.add(part)
        else:
            index.add(np.arange(start, start + len(part)), part)
    if kind == "faiss":
        faiss.write_index(index, str(file))
    else:
        index.save(str(file))


@dataclass(frozen=True)
class Index:
    """A written index, ready to be searched."""

    rows: pl.DataFrame
    """`key, id, source, role` of its entries."""
    dim: int
    nearest: Nearest
    similarity: Similarity
    fingerprint: str
    store_digest: str | None
    """`Store.digest` of the store that it was written from; None if an earlier version wrote it."""


_POLARS_ERRORS = (pl.exceptions.PolarsError, pl.exceptions.PanicException)


def load(directory: Path) -> Index:
    """Read an index; LeafError if the directory holds none or a damaged one."""
    if not (directory / ABOUT).exists() and next(directory.glob("part-*.parquet"), None):
        raise LeafError(f"{directory}: holds Parquet files, which other programs read. {INSTEAD}")
    try:
        with access():
            about = json.loads((directory / ABOUT).read_text(encoding="utf-8"))
        kind, dim, count = about["kind"], int(about["dim"]), int(about["rows"])
        if kind in WRITERS:
            raise LeafError(f"{directory}: is a database, which {kind}'s own client searches. {INSTEAD}")
        similarity = cast(Similarity, about.get("similarity", "cosine"))  # indexes written before it was named lack it
        fingerprint, store_digest = str(about["fingerprint"]), about.get("store")
        with access(directory / "rows.parquet"):
            rows = pl.read_parquet(directory / "rows.parquet")
        file = directory / FILES[kind]
        if not file.is_file() or len(rows) != count:
            raise ValueError(f"{file.name} is missing or rows.parquet is not whole")
        if similarity not in get_args(Similarity):
            raise ValueError(f"its vectors are compared by {similarity!r:.40}")
    except (OSError, ValueError, KeyError, TypeError, ArithmeticError, RecursionError, *_POLARS_ERRORS) as error:
        raise LeafError(f"{directory}: is no whole index ({error!s:.200}); write it again with `leaf index`") from None
    nearest = _load_faiss(file, dim, count) if kind == "faiss" else _load_usearch(file, dim, count)
    return Index(rows, dim, nearest, similarity, fingerprint, store_digest)


def check_origin(index: Index, directory: Path, store: Store) -> str | None:
    """A sentence where the index at `directory` was written from another state of the store; None where from this one.

    LeafError where it holds another teacher's vectors.
    """
    if index.fingerprint != store.meta.fingerprint:
        raise LeafError(
            f"{directory}: holds vectors of fingerprint {index.fingerprint[:16]}, but {store.name} of "
            f"{store.meta.fingerprint[:16]}: write the index again with `leaf index`"
        )
    if index.store_digest == store.digest():
        return None
    when = "by an earlier version" if index.store_digest is None else f"before {store.name} was last changed"
    return (
        f"{directory}: was written {when}: documents may be missing, or be there no longer; write it with `leaf index`"
    )


def _check_shape(file: Path, actual: tuple[int, int], expected: tuple[int, int]) -> None:
    """Refuse an index of other dimensions, or of more or fewer entries, than stand beside it."""
    if actual != expected:
        raise LeafError(
            f"{file}: holds {actual[1]} vectors of {actual[0]} dimensions, and not the {expected[1]} of {expected[0]} "
            "that index.json names; write it again with `leaf index`"
        )


def _load_faiss(file: Path, dim: int, rows: int) -> Nearest:
    faiss = _library("faiss", "faiss-cpu")
    try:
        index = faiss.read_index(str(file))
    except RuntimeError as error:
        raise LeafError(f"{file}: cannot be read: {error}; write it again with `leaf index`") from None
    _check_shape(file, (index.d, index.ntotal), (dim, rows))

    def nearest(query: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        index.hnsw.efSearch = max(SEARCH_NODES, 2 * k)
        scores, rows = index.search(np.ascontiguousarray(query[None], np.float32), min(k, index.ntotal))
        kept = rows[0] >= 0
        return rows[0][kept], scores[0][kept]

    return nearest


def _load_usearch(file: Path, dim: int, rows: int) -> Nearest:
    library = _library("usearch.index", "usearch")
    try:
        index = library.Index.restore(str(file))
    except Exception as error:  # usearch raises bare exceptions from its C++
        raise LeafError(f"{file}: cannot be read: {error}; write it again with `leaf index`") from None
    if index is None:
        raise LeafError(f"{file}: is no index of usearch; write it again with `leaf index`")
    _check_shape(file, (index.ndim, len(index)), (dim, rows))

    def nearest(query: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        index.expansion_search = max(SEARCH_NODES, 2 * k)
        matches = index.search(query.astype(np.float32), min(k, len(index)))
        keys = np.asarray(matches.keys, np.int64)
        known = (keys >= 0) & (keys < rows)
        return keys[known], 1 - np.asarray(matches.distances, np.float32)[known]

    return nearest


def _library(module: str, package: str) -> Any:
    return import_optional(module, "index", "an index", package)
