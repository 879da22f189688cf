"""The JSON files of a pretrained model."""

import json
from pathlib import Path
from typing import Any

from pipeline.base import LeafError, access

MAX_SETTINGS_BYTES = 256 * 2**20  # of a file of settings; a vocabulary of millions of tokens takes a tenth


def read_json(path: Path) -> Any:
    """The JSON that a model's file holds; LeafError if it cannot be read."""
    try:
        with access():
            if path.stat().st_size > MAX_SETTINGS_BYTES:
                raise LeafError(f"model file {path}: has more than {MAX_SETTINGS_BYTES:,} bytes; do not trust it")
            return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise LeafError(f"model file {path}: cannot be read: {error}") from None


def settings(path: Path) -> dict[str, Any]:
    """The JSON object that a model's file holds; LeafError if it holds anything else."""
    content = read_json(path)
    if not isinstance(content, dict):
        raise LeafError(f"model file {path}: must hold a JSON object of settings; get the model again")
    return content
