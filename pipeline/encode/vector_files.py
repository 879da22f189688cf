"""Reads texts with their vectors from other people's files: Parquet, Arrow, a saved data set, npy with an index."""

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.base import ROLES, Array, LeafError, access, sha256

BATCH_ROWS = 8192
MAX_HEADER = 10_000  # bytes of the header of a npy file
_ARROW = (b"ARROW1", b"\xff\xff\xff\xff")
_SUFFIXES = ("parquet", "arrow", "feather")


@dataclass(frozen=True)
class Fields:
    """The columns to read."""

    text: str = "text"
    vector: str = "vector"
    id: str | None = None
    """Left out, rows are numbered."""
    role: str | None = None
    """Left out, every text has the role `document`, or that of `same_role`."""
    same_role: str = "document"


@dataclass(frozen=True)
class Rows:
    """A batch of texts with their vectors."""

    frame: pl.DataFrame
    """`id, text, role`; a text may be null."""
    vectors: Array
    """`[rows, dim]` float32."""


class VectorFiles:
    """Texts and vectors, row by row, of a file, a directory of files, a saved data set, or a npy file and its index."""

    def __init__(self, path: Path, fields: Fields, index: Path | None = None) -> None:
        """Look at the place; LeafError where it holds nothing that can be read. `index` belongs to a npy file."""
        self.path, self.fields, self.index = path, fields, index
        self._is_npy = path.suffix == ".npy"
        if self._is_npy != (index is not None):
            raise LeafError(
                f"{path}: name the file of its texts with --texts (Parquet, Arrow, JSON Lines, CSV or TSV, a row for "
                "each vector, in the same order)"
                if self._is_npy
                else f"{path}: --texts belongs to a .npy file of vectors"
            )
        if not path.exists():
            raise LeafError(f"{path}: no such file or directory")
        self.files = [path] if path.is_file() else _files(path)
        if not self.files:
            raise LeafError(f"{path}: holds no {', '.join(f'*.{suffix}' for suffix in _SUFFIXES)}")

    @cached_property
    def rows(self) -> int:
        """The number of rows of all files."""
        if self._is_npy:
            return len(self._array)
        return sum(_count(file) for file in self.files)

    @cached_property
    def dim(self) -> int:
        """Dimension of the vectors."""
        first = next(iter(self.batches()), None)
        if first is None:
            raise LeafError(f"{self.path}: holds no rows")
        return int(first.vectors.shape[1])

    def digests(self) -> list[str]:
        """SHA-256 of every file, in order."""
        return [sha256(file) for file in [*self.files, *([self.index] if self.index else [])]]

    def batches(self) -> Iterator[Rows]:
        """All rows in order. LeafError names the file where one has no vector, or not one of the same dimension."""
        start, dim = 0, None
        for place, frame, vectors in self._of_npy() if self._is_npy else self._of_tables():
            if dim not in (None, vectors.shape[1]):
                raise LeafError(f"{place}: vectors of {vectors.shape[1]} dimensions, but those before have {dim}")
            dim = vectors.shape[1]
            yield Rows(_named(frame, self.fields, start, place), vectors)
            start += len(frame)

    def _of_tables(self) -> Iterator[tuple[Path, pl.DataFrame, Array]]:
        names = [name for name in (self.fields.text, self.fields.id, self.fields.role) if name]
        for file in self.files:
            for table in _tables(file, [*names, self.fields.vector]):
                frame = pl.DataFrame({name: _strings(file, name, table.column(name)) for name in names})
                yield file, frame, _matrix(file, self.fields.vector, table.column(self.fields.vector))

    def _of_npy(self) -> Iterator[tuple[Path, pl.DataFrame, Array]]:
        if self.index is None:
            raise AssertionError("checked when it was opened")
        texts = _read_index(self.index, [name for name in (self.fields.text, self.fields.id, self.fields.role) if name])
        if len(texts) != len(self._array):
            raise LeafError(
                f"{self.index}: holds {len(texts):,} rows, but {self.path} {len(self._array):,} vectors: row i must "
                "belong to vector i"
            )
        for start in range(0, len(texts), BATCH_ROWS):
            part = np.asarray(self._array[start : start + BATCH_ROWS], np.float32)
            yield self.path, texts[start : start + BATCH_ROWS], part

    @cached_property
    def _array(self) -> Array:
        """The vectors of a npy file, mapped into memory; what is pickled is refused unread."""
        try:
            with access(self.path):
                array: Array = np.load(self.path, mmap_mode="r", allow_pickle=False, max_header_size=MAX_HEADER)
        except (ValueError, OSError, EOFError) as error:
            raise LeafError(f"{self.path}: cannot be read as a NumPy array: {error!s:.200}") from None
        if array.ndim != 2 or array.dtype.kind != "f":
            raise LeafError(f"{self.path}: must hold [rows, dim] floats, not {array.shape} {array.dtype}")
        return array


def _files(folder: Path) -> list[Path]:
    """The files of a directory, in order; of a saved data set those that it names itself, of all its splits."""
    if (folder / "dataset_dict.json").is_file():
        splits = _read_json(folder / "dataset_dict.json").get("splits", [])
        return [file for split in splits for file in _files(folder / Path(str(split)).name)]
    if (folder / "state.json").is_file():
        listed = _read_json(folder / "state.json").get("_data_files", [])
        return [folder / Path(str(entry["filename"])).name for entry in listed]
    return sorted(file for suffix in _SUFFIXES for file in folder.rglob(f"*.{suffix}"))


def _read_json(file: Path) -> dict[str, Any]:
    try:
        with access():
            document = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        raise LeafError(f"{file}: cannot be read: is this a data set that `save_to_disk` wrote?")
    return document


def _head(file: Path) -> bytes:
    with access(), file.open("rb") as raw:
        return raw.read(8)


def _count(file: Path) -> int:
    try:
        if not _head(file).startswith(_ARROW):
            return int(pq.read_metadata(file).num_rows)
        return sum(table.num_rows for table in _arrow_tables(file))
    except (pa.ArrowException, OSError) as error:
        raise LeafError(f"{file}: cannot be read as Parquet or Arrow: {error!s:.200}") from None


def _arrow_tables(file: Path) -> Iterator[pa.RecordBatch]:
    """The batches of an Arrow file or stream, which is mapped into memory."""
    with pa.memory_map(str(file)) as mapped:
        if _head(file).startswith(b"ARROW1"):
            with pa.ipc.open_file(mapped) as opened:
                yield from map(opened.get_batch, range(opened.num_record_batches))
        else:
            with pa.ipc.open_stream(mapped) as opened:
                yield from opened


def _tables(file: Path, names: list[str]) -> Iterator[pa.RecordBatch]:
    """Batches of at most BATCH_ROWS rows with these columns; LeafError where one is missing or the file is damaged."""
    try:
        if _head(file).startswith(_ARROW):
            for table in _arrow_tables(file):
                _require(file, names, table.schema.names)
                for start in range(0, table.num_rows, BATCH_ROWS):
                    yield table.slice(start, BATCH_ROWS)
            return
        with pq.ParquetFile(file, pre_buffer=False) as opened:
            _require(file, names, opened.schema_arrow.names)
            yield from (table for table in opened.iter_batches(BATCH_ROWS, columns=names) if table.num_rows)
    except (pa.ArrowException, OSError) as error:
        raise LeafError(f"{file}: cannot be read as Parquet or Arrow: {error!s:.200}") from None


def _require(file: Path, names: list[str], present: list[str]) -> None:
    if missing := [name for name in names if name not in present]:
        raise LeafError(
            f"{file}: has no column `{'`, `'.join(missing)}`; its columns are {', '.join(present)!s:.300}: name them "
            "with --text-field, --vector-field, --id-field, --role-field"
        )


def _strings(file: Path, name: str, column: pa.Array) -> pl.Series:
    try:
        return pl.Series(name, column).cast(pl.String, strict=True)
    except (pl.exceptions.PolarsError, pa.ArrowException) as error:
        raise LeafError(f"{file}: column `{name}` does not hold text: {error!s:.100}") from None


def _matrix(file: Path, name: str, column: pa.Array) -> Array:
    """A column of lists of numbers as `[rows, dim]` float32."""
    kind = column.type
    lists = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    if not lists or not (pa.types.is_floating(kind.value_type) or pa.types.is_integer(kind.value_type)):
        raise LeafError(f"{file}: column `{name}` must hold lists of numbers, not {kind}")
    lengths = pc.list_value_length(column)
    if column.null_count or pc.count_distinct(lengths).as_py() != 1 or not lengths[0].as_py():
        raise LeafError(f"{file}: column `{name}`: every row must have a vector, all of one dimension")
    values: Array = column.flatten().to_numpy(zero_copy_only=False).astype(np.float32)
    return values.reshape(len(column), -1)


def _read_index(file: Path, names: list[str]) -> pl.DataFrame:
    """The columns of text of a npy file's index, whole."""
    suffix = file.suffix.lstrip(".").lower()
    if suffix in _SUFFIXES:
        frames = [
            pl.DataFrame({n: _strings(file, n, table.column(n)) for n in names}) for table in _tables(file, names)
        ]
        return pl.concat(frames) if frames else pl.DataFrame(schema=dict.fromkeys(names, pl.String))
    try:
        _head(file)
        if suffix in ("jsonl", "ndjson"):
            frame = pl.read_ndjson(io.BytesIO(file.read_bytes()), infer_schema_length=None)
        elif suffix in ("csv", "tsv"):
            frame = pl.read_csv(file, separator="\t" if suffix == "tsv" else ",", infer_schema=False)
        else:
            raise LeafError(f"{file}: must be a .parquet, .arrow, .jsonl, .csv or .tsv file")
    except (pl.exceptions.PolarsError, OSError) as error:
        raise LeafError(f"{file}: cannot be read: {error!s:.200}") from None
    _require(file, names, frame.columns)
    return frame.select(_strings(file, name, frame[name].to_arrow()) for name in names)


def _named(frame: pl.DataFrame, fields: Fields, start: int, place: Path) -> pl.DataFrame:
    """A batch's columns under the names `id, text, role`."""
    numbers = pl.int_range(start, start + len(frame), eager=True).cast(pl.String)
    id_, role = frame[fields.id] if fields.id else numbers, frame[fields.role] if fields.role else None
    if role is not None and not role.is_in(ROLES).fill_null(value=False).all():
        raise LeafError(f"{place}: column `{fields.role}` must hold {' or '.join(ROLES)} in every row")
    roles = role if role is not None else pl.repeat(fields.same_role, len(frame), eager=True)
    return pl.DataFrame({"id": id_.fill_null(numbers), "text": frame[fields.text], "role": roles})
