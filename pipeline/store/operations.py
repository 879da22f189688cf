"""Operations on whole stores: describe, check, merge, compare, reduce to a set of keys. Vectors move bit for bit."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from pipeline.base import Array, LeafError, check_replaceable, contains, disk, key_array, workspace
from pipeline.store.agreement import check_agreement, check_same_space, compare_shared
from pipeline.store.licenses import joint_license, joint_teacher
from pipeline.store.output import STORE_KIND
from pipeline.store.shard import UNVERIFIED, ShardInfo, StoreMeta
from pipeline.store.shard_cache import ShardCache
from pipeline.store.store import Store
from pipeline.store.validation import check_free

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
        **({"unverified": UNVERIFIED} if meta.unverified else {}),
        "teacher_license": meta.teacher.get("license"),
        "license": meta.license,
        "licenses": {
            license_: {"rows": sum(shard.rows for shard in shards), "shards": len(shards)}
            for license_, shards in store.manifest.licenses.items()
        },
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


def merge(first: Store, second: Store, out: Path, replace_out: bool = False) -> dict[str, Any]:
    """Publish at `out` the store of all keys of two stores. A key that both have keeps the vector of `first`.

    Shards are taken as they are, each under its licence; of a shard of `second` that shares keys with `first`, only the
    new rows. A shard that both have is under the licences that either states for it.

    Raises:
        LeafError: the stores differ in fingerprint or dtype, or in the vector of a text that both have; `out` is no
            empty directory, nor a store that may be replaced (`replace_out`); a shard is damaged.
    """
    check_same_space(first, second, "cannot be merged with")
    check_free(out, replace_out)
    first_keys = np.sort(first.keys())
    check_agreement(first, second, shared_keys(first_keys, second))

    def choose(store: Store, i: int) -> Array:
        keys = key_array(store.shard_rows_frame(i)["key"])
        return np.ones(len(keys), dtype=bool) if store is first else ~contains(first_keys, keys)

    refused = {**(first.meta.refused or {}), **(second.meta.refused or {})} or None
    meta = replace(first.meta, teacher=joint_teacher(first.meta.teacher, second.meta.teacher), refused=refused)
    files = {info.name: info.files for info in first.shards}
    also_stated = {info.name: info.license for info in second.shards if info.files == files.get(info.name)}
    figures = assemble([first, second], choose, meta, out, also_stated)
    figures["rows_duplicate"] = figures.pop("rows_dropped")
    figures["shards_duplicate"] = figures.pop("shards_dropped")
    return figures


def shared_keys(keys: Array, store: Store) -> Array:
    """Those of the store's keys that are among `keys` (sorted), sorted."""
    own: Array = store.keys()
    shared: Array = np.sort(own[contains(keys, own)])
    return shared


def compact(
    store: Store, keys: Array, corpus: str, out: Path, *, replace_out: bool = False, drop_most: bool = False
) -> dict[str, Any]:
    """Publish at `out` the store without the rows whose key is not among `keys` (sorted, `[n] V16`).

    `corpus` names where the keys come from, for messages.

    Raises:
        LeafError: nothing would be left; `out` is the store itself and more than half of its rows would be dropped,
            which `drop_most` allows; `out` is another store, which `replace_out` allows to replace.
    """
    kept = int(contains(keys, store.keys()).sum())
    if not kept:
        raise LeafError(f"{corpus}: shares no text with {store.name}: nothing would be left")
    in_place = out.resolve() == store.path.resolve()
    if in_place and 2 * kept < store.rows and not drop_most:
        raise LeafError(
            f"{store.name}: only {kept:,} of its {store.rows:,} rows have their text in {corpus}, and the others would "
            "be lost: name another directory with --out, or the right corpus with --corpus, or add --drop-most"
        )
    check_free(out, replace_out or in_place)
    refused = {key.hex() for key in store.refused[contains(keys, store.refused)].tolist()}
    still_refused = {key: reason for key, reason in (store.meta.refused or {}).items() if key in refused} or None
    meta = replace(store.meta, refused=still_refused)
    return assemble([store], lambda s, i: contains(keys, key_array(s.shard_rows_frame(i)["key"])), meta, out)


def assemble(
    stores: Sequence[Store],
    choose: ChooseRows,
    meta: StoreMeta,
    out: Path,
    also_stated: Mapping[str, str | None] | None = None,
) -> dict[str, Any]:
    """Publish at `out` the rows that `choose(store, shard)` marks: whole shards by links, others by copying bits.

    The store is built beside `out`, which does not change until the end. `also_stated` has licences of shards by name,
    which apply besides those that the shards state.
    """
    check_replaceable(out, STORE_KIND)
    figures = {"rows": 0, "rows_dropped": 0, "shards_linked": 0, "shards_rewritten": 0, "shards_dropped": 0}
    with scratch_cache(out, meta) as cache:
        for store in stores:
            for i in progress_bar(store, out.name):
                kept, info = choose(store, i), store.shards[i]
                figures["rows"] += int(kept.sum())
                figures["rows_dropped"] += int((~kept).sum())
                if not kept.any():
                    figures["shards_dropped"] += 1
                elif kept.all():
                    both = joint_license([info.license, (also_stated or {}).get(info.name, info.license)])
                    with store.shard_files(i) as root:
                        cache.adopt(root, replace(info, license=both or info.license))
                    figures["shards_linked"] += 1
                else:
                    copy_rows(store, i, np.flatnonzero(kept), cache)
                    figures["shards_rewritten"] += 1
        cache.publish(out, cache.keys())
    return figures


def copy_rows(store: Store, i: int, rows: Array, cache: ShardCache) -> ShardInfo:
    """Copy these rows of shard `i`, in their order, into the cache as a shard of their own, bit for bit."""
    store.verify_shard(i)
    frame, stored = store.shard_rows_frame(i)[rows], [part[rows] for part in store.stored(i)]
    return cache.write_stored(frame, stored, store.shards[i].license)


def diff(first: Store, second: Store, rows: int) -> dict[str, Any]:
    """Count the keys of one store and of both, and compare the vectors of up to `rows` shared keys (0: of all).

    `agree` is true where both hold the same texts, with the same vectors (`compare_shared`) of one fingerprint.
    """
    first_keys = np.sort(first.keys())
    shared = shared_keys(first_keys, second)
    figures: dict[str, Any] = {
        "same_fingerprint": first.meta.fingerprint == second.meta.fingerprint,
        "only_in_first": len(first_keys) - len(shared),
        "only_in_second": second.rows - len(shared),
        "in_both": len(shared),
    }
    compared = shared[: rows or None]
    differing = 0
    if len(compared) and first.meta.dim == second.meta.dim:
        comparison = compare_shared(first, second, compared)
        differing = comparison.differing
        figures["cosine"] = {
            "rows": comparison.rows,
            "mean": round(comparison.cosine_sum / comparison.rows, 6),
            "min": round(comparison.lowest, 6),
        }
        figures |= {"vectors_differ": differing, **({"ids": list(comparison.ids)} if differing else {})}
    same_texts = not figures["only_in_first"] and not figures["only_in_second"]
    figures["agree"] = bool(figures["same_fingerprint"] and same_texts and not differing)
    return figures


@contextmanager
def scratch_cache(out: Path, meta: StoreMeta) -> Iterator[ShardCache]:
    """An empty shard cache on the file system of `out`, removed at the end; LeafError where another run has one."""
    with disk(out), workspace(out, "pool") as directory, ShardCache(directory, meta) as cache:
        yield cache


def progress_bar(store: Store, what: str | None = None) -> "tqdm[int]":
    """The numbers of the store's shards, with a progress bar where there are several."""
    return tqdm(range(len(store.shards)), desc=what, unit="shard", disable=len(store.shards) < 2)
