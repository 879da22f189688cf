"""A teacher turned onto its principal axes: distances and angles stay, and the first dimensions hold the most.

A teacher that was not trained for it (Matryoshka, arXiv 2205.13147) loses much when its vectors are cut to their first
dimensions, since each dimension holds about as much as any other. Turned onto the principal axes of its own vectors, it
compares as before, and what is cut off is what varies least. The rotation is a linear layer, so that the turned teacher
is a sentence-transformers model like any other, with a fingerprint of its own.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from pipeline.base import Array, LeafError, check_replaceable, workspace
from pipeline.encode.comparison import misfit, sample
from pipeline.model import load_sentence_transformer, model_directory
from pipeline.params import EncodeParams, TeacherParams
from pipeline.store import CHUNK_ROWS, MODEL_KIND, STORE_KIND, Store, scratch_cache
from pipeline.teacher import LocalTeacher, trusted_revision

DIMS = (64, 128, 256, 384, 512, 768)  # at which the share of the variance is told
COMPARED_ROWS = 64  # texts that the turned teacher encodes again, to be compared with the turned vectors


def turn(
    store: Store, corpus: Path, teacher: TeacherParams, encode: EncodeParams, *, model: Path, out: Path, rows: int
) -> dict[str, Any]:
    """Write the teacher of `store`, turned onto the principal axes of its vectors, to `model`, its vectors to `out`.

    The axes are those of up to `rows` vectors. A sample of the corpus's texts is encoded by the turned teacher and
    compared with the turned vectors before these are published.

    Returns:
        `rows` of the new store, both fingerprints, figures of the comparison, and the `variance` in the first
        dimensions, as shares of the whole, before and after.

    Raises:
        LeafError: another teacher's store; a teacher that is no model on this machine, or is cut to fewer dimensions
            already; a vector that differs; something is in the way at `model` or `out`.
    """
    if teacher.api is not None:
        raise LeafError("teacher.api: a model behind an API cannot be turned: its queries are answered elsewhere")
    encode = replace(encode, dtype=cast(Any, store.meta.dtype))
    plain = LocalTeacher(teacher, encode)
    if reason := misfit(store.meta, plain):
        raise LeafError(f"{store.name}: {reason}")
    if store.meta.dim != plain.width:
        raise LeafError(
            f"{store.name}: holds the first {store.meta.dim} of {plain.width} dimensions: turn the whole, and cut then "
            "(teacher.dim)"
        )
    check_replaceable(out, STORE_KIND)
    check_replaceable(model, MODEL_KIND)
    covariance = _covariance(store, rows)
    axes = principal_axes(covariance)
    _save(plain, axes, model)
    turned = LocalTeacher(replace(teacher, model=str(model), sha256=None, revision=None), encode)
    meta = replace(turned.meta, license=store.meta.license)
    with scratch_cache(out, meta) as cache:
        for shard in tqdm(range(len(store.shards)), desc="turn", unit="shard"):
            cache.write(store.shard_rows_frame(shard), store.read(shard).astype(np.float32) @ axes)
        with workspace(out, "turned") as directory:
            compared = sample(cache.publish(directory / "store", cache.keys()), corpus, turned, COMPARED_ROWS)
        cache.publish(out, cache.keys())
    variance = {"before": np.diag(covariance), "after": np.diag(axes.T @ covariance @ axes)}
    return {
        "rows": store.rows,
        "fingerprint_before": store.meta.fingerprint,
        "fingerprint": meta.fingerprint,
        **compared,
        "variance": {
            str(dim): {name: round(float(values[:dim].sum() / values.sum()), 4) for name, values in variance.items()}
            for dim in DIMS
            if dim < store.meta.dim
        },
    }


def principal_axes(covariance: Array) -> Array:
    """`[dim, dim]` float32: the eigenvectors of a covariance `[dim, dim]` as columns, of the largest eigenvalue first.

    The sign of each is that by which its largest entry is positive, as it differs between machines otherwise.
    """
    _, vectors = np.linalg.eigh(covariance)
    axes = vectors[:, ::-1]
    largest = np.abs(axes).argmax(0)
    signs = np.sign(axes[largest, np.arange(len(axes))])
    turned: Array = (axes * signs).astype(np.float32)
    return turned


def _covariance(store: Store, rows: int) -> Array:
    """`[dim, dim]` float64, of up to `rows` vectors in whole chunks that lie evenly over the store."""
    chunks = [(shard, start) for shard, size in enumerate(store.parts) for start in range(0, size, CHUNK_ROWS)]
    wanted = max(1, min(len(chunks), rows // CHUNK_ROWS))
    total, products, count = np.zeros(store.meta.dim), np.zeros((store.meta.dim, store.meta.dim)), 0
    for number in np.linspace(0, len(chunks) - 1, wanted).astype(int).tolist():
        shard, start = chunks[number]
        vectors = store.read(shard, start, start + CHUNK_ROWS).astype(np.float64)
        total, products, count = total + vectors.sum(0), products + vectors.T @ vectors, count + len(vectors)
    if count <= store.meta.dim:
        raise LeafError(f"{store.name}: {count:,} vectors of {store.meta.dim} dimensions do not tell their axes")
    mean = total / count
    covariance: Array = products / count - np.outer(mean, mean)
    return covariance


def _save(teacher: LocalTeacher, axes: Array, path: Path) -> None:
    """Write the teacher with the rotation behind it, before its last normalisation if it ends in one."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Dense, Normalize

    loaded = load_sentence_transformer(teacher.directory, teacher.params.model, trusted_revision(teacher.params))
    modules = list(loaded)
    ends = [modules.pop()] if isinstance(modules[-1], Normalize) else []
    dense = Dense(len(axes), len(axes), bias=False, activation_function=nn.Identity())
    dense.linear.weight.data.copy_(torch.from_numpy(np.ascontiguousarray(axes.T)))
    turned = SentenceTransformer(modules=[*modules, dense, *ends], device="cpu", prompts=loaded.prompts)
    turned.default_prompt_name = loaded.default_prompt_name
    turned.similarity_fn_name = loaded.similarity_fn_name
    with model_directory(path) as directory:
        turned.save(str(directory), create_model_card=False, safe_serialization=True)
