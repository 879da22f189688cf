"""Identity of a teacher behind an API: its parameters and its vectors of a few fixed texts (the probe).

The weights of an API's model cannot be hashed, so the probe's vectors, as they were first seen, take their place in the
fingerprint. They are recorded beside the shard cache (`probe-*.json`) and in `store.json`. Before a run asks for any
other text, it asks for the probe again and compares.
"""

import base64
import hashlib
import json
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.base import LeafError, cosines, disk, new_file, read_json, sync, write_json
from pipeline.params import EncodeParams, TeacherParams
from pipeline.store import MAX_DIM, Store, StoreMeta, VectorSource
from pipeline.teacher.api.client import Client
from pipeline.teacher.api.probe import PROBE_TEXTS


def identity(teacher: TeacherParams) -> dict[str, Any]:
    """What the parameters say about the model; its URL is not part of it."""
    assert teacher.api is not None
    bodies = {role: body for role, body in asdict(teacher.api.extra).items() if body}
    return {
        "kind": "api",
        "model": teacher.model,
        "dimensions": teacher.api.dimensions,
        "max_characters": teacher.api.max_characters,
        "prompts": {role: prompt or "" for role, prompt in asdict(teacher.prompts).items()},
        "normalize": teacher.normalize,
        **({"extra": bodies} if bodies else {}),  # left out, so that fingerprints from before it stay valid
    }


def describe(teacher: TeacherParams, params: EncodeParams, store: VectorSource | None = None) -> StoreMeta:
    """Identity and fingerprint, from the first place that has probe vectors.

    With a `store`, that is the store if this teacher made it; otherwise the result has a fingerprint that no store has.
    Without one: the record beside the shard cache, then the first store in `encode.reuse` that this teacher made, then
    the server, whose answer is recorded for all later runs.

    Raises:
        LeafError: the record is damaged; the server does not answer.
    """
    if store is not None:
        return _from_store(teacher, params.dtype, store) or _meta(teacher, params.dtype, np.zeros((0, 1), np.float32))
    cache_root = Path(params.pool)
    if (vectors := _recorded(teacher, cache_root)) is not None:
        return _meta(teacher, params.dtype, vectors)
    for path in params.reuse:
        if (meta := _from_store(teacher, params.dtype, Store.open(path))) is not None:
            return meta
    record(_meta(teacher, params.dtype, Client(teacher).probe()), teacher, cache_root)
    return describe(teacher, params)


def confirm(client: Client, meta: StoreMeta) -> None:
    """Ask for the probe's vectors again and compare them with those of `meta`.

    Raises:
        LeafError: the dimension differs, or a cosine is below `teacher.api.probe_cosine`.
    """
    first = _decoded(meta.teacher["probe"]["vectors"], meta.dim)
    client.dim = None  # accept any dimension here, so that a changed one is reported below
    again = client.probe()
    same_shape = again.shape == first.shape
    lowest = float(cosines(first, again).min()) if same_shape else 0.0
    if not lowest >= client.api.probe_cosine:
        change = (
            f"a probe text's vector has a cosine of {lowest:.4f}"
            if same_shape
            else f"it gives {again.shape[1]} dimensions"
        )
        raise LeafError(
            f"teacher.api: the model behind the name `{client.teacher.model}` has changed: {change} to those first "
            f"seen (at least {client.api.probe_cosine:g} expected in {meta.dim} dimensions). Its vectors do not belong "
            "with those you have: go back to the old model, or name another `encode.pool` and encode all with the "
            "new one"
        )
    client.dim = meta.dim


def record(meta: StoreMeta, teacher: TeacherParams, cache_root: Path) -> None:
    """Record the probe vectors of `meta` beside the shard cache, unless some are recorded: the first ones stay."""
    file = _record_file(teacher, cache_root)
    if file.exists():
        return
    with disk(cache_root):
        cache_root.mkdir(parents=True, exist_ok=True)
        with new_file(file) as new:
            write_json(new, {"identity": identity(teacher), "vectors": meta.teacher["probe"]["vectors"]})
            with suppress(FileExistsError):  # another process has recorded them first
                os.link(new, file)
        sync(cache_root)


def _record_file(teacher: TeacherParams, cache_root: Path) -> Path:
    content = json.dumps([identity(teacher), PROBE_TEXTS], sort_keys=True)
    return cache_root / f"probe-{hashlib.sha256(content.encode()).hexdigest()[:16]}.json"


def _recorded(teacher: TeacherParams, cache_root: Path) -> np.ndarray | None:
    """The recorded probe vectors [texts, dim] float32, if there are any."""
    file = _record_file(teacher, cache_root)
    if not file.exists():
        return None
    try:
        return _decoded(read_json(file)["vectors"])
    except (LeafError, KeyError, TypeError, ValueError):
        raise LeafError(
            f"{file}: damaged: it holds the probe that this cache's vectors belong to. Delete it and name a store that "
            "was published from this cache under `encode.reuse`, which has the same"
        ) from None


def _from_store(teacher: TeacherParams, dtype: str, store: VectorSource) -> StoreMeta | None:
    """Identity by the store's probe vectors, if that gives the store's fingerprint; None otherwise.

    A store's description may be hostile: anything malformed counts as another teacher's.
    """
    try:
        meta = _meta(teacher, dtype, _decoded(store.meta.teacher["probe"]["vectors"], store.meta.dim))
    except (KeyError, TypeError, ValueError):
        return None
    return meta if meta.fingerprint == store.meta.fingerprint else None


def _meta(teacher: TeacherParams, dtype: str, vectors: np.ndarray) -> StoreMeta:
    dim = int(vectors.shape[1])
    digest = hashlib.sha256(json.dumps(PROBE_TEXTS).encode() + vectors.astype("<f4").tobytes()).hexdigest()
    fingerprinted = {**identity(teacher), "dim": dim, "probe": digest}
    fingerprint = hashlib.sha256(json.dumps(fingerprinted, sort_keys=True).encode()).hexdigest()
    probe = {
        "texts": list(PROBE_TEXTS),
        "vectors": [base64.b64encode(row.astype("<f4").tobytes()).decode() for row in vectors],
        "sha256": digest,
    }
    described = {**fingerprinted, "probe": probe}
    if teacher.license:
        described["license"] = teacher.license
    return StoreMeta(fingerprint=fingerprint, teacher=described, dim=dim, dtype=dtype, normalized=teacher.normalize)


def _decoded(vectors: Sequence[str], dim: int | None = None) -> np.ndarray:
    """Probe vectors [texts, dim] float32 from base64; ValueError if they cannot be that."""
    if not isinstance(vectors, list) or len(vectors) != len(PROBE_TEXTS):
        raise ValueError("not the vectors of the probe")
    matrix = np.stack([np.frombuffer(base64.b64decode(text, validate=True), "<f4") for text in vectors])
    width = matrix.shape[1]
    if width != (dim or width) or not 1 <= width <= MAX_DIM or not np.isfinite(matrix).all():
        raise ValueError("impossible vectors")
    return matrix
