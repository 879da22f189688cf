"""TODO."""

from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from pipeline.base.arrays import Array, cosines
from pipeline.base.errors import LeafError
from pipeline.base.keys import contains
from pipeline.corpus.files import corpus_keys, scan
from pipeline.params.sections import EncodeParams, TeacherParams
from pipeline.store.store import Store
from pipeline.store.validation import SAME_VECTOR
from pipeline.teacher.api.api_teacher import ApiTeacher
from pipeline.teacher.local import Teacher
from pipeline.teacher.teacher import AnyTeacher, describe, load

SAME_LENGTH = 0.02  # most that a reused vector's length may differ, as a share


def texts_vectors(texts: pl.DataFrame, teacher: AnyTeacher) -> np.ndarray:
    """Vectors [texts, dim] float32 of a frame with `text` and `role`, in its order; nothing is stored."""
    if isinstance(teacher, ApiTeacher):
        return teacher.vectors(texts)
    return teacher.encode_tokens(tokenize_rows(texts, teacher))


def compare(place: str, texts: pl.DataFrame, store: Store, teacher: AnyTeacher) -> Array:
    """Encode texts of a store again: the cosine [texts] of each new vector to the stored one.

    Raises:
        LeafError: one is below SAME_VECTOR, or a length differs by more than SAME_LENGTH. `place` begins the message.
    """
    made, theirs = texts_vectors(texts, teacher), store.lookup(texts["key"].to_list())
    found = cosines(made, theirs)
    worst = int(found.argmin())
    if not found[worst] >= SAME_VECTOR:
        raise LeafError(
            f"{place}: the vector of text `{texts['id'][worst]}` has cosine {found[worst]:.4f} to the one that this "
            f"teacher makes now (at least {SAME_VECTOR} expected); do not trust this store"
        )
    lengths = np.linalg.norm(theirs, axis=1) / np.linalg.norm(made, axis=1)
    worst = int(np.abs(lengths - 1).argmax())
    if not abs(lengths[worst] - 1) <= SAME_LENGTH:
        raise LeafError(
            f"{place}: the vector of text `{texts['id'][worst]}` is {lengths[worst]:.4f} times as long as the one that "
            "this teacher makes now; do not trust this store"
        )
    return found


def sample(store: Store, corpus: Path, teacher: TeacherParams, params: EncodeParams, rows: int) -> dict[str, Any]:
    """Encode up to `rows` texts of the corpus again and compare; those with the smallest keys, which are random ones.

    Raises:
        LeafError: another teacher's store, no text in common, or a vector that is another one (`encode.compare`).
    """

    mine = describe(teacher, params, store)
    if mine.fingerprint != store.meta.fingerprint:
        raise LeafError(
            f"{store.path}: was made with the fingerprint {store.meta.fingerprint[:16]}, but section `teacher` "
            f"describes {mine.fingerprint[:16]}: name the same model, prompts, max_length and normalize"
        )
    stored = store.keys()
    shared = np.sort(stored[contains(corpus_keys(corpus), stored)])[:rows]
    if not len(shared):
        raise LeafError(f"{corpus}: shares no text with {store.path}: nothing to compare")
    texts = scan(corpus).filter(pl.col("key").is_in(shared.tolist())).collect(engine="streaming")
    found = compare(str(store.path), texts, store, load(teacher, params, mine))
    return {
        "compared": len(found),
        "cosine_min": round(float(found.min()), 6),
        "cosine_mean": round(float(found.mean()), 6),
    }


TOKENIZE_ROWS = 2048  # texts tokenised at once, so that their strings never exist twice as a whole


def tokenize_rows(shard: pl.DataFrame, teacher: Teacher) -> list[Sequence[int]]:
    ids: list[Sequence[int]] = []
    for part in shard.iter_slices(TOKENIZE_ROWS):
        # One call a role: the prompt differs, and the order by key mixes the roles.
        by_row: list[Sequence[int]] = [[]] * part.height
        for role in ("query", "document"):
            rows = part.with_row_index("row").filter(pl.col("role") == role)
            tokens = teacher.tokenize(rows["text"].to_list(), role)
            for row, one in zip(rows["row"], tokens, strict=True):
                by_row[row] = array("i", one)  # a list takes nine times the memory, and there are two shards of them
        ids += by_row
    return ids
