"""Taking over vectors from another store instead of encoding its texts again."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace

import polars as pl

from pipeline.base import Array, LeafError, contains, key_array, workspace
from pipeline.encode.comparison import compare, is_of
from pipeline.store import ShardCache, Store, joint_teacher, shard_directory
from pipeline.teacher import Teacher

EARLIER_ROWS = 64
"""Rows that are encoded again and compared, at least, where a store has the fingerprint of an earlier version."""
logger = logging.getLogger(__name__)


@dataclass
class Reused:
    """What one store gave instead of the teacher."""

    rows: int = 0
    tokens: int = 0


def take_over(
    path: str,
    texts: pl.LazyFrame,
    corpus_keys: Array,
    cache: ShardCache,
    *,
    teacher: Teacher,
    verify_rows: int,
    licenses: Mapping[str, str | None] | None = None,
) -> Reused:
    """Bring the vectors of the corpus's keys (sorted) from the store at `path` into the cache.

    They keep the licence of their shard there, whatever that of this run's store; `licenses` has others by shard.

    It may have the teacher's fingerprint or that of an earlier version, which is never trusted without a comparison.

    The rows of the store that are useful are sampled, encoded again and compared first: the `verify_rows` with the
    smallest keys, and one of each shard. Of a store behind a URL, only the rows files and the shards that hold a
    useful key are fetched.

    Raises:
        LeafError: the store has another fingerprint or dtype, is damaged, or has other vectors than the teacher gives.
    """
    store = Store.open(path)
    _check_same_teacher(path, store, cache, teacher)
    if store.meta.fingerprint != cache.meta.fingerprint:
        verify_rows = max(verify_rows, EARLIER_ROWS)
    smallest = [
        _useful_rows(store, shard, corpus_keys, cache)["key"].sort().head(max(1, verify_rows))
        for shard in range(len(store.shards))
    ]
    useful_shards = [shard for shard, keys in enumerate(smallest) if len(keys)]
    if verify_rows and useful_shards:
        # Keys are random, so the smallest of all are a fair sample of the store, and each shard's smallest one of it.
        sample = pl.concat([pl.concat(smallest).sort().head(verify_rows), *(keys.head(1) for keys in smallest)])
        sampled = texts.filter(pl.col("key").is_in(sample.unique().implode())).collect(engine="streaming")
        compare(f"encode.reuse: {path}", sampled, store, teacher)
    reused = Reused()
    cache.meta = replace(cache.meta, teacher=joint_teacher(cache.meta.teacher, store.meta.teacher))
    for shard in useful_shards:
        rows, info = _useful_rows(store, shard, corpus_keys, cache), store.shards[shard]
        license_ = info.license if licenses is None else licenses[info.name]
        if len(rows) == info.rows:
            with store.shard_files(shard) as root:
                cache.adopt(root, replace(info, license=license_))
        else:
            store.verify_shard(shard)
            stored = [array[rows["row"].to_numpy()] for array in store.stored(shard)]
            cache.write_stored(rows.drop("row"), stored, license_)
        reused.rows += len(rows)
        reused.tokens += int(rows["tokens"].sum())
    return reused


def take_over_earlier(texts: pl.LazyFrame, corpus_keys: Array, cache: ShardCache, teacher: Teacher) -> None:
    """Bring what the shard cache holds under the teacher's earlier fingerprints into `cache`, if a sample agrees.

    Where it does not agree the vectors are encoded again, and a warning says so: the cache is disposable.
    """
    missing = corpus_keys[~cache.has(corpus_keys)]
    for fingerprint in teacher.earlier_fingerprints if len(missing) else ():
        meta = replace(cache.meta, fingerprint=fingerprint)
        if not shard_directory(cache.path.parent, meta).is_dir():
            continue
        with ShardCache(cache.path.parent, meta) as earlier, workspace(cache.path, "earlier") as directory:
            useful = missing[earlier.has(missing)]
            if not len(useful):
                continue
            view = directory / "store"
            earlier.publish(view, useful)
            licenses = {info.name: info.license for info in earlier.shards}  # None: of stores published from here
            try:
                take_over(
                    str(view), texts, corpus_keys, cache, teacher=teacher, verify_rows=EARLIER_ROWS, licenses=licenses
                )
            except LeafError as error:
                logger.warning("the shard cache of an earlier version is not used: %s", error)


def _check_same_teacher(path: str, store: Store, cache: ShardCache, teacher: Teacher) -> None:
    if not is_of(store.meta, teacher) or store.meta.dtype != cache.meta.dtype:
        raise LeafError(
            f"encode.reuse: {path} holds {store.meta.dtype} vectors of fingerprint {store.meta.fingerprint[:16]}, but "
            f"this run makes {cache.meta.dtype} of {cache.meta.fingerprint[:16]}; the teacher, its prompts, "
            "max_length, normalize and encode.dtype must be the same"
        )


def _useful_rows(store: Store, shard: int, corpus_keys: Array, cache: ShardCache) -> pl.DataFrame:
    """Rows of a shard that the corpus needs and the cache lacks, with their number `row` in the shard."""
    rows = store.shard_rows_frame(shard).with_row_index("row")
    keys = key_array(rows["key"])
    return rows.filter(contains(corpus_keys, keys) & ~cache.has(keys))
