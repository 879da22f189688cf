"""What is done to whole stores: tell, check, merge, compare, cut to a corpus. Vectors move as the bits they are."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from tqdm import tqdm

from pipeline.base.arrays import Array, cosines
from pipeline.base.errors import LeafError
from pipeline.base.files import disk, workspace
from pipeline.base.keys import contains, key_array
from pipeline.corpus.files import scan
from pipeline.store.shard import StoreMeta
from pipeline.store.shard_cache import ShardCache
from pipeline.store.store import Store
from pipeline.store.validation import SAME_VECTOR, check_replaceable

NORM_TOLERANCE = 0.02  # int8 rounds each number to 1/254 of the row's largest
Choose = Callable[[Store, int], Array]


def info(store: Store) -> dict[str, Any]:
    """What the store says about itself; reads `store.json` only (rows files too where an old one counts no sources)."""
    sources = store.manifest.sources
    if sources is None:
        sources = store.count_sources()
    roles: dict[str, int] = {}
    for counts in sources.values():
        for role, rows in counts.items():
            roles[role] = roles.get(role, 0) + rows
    meta = store.meta
    return {
        "teacher": meta.teacher.get("model"),
        "teacher_license": meta.teacher.get("license"),
        "license": meta.license,
        "fingerprint": meta.fingerprint,
        "rows": store.rows,
        "dim": meta.dim,
        "dtype": meta.dtype,
        "normalized": meta.normalized,
        "bytes": sum(shard.bytes for shard in store.shards),
        "shards": len(store.shards),
        "refused": len(meta.refused or {}),
        "roles": dict(sorted(roles.items())),
        "sources": sources,
    }


def verify(store: Store) -> dict[str, Any]:
    """Everything that `Store.verify` checks, and the vectors' norms.

    Raises:
        LeafError: damage, named with its shard and repair; or a vector not of length one in a store that says so.
    """
    store.verify()
    low, high = np.inf, 0.0
    for i in _bar(store, "norms"):
        for _, vectors in store.chunks(i):
            norms = np.linalg.norm(vectors.astype(np.float32), axis=1)
            low, high = min(low, float(norms.min())), max(high, float(norms.max()))
        if store.meta.normalized and max(1 - low, high - 1) > NORM_TOLERANCE:
            worst = low if 1 - low > high - 1 else high
            raise LeafError(
                f"{store.path}: shard {store.shards[i].name}: a vector has the norm {worst:.4f}"
                " although the store says that all are normalised; do not trust this store"
            )
    return {"rows": store.rows, "shards": len(store.shards), "norm_min": round(low, 6), "norm_max": round(high, 6)}


def merge(one: Store, two: Store, out: Path) -> dict[str, Any]:
    """The store of all keys of both, at `out`: shards as they are, of overlapping ones of `two` only the new rows.

    Raises:
        LeafError: the stores differ in fingerprint or dtype, or a shard is damaged.
    """
    for name in ("fingerprint", "dtype", "dim", "normalized"):
        mine, theirs = getattr(one.meta, name), getattr(two.meta, name)
        if mine != theirs:
            raise LeafError(f"{two.path}: cannot be merged with {one.path}: {name} {theirs!s:.16} is not {mine!s:.16}")
    have = np.sort(one.keys())

    def choose(store: Store, i: int) -> Array:
        keys = key_array(store.shard_rows_frame(i)["key"])
        return np.ones(len(keys), dtype=bool) if store is one else ~contains(have, keys)

    refused = {**(one.meta.refused or {}), **(two.meta.refused or {})} or None
    meta = replace(one.meta, license=_both(one.meta.license, two.meta.license), refused=refused)
    return assemble([one, two], choose, meta, out)


def compact(store: Store, corpus: Path, out: Path) -> dict[str, Any]:
    """The store without the rows whose key is not in the corpus, at `out`."""
    wanted = _keys(corpus)
    if not contains(wanted, store.keys()).any():
        raise LeafError(f"{corpus}: shares no text with {store.path}: nothing would be left")
    refused = {key.hex() for key in store.refused[contains(wanted, store.refused)].tolist()}
    kept = {key: reason for key, reason in (store.meta.refused or {}).items() if key in refused} or None
    meta = replace(store.meta, refused=kept)
    return assemble([store], lambda s, i: contains(wanted, key_array(s.shard_rows_frame(i)["key"])), meta, out)


def assemble(stores: Sequence[Store], choose: Choose, meta: StoreMeta, out: Path) -> dict[str, Any]:
    """Publish at `out` the rows that `choose(store, shard)` marks: whole shards by links, others by copying bits.

    It is built beside `out`, which stays what it was until the end.
    """
    check_replaceable(out)
    figures = {"rows": 0, "rows_dropped": 0, "shards_linked": 0, "shards_rewritten": 0, "shards_dropped": 0}
    with scratch(out, meta) as pool:
        for store in stores:
            for i in _bar(store, out.name):
                kept = choose(store, i)
                figures["rows"] += int(kept.sum())
                figures["rows_dropped"] += int((~kept).sum())
                if not kept.any():
                    figures["shards_dropped"] += 1
                elif kept.all():
                    pool.adopt(store.root(i), store.shards[i])
                    figures["shards_linked"] += 1
                else:
                    copy_rows(store, i, kept, pool)
                    figures["shards_rewritten"] += 1
        pool.publish(out, pool.keys())
    return figures


def copy_rows(store: Store, i: int, kept: Array, pool: ShardCache) -> None:
    """Bring the rows of shard `i` that `kept` marks into the pool as a shard of their own, bit for bit."""
    store.verify_shard(i)
    pool.write_stored(store.shard_rows_frame(i).filter(pl.Series(kept)), [part[kept] for part in store.stored(i)])


def diff(one: Store, two: Store, rows: int) -> dict[str, Any]:
    """Keys in one store or both, and the cosine of up to `rows` shared ones (0: of all)."""
    mine, theirs = np.sort(one.keys()), np.sort(two.keys())
    shared = mine[contains(theirs, mine)]
    figures: dict[str, Any] = {
        "same_fingerprint": one.meta.fingerprint == two.meta.fingerprint,
        "only_in_first": len(mine) - len(shared),
        "only_in_second": len(theirs) - len(shared),
        "in_both": len(shared),
    }
    chosen = shared[: rows or None]
    if len(chosen) and one.meta.dim == two.meta.dim:
        found = cosines(one.lookup(chosen), two.lookup(chosen))
        figures["cosine"] = {
            "rows": len(found),
            "mean": round(float(found.mean()), 6),
            "min": round(float(found.min()), 6),
            "below_0.999": int((found < SAME_VECTOR).sum()),
        }
    return figures


@contextmanager
def scratch(out: Path, meta: StoreMeta) -> Iterator[ShardCache]:
    """An empty pool on the file system of `out`, gone at the end; LeafError where another run has one for `out`."""
    with disk(out), workspace(out, "pool") as directory, ShardCache(directory, meta) as pool:
        yield pool


def _keys(corpus: Path) -> Array:
    """`[n] V16` of the texts of a corpus, sorted."""
    return np.sort(key_array(scan(corpus).select("key").collect()["key"]))


def _bar(store: Store, what: str) -> "tqdm[int]":
    return tqdm(range(len(store.shards)), desc=what, unit="shard", disable=len(store.shards) < 2)


def _both(one: str | None, two: str | None) -> str | None:
    """The licence of a merged store: both hold, as SPDX writes it; unknown if either is."""
    if one == two or one is None or two is None:
        return one if one == two else None
    return " AND ".join(sorted({*one.split(" AND "), *two.split(" AND ")}))
