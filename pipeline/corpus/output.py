"""Which directories a new corpus may replace: those that hold a corpus and nothing else."""

import re
from pathlib import Path

import polars as pl

from pipeline.base import IsOurs, Kind
from pipeline.corpus.external_sort import SCHEMA
from pipeline.corpus.further_records import NAME

_PART = re.compile(r"part-\d{5,}\.parquet")


def _is_file_of_a_corpus(name: str) -> bool:
    return name == NAME or _PART.fullmatch(name) is not None


def _recognise(directory: Path) -> IsOurs | None:
    """By the columns of a part that can be read."""
    for part in sorted(directory.glob("part-*.parquet")):
        try:
            columns = pl.read_parquet_schema(part)
        except (OSError, pl.exceptions.PolarsError):  # damaged: perhaps the next one is not
            continue
        return _is_file_of_a_corpus if set(SCHEMA.names) <= set(columns) else None
    return None


CORPUS_KIND = Kind("corpus", _recognise)
