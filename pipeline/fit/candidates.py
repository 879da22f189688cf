"""The candidates of each query for soft distillation: their rows and cosines from the filter stage's Parquet file.

Everything is looked up in files that are mapped from disk: a table with a row for each text of the corpus, made once,
and a flat copy of the store's vectors.
"""

import hashlib
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from pipeline.base import Array, LeafError, disk, key_array, made_once, mapped_file, sha256
from pipeline.fit.teachers import flat_copy
from pipeline.fit.token_cache import Tokens
from pipeline.params import CandidatesParams
from pipeline.store import VectorSource

COLUMNS = ("key", "candidates", "cosines")
BATCH_ROWS = 4096  # queries read at a time


class Candidates:
    """The candidates of every text of a corpus."""

    def __init__(self, rows: Array, cosines: Array, vectors: Array) -> None:
        """`rows` [texts, n] int32 of `vectors` [stored rows, dim], -1 for none, with `cosines` [texts, n] float32."""
        self.rows, self.cosines, self.vectors = rows, cosines, vectors

    def of(self, texts: Array) -> tuple[Tensor, Tensor]:
        """Of these texts: vectors `[texts, n, dim]`, and cosines `[texts, n]`, -inf where there are fewer than n."""
        rows = self.rows[texts]
        vectors = torch.from_numpy(self.vectors[np.maximum(rows, 0)])
        return vectors, torch.from_numpy(np.where(rows < 0, -np.inf, self.cosines[texts]).astype(np.float32))


def open_candidates(params: CandidatesParams, tokens: Tokens, source: VectorSource, work: Path) -> Candidates:
    """The candidates that `params` name, as files below `work`.

    Raises:
        LeafError: the file cannot be read, lacks a column, or belongs to another corpus or store.
    """
    file, rows = Path(params.path), sum(source.parts)
    digest = _digest(file) + source.digest() + str(params.count)
    corpus = hashlib.sha256(tokens.keys.tobytes()).hexdigest()
    path = work / "candidates" / hashlib.sha256(f"{digest}{corpus}".encode()).hexdigest()[:16]
    with disk(path, "a table of candidates"):
        made_once(path, "table of candidates", f"{file}: reading it for a fit", partial(_write, params, tokens, source))
    shape = (len(tokens), params.count)
    table, cosines = (np.memmap(path / f"{name}.bin", kind, "r", shape=shape) for name, kind in _TABLES)
    return Candidates(table, cosines, flat_copy(source, np.arange(rows), rows, work))


_TABLES = (("rows", np.int32), ("cosines", np.float32))


def _digest(file: Path) -> str:
    try:
        return sha256(file)
    except OSError as error:
        raise LeafError(
            f"fit.candidates.path: {file}: cannot be read ({error.strerror}); run the filter stage"
        ) from None


def candidates_digest(params: CandidatesParams | None) -> str | None:
    """SHA-256 of the file that `params` name; None without."""
    return _digest(Path(params.path)) if params else None


def _write(params: CandidatesParams, tokens: Tokens, source: VectorSource, directory: Path) -> None:
    shape, file = (len(tokens), params.count), Path(params.path)
    rows, cosines = (mapped_file(directory / f"{name}.bin", np.dtype(kind), shape) for name, kind in _TABLES)
    rows[:] = -1
    try:
        with pq.ParquetFile(file) as opened:
            if missing := [name for name in COLUMNS if name not in opened.schema_arrow.names]:
                raise LeafError(f"{file}: has no column `{missing[0]}`; its columns must be {', '.join(COLUMNS)}")
            for batch in opened.iter_batches(BATCH_ROWS, columns=list(COLUMNS)):
                _fill(pl.DataFrame(pl.from_arrow(batch)), params, tokens, source, (rows, cosines))
    except (pa.ArrowException, OSError, pl.exceptions.PolarsError) as error:
        raise LeafError(f"{file}: cannot be read ({error!s:.200}); run the filter stage again") from None
    rows.flush()
    cosines.flush()


def _keys(column: pl.Series, file: str) -> Array:
    try:
        return key_array(column)
    except LeafError as error:
        raise LeafError(f"{file}: column `{column.name}`: {error}; run the filter stage again") from None


def _fill(
    batch: pl.DataFrame, params: CandidatesParams, tokens: Tokens, source: VectorSource, into: tuple[Array, Array]
) -> None:
    """Put the candidates of a batch of queries into the table."""
    keys = _keys(batch["key"], params.path)
    text = np.minimum(np.searchsorted(tokens.keys, keys), len(tokens) - 1)
    if not (tokens.keys[text] == keys).all():
        raise LeafError(f"{params.path}: holds texts that the corpus does not; run the filter stage on this corpus")
    lists = batch.select(pl.col("candidates", "cosines").list.head(params.count))
    lengths, same = (
        lists[name].list.len().fill_null(0).to_numpy().astype(np.int64) for name in ("candidates", "cosines")
    )
    if not np.array_equal(lengths, same):
        raise LeafError(f"{params.path}: a text has another number of cosines than of candidates; run the filter again")
    if not lengths.sum():
        return
    flat = lists.filter(pl.Series(lengths > 0)).explode("candidates", "cosines")
    place = source.locate(_keys(flat["candidates"], params.path))
    values = flat["cosines"].cast(pl.Float32).to_numpy()
    if (place < 0).any():
        raise LeafError(
            f"{params.path}: {int((place < 0).sum())} candidates have no vector in {source.name}; run the filter stage "
            "on this store"
        )
    if not np.isfinite(values).all():
        raise LeafError(f"{params.path}: holds a cosine that is not finite; run the filter stage again")
    within = np.arange(len(place)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    into[0][np.repeat(text, lengths), within] = place
    into[1][np.repeat(text, lengths), within] = values
