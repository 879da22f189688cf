"""Which directories a published store may replace: those that hold a store and nothing else."""

import json
import re
from pathlib import Path

from pipeline.base import IsOurs, Kind
from pipeline.store.manifest import FORMAT, GROUP, MAX_DOCUMENT_BYTES, README

_SHARD = re.compile(r"rows/[0-9a-f]{16}\.parquet|vectors\.zarr/[0-9a-f]{16}(_scale)?/(zarr\.json|c/0(/0)?)")


def _is_file_of_a_store(name: str) -> bool:
    return name in ("store.json", README, GROUP) or _SHARD.fullmatch(name) is not None


def _recognise(directory: Path) -> IsOurs | None:
    """By `store.json`, which may be damaged or of another version: what it lists is not followed."""
    file = directory / "store.json"
    try:
        small = file.is_file() and file.stat().st_size <= MAX_DOCUMENT_BYTES
        document = json.loads(file.read_bytes()) if small else None
    except (OSError, ValueError, RecursionError):
        return None
    return _is_file_of_a_store if isinstance(document, dict) and document.get("format") == FORMAT else None


STORE_KIND = Kind("store", _recognise)
