"""Which directories a new model may replace: those that hold a model of this program, or its card, and nothing else."""

import re
from pathlib import Path

from pipeline.base import IsOurs, Kind

CARDS = ("README.md", "student.md")
MAX_CARD_BYTES = 2**20
_SENTENCES = (
    "fitted to the teacher's stored vectors by plain regression (LEAF",
    "queries go through a small student, documents through its teacher",
    "as one graph for onnxruntime: token ids in, final vectors out",
    "# No asymmetric model",
    "# No ONNX model",
)
"""One of which the cards of all versions hold, whatever their lines are broken at."""
_FILE = re.compile(
    r"([\w.-]+/)*([\w.-]+\.(json|safetensors|onnx|model|jinja)|README\.md|student\.md|vocab\.txt|merges\.txt|asymmetric\.py)"
)


def _recognise(directory: Path) -> IsOurs | None:
    """A model of an earlier version, which has no listing, by its card."""
    for name in CARDS:
        try:
            card = (directory / name).read_bytes()[:MAX_CARD_BYTES].decode(errors="replace")
        except OSError:
            continue
        if any(sentence in " ".join(card.split()) for sentence in _SENTENCES):
            return lambda file: _FILE.fullmatch(file) is not None
    return None


MODEL_KIND = Kind("model", _recognise, listed=True)
"""A student or an export of one. Its listing has the digest of each file, by which a copy of it is checked."""
