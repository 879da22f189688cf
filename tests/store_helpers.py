"""Rows, vectors and published stores for tests."""

from pathlib import Path

import numpy as np
import polars as pl

from pipeline.base.arrays import Array
from pipeline.base.keys import keys
from pipeline.store.shard import StoreMeta
from pipeline.store.shard_cache import ShardCache
from pipeline.store.store import Store

DIM = 8
META = StoreMeta(fingerprint="ab" * 32, teacher={"model": "tiny"}, dim=DIM, dtype="float16", normalized=True)


def meta(dtype: str = "float16", dim: int = DIM, fingerprint: str = "ab" * 32) -> StoreMeta:
    return StoreMeta(fingerprint=fingerprint, teacher={"model": "tiny"}, dim=dim, dtype=dtype, normalized=True)


def rows(first: int, count: int) -> pl.DataFrame:
    texts = [f"text {number}" for number in range(first, first + count)]
    roles = ["query" if number % 2 else "document" for number in range(first, first + count)]
    return pl.DataFrame(
        {
            "key": keys(roles, texts),
            "role": roles,
            "id": [f"id {number}" for number in range(first, first + count)],
            "source": ["tests"] * count,
            "tokens": list(range(1, count + 1)),
        }
    )


def vectors(first: int, count: int, dim: int = DIM) -> Array:
    """Unit vectors that depend on the row's number alone."""
    numbers = np.stack([np.random.default_rng(number).standard_normal(dim) for number in range(first, first + count)])
    scaled: np.ndarray = (numbers / np.linalg.norm(numbers, axis=1, keepdims=True)).astype(np.float32)
    return scaled


def publish(directory: Path, sizes: tuple[int, ...] = (1500, 40), dtype: str = "float16") -> Store:
    """A store of shards of these sizes at `directory/store`, from a shard cache at `directory/pool`."""
    with ShardCache(directory / "pool", meta(dtype)) as cache:
        first = 0
        for size in sizes:
            cache.write(rows(first, size), vectors(first, size))
            first += size
        return cache.publish(directory / "store", cache.keys())


def contents(directory: Path) -> dict[str, bytes]:
    """Every file below `directory` and its bytes."""
    files = (path for path in sorted(directory.rglob("*")) if path.is_file())
    return {path.relative_to(directory).as_posix(): path.read_bytes() for path in files}
