"""The files of a pretrained model: finding them, checking their digest, and loading them with the usual libraries.

Only safetensors are read, and no code that lies beside a model is run.
"""

import hashlib
import importlib.util
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from pipeline.base import LeafError, first_line, sha256

PACKAGE = "package:"


def resolve_model(model: str, revision: str | None = None) -> Path:
    """Directory of a model given as `package:NAME/DIRECTORY`, as a local directory, or as a hub id.

    Raises:
        LeafError: there is no such package, directory or hub model.
    """
    if model.startswith(PACKAGE):
        name, _, inside = model.removeprefix(PACKAGE).partition("/")
        spec = importlib.util.find_spec(name) if name.isidentifier() else None
        if spec is None or not spec.submodule_search_locations:
            raise LeafError(f"model `{model}`: the package `{name}` is not installed; install it with pip")
        directory = Path(next(iter(spec.submodule_search_locations))) / inside
        if not directory.is_dir():
            raise LeafError(f"model `{model}`: the package `{name}` has no directory `{inside}`")
        return directory
    if Path(model).is_dir():
        return Path(model)
    if model.startswith((".", "/", "~")):
        raise LeafError(f"model `{model}`: no such directory")
    return _download(model, revision)


def _download(model: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    patterns = ["*.json", "*.safetensors", "*.txt", "*.model"]
    try:
        return Path(snapshot_download(model, revision=revision, allow_patterns=patterns))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise LeafError(
            f"model `{model}`: neither a local directory nor to be had from the model hub ({first_line(error)})"
        ) from None


def weights_sha256(directory: Path) -> str:
    """SHA-256 of `model.safetensors`; of the lines `name sha256` where the weights are split over several files."""
    files = sorted(directory.glob("*.safetensors"))
    if not files:
        raise LeafError(f"{directory.name}: holds no *.safetensors; weights in other formats are not loaded")
    if len(files) == 1:
        return sha256(files[0])
    lines = "".join(f"{file.name} {sha256(file)}\n" for file in files)
    return hashlib.sha256(lines.encode()).hexdigest()


def check_sha256(directory: Path, expected: str | None, name: str) -> str:
    """Return the digest of the weights; LeafError if `expected` is given and differs. `name` is the parameter's."""
    digest = weights_sha256(directory)
    if expected is not None and digest != expected.lower():
        raise LeafError(
            f"{name}: the weights have SHA-256 {digest}, but the parameters want {expected}; "
            "do not trust them, or correct the parameter if you meant to change models"
        )
    return digest


def load_sentence_transformer(directory: Path, name: str) -> Any:
    """The SentenceTransformer in a directory, in float32 and for inference; LeafError where it cannot be loaded."""
    from sentence_transformers import SentenceTransformer

    try:
        return SentenceTransformer(
            str(directory),
            trust_remote_code=False,
            local_files_only=True,
            model_kwargs={"use_safetensors": True, "dtype": torch.float32},
        ).eval()
    except Exception as error:  # every library below raises its own; the person needs one sentence
        raise LeafError(
            f"model `{name}`: cannot be loaded as a sentence-transformers model: {first_line(error)}"
        ) from None


def load_transformer(directory: Path, name: str) -> Any:
    """The sentence-transformers Transformer module of a student's checkpoint, in float32.

    `name` is what `fit.student.model` says. LeafError where it cannot be loaded.
    """
    from sentence_transformers.sentence_transformer.modules import Transformer

    try:
        return Transformer.load(
            str(directory),
            local_files_only=True,
            trust_remote_code=False,
            model_kwargs={"use_safetensors": True, "dtype": torch.float32},
        )
    except Exception as error:  # every library below raises its own; the person needs one sentence
        raise LeafError(f"fit.student.model `{name}`: cannot be loaded: {first_line(error)}") from None


def check_weights(directory: Path, model: nn.Module, name: str) -> None:
    """Refuse a checkpoint that lacks weights: transformers would fill them with noise and only log it."""
    stored: set[str] = set()
    try:
        for file in directory.glob("*.safetensors"):
            with safe_open(file, "pt") as tensors:
                stored.update(tensors.keys())
    except (OSError, SafetensorError) as error:
        raise LeafError(f"fit.student.model `{name}`: the weights are damaged: {error}") from None
    prefix = f"{getattr(model, 'base_model_prefix', '')}."
    # Old checkpoints call the norms' weights gamma and beta.
    bare = {n.removeprefix(prefix).replace(".gamma", ".weight").replace(".beta", ".bias") for n in stored}
    missing = [n for n, _ in model.named_parameters() if n not in bare and not n.startswith("pooler.")]
    if missing:
        raise LeafError(
            f"fit.student.model `{name}`: the checkpoint lacks {len(missing)} of the weights that its configuration "
            f"names, first `{missing[0]}`; it is damaged or belongs to another configuration"
        )
