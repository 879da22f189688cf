"""How long a run will take on this machine, roughly: by the models' sizes and a product that is timed for a moment."""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ENCODE_SHARE, FIT_SHARE = 0.6, 0.22
"""Of the rate of large matrix products, what encoding and a fit at batch 32 make on a CPU (docs/benchmarks.md)."""
ROUNDS = 12  # of the product that is timed
MOST_STEPS = 40  # steps a second that a fit makes at most, however small the student
_SIZES = (("MiniLM-L6", 6, 384), ("MiniLM-L12", 12, 384), ("small", 12, 384), ("large", 24, 1024), ("base", 12, 768))
"""A part of a model's name, and the layers and width that models of this name have."""


@dataclass(frozen=True)
class ModelSize:
    """What a model costs."""

    layers: int
    width: int
    is_guess: bool = False
    """Whether it was told from the name, as the model is not on this machine."""
    embeds: bool | None = None
    """Whether it is an embedding model; None if that cannot be told."""

    @property
    def products(self) -> int:
        """Multiplications a token."""
        return 12 * self.layers * self.width**2


def model_size(name: str) -> ModelSize:
    """The size of a model by its files, if they are on this machine, else by its name."""
    directory = _directory(name)
    if directory is not None and (settings := _settings(directory)):
        layers = next((settings[key] for key in ("num_hidden_layers", "n_layers") if key in settings), 0)
        width = next((settings[key] for key in ("hidden_size", "dim", "d_model") if key in settings), 0)
        if isinstance(layers, int) and isinstance(width, int) and width:
            return ModelSize(layers, width, embeds=(directory / "modules.json").is_file())
    embeds = True if name.startswith("sentence-transformers/") else None
    named = next((size for size in _SIZES if size[0].lower() in name.lower()), _SIZES[-1])
    return ModelSize(named[1], named[2], is_guess=True, embeds=embeds)


def _directory(name: str) -> Path | None:
    from huggingface_hub import snapshot_download

    from pipeline.base import LeafError
    from pipeline.model import resolve_model

    try:
        if name.startswith("package:") or Path(name).expanduser().is_dir():
            return resolve_model(str(Path(name).expanduser()) if Path(name).expanduser().is_dir() else name)
        return Path(snapshot_download(name, local_files_only=True))
    except (LeafError, OSError, ValueError):
        return None


def _settings(directory: Path) -> Mapping[str, Any]:
    """The configuration of the model's transformer."""
    for place in (directory, directory / "0_Transformer"):
        try:
            settings = json.loads((place / "config.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(settings, dict):
            return settings
    return {}


@dataclass(frozen=True)
class Machine:
    """How fast this machine multiplies."""

    kind: str
    """`CPU`, or the accelerator's."""
    rate: float
    """Operations a second of a large product, in the precision that the stages use here."""

    def encode_seconds(self, tokens: int, teacher: ModelSize) -> float:
        """Of stage one."""
        return tokens * 2 * teacher.products / (self.rate * ENCODE_SHARE)

    def fit_seconds(self, steps: int, tokens_a_text: float, student: ModelSize, batch: int) -> float:
        """Of stage two."""
        seconds = steps * batch * tokens_a_text * 6 * student.products / (self.rate * FIT_SHARE)
        return max(seconds, steps / MOST_STEPS)


def measure() -> Machine:
    """Time a product of the shapes that models have; of some the fastest, as other work may slow the rest down."""
    import torch

    from pipeline.model import best_device, bf16_is_fast, synchronize

    device = best_device()
    dtype = torch.bfloat16 if bf16_is_fast(device) else torch.float32
    left, right = torch.ones(4096, 768, dtype=dtype, device=device), torch.ones(768, 3072, dtype=dtype, device=device)
    seconds = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        left @ right
        synchronize(device)
        seconds.append(time.perf_counter() - start)
    return Machine("CPU" if device.type == "cpu" else device.type.upper(), 2 * 4096 * 768 * 3072 / min(seconds))
