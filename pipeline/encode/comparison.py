"""Comparing stored vectors with newly encoded ones: the only check that finds vectors of another model."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from pipeline.base import Array, LeafError, contains, cosines, key_array
from pipeline.corpus import corpus_keys, scan
from pipeline.encode.sampling import draw, proof
from pipeline.store import SAME_LENGTH, SAME_VECTOR, UNVERIFIED, Store, StoreMeta
from pipeline.teacher import Teacher

_NOT_COMPARED = {"license", "revision", "prompts_from", "similarity", "probe", "model"}
_OF_THE_MODEL = {"files", "modules", "weights", "kind", "fingerprint_version"}


def is_of(meta: StoreMeta, teacher: Teacher) -> bool:
    """Whether vectors of this identity can be the teacher's, under its fingerprint or one of an earlier version.

    Under an earlier one they are only if a sample agrees (`compare`): it covered less.
    """
    return not meta.unverified and _has_fingerprint(meta, teacher)


def _has_fingerprint(meta: StoreMeta, teacher: Teacher) -> bool:
    return meta.fingerprint == teacher.meta.fingerprint or meta.fingerprint in teacher.earlier_fingerprints


def misfit(meta: StoreMeta, teacher: Teacher) -> str | None:
    """Why vectors of this identity cannot stand beside the teacher's, as the end of a sentence; None if they can."""
    ours = teacher.meta
    if meta.dtype != ours.dtype:
        return f"holds {meta.dtype}, and encode.dtype is {ours.dtype}"
    if meta.unverified:
        return f"is unverified ({UNVERIFIED}): import the files again with the teacher at hand"
    if is_of(meta, teacher):
        return None
    named = sorted({*meta.teacher, *ours.teacher} - _NOT_COMPARED)
    differing = [name for name in named if meta.teacher.get(name) != ours.teacher.get(name)]
    if not differing or set(differing) & _OF_THE_MODEL:
        return f"holds vectors of another model, `{meta.teacher.get('model')!s:.100}`"
    return f"was made with another teacher.{', teacher.'.join(differing)}"


def compare(place: str, texts: pl.DataFrame, store: Store, teacher: Teacher) -> Array:
    """Encode texts of a store again: the cosine `[texts]` of each new vector to the stored one.

    Raises:
        LeafError: a cosine is below SAME_VECTOR, or a length differs by more than SAME_LENGTH. `place` begins the
            message.
    """
    new, stored = teacher.vectors(texts), store.lookup(texts["key"].to_list())
    similarities = cosines(new, stored)
    worst = int(similarities.argmin())
    if not similarities[worst] >= SAME_VECTOR:
        raise LeafError(
            f"{place}: the vector of text `{texts['id'][worst]}` has cosine {similarities[worst]:.4f} to the one that "
            f"this teacher makes now (at least {SAME_VECTOR} expected); do not trust this store"
        )
    ratios = np.linalg.norm(stored, axis=1) / np.linalg.norm(new, axis=1)
    worst = int(np.abs(ratios - 1).argmax())
    if not abs(ratios[worst] - 1) <= SAME_LENGTH:
        raise LeafError(
            f"{place}: the vector of text `{texts['id'][worst]}` is {ratios[worst]:.4f} times as long as the one that "
            "this teacher makes now; do not trust this store"
        )
    return similarities


def sample(store: Store, corpus: Path, teacher: Teacher, rows: int) -> dict[str, Any]:
    """Encode up to `rows` texts that corpus and store share again, and compare them with the stored vectors.

    They are drawn by chance, some of every shard that shares any (`sampling.draw`). `teacher` is opened with `store`.

    Raises:
        LeafError: another teacher's store, no text in common, or a vector that differs (`compare`).
    """
    if store.meta.unverified:
        raise LeafError(f"{store.name}: {misfit(store.meta, teacher)}")
    if not is_of(store.meta, teacher):
        raise LeafError(
            f"{store.name}: was made with the fingerprint {store.meta.fingerprint[:16]}, but section `teacher` "
            f"describes {teacher.meta.fingerprint[:16]}: name the same model, prompts, max_length and normalize"
        )
    of_corpus = corpus_keys(corpus)
    stored = (key_array(store.shard_rows_frame(i)["key"]) for i in range(len(store.shards)))
    shared = [keys[contains(of_corpus, keys)] for keys in stored]
    if not (total := sum(map(len, shared))):
        raise LeafError(f"{corpus}: shares no text with {store.name}: nothing to compare")
    drawn = [keys[numbers] for keys, numbers in zip(shared, draw(list(map(len, shared)), rows), strict=True)]
    chosen = np.concatenate(drawn).tolist()
    texts = scan(corpus).filter(pl.col("key").is_in(chosen)).collect(engine="streaming")
    similarities = compare(store.name, texts, store, teacher)
    return {
        "compared": len(similarities),
        "proof": proof(len(similarities), total),
        "cosine_min": round(float(similarities.min()), 6),
        "cosine_mean": round(float(similarities.mean()), 6),
    }
