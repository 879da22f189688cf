"""Encodes the texts of lost shards again: the part of `leaf store repair` that needs the teacher."""

from dataclasses import replace
from pathlib import Path

from pipeline.base import LeafError
from pipeline.corpus import part_files, scan
from pipeline.encode.encoding import engine_for, fill
from pipeline.encode.on_demand import fill_frame
from pipeline.store import ShardCache, Store, joint_license, read_rows, scratch_cache, shard_names
from pipeline.teacher import Teacher


def encode_lost_shards(store: Store, lost: list[int], corpus: Path, teacher: Teacher, shard_rows: int) -> int:
    """Publish in the place of a damaged store the same store with the shards numbered `lost` encoded again.

    `teacher` is opened with `store`.

    Returns:
        The number of rows encoded.

    Raises:
        LeafError: another teacher than the store's, or the corpus lacks texts of a lost shard.
    """
    names = shard_names(store, lost)
    if store.meta.fingerprint in teacher.earlier_fingerprints:
        raise LeafError(
            f"{store.name}: shard {names}: the store has the fingerprint that an earlier version gave to this teacher; "
            "name it under encode.reuse and encode its corpus again: its whole shards are taken over"
        )
    if teacher.meta.fingerprint != store.meta.fingerprint:
        raise LeafError(f"{store.name}: shard {names}: the parameters describe another teacher than the store's")
    license_ = joint_license(store.shards[i].license for i in lost)  # of what takes their place
    with scratch_cache(store.path, replace(store.meta, license=license_)) as cache:
        for i in range(len(store.shards)):
            if i not in lost:
                cache.adopt(store.path, store.shards[i])
        intact = len(cache.keys())
        if _encode_rows(store, lost, cache, corpus, teacher=teacher, shard_rows=shard_rows):
            fill(part_files(corpus), cache, shard_rows, engine_for(teacher))
        encoded = len(cache.keys()) - intact
        cache.publish(store.path, cache.keys())
    return encoded


def _encode_rows(
    store: Store, lost: list[int], cache: ShardCache, corpus: Path, *, teacher: Teacher, shard_rows: int
) -> bool:
    """Encode the rows of the lost shards; returns whether a rows file is lost too, which hides what its rows are."""
    texts, rows_lost = scan(corpus), False
    for i in lost:
        try:
            keys = read_rows(store.path, store.shards[i]).select("key")
        except LeafError:
            rows_lost = True
            continue
        before = len(cache.keys())
        known = keys.lazy().join(texts, on="key", how="inner", maintain_order="left").collect()
        fill_frame(known, cache, shard_rows, teacher)
        if len(cache.keys()) - before != len(keys):
            raise LeafError(f"{corpus}: lacks texts of shard {store.shards[i].name}: name the corpus it is from")
    return rows_lost
