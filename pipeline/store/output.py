"""Which directories a store or a model may replace: those that hold one of this program, and nothing else."""

import json
import re
from pathlib import Path

from pipeline.base import IsOurs, Kind
from pipeline.store.manifest import FORMAT, GROUP, MAX_DOCUMENT_BYTES, README

_SHARD = re.compile(r"rows/[0-9a-f]{16}\.parquet|vectors\.zarr/[0-9a-f]{16}(_scale)?/(zarr\.json|c/0(/0)?)")
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


def _is_file_of_a_store(name: str) -> bool:
    return name in ("store.json", README, GROUP) or _SHARD.fullmatch(name) is not None


def _recognise_store(directory: Path) -> IsOurs | None:
    """By `store.json`, which may be damaged or of another version: what it lists is not followed."""
    file = directory / "store.json"
    try:
        small = file.is_file() and file.stat().st_size <= MAX_DOCUMENT_BYTES
        document = json.loads(file.read_bytes()) if small else None
    except (OSError, ValueError, RecursionError):
        return None
    return _is_file_of_a_store if isinstance(document, dict) and document.get("format") == FORMAT else None


STORE_KIND = Kind("store", _recognise_store)


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
