"""Encodes the texts of lost shards again: the part of `leaf store repair` that needs the teacher."""

from collections.abc import Callable
from pathlib import Path

import polars as pl

from pipeline.base.errors import LeafError
from pipeline.corpus.files import scan
from pipeline.encode.encoding import fill
from pipeline.params.sections import EncodeParams, TeacherParams
from pipeline.store.operations import scratch_cache
from pipeline.store.repair import shard_names
from pipeline.store.shard import read_rows
from pipeline.store.shard_cache import ShardCache
from pipeline.store.store import Store
from pipeline.teacher.teacher import describe, load, once


def encode_lost_shards(
    store: Store, lost: list[int], corpus: Path, teacher: TeacherParams, params: EncodeParams
) -> int:
    """Publish in the place of a damaged store the same store with the shards numbered `lost` encoded again.

    Returns:
        The number of rows encoded.

    Raises:
        LeafError: the parameters describe another teacher than the store's, or the corpus lacks texts of a lost shard.
    """
    if describe(teacher, params, store).fingerprint != store.meta.fingerprint:
        names = shard_names(store, lost)
        raise LeafError(f"{store.name}: shard {names}: the parameters describe another teacher than the store's")
    with scratch_cache(store.path, store.meta) as cache:
        for i in range(len(store.shards)):
            if i not in lost:
                cache.adopt(store.path, store.shards[i])
        intact = len(cache.keys())
        get = once(lambda: load(teacher, params, store.meta))
        _encode_rows(store, lost, cache, corpus, lambda texts: fill(texts, cache, params, get))
        encoded = len(cache.keys()) - intact
        cache.publish(store.path, cache.keys())
    return encoded


def _encode_rows(
    store: Store, lost: list[int], cache: ShardCache, corpus: Path, encode: Callable[[pl.LazyFrame], object]
) -> None:
    """Encode the rows of the lost shards; where a rows file is lost too, all texts of the corpus without a vector."""
    texts, rows_lost = scan(corpus), False
    for i in lost:
        try:
            keys = read_rows(store.path, store.shards[i]).select("key")
        except LeafError:
            rows_lost = True
            continue
        before = len(cache.keys())
        encode(keys.lazy().join(texts, on="key", how="inner", maintain_order="left"))
        if len(cache.keys()) - before != len(keys):
            raise LeafError(f"{corpus}: lacks texts of shard {store.shards[i].name}: name the corpus it is from")
    if rows_lost:
        encode(texts)
