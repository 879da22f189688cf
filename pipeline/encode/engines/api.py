"""The engine for a teacher behind an API: requests side by side, answers through a journal into committed shards.

An answer is journaled before anything else happens to it. So a run that is killed, rate-limited or out of money loses
no vector: the next one asks only for texts that are neither in a shard nor in the journal. Shards are cut from the
answered texts in the corpus's order, so they are those of a run that was never stopped.
"""

import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import polars as pl
from tqdm import tqdm

from pipeline.base import LeafError
from pipeline.encode.engines.engine import EncodeFigures
from pipeline.encode.plan import WorkOrder, read_order
from pipeline.params import Role
from pipeline.store import ShardCache
from pipeline.teacher import ApiTeacher, Journal, Refused, Stopped, embed_all

REQUESTS_AHEAD = 4  # requests per worker that may be under way or answered before the oldest one is answered
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
        started = time.perf_counter()
        with Journal(cache.path / "answers.journal", self.teacher.meta.dim) as journal:
            journaled = journal.keys()
            journal.drop([key for key, done in zip(journaled, cache.has(journaled), strict=True) if done])
            run = _Run(self.teacher, cache, journal)
            run.ask_all(orders, rows)
            figures.rows = run.rows
        figures.computing = time.perf_counter() - started
        limits = self.teacher.client.limits
        figures.tokens = limiter.tokens
        figures.api = {"requests": limiter.requests, "retries": limiter.retries, **limits.learnt()}
        return figures


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
                for answered in self._answered(orders, workers, bar):
                    self._hold(answered)
                self._commit_rest()
        except BaseException as error:
            # Requests under way are waited for and journaled; those that were not sent yet are dropped.
            self.teacher.client.stop.set()
            workers.shutdown(wait=True, cancel_futures=True)
            if isinstance(error, Stopped | LeafError):
                self._raise_refused()
            raise
        workers.shutdown()

    def _answered(
        self, orders: Iterable[WorkOrder], workers: ThreadPoolExecutor, bar: "tqdm[Any]"
    ) -> Iterator[pl.DataFrame]:
        """The rows of each order that have an answer, in the corpus's order, without those that were refused.

        An order's rows wait behind its requests, while those of the next orders are sent.
        """
        window: deque[Future[int] | pl.DataFrame] = deque()
        most = REQUESTS_AHEAD * self.teacher.api.concurrency
        for order in orders:
            self._shard_rows = max(self._shard_rows, order.rows)  # all orders but the last have the same number
            rows = read_order(order)
            for role, texts, asked in self._requests(rows, bar):
                window.append(workers.submit(self._ask, asked, texts, role))
                while len(window) > most:
                    yield from self._results(window.popleft(), bar)
            window.append(rows.drop("text"))
        while window:
            yield from self._results(window.popleft(), bar)

    def _requests(self, rows: pl.DataFrame, bar: "tqdm[Any]") -> Iterator[tuple[Role, list[str], pl.DataFrame]]:
        """Requests for the rows that the journal lacks: their role, texts and rows."""
        texts = self.teacher.prompted(rows)
        unanswered = [row for row, key in enumerate(rows["key"]) if key not in self.journal]
        bar.update(len(rows) - len(unanswered))
        rows_alone = rows.drop("text")
        for role, places in self.teacher.requests(rows["role"].to_list(), texts, unanswered):
            yield role, [texts[place] for place in places], rows_alone[places]

    def _results(self, entry: "Future[int] | pl.DataFrame", bar: "tqdm[Any]") -> Iterator[pl.DataFrame]:
        if isinstance(entry, pl.DataFrame):
            yield entry.filter(pl.Series([key in self.journal for key in entry["key"]], dtype=pl.Boolean))
            return
        answered = entry.result()
        self.rows += answered
        limiter, seconds = self.teacher.client.limiter, bar.format_dict["elapsed"]
        rate = limiter.tokens / seconds if seconds else 0
        bar.set_postfix_str(f"{rate:,.0f} tokens/s, {limiter.retries} retries", refresh=False)
        bar.update(answered)

    def _ask(self, rows: pl.DataFrame, texts: list[str], role: Role) -> int:
        """Ask for the vectors of these rows and journal each answer; returns how many have one."""
        answered = 0
        for outcome in embed_all(self.teacher.client, texts, role):
            if isinstance(outcome, Refused):
                self.cache.refused.add(rows["key"][outcome.place], rows["id"][outcome.place], outcome.reason)
                if self.teacher.api.refused == "stop":
                    self.teacher.client.stop.set()
            else:
                self.journal.add(rows["key"][outcome.places].to_list(), outcome.tokens, outcome.vectors)
                answered += len(outcome.places)
        return answered

    def _hold(self, rows: pl.DataFrame) -> None:
        """Keep answered rows until there are enough for a shard, and commit it."""
        if self.teacher.client.stop.is_set():
            raise Stopped
        self._held.append(rows)
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
