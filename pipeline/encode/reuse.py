"""Taking over vectors from another store instead of encoding its texts again."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import polars as pl

from pipeline.base import Array, LeafError, contains, key_array, workspace
from pipeline.encode.comparison import compare, misfit
from pipeline.encode.sampling import draw, proof
from pipeline.store import (
    NOT_STATED,
    ShardCache,
    Store,
    find_stores,
    joint_teacher,
    open_stores,
    remote_url,
    shard_directory,
)
from pipeline.teacher import Teacher

EARLIER_ROWS = 64
"""Rows that are encoded again and compared, at least, where a store has the fingerprint of an earlier version."""
logger = logging.getLogger(__name__)


@dataclass
class Reused:
    """What other stores gave instead of the teacher."""

    rows: dict[str, int] = field(default_factory=dict)
    """By the path or URL of the store, as it was named or found."""
    compared: dict[str, str] = field(default_factory=dict)
    """By the same names: how many of the rows were encoded again, and what their agreement proves."""
    tokens: int = 0
    passed_over: dict[str, str] = field(default_factory=dict)
    """Stores of a place of many that were not taken, or not in full, and why."""

    def add(self, store: Store, rows: int, tokens: int) -> None:
        """Count rows of a store."""
        self.rows[store.name] = self.rows.get(store.name, 0) + rows
        self.tokens += tokens


def take_over_all(
    entries: Sequence[str],
    texts: pl.LazyFrame,
    corpus_keys: Array,
    cache: ShardCache,
    *,
    teacher: Teacher,
    verify_rows: int,
) -> Reused:
    """`take_over` from each of `entries` (`encode.reuse`), which are stores or places of many.

    Of a place, every store that fits is used, the largest first, until no text lacks a vector. One that does not fit,
    cannot be read or has other vectors than the teacher gives is passed over; `Reused.passed_over` says why.

    Raises:
        LeafError: as `take_over` for an entry that is a store itself; a place is empty or cannot be reached.
    """
    reused = Reused()

    def take(store: Store) -> None:
        take_over(store, texts, corpus_keys, cache, teacher=teacher, verify_rows=verify_rows, reused=reused)

    for entry in entries:
        names = find_stores(entry)
        if names == [remote_url(entry) or entry]:
            take(Store.open(entry))
            continue
        for listed in sorted(open_stores(names), key=lambda listed: -listed.store.rows if listed.store else 0):
            reason = listed.problem if listed.store is None else misfit(listed.store.meta, teacher)
            try:
                if reason is None and listed.store is not None:
                    take(listed.store)
            except LeafError as error:
                reason = str(error)
            if reason is not None:
                reused.passed_over[listed.name] = reason
    return reused


def take_over(
    store: Store,
    texts: pl.LazyFrame,
    corpus_keys: Array,
    cache: ShardCache,
    *,
    teacher: Teacher,
    verify_rows: int,
    reused: Reused,
    licenses: Mapping[str, str | None] | None = None,
) -> None:
    """Bring the vectors of the corpus's keys (sorted) from a store into the cache; `reused` counts them.

    They keep the licence of their shard there, whatever that of this run's store; `licenses` has others by shard.

    It may have the teacher's fingerprint or that of an earlier version, which is never trusted without a comparison.

    Of the rows of the store that are useful some are encoded again and compared first: `verify_rows`, drawn by chance,
    and one of each shard. Of a store behind a URL, only the rows files and the shards that hold a useful key are
    fetched.

    Raises:
        LeafError: the store has another fingerprint or dtype, is damaged, has other vectors than the teacher gives, or
            has a shard that was encoded here under other terms than this run states.
    """
    _check_same_teacher(store, cache, teacher)
    _check_terms(store, corpus_keys, cache)
    reused.add(store, 0, 0)
    missing = corpus_keys[~cache.has(corpus_keys)]
    if not len(missing):
        return
    if store.meta.fingerprint != cache.meta.fingerprint:
        verify_rows = max(verify_rows, EARLIER_ROWS)
    useful = [key_array(_useful_rows(store, shard, missing)["key"]) for shard in range(len(store.shards))]
    if verify_rows and any(map(len, useful)):
        reused.compared[store.name] = _compare_drawn(store, useful, verify_rows, texts, teacher)
    cache.meta = replace(cache.meta, teacher=joint_teacher(cache.meta.teacher, store.meta.teacher))
    for shard in [shard for shard, keys in enumerate(useful) if len(keys)]:
        rows, info = _useful_rows(store, shard, missing), store.shards[shard]
        license_ = info.license if licenses is None else licenses[info.name]
        if len(rows) == info.rows:
            with store.shard_files(shard) as root:
                cache.adopt(root, replace(info, license=license_))
        else:
            store.verify_shard(shard)
            stored = [array[rows["row"].to_numpy()] for array in store.stored(shard)]
            cache.write_stored(rows.drop("row"), stored, license_)
        reused.add(store, len(rows), int(rows["tokens"].sum()))


def _compare_drawn(store: Store, useful: Sequence[Array], count: int, texts: pl.LazyFrame, teacher: Teacher) -> str:
    """Encode rows again that are drawn from the `useful` keys of each shard; what their agreement proves."""
    sizes = list(map(len, useful))
    drawn = np.concatenate([keys[rows] for keys, rows in zip(useful, draw(sizes, count), strict=True)])
    chosen = pl.Series(drawn.tolist(), dtype=pl.Binary)
    sampled = texts.filter(pl.col("key").is_in(chosen.implode())).collect(engine="streaming")
    compare(f"encode.reuse: {store.name}", sampled, store, teacher)
    return f"{len(sampled):,} rows: {proof(len(sampled), sum(sizes))}"


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
                    Store.open(view),
                    texts,
                    corpus_keys,
                    cache,
                    teacher=teacher,
                    verify_rows=EARLIER_ROWS,
                    reused=Reused(),
                    licenses=licenses,
                )
            except LeafError as error:
                logger.warning("the shard cache of an earlier version is not used: %s", error)


def _check_same_teacher(store: Store, cache: ShardCache, teacher: Teacher) -> None:
    if store.meta.unverified:
        raise LeafError(f"encode.reuse: {store.name}: {misfit(store.meta, teacher)}")
    if misfit(store.meta, teacher):
        theirs, ours = store.meta, cache.meta
        raise LeafError(
            f"encode.reuse: {store.name} holds {theirs.dtype} vectors of fingerprint {theirs.fingerprint[:16]}, but "
            f"this run makes {ours.dtype} of {ours.fingerprint[:16]}; the teacher, its prompts, max_length, normalize "
            "and encode.dtype must be the same"
        )


def _check_terms(store: Store, corpus_keys: Array, cache: ShardCache) -> None:
    """Refuse now what `push` to this store would refuse after hours of encoding: other terms for a shard of both."""
    here = {info.name: info.license or cache.meta.license or NOT_STATED for info in cache.shards}
    for shard, info in enumerate(store.shards):
        if here.get(info.name, info.license) == info.license:
            continue
        if contains(corpus_keys, key_array(store.shard_rows_frame(shard)["key"])).any():
            raise LeafError(
                f"encode.reuse: {store.name} has shard {info.name} under {info.license!r:.100}, and encode.license "
                f"says {here[info.name]!r:.100}: a push there would be refused, as adding to a store changes nobody's "
                "terms; say what is said there, or leave the store out of encode.reuse and push with --replace"
            )


def _useful_rows(store: Store, shard: int, missing: Array) -> pl.DataFrame:
    """Rows of a shard that have one of the keys `missing` (sorted), with their number `row` in the shard."""
    rows = store.shard_rows_frame(shard).with_row_index("row")
    return rows.filter(contains(missing, key_array(rows["key"])))
