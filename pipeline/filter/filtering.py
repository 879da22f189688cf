"""Rank filter: a pair stays if the teacher finds its document among the nearest of its query, in the whole corpus.

KaLM-Embedding (arXiv 2501.01028) and Arctic-Embed (arXiv 2412.04506) clean mined pairs so. Here the vectors are stored
already, so that no model is needed: exact search over the store, blocks of queries against blocks of documents.

Memory: some 500 MB of vectors and similarities, whatever the number of texts, besides the keys and ids of the corpus
and 8 bytes for each candidate. Time: the product of each training query with each training document.
"""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from torch.nn import functional
from tqdm import tqdm

from pipeline.base import Array, LeafError, contains, key_array, written_directory, written_file
from pipeline.corpus import CORPUS_KIND, FURTHER_RECORDS, external_sort, part_files, read_blocks, read_keys, scan
from pipeline.filter.candidates import write_candidates
from pipeline.model import best_device, keep_best, none_yet
from pipeline.params import FilterParams
from pipeline.store import VectorSource

QUERY_ROWS = 32_768  # vectors held together: 100 MB at 768 dimensions; the store is read once for each such block
SCORED_ROWS = 1024  # queries compared with a block of documents at once: 64 MB of similarities
DOCUMENT_ROWS = 16_384


@dataclass(frozen=True)
class Training:
    """The training texts of a corpus that have a vector, and which queries and documents belong together."""

    queries: pl.DataFrame
    """`key, source, id`, in the corpus's order."""
    documents: pl.DataFrame
    """`key, source, id`, in the order of the store, so that a block of them lies in few chunks."""
    pairs: Array
    """`[pairs, 2]` int64, sorted: rows of a query and of a document of one record."""


@dataclass(frozen=True)
class Found:
    """What the search gives, by row of `Training.queries`."""

    ranks: Array
    """`[queries]` int64, from 0: of the nearest document of the query's record; the depth of the search if none
    of these is found."""
    candidates: Array
    """`[queries, candidates]` int32: rows of the nearest documents, nearest first."""
    similarities: Array
    """`[queries, candidates]` float32."""


def filter_corpus(
    corpus: Path, source: VectorSource, params: FilterParams, out: Path, candidates: Path
) -> dict[str, Any]:
    """Write the corpus without the pairs that the teacher would not find to `out`, each query's candidates to a file.

    A query goes if it has documents (in its record) and none of them is among its `params.nearest`; a document goes if
    it has queries and all of them go. Held-out texts and texts without a partner stay. Neither dropped texts nor
    held-out ones are candidates or have any.

    Returns:
        By source: `pairs`, queries that have a document; `first`, those whose own is the nearest of all; and how many
        `queries_dropped` and `documents_dropped`.

    Raises:
        LeafError: bad corpus or source, a text without a vector, no queries or no documents, nothing left of one.
    """
    training = _training(corpus, source)
    found = _search(training, source, params)
    queries_stay, documents_stay = _judge(training, found.ranks, params.nearest)
    if not queries_stay.any() or not documents_stay.any():
        raise LeafError(f"filter.nearest: {params.nearest} leaves nothing of {corpus} to train on; raise it")
    dropped = [
        key_array(texts["key"])[~stay]
        for texts, stay in ((training.queries, queries_stay), (training.documents, documents_stay))
    ]
    with written_file(candidates) as file:
        _write_candidates(training, found, queries_stay, documents_stay, file)
    _write(corpus, np.sort(np.concatenate(dropped)), out)
    return _counts(training, found.ranks, queries_stay, documents_stay)


def _training(corpus: Path, source: VectorSource) -> Training:
    texts = scan(corpus).filter(pl.col("split") == "train").select("key", "role", "source", "id")
    rows = source.answered(texts).collect()
    queries, documents = (rows.filter(pl.col("role") == role).drop("role") for role in ("query", "document"))
    if queries.is_empty() or documents.is_empty():
        raise LeafError(f"{corpus}: has no training queries, or no documents, so that no pairs can be judged")
    documents = documents[np.argsort(source.locate(key_array(documents["key"])), kind="stable")]
    numbered = (frame.select("source", "id").with_row_index(name) for name, frame in (("q", queries), ("d", documents)))
    pairs = next(numbered).join(next(numbered), on=["source", "id"]).select("q", "d").sort("q", "d")
    return Training(queries, documents, pairs.cast(pl.Int64).to_numpy())


def _search(training: Training, source: VectorSource, params: FilterParams) -> Found:
    queries, documents = len(training.queries), len(training.documents)
    depth, width = min(max(params.nearest or 1, params.candidates), documents), min(params.candidates, documents)
    ranks = np.full(queries, depth, np.int64)
    candidates, similarities = np.empty((queries, width), np.int32), np.empty((queries, width), np.float32)
    steps = -(-queries // QUERY_ROWS) * -(-documents // DOCUMENT_ROWS)
    with tqdm(total=steps, desc="filter", unit=" blocks") as bar:
        for start in range(0, queries, QUERY_ROWS):
            for first, scores, rows in _nearest(training, source, start, depth, bar):
                block = slice(first, first + len(rows))
                _rank(training.pairs, first, rows, ranks[block])
                candidates[block], similarities[block] = rows[:, :width], scores[:, :width]
    return Found(ranks, candidates, similarities)


@torch.inference_mode()
def _nearest(
    training: Training, source: VectorSource, start: int, depth: int, bar: Any
) -> Iterator[tuple[int, Array, Array]]:
    """Of the queries from `start` on, some at a time: the first's row, scores and rows `[n, depth]` of documents."""
    device, query_keys = best_device(), key_array(training.queries["key"])[start : start + QUERY_ROWS]
    queries = torch.split(_vectors(source, query_keys).to(device), SCORED_ROWS)
    best = [none_yet(len(block), device) for block in queries]
    document_keys = key_array(training.documents["key"])
    for first in range(0, len(document_keys), DOCUMENT_ROWS):
        documents = _vectors(source, document_keys[first : first + DOCUMENT_ROWS]).to(device)
        for number, block in enumerate(queries):
            best[number] = keep_best(best[number], block @ documents.T, first, depth)
        bar.update()
    for number, (scores, rows) in enumerate(best):
        yield start + number * SCORED_ROWS, scores.cpu().numpy(), rows.cpu().numpy()


def _vectors(source: VectorSource, keys: Array) -> torch.Tensor:
    """Stored vectors `[n, dim]` float32, of length one where they are compared by cosine."""
    vectors = torch.from_numpy(source.lookup(keys))
    return functional.normalize(vectors, dim=1) if source.meta.similarity == "cosine" else vectors


def _rank(pairs: Array, first: int, rows: Array, ranks: Array) -> None:
    """Set the `ranks` of queries from row `first` on that find a document of their own record among `rows [n, k]`."""
    low, high = np.searchsorted(pairs[:, 0], [first, first + len(rows)])
    query, document = pairs[low:high, 0] - first, pairs[low:high, 1]
    own = rows[query] == document[:, None]
    hit = own.any(1)
    np.minimum.at(ranks, query[hit], own[hit].argmax(1))


def _judge(training: Training, ranks: Array, nearest: int | None) -> tuple[Array, Array]:
    """Which queries and which documents stay: `[n]` bool each."""
    query, document = training.pairs.T
    queries_stay = np.ones(len(training.queries), bool)
    if nearest is not None:
        queries_stay[query] = ranks[query] < nearest
    documents_stay = np.ones(len(training.documents), bool)
    documents_stay[document] = False
    documents_stay[document[queries_stay[query]]] = True
    return queries_stay, documents_stay


def _write_candidates(training: Training, found: Found, queries_stay: Array, documents_stay: Array, file: Path) -> None:
    rows = np.flatnonzero(queries_stay)
    query_keys, document_keys = key_array(training.queries["key"]), key_array(training.documents["key"])
    blocks = np.split(rows, range(QUERY_ROWS, len(rows), QUERY_ROWS))
    nearest = ((block, found.candidates[block]) for block in blocks)
    write_candidates(
        file,
        (
            (query_keys[block], document_keys[rows], found.similarities[block], documents_stay[rows])
            for block, rows in nearest
        ),
    )


def _write(corpus: Path, dropped: Array, out: Path) -> None:
    """Write the corpus without the texts of these keys (sorted), in parts of as many rows."""
    parts = part_files(corpus)
    all_keys = [read_keys(part) for part in parts]
    with written_directory(out, CORPUS_KIND) as directory:
        writer = external_sort.Parts(directory, max(map(len, all_keys)))
        try:
            for part, part_keys in zip(parts, all_keys, strict=True):
                stays = ~contains(dropped, part_keys)
                for rows in read_blocks(part, external_sort.SCHEMA.names, stays) if stays.any() else ():
                    writer.add(rows)
            writer.finish()
        finally:
            writer.close()
        if (corpus / FURTHER_RECORDS).exists():
            shutil.copy(corpus / FURTHER_RECORDS, directory)


def _counts(training: Training, ranks: Array, queries_stay: Array, documents_stay: Array) -> dict[str, Any]:
    paired = np.zeros(len(ranks), bool)
    paired[training.pairs[:, 0]] = True
    queries = training.queries.select("source", pairs=pl.Series(paired), first=pl.Series(paired & (ranks == 0)))
    queries = queries.with_columns(queries_dropped=pl.Series(~queries_stay))
    documents = training.documents.select("source", documents_dropped=pl.Series(~documents_stay))
    of_queries = queries.group_by("source").agg(pl.col("pairs", "first", "queries_dropped").sum())
    of_documents = documents.group_by("source").agg(pl.col("documents_dropped").sum())
    joined = of_queries.join(of_documents, on="source", how="full", coalesce=True).fill_null(0).sort("source")
    return {row.pop("source"): row for row in joined.iter_rows(named=True)}
