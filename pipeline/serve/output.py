"""Which directories a new index may replace: those that hold an index and nothing else."""

import json
import re
from pathlib import Path

import polars as pl

from pipeline.base import IsOurs, Kind

ABOUT = "index.json"
_FILE = re.compile(
    rf"{re.escape(ABOUT)}|rows\.parquet|vectors\.(faiss|usearch)|part-\d{{5,}}\.parquet|texts\.lance/.+"
    r"|meta\.json|\.lock|collection/texts/.+"
)


def _recognise(directory: Path) -> IsOurs | None:
    """By `index.json`, or where it is Parquet alone by the columns of its first part."""
    try:
        about = json.loads((directory / ABOUT).read_bytes())
        known = isinstance(about, dict) and {"kind", "rows", "dim", "fingerprint"} <= set(about)
    except (OSError, ValueError, RecursionError):
        known = _has_vectors(directory)
    return (lambda name: _FILE.fullmatch(name) is not None) if known else None


def _has_vectors(directory: Path) -> bool:
    part = directory / "part-00000.parquet"
    try:
        return {"key", "id", "source", "role", "vector"} <= set(pl.read_parquet_schema(part))
    except (OSError, pl.exceptions.PolarsError):
        return False


INDEX_KIND = Kind("index", _recognise)
