"""Converts a store to formats that are read without this project (`leaf store export`)."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.base import Array, LeafError, apply_umask, disk, markdown, workspace
from pipeline.store.manifest import README
from pipeline.store.operations import progress_bar
from pipeline.store.readme import LONGEST_LICENSE
from pipeline.store.shard import ROW_SCHEMA
from pipeline.store.store import Store

_HUB_LICENSE = re.compile(r"[a-z][a-z0-9.-]{1,60}")
FORMATS = ("parquet", "npy", "hf")


def convert(store: Store, out: Path, format_name: str) -> dict[str, Any]:
    """Write the store in another format into the new directory `out`, with one shard in memory at a time.

    `parquet`: a file per shard with the rows and a column `vector`. `npy`: `vectors.npy` [rows, dim] and
    `rows.parquet` in the same order. `hf`: a data set directory for `datasets.load_dataset` and the Hugging Face hub.

    Raises:
        LeafError: `out` exists, the store is damaged, or the disk is full.
    """
    if out.exists():
        raise LeafError(f"{out}: exists; name a directory that does not")
    with disk(out), workspace(out, "new") as directory:
        result = directory / "result"
        result.mkdir()
        if format_name == "npy":
            _write_npy(store, result)
        else:
            _write_parquet(store, result, format_name)
        apply_umask(result)
        result.rename(out)
    return {"rows": store.rows, "format": format_name}


def _write_parquet(store: Store, out: Path, format_name: str) -> None:
    hub = format_name == "hf"
    folder = out / "data" if hub else out
    folder.mkdir(exist_ok=True)
    count = len(store.shards)
    for i in progress_bar(store):
        store.verify_shard(i)
        name = f"train-{i:05d}-of-{count:05d}" if hub else store.shards[i].name
        rows = _arrow_table(store.shard_rows_frame(i))
        # Many readers of Parquet do not know lists of float16; float32 holds the same numbers exactly.
        flat = store.read(i).astype(np.float32).reshape(-1)
        vectors = pa.FixedSizeListArray.from_arrays(pa.array(flat), store.meta.dim)
        pq.write_table(rows.append_column("vector", vectors), folder / f"{name}.parquet", compression="zstd")
    if hub:
        (out / README).write_text(_dataset_card(store), encoding="utf-8")


def _dataset_card(store: Store) -> str:
    license_ = (store.meta.license or "unknown").lower()
    head = f"---\nlicense: {license_ if _HUB_LICENSE.fullmatch(license_) else 'other'}\n"
    about = (
        f"# Embeddings\n\n{store.rows:,} vectors of {store.meta.dim} numbers. `key` is BLAKE2b-128 over role, a zero "
        f"byte and the text; texts are not included.\n\nFingerprint of the teacher: `{store.meta.fingerprint}`.\n\n"
        f"Licence of the vectors: {markdown(store.meta.license or 'not stated', LONGEST_LICENSE)}.\n"
    )
    return f"{head}configs:\n- config_name: default\n  data_files: data/*.parquet\n---\n\n{about}"


def _write_npy(store: Store, out: Path) -> None:
    shape, dtype = (store.rows, store.meta.dim), np.float16 if store.meta.dtype == "float16" else np.float32
    vectors: Array = np.lib.format.open_memmap(out / "vectors.npy", mode="w+", dtype=dtype, shape=shape)
    row, schema = 0, _arrow_table(pl.DataFrame(schema=ROW_SCHEMA)).schema
    with pq.ParquetWriter(out / "rows.parquet", schema, compression="zstd") as rows:
        for i in progress_bar(store):
            store.verify_shard(i)
            rows.write_table(_arrow_table(store.shard_rows_frame(i)))
            for start, part in store.chunks(i):
                vectors[row + start : row + start + len(part)] = part
            row += store.shards[i].rows
    vectors.flush()  # type: ignore[attr-defined]


def _arrow_table(rows: pl.DataFrame) -> pa.Table:
    return rows.to_arrow(compat_level=pl.CompatLevel.oldest())
