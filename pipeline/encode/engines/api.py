"""A teacher behind an API: texts go out in batches, side by side, and come back as committed shards.

An answer is journaled before anything else happens to it, so that a run that is killed, rate-limited or out of money
has lost no vector: the next one asks only for what is neither in a shard nor in the journal. Shards are cut from the
answered texts in the corpus's order, so that they are those of a run never stopped.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl
from tqdm import tqdm

from pipeline.base.errors import LeafError
from pipeline.store.shard_cache import ShardCache
from pipeline.teacher.api import identity as probe
from pipeline.teacher.api.api_teacher import ApiTeacher
from pipeline.teacher.api.client import KEPT, Refusal
from pipeline.teacher.api.journal import Journal
from pipeline.teacher.api.rate_limit import Stopped

AHEAD = 4  # batches a thread may be ahead of the oldest one that is unanswered
MOST_LISTED = 20  # refused texts named in one message


@dataclass
class Batch:
    """Rows that follow each other in the corpus, and those of them that nobody has answered yet."""

    rows: pl.DataFrame
    unanswered: list[int] = field(default_factory=list)


class Asking:
    """Filling a pool from an API."""

    def __init__(self, teacher: ApiTeacher, pool: ShardCache, journal: Journal, shard_rows: int) -> None:
        self.teacher, self.pool, self.journal, self.shard_rows = teacher, pool, journal, shard_rows
        self.rows = 0
        self._held: list[pl.DataFrame] = []

    def run(self, blocks: Iterable[pl.DataFrame], missing: int) -> None:
        """Ask for every row of the blocks that the journal lacks, and commit shards as they fill.

        Raises:
            LeafError: for good, or until the next run; finished shards and the journal hold every answer.
        """
        workers = ThreadPoolExecutor(self.teacher.api.concurrency, "ask")
        try:
            with tqdm(total=missing, unit="text", desc="ask") as bar:
                for rows in self._answered(blocks, workers):
                    self._take(rows)
                    self._show(bar, len(rows))
                self._commit()
        except BaseException as error:
            # What is under way is waited for and journaled; what waits to be sent is not sent.
            self.teacher.client.stop.set()
            workers.shutdown(wait=True, cancel_futures=True)
            if isinstance(error, Stopped | LeafError):
                self._raise_refused()
            raise
        workers.shutdown()

    def _show(self, bar: "tqdm[Any]", rows: int) -> None:
        meter, seconds = self.teacher.client.meter, bar.format_dict["elapsed"]
        rate = meter.tokens / seconds if seconds else 0
        bar.set_postfix_str(f"{rate:,.0f} tokens/s, {meter.retries} retries", refresh=False)
        bar.update(rows)

    def _answered(self, blocks: Iterable[pl.DataFrame], workers: ThreadPoolExecutor) -> Iterator[pl.DataFrame]:
        """Rows with an answer, in order; those that were refused are left out."""
        window: deque[tuple[Batch, Future[None]]] = deque()
        for batch in self._batches(blocks):
            window.append((batch, workers.submit(self._ask_batch, batch)))
            while len(window) > AHEAD * self.teacher.api.concurrency:
                yield self._result(*window.popleft())
        while window:
            yield self._result(*window.popleft())

    def _result(self, batch: Batch, done: "Future[None]") -> pl.DataFrame:
        done.result()
        answered = [key in self.journal for key in batch.rows["key"]]
        self.rows += sum(answered[row] for row in batch.unanswered)
        return batch.rows.filter(pl.Series(answered, dtype=pl.Boolean))

    def _batches(self, blocks: Iterable[pl.DataFrame]) -> Iterator[Batch]:
        for block in blocks:
            texts = self.teacher.prompted(block)
            unanswered = [row for row, key in enumerate(block["key"]) if key not in self.journal]
            start = 0
            for group in self.teacher.cut(texts, unanswered):
                stop = group[-1] + 1
                yield Batch(block[start:stop], [row - start for row in group])
                start = stop
            if start < len(block):
                yield Batch(block[start:])

    def _ask_batch(self, batch: Batch) -> None:
        if batch.unanswered:
            rows = batch.rows[batch.unanswered]
            self._ask(rows, self.teacher.prompted(rows))

    def _ask(self, rows: pl.DataFrame, texts: list[str]) -> None:
        """Ask and journal; where the server refuses, each half alone, down to the text that it will not have."""
        try:
            answer = self.teacher.client.embed(texts)
        except Refusal as refusal:
            if len(texts) > 1:
                half = len(texts) // 2
                self._ask(rows[:half], texts[:half])
                self._ask(rows[half:], texts[half:])
                return
            self._check_probe()
            self.pool.refused.add(rows["key"][0], rows["id"][0], str(refusal))
            if self.teacher.api.refused == "stop":
                self.teacher.client.stop.set()
            return
        self.journal.add(rows["key"].to_list(), shares(answer.tokens, texts), answer.vectors)

    def _check_probe(self) -> None:
        """A server may say 400 to everything (no money left, say): then it is not the text."""
        try:
            self.teacher.client.embed(probe.TEXTS[:1])
        except Refusal as refusal:
            raise LeafError(
                f"teacher.api: the server now refuses even a probe text: {refusal}; every vector that was paid {KEPT}"
            ) from None

    def _take(self, rows: pl.DataFrame) -> None:
        if self.teacher.client.stop.is_set():
            raise Stopped
        self._held.append(rows.drop("text"))
        if sum(map(len, self._held)) >= self.shard_rows:
            held = pl.concat(self._held)
            while len(held) >= self.shard_rows:
                self._write(held[: self.shard_rows])
                held = held[self.shard_rows :]
            self._held = [held]

    def _commit(self) -> None:
        """The last shard, which may be a short one."""
        if self.teacher.client.stop.is_set():
            raise Stopped
        if rows := [one for one in self._held if len(one)]:
            self._write(pl.concat(rows))

    def _write(self, rows: pl.DataFrame) -> None:
        keys = rows["key"].to_list()
        tokens, vectors = self.journal.read(keys)
        self.pool.write(rows.with_columns(tokens=pl.Series(tokens, dtype=pl.Int32)), vectors)
        self.journal.drop(keys)

    def _raise_refused(self) -> None:
        if self.teacher.api.refused == "stop" and self.pool.refused:
            raise LeafError(
                f"teacher.api: the server refuses {said(self.pool)}; every vector that was paid is kept. Remove these "
                "texts from the sources, cut long ones (teacher.api.max_characters), or set teacher.api.refused to "
                "leave_out"
            ) from None


def fill(blocks: Iterable[pl.DataFrame], missing: int, pool: ShardCache, teacher: ApiTeacher, shard_rows: int) -> int:
    """Ask for the rows of `blocks` (`missing` of them) and commit them to the pool; how many were answered.

    Raises:
        LeafError: see `Asking.run`.
    """
    teacher.keep(pool.path.parent)
    with Journal(pool.path / "answers.journal", teacher.meta.dim) as journal:
        known = journal.keys()
        journal.drop([key for key, done in zip(known, pool.has(known), strict=True) if done])
        asking = Asking(teacher, pool, journal, shard_rows)
        asking.run(blocks, missing)
        return asking.rows


def said(pool: ShardCache) -> str:
    """The refused texts and the server's reasons, for a message."""
    listed = [f"`{one.id}` ({one.reason})" for one in list(pool.refused.values())[:MOST_LISTED]]
    more = len(pool.refused) - len(listed)
    return f"{len(pool.refused):,} texts: {'; '.join(listed)}{f'; and {more:,} more' if more > 0 else ''}"


def shares(tokens: int, texts: Sequence[str]) -> list[int]:
    """Tokens of each text: the server counts those of a request, which are split by characters and add up to it."""
    ends = np.cumsum([len(text) for text in texts])
    found: list[int] = np.diff(np.round(ends / max(int(ends[-1]), 1) * tokens).astype(np.int64), prepend=0).tolist()
    return found
