"""What stage one will cost, before it runs: texts, tokens, bytes, memory, requests, hours.

The corpus is sorted by key, which is a digest, so its first missing texts are a fair sample of all. Nothing is written
and the shard cache is not locked.
"""

import io
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from pipeline.base import Array, LeafError, SettledRate, key_array, merge_sorted, under_way
from pipeline.corpus import part_files, read_keys
from pipeline.encode.comparison import misfit
from pipeline.encode.engines.threads import ThreadsEngine
from pipeline.encode.plan import WorkOrder, count_missing, plan, read_order
from pipeline.params import EncodeParams
from pipeline.store import ShardInfo, StoreMeta, find_stores, finished_keys, open_stores, shard, shard_directory
from pipeline.teacher import ApiTeacher, LocalTeacher, Teacher

SAMPLE = 20_000  # texts; of natural texts, their mean length is then within 1 % of that of all
KEY_BYTES_OF_A_TEXT = 100  # memory for keys, see docs/scale.md
BLOCK_ROWS = 2048  # of the sample whose tokens are in memory at once
FIXED_BYTES = 6000  # of a store's README and of what store.json says of the teacher
SHARD_ENTRY_BYTES = 450 + 1000  # of a shard in store.json, and the description of its array


@dataclass(frozen=True)
class EncodeEstimate:
    """What is left to encode, and what it makes."""

    texts: int
    """Of the corpus."""
    held: int
    """Of these, with a vector in the shard cache, or refused by the teacher before."""
    reusable: int
    """Of the others, with a vector in the stores of `encode.reuse`."""
    to_encode: int
    shards: int
    """To make."""
    tokens: int | None
    """Of the texts to encode; None for an API that was not asked."""
    characters: int
    requests: int | None
    """To an API."""
    store_bytes: int
    memory_bytes: int
    """Of keys and of shards in hand, besides the teacher."""
    tokens_per_s: float | None
    """As measured; None where it was not."""

    @property
    def hours(self) -> float | None:
        """Of this machine, or of one worker like it."""
        if self.tokens is None or not self.tokens_per_s:
            return None
        return self.tokens / self.tokens_per_s / 3600


def estimate(corpus: Path, teacher: Teacher, params: EncodeParams, seconds: float, ask: int = 0) -> EncodeEstimate:
    """Estimate stage one for a corpus.

    `seconds` is how long encoding is measured behind its warm-up, 0 not at all; `ask` how many texts an API is asked
    for, to count tokens.

    Raises:
        LeafError: bad corpus, teacher or reused store.
    """
    parts = part_files(corpus)
    texts = sum(len(read_keys(part)) for part in parts)
    if not texts:
        raise LeafError(f"{corpus}: the corpus holds no text; look at the sources under corpus.sources")
    with under_way("encode: what is there, and a sample of what is not"):
        held_keys = finished_keys(shard_directory(Path(params.pool), teacher.meta), refused=not teacher.retries_refused)
        done = merge_sorted([held_keys, *_reusable(teacher, params)])
        held, missing = texts - count_missing(parts, held_keys), count_missing(parts, done)
        order = next(plan(parts, done, min(SAMPLE, max(missing, 1))), None)
        rows = _Sample.of(order, missing, teacher, params.shard_rows, ask)
    shards, measured = -(-missing // params.shard_rows), plan(parts, done, min(SAMPLE, params.shard_rows))
    return EncodeEstimate(
        texts=texts,
        held=held,
        reusable=texts - held - missing,
        to_encode=missing,
        shards=shards,
        tokens=rows.tokens,
        characters=rows.characters,
        requests=rows.requests,
        store_bytes=_store_bytes(parts, texts, params.shard_rows, teacher.meta),
        memory_bytes=texts * KEY_BYTES_OF_A_TEXT + 2 * min(missing, params.shard_rows) * _row_bytes(rows, teacher.meta),
        tokens_per_s=_speed(teacher, measured, seconds) if missing and seconds else None,
    )


@dataclass(frozen=True)
class _Sample:
    """What was counted on a sample, for all texts to encode."""

    texts: int
    tokens: int | None
    characters: int
    requests: int | None

    @classmethod
    def of(cls, order: WorkOrder | None, missing: int, teacher: Teacher, shard_rows: int, ask: int) -> "_Sample":
        """Count on the rows of an order; `missing` are all texts to encode."""
        if order is None:
            return cls(0, 0, 0, 0 if isinstance(teacher, ApiTeacher) else None)
        rows, scale = read_order(order), missing / order.rows
        characters = int(rows["text"].str.len_chars().sum())
        requests = tokens = None
        if isinstance(teacher, ApiTeacher):
            requests = round(sum(map(teacher.request_count, rows.iter_slices(shard_rows))) * scale)
            tokens = round(_asked_tokens(teacher, rows.head(ask)) * characters * scale) if ask else None
        elif isinstance(teacher, LocalTeacher):
            blocks = map(teacher.tokenize_rows, rows.iter_slices(BLOCK_ROWS))
            tokens = round(sum(len(text) for texts in blocks for text in texts) * scale)
        return cls(missing, tokens, round(characters * scale), requests)


def _asked_tokens(teacher: ApiTeacher, rows: pl.DataFrame) -> float:
    """Tokens a character, as the server counts them for these texts; they are paid for."""
    limiter = teacher.client.limiter
    before = limiter.tokens
    teacher.vectors(rows)
    return (limiter.tokens - before) / int(rows["text"].str.len_chars().sum())


def _reusable(teacher: Teacher, params: EncodeParams) -> list[Array]:
    """Keys of the stores of `encode.reuse` that fit the teacher, sorted each."""
    stores = [listed.store for entry in params.reuse for listed in open_stores(find_stores(entry))]
    return [np.sort(store.keys()) for store in stores if store is not None and misfit(store.meta, teacher) is None]


def _store_bytes(parts: Sequence[Path], texts: int, shard_rows: int, meta: StoreMeta) -> int:
    """Bytes of the store of all texts, in shards of `shard_rows`; the rows' files as those of the sample compress."""
    full, rest = divmod(texts, shard_rows)
    total = FIXED_BYTES + full * _shard_bytes(shard_rows, meta) + (_shard_bytes(rest, meta) if rest else 0)
    order = next(plan(parts, key_array([]), min(SAMPLE, texts)))
    rows = read_order(order).drop("text").with_columns(tokens=pl.lit(16, pl.Int32)).select(shard.ROW_SCHEMA.names())
    buffer = io.BytesIO()
    rows = rows.head(shard_rows)  # each shard has a file of its own
    rows.write_parquet(buffer, compression="zstd", compression_level=3, statistics=True)
    return total + round(buffer.tell() * texts / len(rows))


def _shard_bytes(rows: int, meta: StoreMeta) -> int:
    """Bytes of a shard's vectors and of its entry; those of its rows' file are not fixed by the format."""
    sizes = shard.file_sizes("0" * 16, rows, meta)
    return SHARD_ENTRY_BYTES + sum(size or 0 for size in sizes.values())


def _row_bytes(sample: _Sample, meta: StoreMeta) -> int:
    """Memory of a text while its shard is in hand: vector, text, token ids of eight bytes."""
    width = 2 if meta.dtype == "float16" else 4
    texts = max(1, sample.texts)
    return meta.dim * width + sample.characters // texts + 8 * (sample.tokens or 0) // texts


class _Nowhere:
    """Takes shards and keeps none."""

    def __init__(self, meta: StoreMeta) -> None:
        self.meta = meta

    def write(self, rows: pl.DataFrame, vectors: Array) -> ShardInfo:
        return ShardInfo("0" * 16, len(rows), 0, {})


class _MeasuredError(Exception):
    """Ends the encoding of what is thrown away."""


def _speed(teacher: Teacher, orders: Iterator[WorkOrder], seconds: float) -> float | None:
    """Tokens a second of the engine, over its batches; None for an API, which has no speed of this machine."""
    if not isinstance(teacher, LocalTeacher):
        return None
    sink: Any = _Nowhere(teacher.meta)
    with SettledRate("encode", "tokens", seconds) as rate:

        def count(_: int, tokens: int, took: float) -> None:
            if rate.add(tokens, took):
                raise _MeasuredError

        with suppress(_MeasuredError):
            for _ in ThreadsEngine(teacher).carry_out(orders, sink, count):
                pass
    return rate.value
