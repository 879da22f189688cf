"""TODO."""

from pathlib import Path

import polars as pl

from pipeline.base.arrays import Array
from pipeline.base.errors import LeafError
from pipeline.encode.encoding import ensure
from pipeline.evaluate.datasets import TeacherVectors
from pipeline.params.sections import EncodeParams, TeacherParams
from pipeline.store.store import Store
from pipeline.teacher.teacher import describe


def pooled(teacher: TeacherParams, encode: EncodeParams, store: Store) -> TeacherVectors:
    """Teacher vectors through the pool of stage one: a text is encoded once, whatever asks for it.

    Raises:
        LeafError: `store` was made by another teacher than `teacher`.
    """
    meta = describe(teacher, encode, store)
    if meta.fingerprint != store.meta.fingerprint:
        raise LeafError(
            f"{store.path}: holds vectors of fingerprint {store.meta.fingerprint[:16]}, but the section `teacher` "
            f"describes {meta.fingerprint[:16]}: run encode and fit again, or use the parameters that they ran with"
        )

    def vectors(texts: pl.DataFrame) -> Array:
        # Beside the pool, so that hard links reach it.
        name = f"{meta.fingerprint[:16]}-{encode.dtype}-{texts['source'][0]}"
        view = Path(encode.pool).with_name("evaluation") / name
        return ensure(texts, teacher, encode, view, store).lookup(texts["key"].to_list())

    return vectors
