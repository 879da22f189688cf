"""The engine for a teacher behind an API: requests side by side, answers through a journal into committed shards.

An answer is journaled before anything else happens to it. So a run that is killed, rate-limited or out of money loses
no vector: the next one asks only for texts that are neither in a shard nor in the journal. Shards are cut from the
answered texts in the corpus's order, so they are those of a run that was never stopped.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl
from tqdm import tqdm

from pipeline.base import LeafError
from pipeline.encode.engines.engine import EncodeFigures
from pipeline.encode.plan import WorkOrder, read_order
from pipeline.store import ShardCache
from pipeline.teacher import KEPT, PROBE_TEXTS, ApiTeacher, Journal, Refusal, Stopped

BATCHES_AHEAD = 4  # batches per worker that may be under way or answered before the oldest one is answered
MAX_LISTED = 20  # refused texts named in one message


class ApiEngine:
    """Encodes by requests to an API. Where texts are refused, shards have other borders than the work orders."""

    def __init__(self, teacher: ApiTeacher) -> None:
        self.teacher = teacher

    def run(self, orders: Iterable[WorkOrder], rows: int, cache: ShardCache) -> EncodeFigures:
        """Ask for every row that the journal lacks, and commit shards as they fill; see `Engine.run`.

        Raises:
            LeafError: for good, or until the next run; finished shards and the journal hold every answer.
        """
        figures = EncodeFigures()
        limiter = self.teacher.client.limiter
        self.teacher.remember(cache.path.parent)
        with figures.timed("computing"), Journal(cache.path / "answers.journal", self.teacher.meta.dim) as journal:
            journaled = journal.keys()
            journal.drop([key for key, done in zip(journaled, cache.has(journaled), strict=True) if done])
            run = _Run(self.teacher, cache, journal)
            run.ask_all(orders, rows)
            figures.rows = run.rows
        figures.tokens, figures.api = limiter.tokens, {"requests": limiter.requests, "retries": limiter.retries}
        return figures


@dataclass
class Batch:
    """Rows that follow each other in the corpus, and the numbers of those that have no answer yet."""

    rows: pl.DataFrame
    unanswered: list[int] = field(default_factory=list)


class _Run:
    """One run of the engine: requests, journal, and the rows that wait for their shard to be full."""

    def __init__(self, teacher: ApiTeacher, cache: ShardCache, journal: Journal) -> None:
        self.teacher, self.cache, self.journal = teacher, cache, journal
        self.rows = 0
        self._shard_rows = 0
        self._held: list[pl.DataFrame] = []

    def ask_all(self, orders: Iterable[WorkOrder], rows: int) -> None:
        workers = ThreadPoolExecutor(self.teacher.api.concurrency, "ask")
        try:
            with tqdm(total=rows, unit="text", desc="ask") as bar:
                for answered in self._answered(orders, workers):
                    self._hold(answered)
                    self._show(bar, len(answered))
                self._commit_rest()
        except BaseException as error:
            # Requests under way are waited for and journaled; those that were not sent yet are dropped.
            self.teacher.client.stop.set()
            workers.shutdown(wait=True, cancel_futures=True)
            if isinstance(error, Stopped | LeafError):
                self._raise_refused()
            raise
        workers.shutdown()

    def _show(self, bar: "tqdm[Any]", rows: int) -> None:
        limiter, seconds = self.teacher.client.limiter, bar.format_dict["elapsed"]
        rate = limiter.tokens / seconds if seconds else 0
        bar.set_postfix_str(f"{rate:,.0f} tokens/s, {limiter.retries} retries", refresh=False)
        bar.update(rows)

    def _answered(self, orders: Iterable[WorkOrder], workers: ThreadPoolExecutor) -> Iterator[pl.DataFrame]:
        """Rows with an answer, in the corpus's order, without those that were refused."""
        window: deque[tuple[Batch, Future[None]]] = deque()
        for batch in self._batches(orders):
            window.append((batch, workers.submit(self._ask_batch, batch)))
            while len(window) > BATCHES_AHEAD * self.teacher.api.concurrency:
                yield self._result(*window.popleft())
        while window:
            yield self._result(*window.popleft())

    def _result(self, batch: Batch, request: "Future[None]") -> pl.DataFrame:
        request.result()
        answered = [key in self.journal for key in batch.rows["key"]]
        self.rows += sum(answered[row] for row in batch.unanswered)
        return batch.rows.filter(pl.Series(answered, dtype=pl.Boolean))

    def _batches(self, orders: Iterable[WorkOrder]) -> Iterator[Batch]:
        for order in orders:
            self._shard_rows = max(self._shard_rows, order.rows)  # all orders but the last have the same number
            rows = read_order(order)
            texts = self.teacher.prompted(rows)
            unanswered = [row for row, key in enumerate(rows["key"]) if key not in self.journal]
            start = 0
            for group in self.teacher.requests(texts, unanswered):
                stop = group[-1] + 1
                yield Batch(rows[start:stop], [row - start for row in group])
                start = stop
            if start < len(rows):
                yield Batch(rows[start:])

    def _ask_batch(self, batch: Batch) -> None:
        if batch.unanswered:
            rows = batch.rows[batch.unanswered]
            self._ask(rows, self.teacher.prompted(rows))

    def _ask(self, rows: pl.DataFrame, texts: list[str]) -> None:
        """Ask and journal. A refused request is halved, down to the single text that the server refuses."""
        try:
            answer = self.teacher.client.embed(texts)
        except Refusal as refusal:
            if len(texts) > 1:
                half = len(texts) // 2
                self._ask(rows[:half], texts[:half])
                self._ask(rows[half:], texts[half:])
                return
            self._check_probe()
            self.cache.refused.add(rows["key"][0], rows["id"][0], str(refusal))
            if self.teacher.api.refused == "stop":
                self.teacher.client.stop.set()
            return
        self.journal.add(rows["key"].to_list(), split_tokens(answer.tokens, texts), answer.vectors)

    def _check_probe(self) -> None:
        """Tell a refused text from a server that refuses every request (an empty account, say) by a probe text."""
        try:
            self.teacher.client.embed(PROBE_TEXTS[:1])
        except Refusal as refusal:
            raise LeafError(
                f"teacher.api: the server now refuses even a probe text: {refusal}; every vector that was paid {KEPT}"
            ) from None

    def _hold(self, rows: pl.DataFrame) -> None:
        """Keep answered rows until there are enough for a shard, and commit it."""
        if self.teacher.client.stop.is_set():
            raise Stopped
        self._held.append(rows.drop("text"))
        if sum(map(len, self._held)) >= self._shard_rows:
            held = pl.concat(self._held)
            while len(held) >= self._shard_rows:
                self._commit(held[: self._shard_rows])
                held = held[self._shard_rows :]
            self._held = [held]

    def _commit_rest(self) -> None:
        """Commit the last shard, which may be smaller."""
        if self.teacher.client.stop.is_set():
            raise Stopped
        if blocks := [block for block in self._held if len(block)]:
            self._commit(pl.concat(blocks))

    def _commit(self, rows: pl.DataFrame) -> None:
        keys = rows["key"].to_list()
        tokens, vectors = self.journal.read(keys)
        self.cache.write(rows.with_columns(tokens=pl.Series(tokens, dtype=pl.Int32)), vectors)
        self.journal.drop(keys)

    def _raise_refused(self) -> None:
        if self.teacher.api.refused == "stop" and self.cache.refused:
            raise LeafError(
                f"teacher.api: the server refuses {_list_refused(self.cache)}; every vector that was paid is kept. "
                "Remove these texts from the sources, cut long ones (teacher.api.max_characters), or set "
                "teacher.api.refused to leave_out"
            ) from None


def _list_refused(cache: ShardCache) -> str:
    """The refused texts and the server's reasons, for a message."""
    listed = [f"`{refusal.id}` ({refusal.reason})" for refusal in list(cache.refused.values())[:MAX_LISTED]]
    more = len(cache.refused) - len(listed)
    return f"{len(cache.refused):,} texts: {'; '.join(listed)}{f'; and {more:,} more' if more > 0 else ''}"


def split_tokens(tokens: int, texts: Sequence[str]) -> list[int]:
    """Tokens of each text, as its share of the request's characters; they add up to `tokens`.

    A server counts the tokens of a request, not of its texts.
    """
    ends = np.cumsum([len(text) for text in texts])
    counts: list[int] = np.diff(np.round(ends / max(int(ends[-1]), 1) * tokens).astype(np.int64), prepend=0).tolist()
    return counts
