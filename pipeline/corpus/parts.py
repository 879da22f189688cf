"""Read a finished corpus: the Parquet files that the stage `corpus` has written, and checks of them."""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.base import ROLES, Array, LeafError, access, key_array, keys, merge_sorted, sha256
from pipeline.corpus.external_sort import SCHEMA
from pipeline.corpus.readers.fields import require_columns

BLOCK_ROWS = 65_536  # rows read at once; the corpus stage writes row groups of this size
BLOCK_BYTES = 32 << 20  # of texts read at once, where they are long


def scan(directory: Path) -> pl.LazyFrame:
    """The corpus in `directory`: columns `key, id, text, role, source, split`, sorted by key.

    Raises:
        LeafError: there is none, or a file is damaged or lacks a column.
    """
    return pl.scan_parquet(part_files(directory))


def part_files(directory: Path) -> list[Path]:
    """The files of the corpus in `directory`, in order.

    Raises:
        LeafError: there is none, or a file is damaged or lacks a column.
    """
    with access(directory):
        if directory.exists():
            next(directory.iterdir(), None)  # `glob` finds nothing where it may not look
        parts = sorted(directory.glob("part-*.parquet"))
        for part in parts:
            part.open("rb").close()
    if not parts:
        raise LeafError(f"{directory}: no corpus there (no part-*.parquet); run the stage `corpus`")
    for part in parts:
        try:
            columns = pl.read_parquet_schema(part)
        except (pl.exceptions.PolarsError, OSError) as error:
            raise LeafError(f"{part}: damaged ({error}); run the stage `corpus` again") from None
        require_columns(part, SCHEMA.names, columns)
    return parts


def corpus_digest(directory: Path) -> str:
    """SHA-256 over the corpus's files. Errors: `part_files`."""
    return hashlib.sha256("".join(map(sha256, part_files(directory))).encode()).hexdigest()


def corpus_keys(directory: Path) -> Array:
    """`[n] V16`, sorted: the keys of all texts of the corpus. Errors: `part_files`."""
    return merge_sorted([read_keys(part) for part in part_files(directory)])


def read_keys(part: Path) -> Array:
    """`[n] V16`: the keys of one part file, in its order; LeafError if it is damaged."""
    try:
        return key_array(pl.scan_parquet(part).select("key").collect()["key"])
    except (pl.exceptions.PolarsError, OSError) as error:
        raise LeafError(f"{part}: damaged ({error!s:.200}); run the stage `corpus` again") from None


def numbered_column(directory: Path, column: str) -> tuple[list[str], Array]:
    """The values of a column, sorted, and which of them each text has: `[n] int32`, in the corpus's order.

    Errors: `part_files`.
    """
    parts = part_files(directory)
    values = sorted(pl.scan_parquet(parts).select(pl.col(column).unique()).collect()[column].to_list())
    numbers = [
        pl.read_parquet(part, columns=[column])[column].replace_strict(
            values, range(len(values)), return_dtype=pl.Int32
        )
        for part in parts
    ]
    return values, pl.concat(numbers).to_numpy()


def rows_within(file: pq.FileMetaData) -> int:
    """How many rows of a Parquet file are about BLOCK_BYTES, uncompressed; at least 1."""
    groups = sum(file.row_group(number).total_byte_size for number in range(file.num_row_groups))
    return max(1, int(BLOCK_BYTES * file.num_rows // max(1, groups)))


def read_blocks(part: Path, columns: Sequence[str], chosen: Array) -> Iterator[pl.DataFrame]:
    """The `chosen` rows of a part file (`[rows of the file] bool`), about BLOCK_BYTES or BLOCK_ROWS at a time.

    Pages are decoded as they are needed, so a row group is never held whole, and those without a chosen row are passed
    over.

    Raises:
        LeafError: the file is damaged.
    """
    try:
        with pq.ParquetFile(part, pre_buffer=False, buffer_size=1 << 20) as opened:
            sizes = [opened.metadata.row_group(number).num_rows for number in range(opened.num_row_groups)]
            masks = dict(enumerate(np.split(chosen, np.cumsum(sizes)[:-1])))
            groups = [number for number, mask in masks.items() if mask.any()]
            mask = np.concatenate([masks[number] for number in groups])
            start, rows = 0, min(BLOCK_ROWS, rows_within(opened.metadata))
            for batch in opened.iter_batches(rows, row_groups=groups, columns=list(columns)):
                wanted = mask[start : (start := start + len(batch))]
                if wanted.any():
                    block = pl.DataFrame(pl.from_arrow(batch)).select(columns)
                    yield block if wanted.all() else block.filter(pl.Series(wanted))
    except (pl.exceptions.PolarsError, pa.ArrowException, OSError) as error:
        raise LeafError(f"{part}: damaged ({error!s:.200}); run the stage `corpus` again") from None


def check_rows(rows: pl.DataFrame, place: str) -> None:
    """Refuse rows (`key, role, id, text`) that the corpus stage did not write.

    Shards are never changed: a vector that was stored under a wrong key would stay there.

    Raises:
        LeafError: a text, its role or its id is missing, a role is unknown, or a key is not that of its text.
    """
    valid = rows["role"].is_in(ROLES) & rows["text"].is_not_null() & rows["id"].is_not_null()
    valid = valid.fill_null(value=False)
    if valid.all():
        valid = rows["key"] == pl.Series(keys(rows["role"], rows["text"]), dtype=pl.Binary)
        valid = valid.fill_null(value=False)
    if not valid.all():
        row = int(valid.arg_min() or 0)
        raise LeafError(
            f"{place}: text `{rows['id'][row]}` has no text, no known role, or a key that is not its own: the corpus "
            "was changed by hand; run the stage `corpus` again"
        )
