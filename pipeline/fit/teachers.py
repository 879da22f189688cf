"""Vectors of several stores of one corpus, side by side: further teachers, and what the student is kept near.

The stores hold the texts in different orders, and random rows of a store are read about a thousand times slower than
its chunks. So each further store is copied once, in its own order, into a flat file that has the rows of the first.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from pipeline.base import Array, LeafError, contains, disk, key_array, made_once, mapped_file
from pipeline.params import FitParams, public_name
from pipeline.store import Store, StoreMeta, VectorSource, joint_license


def open_teachers(source: VectorSource, params: FitParams) -> VectorSource:
    """`source`, or with it the other stores that `params` name, as one.

    Raises:
        LeafError: one is no store, or their vectors cannot be put together.
    """
    further = [Store.open(place) for place in params.further_stores]
    anchor = Store.open(params.anchor.store) if params.anchor else None
    return JoinedSource([source, *further], anchor) if further or anchor else source


class JoinedSource(VectorSource):
    """Several stores as one, with the rows of the first; call `align` before anything is read.

    A vector is `[dim of the student | dim of the anchor]` float32. With several teachers the first part is their
    vectors, each scaled to length one, side by side and scaled to length one again; else it is as stored.
    """

    def __init__(self, teachers: Sequence[VectorSource], anchor: VectorSource | None) -> None:
        """Reads nothing.

        Raises:
            LeafError: a teacher's vectors are compared by their lengths too, which several cannot keep.
        """
        self.teachers, self.anchor = list(teachers), anchor
        self.sources = [*teachers, *([anchor] if anchor else [])]
        self.meta = _joint_meta(self.teachers) if len(teachers) > 1 else teachers[0].meta
        refused: dict[str, str] = {}
        for source in reversed(self.sources):
            refused |= source.meta.refused or {}
        self.meta = replace(self.meta, refused=refused or None)
        self._rows: list[Array] = []

    @property
    def name(self) -> str:
        """See `VectorSource.name`."""
        return " and ".join(source.name for source in self.sources)

    @property
    def parts(self) -> Sequence[int]:
        """Those of the first store."""
        return self.sources[0].parts

    @cached_property
    def bounds(self) -> Array:
        """The first row of each part, and the number of all."""
        return np.cumsum([0, *self.parts])

    def align(self, keys: Array, work: Path) -> None:
        """Copy the vectors of all stores but the first into files below `work`, in the first one's order.

        `keys` are those of all texts that will be asked for.

        Raises:
            LeafError: a store lacks texts that none lists as refused.
        """
        refused = contains(self.refused, keys)
        places = [source.locate(keys) for source in self.sources]
        for source, place in zip(self.sources, places, strict=True):
            if missing := int(((place < 0) & ~refused).sum()):
                raise LeafError(
                    f"{source.name}: lacks the vectors of {missing} of the corpus's {len(keys)} texts; encode this "
                    "corpus with that teacher first"
                )
        for source, place in zip(self.sources[1:], places[1:], strict=True):
            goal = np.full(sum(source.parts), -1, np.int64)
            goal[place[~refused]] = places[0][~refused]
            self._rows.append(flat_copy(source, goal, int(self.bounds[-1]), work))

    def locate(self, keys: Sequence[bytes] | Array) -> Array:
        """See `VectorSource.locate`; a text that any store has no vector of has none."""
        return np.where(contains(self.refused, key_array(keys)), -1, self.sources[0].locate(keys))

    def read(self, part: int, start: int = 0, stop: int | None = None) -> Array:
        """See `VectorSource.read` and the class."""
        low, high, _ = slice(start, stop).indices(self.parts[part])
        first = self.sources[0].read(part, low, high)
        rows = slice(int(self.bounds[part]) + low, int(self.bounds[part]) + high)
        vectors: list[Array] = [first.astype(np.float32), *(np.asarray(flat[rows], np.float32) for flat in self._rows)]
        count = len(self.teachers)
        if count > 1:
            vectors[:count] = [_scaled(of_teacher) / np.float32(np.sqrt(count)) for of_teacher in vectors[:count]]
        if self.anchor:
            vectors[-1] = _scaled(vectors[-1])
        return np.concatenate(vectors, axis=1)

    def verify(self) -> None:
        """See `VectorSource.verify`."""
        for source in self.sources:
            source.verify()

    def digest(self) -> str:
        """See `VectorSource.digest`."""
        digests = [[source.meta.fingerprint, source.digest()] for source in self.sources]
        return hashlib.sha256(json.dumps([len(self.teachers), digests]).encode()).hexdigest()


def flat_copy(source: VectorSource, goal: Array, total: int, work: Path) -> Array:
    """`[total, dim]`, mapped from a file below `work`: row i of the source stands in row `goal[i]`.

    A row that none goes to is NaN; one whose goal is -1 goes nowhere. The file is made once.
    """
    name = hashlib.sha256(source.digest().encode() + goal.tobytes() + str(total).encode()).hexdigest()[:16]
    shape = total, source.meta.dim
    dtype = np.dtype(np.float16 if source.meta.dtype == "float16" else np.float32)

    def write(directory: Path) -> None:
        flat = mapped_file(directory / "vectors.bin", dtype, shape)
        _copy(source, goal, flat)
        flat.flush()

    path = work / "flat" / name
    with disk(path, f"a copy of {source.name}"):
        made_once(path, "copy of vectors", f"{source.name}: copying its vectors for a fit", write)
    return np.memmap(path / "vectors.bin", dtype, "r", shape=shape)


def _copy(source: VectorSource, goal: Array, flat: Array) -> None:
    unfilled = np.ones(len(flat), dtype=bool)
    unfilled[goal[goal >= 0]] = False
    flat[unfilled] = np.nan
    first = 0
    with tqdm(total=len(goal), desc=f"vectors of {Path(source.name).name}", unit="row", unit_scale=True) as bar:
        for part, rows in enumerate(source.parts):
            for start in range(0, rows, source.rows_at_once):
                vectors = source.read(part, start, min(start + source.rows_at_once, rows))
                goals = goal[first + start : first + start + len(vectors)]
                flat[goals[goals >= 0]] = vectors[goals >= 0]
                bar.update(len(vectors))
            first += rows


def _scaled(vectors: Array) -> Array:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    scaled: Array = vectors / np.maximum(lengths, np.finfo(np.float32).tiny)
    return scaled


def _joint_meta(teachers: Sequence[VectorSource]) -> StoreMeta:
    metas = [source.meta for source in teachers]
    if dotted := [source.name for source in teachers if source.meta.similarity == "dot"]:
        raise LeafError(
            f"fit.further_stores: the vectors of {dotted[0]} are compared by the dot product, so that their lengths "
            "count, which vectors of several teachers side by side cannot keep; leave it out"
        )
    names = [public_name(str(meta.teacher.get("model", "unknown"))) for meta in metas]
    parts: list[dict[str, Any]] = [
        {"model": name, "fingerprint": meta.fingerprint, "dim": meta.dim}
        for name, meta in zip(names, metas, strict=True)
    ]
    if len({meta.fingerprint for meta in metas}) < len(metas):
        raise LeafError("fit.further_stores: two stores are of the same teacher; name each once")
    fingerprint = hashlib.sha256(json.dumps([meta.fingerprint for meta in metas]).encode()).hexdigest()
    return StoreMeta(
        fingerprint=fingerprint,
        teacher={"model": " and ".join(names), "kind": "several", "parts": parts},
        dim=sum(meta.dim for meta in metas),
        dtype="float32",
        normalized=True,
        license=joint_license(meta.license for meta in metas),
    )
