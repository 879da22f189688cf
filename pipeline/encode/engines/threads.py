"""The engine for a local teacher: a thread reads and tokenises ahead, the device computes, a thread writes behind."""

import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import polars as pl
from tqdm import tqdm

from pipeline.base import Array, release_pages
from pipeline.encode.engines.engine import EncodedShard, EncodeFigures, ShardSink
from pipeline.encode.plan import WorkOrder, order_blocks
from pipeline.store import ShardCache
from pipeline.teacher import LocalTeacher, TokenisedTexts

Progress = Callable[[int, int, float], None]
"""Is told the texts and tokens of each batch that was computed, and the seconds that this took."""


@dataclass(frozen=True)
class _Tokenised:
    """A shard whose texts are tokenised."""

    rows: pl.DataFrame
    """`key, role, id, source`."""
    texts: TokenisedTexts
    characters: int
    reading: float


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
        tokens, seconds = 0, 0.0
        with tqdm(total=rows, unit="text", desc="encode") as bar:

            def show(batch_texts: int, batch_tokens: int, batch_seconds: float) -> None:
                nonlocal tokens, seconds
                tokens, seconds = tokens + batch_tokens, seconds + batch_seconds
                bar.set_postfix_str(f"{tokens / seconds:,.0f} tokens/s", refresh=False)
                bar.update(batch_texts)

            for shard in self.carry_out(orders, cache, show):
                figures.add(shard)
        return figures

    def carry_out(
        self, orders: Iterable[WorkOrder], sink: ShardSink, progress: Progress = lambda *_: None
    ) -> Iterator[EncodedShard]:
        """Encode the orders one after the other; gives out each shard once it is committed.

        Raises:
            LeafError: the corpus, the teacher or a vector is bad, or the disk is full.
        """
        self.teacher.load()
        with ThreadPoolExecutor(1, "tokenize") as reader, ThreadPoolExecutor(1, "write") as writer:
            remaining = iter(orders)
            written: Future[EncodedShard] | None = None
            upcoming = reader.submit(self._tokenise_next, remaining)
            while (shard := upcoming.result()) is not None:
                upcoming = reader.submit(self._tokenise_next, remaining)
                vectors, computing = self._compute(shard.texts, sink, progress)
                if written is not None:
                    yield written.result()
                written = writer.submit(_commit, shard, vectors, computing, sink)
                del shard, vectors  # the writer holds the one that it writes
                release_pages()
            if written is not None:
                yield written.result()

    def _tokenise_next(self, orders: Iterator[WorkOrder]) -> _Tokenised | None:
        started = time.perf_counter()
        order = next(orders, None)
        if order is None:
            return None
        rows, texts, characters = [], [], 0
        for block in order_blocks(order):
            texts.append(self.teacher.tokenize_rows(block))
            rows.append(block.drop("text"))
            characters += int(block["text"].str.len_chars().sum())
        return _Tokenised(pl.concat(rows), TokenisedTexts.joined(texts), characters, time.perf_counter() - started)

    def _compute(self, texts: TokenisedTexts, sink: ShardSink, progress: Progress) -> tuple[Array, float]:
        """Vectors `[texts, dim]` of one shard, and the seconds that they took.

        In the type that is stored, because two shards are held at once and float32 would double them. What overflows
        is refused when the shard is committed.
        """
        stored_type = np.float16 if sink.meta.dtype == "float16" else np.float32
        vectors = np.empty((len(texts), self.teacher.dim), stored_type)
        parts = self.teacher.parts(texts)
        computing = 0.0
        while True:
            started = time.perf_counter()
            rows, part = next(parts, (None, None))
            seconds = time.perf_counter() - started
            computing += seconds
            if rows is None:
                return vectors, computing
            with np.errstate(over="ignore"):
                vectors[rows] = part
            progress(len(rows), sum(len(texts[row]) for row in rows), seconds)


def _commit(shard: _Tokenised, vectors: Array, computing: float, sink: ShardSink) -> EncodedShard:
    started = time.perf_counter()
    tokens = [len(text) for text in shard.texts]
    info = sink.write(shard.rows.with_columns(tokens=pl.Series(tokens, dtype=pl.Int32)), vectors)
    return EncodedShard(
        name=info.name,
        rows=info.rows,
        tokens=sum(tokens),
        cut=sum(map(bool, shard.texts.unread)),
        characters=shard.characters,
        unread=sum(shard.texts.unread),
        reading=shard.reading,
        computing=computing,
        writing=time.perf_counter() - started,
    )
