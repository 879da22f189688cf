"""The engine for a local teacher: a thread reads and tokenises ahead, the device computes, a thread writes behind."""

from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import polars as pl
from tqdm import tqdm

from pipeline.base import Array, release_pages
from pipeline.encode.engines.engine import EncodeFigures
from pipeline.encode.plan import WorkOrder, order_blocks
from pipeline.store import ShardCache
from pipeline.teacher import LocalTeacher, TokenisedTexts

Tokenised = tuple[pl.DataFrame, TokenisedTexts]
"""Rows `key, role, id, source` of a shard, and their tokenised texts."""


class ThreadsEngine:
    """Encodes shard after shard with a model on this machine, so that its device never waits for a disk.

    One shard is tokenised while another is computed and a third is written. A kill loses at most the vectors of two: of
    the shard in computation and of the one being written.
    """

    def __init__(self, teacher: LocalTeacher) -> None:
        self.teacher = teacher

    def run(self, orders: Iterable[WorkOrder], rows: int, cache: ShardCache) -> EncodeFigures:
        """Carry out the orders one after the other; see `Engine.run`."""
        figures = EncodeFigures()
        self.teacher.load()
        with (
            ThreadPoolExecutor(1, "tokenize") as reader,
            ThreadPoolExecutor(1, "write") as writer,
            tqdm(total=rows, unit="text", desc="encode") as bar,
        ):
            remaining = iter(orders)
            written: Future[None] | None = None
            upcoming = reader.submit(self._tokenise_next, remaining, figures)
            while (shard := upcoming.result()) is not None:
                upcoming = reader.submit(self._tokenise_next, remaining, figures)
                shard_rows, ids = shard
                vectors = self._compute(ids, cache, figures, bar)
                if written is not None:
                    written.result()
                shard_rows = shard_rows.with_columns(tokens=pl.Series([len(tokens) for tokens in ids], dtype=pl.Int32))
                written = writer.submit(_commit, shard_rows, vectors, cache, figures)
                release_pages()
            if written is not None:
                written.result()
        return figures

    def _tokenise_next(self, orders: Iterator[WorkOrder], figures: EncodeFigures) -> Tokenised | None:
        with figures.timed("reading"):
            order = next(orders, None)
            if order is None:
                return None
            rows, texts = [], []
            for block in order_blocks(order):
                texts.append(self.teacher.tokenize_rows(block))
                rows.append(block.drop("text"))
                figures.read(block["text"], texts[-1].unread)
            return pl.concat(rows), TokenisedTexts.joined(texts)

    def _compute(self, ids: TokenisedTexts, cache: ShardCache, figures: EncodeFigures, bar: "tqdm[Any]") -> Array:
        """Vectors `[texts, dim]` of one shard.

        In the type that is stored, because two shards are held at once and float32 would double them. What overflows
        is refused when the shard is committed.
        """
        stored_type = np.float16 if cache.meta.dtype == "float16" else np.float32
        vectors = np.empty((len(ids), self.teacher.dim), stored_type)
        parts = self.teacher.parts(ids)
        while True:
            with figures.timed("computing"):
                rows, part = next(parts, (None, None))
            if rows is None:
                return vectors
            with np.errstate(over="ignore"):
                vectors[rows] = part
            figures.rows += len(rows)
            figures.tokens += sum(len(ids[row]) for row in rows)
            bar.set_postfix_str(f"{figures.tokens / figures.computing:,.0f} tokens/s", refresh=False)
            bar.update(len(rows))


def _commit(rows: pl.DataFrame, vectors: Array, cache: ShardCache, figures: EncodeFigures) -> None:
    with figures.timed("writing"):
        cache.write(rows, vectors)
