"""Read a finished corpus: the Parquet files that the stage `corpus` has written, and checks of them."""

import hashlib
from pathlib import Path

import polars as pl

from pipeline.base import ROLES, Array, LeafError, key_array, keys, merge_sorted, sha256
from pipeline.corpus.external_sort import SCHEMA
from pipeline.corpus.readers.fields import require_columns


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
    parts = sorted(directory.glob("part-*.parquet"))
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
