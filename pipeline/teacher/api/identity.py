"""Who a teacher behind an API is: its parameters, and the vectors of a few fixed texts as they were first seen.

Weights that nobody here has cannot be hashed. So the probe's vectors stand for them in the fingerprint. They lie beside
the pool (`probe-*.json`) and in `store.json`, and before anything is asked for, the probe is asked again.
"""

import base64
import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.base.arrays import cosines
from pipeline.base.errors import LeafError
from pipeline.base.files import TEMPORARY, disk, read_json, sync, write_json
from pipeline.params.sections import EncodeParams, TeacherParams
from pipeline.store.shard import MAX_DIM, StoreMeta
from pipeline.store.store import Store
from pipeline.teacher.api.client import Client

TEXTS = (
    "What is a text embedding?",
    "The quick brown fox jumps over the lazy dog.",
    "def add(a, b):\n    return a + b",
    "In 1969 the first people walked on the Moon, 384,400 km from home.",
    "Der schnelle braune Fuchs springt über den faulen Hund.",
    "¿Dónde está la biblioteca más cercana?",
    "天气很好，我们去公园散步吧。",
    "Symptoms of the flu include fever, cough, sore throat and fatigue.",
)


def identity(teacher: TeacherParams) -> dict[str, Any]:
    """What the parameters say of the model; where it is served is not part of it."""
    assert teacher.api is not None
    return {
        "kind": "api",
        "model": teacher.model,
        "dimensions": teacher.api.dimensions,
        "max_characters": teacher.api.max_characters,
        "prompts": asdict(teacher.prompts),
        "normalize": teacher.normalize,
    }


def describe(teacher: TeacherParams, params: EncodeParams, store: Store | None = None) -> StoreMeta:
    """Identity and fingerprint.

    With a `store`, by its probe, if it is of this teacher; otherwise what is returned has another fingerprint. Without
    one, by the probe beside the pool; else by that of the first store in `encode.reuse` which is of this teacher; else
    the server is asked, once for all runs.

    Raises:
        LeafError: the record is damaged; the server does not answer.
    """
    if store is not None:
        return _of_store(teacher, params.dtype, store) or _meta(teacher, params.dtype, np.zeros((0, 1), np.float32))
    root = Path(params.pool)
    if (found := _recorded(teacher, root)) is not None:
        return _meta(teacher, params.dtype, found)
    for path in params.reuse:
        if (meta := _of_store(teacher, params.dtype, Store.open(path))) is not None:
            return meta
    keep(_meta(teacher, params.dtype, Client(teacher).probe(TEXTS)), teacher, root)
    return describe(teacher, params)


def confirm(client: Client, meta: StoreMeta) -> None:
    """Ask the probe again; LeafError unless it gives the vectors that `meta` has, within `teacher.api.probe_cosine`."""
    first = _decoded(meta.teacher["probe"]["vectors"], meta.dim)
    client.dim = None  # another dimension is an answer to this question
    again = client.probe(TEXTS)
    same = again.shape == first.shape
    lowest = float(cosines(first, again).min()) if same else 0.0
    if not lowest >= client.api.probe_cosine:
        found = (
            f"a probe text's vector has a cosine of {lowest:.4f}" if same else f"it gives {again.shape[1]} dimensions"
        )
        raise LeafError(
            f"teacher.api: the model behind the name `{client.teacher.model}` has changed: {found} to those first seen "
            f"(at least {client.api.probe_cosine:g} expected in {meta.dim} dimensions). Its vectors do not belong with "
            "those you have: go back to the old model, or name another `encode.pool` and encode all with the new one"
        )
    client.dim = meta.dim


def keep(meta: StoreMeta, teacher: TeacherParams, root: Path) -> None:
    """Record the probe of `meta` beside the pool, unless there is one: the first stays."""
    file = _file(teacher, root)
    if file.exists():
        return
    with disk(root):
        root.mkdir(parents=True, exist_ok=True)
        temporary = root / f"{TEMPORARY}{os.getpid()}-{file.name}"
        write_json(temporary, {"identity": identity(teacher), "vectors": meta.teacher["probe"]["vectors"]})
        try:
            os.link(temporary, file)
        except FileExistsError:
            pass  # another process was first
        finally:
            temporary.unlink()
        sync(root)


def _file(teacher: TeacherParams, root: Path) -> Path:
    decides = json.dumps([identity(teacher), TEXTS], sort_keys=True)
    return root / f"probe-{hashlib.sha256(decides.encode()).hexdigest()[:16]}.json"


def _recorded(teacher: TeacherParams, root: Path) -> np.ndarray | None:
    file = _file(teacher, root)
    if not file.exists():
        return None
    try:
        return _decoded(read_json(file)["vectors"])
    except (LeafError, KeyError, TypeError, ValueError):
        raise LeafError(
            f"{file}: damaged: it holds the probe that this pool's vectors belong to. Delete it and name a store that "
            "was published from this pool under `encode.reuse`, which has the same"
        ) from None


def _of_store(teacher: TeacherParams, dtype: str, store: Store) -> StoreMeta | None:
    """The teacher with the store's probe, if that gives the store's fingerprint. What a store says may be hostile."""
    try:
        meta = _meta(teacher, dtype, _decoded(store.meta.teacher["probe"]["vectors"], store.meta.dim))
    except (KeyError, TypeError, ValueError):
        return None
    return meta if meta.fingerprint == store.meta.fingerprint else None


def _meta(teacher: TeacherParams, dtype: str, vectors: np.ndarray) -> StoreMeta:
    dim = int(vectors.shape[1])
    of_probe = hashlib.sha256(json.dumps(TEXTS).encode() + vectors.astype("<f4").tobytes()).hexdigest()
    decides = {**identity(teacher), "dim": dim, "probe": of_probe}
    fingerprint = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()
    probe = {
        "texts": list(TEXTS),
        "vectors": [base64.b64encode(row.astype("<f4").tobytes()).decode() for row in vectors],
        "sha256": of_probe,
    }
    found = {**decides, "probe": probe}
    if teacher.license:
        found["license"] = teacher.license
    return StoreMeta(fingerprint=fingerprint, teacher=found, dim=dim, dtype=dtype, normalized=teacher.normalize)


def _decoded(vectors: Sequence[str], dim: int | None = None) -> np.ndarray:
    """Vectors [texts, dim] float32; ValueError where they are not the probe's."""
    if not isinstance(vectors, list) or len(vectors) != len(TEXTS):
        raise ValueError("not the vectors of the probe")
    rows = [np.frombuffer(base64.b64decode(one, validate=True), "<f4") for one in vectors]
    found = np.stack(rows)
    if found.shape[1] != (dim or found.shape[1]) or not 1 <= found.shape[1] <= MAX_DIM or not np.isfinite(found).all():
        raise ValueError("impossible vectors")
    return found
