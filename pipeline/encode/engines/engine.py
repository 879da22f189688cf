"""An engine carries out work orders: it encodes their rows and commits the shards to the shard cache."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

import polars as pl

from pipeline.base import Array
from pipeline.encode.plan import WorkOrder
from pipeline.store import ShardCache, ShardInfo, StoreMeta


@dataclass(frozen=True)
class EncodedShard:
    """A committed shard, and the work that it was. Seconds of reading and writing overlap with computing others."""

    name: str
    rows: int
    tokens: int
    cut: int
    """Texts of which the teacher reads the beginning only, being longer than its maximum length."""
    characters: int
    unread: int
    """Of the characters, those behind what the teacher reads."""
    reading: float
    computing: float
    writing: float


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
    cluster: dict[str, Any] = field(default_factory=dict)
    """Of several workers: who computed what, and what failed on the way."""
    cut: int = 0
    """Of all shards, as are the next two; see `EncodedShard`."""
    characters: int = 0
    unread: int = 0

    def add(self, shard: EncodedShard) -> None:
        """Count a committed shard."""
        for name in ("reading", "computing", "writing", "rows", "tokens", "cut", "characters", "unread"):
            setattr(self, name, getattr(self, name) + getattr(shard, name))


class ShardSink(Protocol):
    """Where finished shards go: the shard cache, or for a worker its `ShardWriter`."""

    @property
    def meta(self) -> StoreMeta:
        """Identity and type of the vectors."""

    def write(self, rows: pl.DataFrame, vectors: Array) -> ShardInfo:
        """Commit a shard; see `ShardCache.write`."""


class SharedShards(ShardSink, Protocol):
    """Where the workers of a run put shards: `ShardWriter` in a shared directory, `ShardBucket` in an object store."""

    def check_current(self) -> None:
        """LeafError where a later run has begun: then nothing of this one may be added."""

    def holds(self, name: str) -> bool:
        """Whether a shard of this name is finished."""

    def agree(self, file: str, content: bytes) -> bytes:
        """What a small file holds; where there is none, it is made of `content`. All who ask are told the same."""


class Engine(Protocol):
    """Work orders in, committed shards out."""

    def run(self, orders: Iterable[WorkOrder], rows: int, cache: ShardCache) -> EncodeFigures:
        """Encode every order's rows (`rows` in all) and commit them to the cache, which the caller has locked.

        After it returns, each text has a vector in the cache or is listed there as refused. Shards have the orders'
        rows, except where a text was refused. It may be killed at any moment: the cache holds whole shards only.

        Raises:
            LeafError: the corpus, the teacher or a vector is bad, or the disk is full.
        """
