"""One shard on disk: a Zarr array of vectors beside a Parquet file of rows (`docs/format.md`).

A shard is written once, in full, and never changed. Its name is derived from its keys, and the same input gives the
same bytes.
"""

import hashlib
import io
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import zarr
from zarr.codecs import Crc32cCodec

from pipeline.base import (
    Array,
    DigestError,
    LeafError,
    Similarity,
    access,
    check_sha256,
    key_array,
    regular_size,
    sha256,
    sync,
)
from pipeline.store.chunks import CHUNK_ROWS, Chunks, chunk_bytes, index_bytes
from pipeline.store.similarity import WORDS, similarity_note, similarity_of

MAX_DIM = 65_536
MAX_ROW_BYTES = 8192  # of a row's key, role, id, source and tokens, unpacked; more is a decompression bomb
LEAST_KEY_BYTES = 8
"""That a key takes in a file at least. Keys are digests in order: what those of a shard have in common, and their
order, can be packed, but no more than the logarithm of all rows in bits; half of the 16 bytes is enough for 10^19."""
DTYPES = ("float16", "float32", "int8")
ROW_SCHEMA = pl.Schema({"key": pl.Binary, "role": pl.String, "id": pl.String, "source": pl.String, "tokens": pl.Int32})

UNVERIFIED = "imported vectors, none of which was encoded again: nobody has checked which model made them"


@dataclass(frozen=True)
class StoreMeta:
    """What all shards of a store share. `teacher` is any JSON object; the store does not interpret it."""

    fingerprint: str
    """64 hexadecimal digits; vectors of different fingerprints never mix."""
    teacher: dict[str, Any]
    dim: int
    dtype: str
    normalized: bool
    license: str | None = None
    """Of the vectors; the teacher's is `teacher["license"]`. Neither is part of the fingerprint."""
    refused: dict[str, str] | None = None
    """Texts that a teacher behind an API would not embed: key in hexadecimal digits -> reason. They have no vector."""

    @property
    def similarity(self) -> Similarity:
        """What the vectors are compared by, wherever texts are ranked."""
        return similarity_of(self._made_for, self.normalized)

    @property
    def similarity_note(self) -> str | None:
        """A sentence where that is not what the teacher is made for."""
        return similarity_note(self._made_for, self.normalized)

    @property
    def comparison(self) -> str:
        """Both in words, to stand behind `vectors` in a document for people."""
        note = f" ({self.similarity_note})" if self.similarity_note else ""
        return f"compared by {WORDS[self.similarity]}{note}"

    @property
    def unverified(self) -> bool:
        """Whether nobody has checked that the teacher made these vectors (`UNVERIFIED`)."""
        return bool(self.teacher.get("unverified"))

    @property
    def _made_for(self) -> str:
        return str(self.teacher.get("similarity", "cosine"))  # stores made before the key existed lack it


@dataclass(frozen=True)
class ShardInfo:
    """One finished shard: `files` maps paths relative to the store to SHA-256; `bytes` is the sum of their sizes."""

    name: str
    rows: int
    bytes: int
    files: dict[str, str]
    license: str | None = None
    """Of its vectors; a store that was opened states one for every shard (`licenses.NOT_STATED` where nobody did).
    None in a shard cache: it was encoded here, and the store that is published says the licence."""

    def to_json(self) -> dict[str, Any]:
        """Its entry in `store.json`, and its `shard.json` in a shard cache."""
        return {name: value for name, value in vars(self).items() if value is not None}


def shard_name(keys: Array) -> str:
    """First 16 hexadecimal digits of SHA-256 over the concatenated keys."""
    return hashlib.sha256(keys.tobytes()).hexdigest()[:16]


def arrays(name: str, meta: StoreMeta) -> dict[str, tuple[str, tuple[int, ...]]]:
    """The shard's Zarr arrays: name -> (dtype, shape of one row). int8 codes come with one scale per row."""
    vectors: dict[str, tuple[str, tuple[int, ...]]] = {name: (meta.dtype, (meta.dim,))}
    return vectors if meta.dtype != "int8" else vectors | {f"{name}_scale": ("float32", ())}


def rows_path(name: str) -> str:
    """Path of the shard's Parquet file inside the store."""
    return f"rows/{name}.parquet"


def file_sizes(name: str, rows: int, meta: StoreMeta) -> dict[str, int | None]:
    """Every file of the shard, with its exact size in bytes where the format fixes it."""
    sizes: dict[str, int | None] = {rows_path(name): None}
    for array, (dtype, row) in arrays(name, meta).items():
        sizes[document_path(array)] = None
        data = -(-rows // CHUNK_ROWS) * chunk_bytes(row, np.dtype(dtype))
        sizes[data_path(array, row)] = data + index_bytes(rows)
    return sizes


def document_path(array: str) -> str:
    """Path of a Zarr array's metadata inside the store."""
    return f"vectors.zarr/{array}/zarr.json"


def data_path(array: str, row: tuple[int, ...]) -> str:
    """Path of a Zarr array's data inside the store; `row` is the shape of one row."""
    return f"vectors.zarr/{array}/c/{'/'.join('0' * (1 + len(row)))}"


def write_shard(root: Path, rows: pl.DataFrame, stored: Sequence[Array], meta: StoreMeta) -> ShardInfo:
    """Write a whole shard under the empty directory `root`, in the layout of a store, and flush it to the disk.

    `rows` has ROW_SCHEMA; `stored` comes from `encoded`, with an array for each of `arrays`. OSError passes through.
    """
    name = shard_name(key_array(rows["key"]))
    for array, data in zip(arrays(name, meta), stored, strict=True):
        _write_array(root / "vectors.zarr" / array, data)
    buffer = io.BytesIO()
    rows.rechunk().write_parquet(buffer, compression="zstd", compression_level=3, statistics=True)
    (root / "rows").mkdir()
    (root / rows_path(name)).write_bytes(buffer.getbuffer())
    files = sorted(file_sizes(name, len(rows), meta))
    for path in sorted(root.rglob("*")):
        sync(path)
    size = sum((root / file).stat().st_size for file in files)
    return ShardInfo(name, len(rows), size, {file: sha256(root / file) for file in files})


def encoded(vectors: Array, meta: StoreMeta) -> list[Array]:
    """Vectors `[n, dim]` from `checked_vectors` as the arrays that are stored: one, or int8 codes and their scales."""
    if meta.dtype != "int8":
        return [vectors.astype(meta.dtype, copy=False)]
    scale = np.abs(vectors).max(axis=1).astype(np.float32) / np.float32(127)
    codes = np.rint(vectors / scale[:, None]).astype(np.int8)
    return [codes, scale]


def _write_array(path: Path, data: Array) -> None:
    padded = -(-len(data) // CHUNK_ROWS) * CHUNK_ROWS
    array = zarr.create_array(
        str(path),
        shape=data.shape,
        dtype=data.dtype,
        chunks=(CHUNK_ROWS, *data.shape[1:]),
        shards=(padded, *data.shape[1:]),
        filters=None,
        compressors=[Crc32cCodec()],
        fill_value=_fill_value(data.dtype),
        config={"write_empty_chunks": True},
    )
    array[:] = data


def _fill_value(dtype: np.dtype[Any]) -> float | int:
    """What a missing chunk reads as: NaN. int8 has no NaN, but the scales that belong to it are float32."""
    return 0 if dtype == np.int8 else float("nan")


def _array_document(rows: int, dtype: str, row: tuple[int, ...]) -> dict[str, Any]:
    """The content of `zarr.json` for an array of this shape; readers accept no other."""
    little = {"name": "bytes", "configuration": {"endian": "little"}}
    plain = {"name": "bytes"} if dtype == "int8" else little
    sharding = {
        "chunk_shape": [CHUNK_ROWS, *row],
        "codecs": [plain, {"name": "crc32c"}],
        "index_codecs": [little, {"name": "crc32c"}],
        "index_location": "end",
    }
    padded = -(-rows // CHUNK_ROWS) * CHUNK_ROWS
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": [rows, *row],
        "data_type": dtype,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [padded, *row]}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": 0 if dtype == "int8" else "NaN",
        "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
        "attributes": {},
        "storage_transformers": [],
    }


def check_sizes(root: Path, info: ShardInfo, meta: StoreMeta) -> None:
    """Check that all files of the shard are there and have the right sizes; reads no data.

    Raises:
        LeafError: names the first file that is missing or has another size, and the shard.
    """
    total = 0
    for file, expected in file_sizes(info.name, info.rows, meta).items():
        size = regular_size(root / file, f"shard {info.name}")
        if file == rows_path(info.name) and size < info.rows * LEAST_KEY_BYTES:
            raise LeafError(
                f"{root / file}: shard {info.name}: has {size} bytes, too few for {info.rows} keys: truncated or forged"
            )
        if expected is not None and size != expected:
            raise LeafError(
                f"{root / file}: shard {info.name}: has {size} bytes instead of {expected}: truncated or changed"
            )
        total += size
    if total != info.bytes:
        raise LeafError(
            f"{root}: shard {info.name}: its files have {total} bytes instead of {info.bytes}: truncated or changed"
        )


def check_files(root: Path, info: ShardInfo, meta: StoreMeta) -> None:
    """`check_sizes`, and compare the SHA-256 of every file of the shard."""
    check_sizes(root, info, meta)
    for file, digest in info.files.items():
        with _naming_shard(info):
            check_sha256(root / file, digest)


def open_array(root: Path, info: ShardInfo, meta: StoreMeta, name: str) -> Chunks:
    """The Zarr array `name` of the shard; LeafError unless its metadata are exactly what the format fixes."""
    dtype, row = arrays(info.name, meta)[name]
    document = root / document_path(name)
    if regular_size(document, f"shard {info.name}") > 65_536:
        raise LeafError(f"{document}: shard {info.name}: too large for array metadata")
    try:
        with access():
            metadata = json.loads(document.read_bytes())
    except (OSError, ValueError, RecursionError):
        raise LeafError(f"{document}: shard {info.name}: cannot be read as JSON") from None
    expected = _array_document(info.rows, dtype, row)
    if not isinstance(metadata, dict) or {"storage_transformers": []} | metadata != expected:
        raise LeafError(
            f"{document}: shard {info.name}: does not describe {info.rows} rows of {meta.dim} {dtype}: changed"
        )
    data = data_path(name, row)
    with _naming_shard(info):
        return Chunks.open(root / data, info.files[data], info.rows, row, dtype)


@contextmanager
def _naming_shard(info: ShardInfo) -> Iterator[None]:
    """Have a DigestError of the block name the shard."""
    try:
        yield
    except DigestError as error:
        raise DigestError(str(error).replace(": SHA-256", f": shard {info.name}: SHA-256")) from None


def read_rows(root: Path, info: ShardInfo) -> pl.DataFrame:
    """Rows of the shard with ROW_SCHEMA; LeafError where SHA-256, row count, schema or the keys' digest differ.

    The file is read once: what is parsed is what was hashed.
    """
    path = root / rows_path(info.name)
    if not info.rows * LEAST_KEY_BYTES <= regular_size(path, f"shard {info.name}") <= info.bytes:
        raise LeafError(f"{path}: shard {info.name}: has not the size of {info.rows} rows: damaged or forged")
    raw = _contents(path)
    if hashlib.sha256(raw).hexdigest() != info.files[rows_path(info.name)]:
        raise DigestError(f"{path}: shard {info.name}: SHA-256 differs: damaged or swapped")
    try:
        _check_footer(pq.read_metadata(pa.BufferReader(raw)), info)
        if pl.read_parquet_schema(io.BytesIO(raw)) != ROW_SCHEMA:
            raise LeafError(f"not {info.rows} rows of {', '.join(ROW_SCHEMA)}")
        frame = pl.read_parquet(raw, hive_partitioning=False, glob=False)
    except LeafError as error:
        raise LeafError(f"{path}: shard {info.name}: {error}") from None
    except (OSError, ValueError, pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        raise LeafError(f"{path}: shard {info.name}: cannot be read as Parquet: {error!s:.200}") from None
    if empty := [name for name in ROW_SCHEMA if frame[name].null_count()]:
        raise LeafError(f"{path}: shard {info.name}: rows without {', '.join(empty)}: refused")
    if len(frame) != info.rows or shard_name(key_array(frame["key"])) != info.name:
        raise LeafError(f"{path}: shard {info.name}: its keys belong to another shard")
    return frame


def _contents(path: Path) -> bytes:
    try:
        with access():
            return path.read_bytes()
    except OSError as error:
        raise LeafError(f"{path}: {error.strerror or error}") from None


def _check_footer(footer: Any, info: ShardInfo) -> None:
    """Refuse a Parquet file whose footer names other rows, or far more bytes than rows may have."""
    count, groups = footer.num_rows, [footer.row_group(number) for number in range(footer.num_row_groups)]
    unpacked = sum(group.total_byte_size for group in groups)
    if unpacked > MAX_ROW_BYTES * (count + CHUNK_ROWS) or len(groups) > count + 1:
        raise LeafError(f"unpacks to {unpacked} bytes for {count} rows: refused")
    if count != info.rows or sum(group.num_rows for group in groups) != count:
        raise LeafError(f"not {info.rows} rows of {', '.join(ROW_SCHEMA)}")
    keys = sum(column.total_compressed_size for column in _columns(groups) if column.path_in_schema == "key")
    if keys < LEAST_KEY_BYTES * count:
        raise LeafError(f"its {count} keys take {keys} bytes: digests cannot be packed so small; refused")


def _columns(groups: Sequence[Any]) -> Iterator[Any]:
    return (group.column(number) for group in groups for number in range(group.num_columns))
