"""Writes the vectors of a store into an embedded database: a table of LanceDB or a collection of Qdrant.

Table and collection are called TEXTS. An entry has `key` (in hexadecimal digits), `id`, `source`, `role`, the `text`
if there is a corpus, and `vector`; both databases compare by what the store's vectors are compared by. The store is
read and written a block at a time. That bounds the memory with LanceDB; Qdrant's client keeps a local collection in
memory whole.
"""

from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Literal
from uuid import UUID

import numpy as np
import polars as pl
import pyarrow as pa

from pipeline.base import LeafError, import_optional
from pipeline.corpus import scan
from pipeline.serve.search import comparable
from pipeline.store import Store, StoreMeta

Database = Literal["lancedb", "qdrant"]
TEXTS = "texts"
BLOCK_ROWS = 4096  # of the store that are read and written at once
PARTITION_ROWS = 8192  # of LanceDB's index, which searches 20 partitions of its own accord: exact up to 160,000 rows


Writer = Callable[[Iterator[pl.DataFrame], StoreMeta, Path], int]
"""Writes `blocks` as a database into an empty directory; returns the number of its entries."""


def blocks(store: Store, corpus: Path | None, role: str | None) -> Iterator[pl.DataFrame]:
    """The entries of a role (None: of both), in the order of the store: `key, id, source, role`, `text` and `vector`.

    Vectors are float32, of length one where they are compared by cosine. `text` is there where `corpus` is given.

    Raises:
        LeafError: the store holds no such vectors, is damaged, or the corpus lacks a text.
    """
    empty = True
    for part in range(len(store.shards)):
        rows = store.shard_rows_frame(part).select("key", "id", "source", "role")
        wanted = np.ones(len(rows), bool) if role is None else (rows["role"] == role).to_numpy()
        if not wanted.any():
            continue
        empty = False
        texts = None if corpus is None else _texts(rows.filter(wanted), corpus)
        for start, vectors in store.chunks(part, BLOCK_ROWS):
            kept = start + np.flatnonzero(wanted[start : start + BLOCK_ROWS])
            if len(kept):
                entries = rows[kept]
                if texts is not None:
                    entries = entries.join(texts, on="key", how="left", maintain_order="left")
                values = comparable(vectors[kept - start], store.meta.similarity).astype(np.float32)
                column = pl.Series("vector", values, dtype=pl.Array(pl.Float32, values.shape[1]))
                yield entries.with_columns(pl.col("key").bin.encode("hex"), column)
    if empty:
        raise LeafError(f"{store.name}: holds no vectors of {role or 'any'} texts")


def _texts(rows: pl.DataFrame, corpus: Path) -> pl.DataFrame:
    """`key, text` of these rows. A corpus is sorted by key: most of it is passed over by the range of theirs."""
    within = pl.col("key").is_between(rows["key"].min(), rows["key"].max())
    texts = scan(corpus).filter(within).select("key", "text").join(rows.lazy().select("key"), on="key", how="semi")
    read: pl.DataFrame = texts.collect(engine="streaming")
    if len(read) < len(rows):
        missing = rows.join(read, on="key", how="anti")["id"][0]
        raise LeafError(f"{corpus}: lacks the text of `{missing}`: name the corpus that was encoded (--corpus)")
    return read


def write_lancedb(entries: Iterator[pl.DataFrame], meta: StoreMeta, directory: Path) -> int:
    """See `Writer`: a table with a flat index, because a table alone would be searched by Euclidean distance."""
    lancedb = import_optional("lancedb", "lancedb", "a table of LanceDB")
    indexes = import_optional("lancedb.index", "lancedb", "a table of LanceDB")
    blocks_in_arrow = (_arrow(block, meta.dim) for block in entries)
    first = next(blocks_in_arrow)
    batches = (batch for block in chain([first], blocks_in_arrow) for batch in block.to_batches())
    reader = pa.RecordBatchReader.from_batches(first.schema, batches)
    table = lancedb.connect(str(directory)).create_table(TEXTS, reader)
    count: int = table.count_rows()
    partitions = max(1, count // PARTITION_ROWS)
    table.create_index("vector", config=indexes.IvfFlat(distance_type=meta.similarity, num_partitions=partitions))
    return count


def _arrow(block: pl.DataFrame, dim: int) -> pa.Table:
    """A block without Arrow's large strings and large lists, which other clients may not know."""
    schema = pa.schema([pa.field(name, pa.string()) for name in block.columns[:-1]])
    return block.to_arrow().cast(schema.append(pa.field("vector", pa.list_(pa.float32(), dim))))


def write_qdrant(entries: Iterator[pl.DataFrame], meta: StoreMeta, directory: Path) -> int:
    """See `Writer`: a collection of Qdrant's local mode. A point's id is its key, read as a UUID."""
    qdrant = import_optional("qdrant_client", "qdrant", "a collection of Qdrant", "qdrant-client")
    models = qdrant.models
    distance = {"cosine": models.Distance.COSINE, "dot": models.Distance.DOT}[meta.similarity]
    client = qdrant.QdrantClient(path=str(directory))
    try:
        client.create_collection(TEXTS, vectors_config=models.VectorParams(size=meta.dim, distance=distance))
        for block in entries:
            points = models.Batch(
                ids=[str(UUID(key)) for key in block["key"]],
                vectors=block["vector"].to_numpy().tolist(),
                payloads=block.drop("vector").to_dicts(),
            )
            client.upsert(TEXTS, points)
        count: int = client.count(TEXTS).count
    finally:
        client.close()
    return count


WRITERS: dict[Database, Writer] = {"lancedb": write_lancedb, "qdrant": write_qdrant}
