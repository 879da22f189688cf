"""An engine carries out work orders: it encodes their rows and commits the shards to the shard cache."""

import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

import polars as pl

from pipeline.encode.plan import WorkOrder
from pipeline.store import ShardCache


@dataclass
class EncodeFigures:
    """Seconds of each kind of work, and what was done in them. Reading and writing overlap with computing."""

    reading: float = 0.0
    computing: float = 0.0
    writing: float = 0.0
    rows: int = 0
    tokens: int = 0
    api: dict[str, int] = field(default_factory=dict)
    """Of a teacher behind an API: requests, retries, and limits of a request that the server has shown to be lower."""
    cut: int = 0
    """Texts of which the teacher reads the beginning only, being longer than its maximum length."""
    characters: int = 0
    """Of the texts that were encoded here."""
    unread: int = 0
    """Of these characters, those behind what the teacher reads."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def read(self, texts: pl.Series, unread: Sequence[int]) -> None:
        """Count texts, and the characters of each that are never read."""
        with self.lock:
            self.cut += sum(map(bool, unread))
            self.characters += int(texts.str.len_chars().sum())
            self.unread += sum(unread)

    @contextmanager
    def timed(self, work: str) -> Iterator[None]:
        """Add the block's seconds to `work`: reading, computing or writing."""
        start = time.perf_counter()
        yield
        with self.lock:
            setattr(self, work, getattr(self, work) + time.perf_counter() - start)


class Engine(Protocol):
    """Work orders in, committed shards out."""

    def run(self, orders: Iterable[WorkOrder], rows: int, cache: ShardCache) -> EncodeFigures:
        """Encode every order's rows (`rows` in all) and commit them to the cache, which the caller has locked.

        After it returns, each text has a vector in the cache or is listed there as refused. Shards have the orders'
        rows, except where a text was refused. It may be killed at any moment: the cache holds whole shards only.

        Raises:
            LeafError: the corpus, the teacher or a vector is bad, or the disk is full.
        """
