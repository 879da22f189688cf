"""Operations on whole stores: describe, check, merge, compare, reduce to a set of keys. Vectors move bit for bit."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from tqdm import tqdm

from pipeline.base import Array, LeafError, contains, cosines, disk, key_array, workspace
from pipeline.store.shard import StoreMeta
from pipeline.store.shard_cache import ShardCache
from pipeline.store.store import Store
from pipeline.store.validation import SAME_VECTOR, check_replaceable

OWN_PROMPT = " (the model's own)"
NORM_TOLERANCE = 0.02  # int8 rounds each number to 1/254 of the row's largest
ChooseRows = Callable[[Store, int], Array]
"""Store and number of a shard -> `[rows] bool`: which rows of the shard to keep."""


def info(store: Store) -> dict[str, Any]:
    """What the store says about itself, from `store.json`; an old store's sources are counted from its rows files."""
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
        "prompts": _prompts(meta.teacher),
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


def _prompts(teacher: dict[str, Any]) -> dict[str, str]:
    """What was put before the texts of each role, and whether the model brought it or the parameters gave it."""
    prompts, given_by = teacher.get("prompts"), teacher.get("prompts_from")
    if not isinstance(prompts, dict):
        return {}
    origins: dict[Any, Any] = given_by if isinstance(given_by, dict) else {}
    return {
        str(role): f"{prompt!r}{OWN_PROMPT if origins.get(role) == 'model' else ''}" if prompt else "none"
        for role, prompt in sorted(prompts.items())
    }


def verify(store: Store) -> dict[str, Any]:
    """Everything that `Store.verify` checks, and the vectors' norms.

    Raises:
        LeafError: damage, named with its shard and repair; or a vector not of length one in a store that says so.
    """
    store.verify()
    low, high = np.inf, 0.0
    for i in progress_bar(store, "norms"):
        for _, vectors in store.chunks(i):
            norms = np.linalg.norm(vectors.astype(np.float32), axis=1)
            low, high = min(low, float(norms.min())), max(high, float(norms.max()))
        if store.meta.normalized and max(1 - low, high - 1) > NORM_TOLERANCE:
            worst = low if 1 - low > high - 1 else high
            raise LeafError(
                f"{store.name}: shard {store.shards[i].name}: a vector has the norm {worst:.4f}"
                " although the store says that all are normalised; do not trust this store"
            )
    return {"rows": store.rows, "shards": len(store.shards), "norm_min": round(low, 6), "norm_max": round(high, 6)}


def merge(first: Store, second: Store, out: Path) -> dict[str, Any]:
    """Publish at `out` the store of all keys of two stores. A key that both have keeps the vector of `first`.

    Shards are taken as they are; of a shard of `second` that shares keys with `first`, only the new rows.

    Raises:
        LeafError: the stores differ in fingerprint or dtype, or a shard is damaged.
    """
    for name in ("fingerprint", "dtype", "dim", "normalized"):
        expected, actual = getattr(first.meta, name), getattr(second.meta, name)
        if actual != expected:
            raise LeafError(
                f"{second.name}: cannot be merged with {first.name}: {name} {actual!s:.16} is not {expected!s:.16}"
            )
    taken = np.sort(first.keys())

    def choose(store: Store, i: int) -> Array:
        keys = key_array(store.shard_rows_frame(i)["key"])
        return np.ones(len(keys), dtype=bool) if store is first else ~contains(taken, keys)

    refused = {**(first.meta.refused or {}), **(second.meta.refused or {})} or None
    meta = replace(first.meta, license=_joint_license(first.meta.license, second.meta.license), refused=refused)
    return assemble([first, second], choose, meta, out)


def compact(store: Store, keys: Array, corpus: str, out: Path) -> dict[str, Any]:
    """Publish at `out` the store without the rows whose key is not among `keys` (sorted, `[n] V16`).

    `corpus` names where the keys come from, for the message of a LeafError where nothing would be left.
    """
    if not contains(keys, store.keys()).any():
        raise LeafError(f"{corpus}: shares no text with {store.name}: nothing would be left")
    refused = {key.hex() for key in store.refused[contains(keys, store.refused)].tolist()}
    kept = {key: reason for key, reason in (store.meta.refused or {}).items() if key in refused} or None
    meta = replace(store.meta, refused=kept)
    return assemble([store], lambda s, i: contains(keys, key_array(s.shard_rows_frame(i)["key"])), meta, out)


def assemble(stores: Sequence[Store], choose: ChooseRows, meta: StoreMeta, out: Path) -> dict[str, Any]:
    """Publish at `out` the rows that `choose(store, shard)` marks: whole shards by links, others by copying bits.

    The store is built beside `out`, which does not change until the end.
    """
    check_replaceable(out)
    figures = {"rows": 0, "rows_dropped": 0, "shards_linked": 0, "shards_rewritten": 0, "shards_dropped": 0}
    with scratch_cache(out, meta) as cache:
        for store in stores:
            for i in progress_bar(store, out.name):
                kept = choose(store, i)
                figures["rows"] += int(kept.sum())
                figures["rows_dropped"] += int((~kept).sum())
                if not kept.any():
                    figures["shards_dropped"] += 1
                elif kept.all():
                    cache.adopt(store.files.shard(store.shards[i]), store.shards[i])
                    figures["shards_linked"] += 1
                else:
                    copy_rows(store, i, kept, cache)
                    figures["shards_rewritten"] += 1
        cache.publish(out, cache.keys())
    return figures


def copy_rows(store: Store, i: int, kept: Array, cache: ShardCache) -> None:
    """Copy the rows of shard `i` that `kept` marks into the cache as a shard of their own, bit for bit."""
    store.verify_shard(i)
    cache.write_stored(store.shard_rows_frame(i).filter(pl.Series(kept)), [part[kept] for part in store.stored(i)])


def diff(first: Store, second: Store, rows: int) -> dict[str, Any]:
    """Count the keys of one store and of both, and the cosines of up to `rows` shared keys' vectors (0: of all)."""
    first_keys, second_keys = np.sort(first.keys()), np.sort(second.keys())
    shared = first_keys[contains(second_keys, first_keys)]
    figures: dict[str, Any] = {
        "same_fingerprint": first.meta.fingerprint == second.meta.fingerprint,
        "only_in_first": len(first_keys) - len(shared),
        "only_in_second": len(second_keys) - len(shared),
        "in_both": len(shared),
    }
    compared = shared[: rows or None]
    if len(compared) and first.meta.dim == second.meta.dim:
        similarity = cosines(first.lookup(compared), second.lookup(compared))
        figures["cosine"] = {
            "rows": len(similarity),
            "mean": round(float(similarity.mean()), 6),
            "min": round(float(similarity.min()), 6),
            "below_0.999": int((similarity < SAME_VECTOR).sum()),
        }
    return figures


@contextmanager
def scratch_cache(out: Path, meta: StoreMeta) -> Iterator[ShardCache]:
    """An empty shard cache on the file system of `out`, removed at the end; LeafError where another run has one."""
    with disk(out), workspace(out, "pool") as directory, ShardCache(directory, meta) as cache:
        yield cache


def progress_bar(store: Store, what: str | None = None) -> "tqdm[int]":
    """The numbers of the store's shards, with a progress bar where there are several."""
    return tqdm(range(len(store.shards)), desc=what, unit="shard", disable=len(store.shards) < 2)


def _joint_license(first: str | None, second: str | None) -> str | None:
    """The licence of a merged store: both apply, as an SPDX expression; None (unknown) if either is unknown."""
    if first == second or first is None or second is None:
        return first if first == second else None
    return " AND ".join(sorted({*first.split(" AND "), *second.split(" AND ")}))
