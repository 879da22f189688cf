"""Stores for people without this project, and stores into an object store."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from pipeline.base.arrays import Array
from pipeline.base.errors import LeafError
from pipeline.base.files import disk, workspace
from pipeline.store.manifest import README
from pipeline.store.shard import ROW_SCHEMA
from pipeline.store.store import Store

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


def _bar(store: Store) -> "tqdm[int]":
    return tqdm(range(len(store.shards)), unit="shard", disable=len(store.shards) < 2)
