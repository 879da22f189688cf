"""Which directories a new index or a new model may replace: those that hold one of this program and nothing else."""

import json
import re
from pathlib import Path

import polars as pl

from pipeline.base import IsOurs, Kind

ABOUT = "index.json"
_INDEX_FILE = re.compile(
    rf"{re.escape(ABOUT)}|rows\.parquet|vectors\.(faiss|usearch)|part-\d{{5,}}\.parquet|texts\.lance/.+"
    r"|meta\.json|\.lock|collection/texts/.+"
)


def _recognise_index(directory: Path) -> IsOurs | None:
    """By `index.json`, or where it is Parquet alone by the columns of its first part."""
    try:
        about = json.loads((directory / ABOUT).read_bytes())
        known = isinstance(about, dict) and {"kind", "rows", "dim", "fingerprint"} <= set(about)
    except (OSError, ValueError, RecursionError):
        known = _has_vectors(directory)
    return (lambda name: _INDEX_FILE.fullmatch(name) is not None) if known else None


def _has_vectors(directory: Path) -> bool:
    part = directory / "part-00000.parquet"
    try:
        return {"key", "id", "source", "role", "vector"} <= set(pl.read_parquet_schema(part))
    except (OSError, pl.exceptions.PolarsError):
        return False


INDEX_KIND = Kind("index", _recognise_index)


CARDS = ("README.md", "student.md")
MAX_CARD_BYTES = 2**20
_OF_A_CARD = (
    "fitted to the teacher's stored vectors by plain regression (LEAF",
    "queries go through a small student, documents through its teacher",
    "as one graph for onnxruntime: token ids in, final vectors out",
    "# No asymmetric model",
    "# No ONNX model",
)
"""One of which the cards of all versions hold, whatever their lines are broken at."""
_MODEL_FILE = re.compile(
    r"([\w.-]+/)*([\w.-]+\.(json|safetensors|onnx|model|jinja)|README\.md|student\.md|vocab\.txt|merges\.txt|asymmetric\.py)"
)


def _recognise_model(directory: Path) -> IsOurs | None:
    """A model of an earlier version, which has no listing, by its card."""
    for name in CARDS:
        try:
            card = (directory / name).read_bytes()[:MAX_CARD_BYTES].decode(errors="replace")
        except OSError:
            continue
        if any(sentence in " ".join(card.split()) for sentence in _OF_A_CARD):
            return lambda file: _MODEL_FILE.fullmatch(file) is not None
    return None


MODEL_KIND = Kind("model", _recognise_model, listed=True)
"""A student or an export of one. Its listing has the digest of each file, by which a copy of it is checked."""
