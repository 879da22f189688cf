"""TODO."""

from pathlib import Path

import numpy as np
import polars as pl

from pipeline.base.arrays import Array
from pipeline.base.errors import LeafError
from pipeline.base.keys import ROLES, key_array, keys
from pipeline.corpus.external_sort import SCHEMA
from pipeline.corpus.readers import reading as sources


def scan(directory: Path) -> pl.LazyFrame:
    """The corpus in `directory`: columns `key, id, text, role, source, split`, sorted by key. Errors: `part_files`."""
    return pl.scan_parquet(part_files(directory))


def part_files(directory: Path) -> list[Path]:
    """The files of the corpus in `directory`, in order.

    Raises:
        LeafError: there is none, or one is damaged or lacks a column.
    """
    found = sorted(directory.glob("part-*.parquet"))
    if not found:
        raise LeafError(f"{directory}: no corpus there (no part-*.parquet); run the stage `corpus`")
    for part in found:
        try:
            columns = pl.read_parquet_schema(part)
        except (pl.exceptions.PolarsError, OSError) as error:
            raise LeafError(f"{part}: damaged ({error}); run the stage `corpus` again") from None
        sources.require(part, SCHEMA.names, columns)
    return found


def corpus_keys(directory: Path) -> Array:
    """`[n] V16`, sorted: the keys of all texts of the corpus. Errors: `part_files`."""
    return np.sort(key_array(scan(directory).select("key").collect()["key"]))


def check_rows(rows: pl.DataFrame, place: str) -> None:
    """Refuse rows (`key, role, id, text`) that the corpus stage did not write: a vector lies under its key for good.

    Raises:
        LeafError: a text, its role or its id is missing, a role is unknown, or a key is not that of its text.
    """
    right = rows["role"].is_in(ROLES) & rows["text"].is_not_null() & rows["id"].is_not_null()
    right = right.fill_null(value=False)
    if right.all():
        right = rows["key"] == pl.Series(keys(rows["role"], rows["text"]), dtype=pl.Binary)
        right = right.fill_null(value=False)
    if not right.all():
        row = int(right.arg_min() or 0)
        raise LeafError(
            f"{place}: text `{rows['id'][row]}` has no text, no known role, or a key that is not its own: the corpus "
            "was changed by hand; run the stage `corpus` again"
        )
