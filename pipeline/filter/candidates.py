"""The file of candidates: for each training query the documents that the teacher finds nearest, with similarities."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.base import KEY_BYTES, Array

CANDIDATES = pa.schema(
    [
        ("key", pa.binary()),  # of the query
        ("candidates", pa.list_(pa.binary())),  # keys of documents, nearest first
        ("cosines", pa.list_(pa.float32())),  # the teacher's; dot products where its vectors are made for these
    ]
)
"""Columns of the file; its rows are in the corpus's order, which is that of their keys."""

Block = tuple[Array, Array, Array, Array]
"""Keys of queries `[n] V16`; of documents `[n, k] V16`, nearest first; similarities `[n, k]`; which documents count."""


def write_candidates(file: Path, blocks: Iterable[Block]) -> None:
    """Write blocks of queries, whose keys ascend throughout, as a Parquet file with the columns CANDIDATES."""
    with pq.ParquetWriter(file, CANDIDATES, compression="zstd", use_dictionary=False) as writer:
        for queries, documents, similarities, counts in blocks:
            ends = pa.array(np.concatenate([[0], np.cumsum(counts.sum(1))]).astype(np.int32))
            columns = [
                _binary(queries),
                pa.ListArray.from_arrays(ends, _binary(documents[counts])),
                pa.ListArray.from_arrays(ends, pa.array(similarities[counts].astype(np.float32))),
            ]
            writer.write_table(pa.Table.from_arrays(columns, schema=CANDIDATES))


def _binary(keys: Array) -> pa.Array:
    """Keys `[n] V16` as an Arrow column, without a Python object for each."""
    bounds = pa.py_buffer((np.arange(len(keys) + 1) * KEY_BYTES).astype(np.int32))
    return pa.Array.from_buffers(pa.binary(), len(keys), [None, bounds, pa.py_buffer(keys.tobytes())])
