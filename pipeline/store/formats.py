"""Stores for people without this project, and stores into an object store."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from pipeline.bucket import Bucket
from pipeline.errors import LeafError
from pipeline.files import disk, workspace
from pipeline.manifest import README
from pipeline.shard import ROW_SCHEMA
from pipeline.store import Array, Store

FORMATS = ("parquet", "npy", "hf")


def export(store: Store, out: Path, form: str) -> dict[str, Any]:
    """Write the store in another form into the new directory `out`; shard by shard, so memory holds one.

    `parquet`: a file per shard with the rows and a column `vector`. `npy`: `vectors.npy` [rows, dim] and
    `rows.parquet` in one order. `hf`: a data set directory for `datasets.load_dataset` and the hub.

    Raises:
        LeafError: `out` exists, the store is damaged, or the disk is full.
    """
    if out.exists():
        raise LeafError(f"{out}: exists; name a directory that does not")
    with disk(out), workspace(out, "new") as directory:
        result = directory / "result"
        result.mkdir()
        if form == "npy":
            _npy(store, result)
        else:
            _parquet(store, result, form)
        result.rename(out)
    return {"rows": store.rows, "format": form}


def _parquet(store: Store, out: Path, form: str) -> None:
    folder = out / "data" if form == "hf" else out
    folder.mkdir(exist_ok=True)
    count = len(store.shards)
    for i in _bar(store):
        store.verify_shard(i)
        name = f"train-{i:05d}-of-{count:05d}" if form == "hf" else store.shards[i].name
        rows = _table(store.shard_rows_frame(i))
        # float16 lists are unknown to many readers of Parquet; float32 holds them exactly.
        flat = store.read(i).astype(np.float32).reshape(-1)
        vectors = pa.FixedSizeListArray.from_arrays(pa.array(flat), store.meta.dim)
        pq.write_table(rows.append_column("vector", vectors), folder / f"{name}.parquet", compression="zstd")
    if form == "hf":
        (out / README).write_text(_card(store), encoding="utf-8")


def _card(store: Store) -> str:
    license_ = (store.meta.license or "unknown").lower()
    head = f"---\nlicense: {license_ if license_.replace('-', '').replace('.', '').isalnum() else 'other'}\n"
    about = (
        f"# Embeddings\n\n{store.rows:,} vectors of {store.meta.dim} numbers. `key` is BLAKE2b-128 over role, a zero "
        f"byte and the text; texts are not included.\n\nFingerprint of the teacher: `{store.meta.fingerprint}`.\n"
    )
    return f"{head}configs:\n- config_name: default\n  data_files: data/*.parquet\n---\n\n{about}"


def _npy(store: Store, out: Path) -> None:
    shape, dtype = (store.rows, store.meta.dim), np.float16 if store.meta.dtype == "float16" else np.float32
    vectors: Array = np.lib.format.open_memmap(out / "vectors.npy", mode="w+", dtype=dtype, shape=shape)
    row, schema = 0, _table(pl.DataFrame(schema=ROW_SCHEMA)).schema
    with pq.ParquetWriter(out / "rows.parquet", schema, compression="zstd") as rows:
        for i in _bar(store):
            store.verify_shard(i)
            rows.write_table(_table(store.shard_rows_frame(i)))
            for start, part in store.chunks(i):
                vectors[row + start : row + start + len(part)] = part
            row += store.shards[i].rows
    vectors.flush()  # type: ignore[attr-defined]


def _table(rows: pl.DataFrame) -> pa.Table:
    return rows.to_arrow(compat_level=pl.CompatLevel.oldest())


def push(store: Store, url: str) -> dict[str, Any]:
    """Send a store to an s3:// URL: shards that are not there yet, then README.md, and `store.json` at the very end.

    Whoever reads the URL meanwhile sees the old store. Files of shards that the store no longer has stay there.

    Raises:
        LeafError: a store lies there whose vectors differ in teacher, dtype or dimension, or that has other vectors in
            a shard of this one; a shard is damaged; the bucket cannot be reached.
    """
    bucket = Bucket(url)
    there = bucket.files()
    held = _held(store, url) if "store.json" in there else {}
    figures = {"files_sent": 0, "bytes_sent": 0}
    files = {file: digest for shard in store.shards for file, digest in shard.files.items()}
    for i in _bar(store):
        store.verify_shard(i)
    for file, digest in [*files.items(), *sorted(store.manifest.files.items(), reverse=True), ("store.json", "")]:
        path = store.path / file
        if file in held and held[file] == digest and there.get(file) == path.stat().st_size:
            continue
        bucket.put(path, file)
        figures["files_sent"] += 1
        figures["bytes_sent"] += path.stat().st_size
    return figures


def _held(store: Store, url: str) -> dict[str, str]:
    """SHA-256 of the files of the store at `url`, which `store` may grow but not change.

    Shards are named by their keys alone: another teacher's have the same names where the corpus is the same.
    """
    found = Store.open(url)
    instead = f"nothing was sent; push to another URL, or first remove the store there (`aws s3 rm --recursive {url}`)"
    for name in ("fingerprint", "dtype", "dim"):
        mine, theirs = getattr(store.meta, name), getattr(found.meta, name)
        if mine != theirs:
            raise LeafError(f"{url}: holds another store: {name} {theirs!s:.16}, not {mine!s:.16}; {instead}")
    ours = {shard.name: shard.files for shard in store.shards}
    for shard in found.shards:
        if shard.files != ours.get(shard.name, shard.files):
            raise LeafError(f"{url}: shard {shard.name}: holds the same texts, encoded another time; {instead}")
    return found.manifest.files | {file: digest for shard in found.shards for file, digest in shard.files.items()}


def _bar(store: Store) -> "tqdm[int]":
    return tqdm(range(len(store.shards)), unit="shard", disable=len(store.shards) < 2)
