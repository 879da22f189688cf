"""Identity and fingerprint of a sentence-transformers model, read from its files without loading the model."""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipeline.base import LeafError, sha256
from pipeline.model import check_sha256, resolve_model
from pipeline.params import TeacherParams
from pipeline.store import StoreMeta

DEFAULT_MAX_LENGTH = 512  # tokens of a text, where a model's files name no limit
NO_LIMIT = 10**6  # a tokenizer without a limit names a huge number (transformers: 1e30); no real limit is this large
POSITIONS_AFTER_PADDING = tuple(
    "camembert data2vec-text ibert longformer luke mpnet roberta roberta-prelayernorm "
    "xlm-roberta xlm-roberta-xl xmod".split()
)
"""Model types that number positions from the padding id + 1: the first rows of their position table are never used."""
TOKENIZER_FILES = ("vocab.*", "merges.txt", "bpe.codes", "*.model", "*.spm", "*token*.json")


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise LeafError(f"model file {path}: cannot be read: {error}") from None


def _settings(path: Path) -> dict[str, Any]:
    """The JSON object that a file holds; LeafError if it holds anything else."""
    settings = _read_json(path)
    if not isinstance(settings, dict):
        raise LeafError(f"model file {path}: must hold a JSON object of settings; get the model again")
    return settings


def _number(path: Path, *names: str) -> int | None:
    """The first of the named settings that is above zero; None if there is none or no such file.

    Raises:
        LeafError: the value is not a whole number.
    """
    settings = _settings(path) if path.exists() else {}
    for name in names:
        value = settings.get(name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or value % 1:
            raise LeafError(f"model file {path}: `{name}` must be a whole number, not {value!r:.60}")
        if value > 0:
            return int(value)
    return None


def _modules(directory: Path) -> list[tuple[str, Path]]:
    """Module class names and directories of a sentence-transformers model; empty for a plain transformers one."""
    listing = directory / "modules.json"
    if not listing.exists():
        return []
    entries = _read_json(listing)
    well_formed = isinstance(entries, list) and all(
        isinstance(entry, dict) and isinstance(entry.get("type"), str) and isinstance(entry.get("path"), str)
        for entry in entries
    )
    if not well_formed:
        raise LeafError(
            f"model file {listing}: must be a list of modules, each with its `type` and `path`; get the model again"
        )
    return [(entry["type"].rpartition(".")[2], directory / entry["path"]) for entry in entries]


def vector_width(directory: Path) -> int:
    """Dimension of the model's vectors: that of the last module. LeafError if its configuration does not name it."""
    modules = _modules(directory)
    dim = _number(directory / "config.json", "hidden_size", "dim", "d_model", "n_embd")
    for kind, path in modules:
        settings = path / "config.json"
        if kind == "Pooling":
            width = _number(settings, "embedding_dimension", "word_embedding_dimension") or dim
            dim = width and width * _pooling_mode_count(_settings(settings))
        elif kind == "Dense":
            dim = _number(settings, "out_features")
        if kind in ("Pooling", "Dense") and dim is None:
            raise LeafError(f"model file {settings}: does not name the width of the vectors; get the model again")
    if dim is None:
        raise LeafError(f"model file {directory / 'config.json'}: does not name the width of the vectors (hidden_size)")
    return dim


def _pooling_mode_count(settings: dict[str, Any]) -> int:
    """How many pooled vectors a Pooling module concatenates: one per pooling mode that is on."""
    # sentence-transformers 6 names a mode or a list of modes; earlier versions have a true/false switch per mode.
    modes = settings.get("pooling_mode")
    if modes is None:
        modes = [name for name, on in settings.items() if name.startswith("pooling_mode_") and on]
    return len(modes) if isinstance(modes, list) and modes else 1


def _tokenizer_files(directory: Path) -> list[Path]:
    """`tokenizer.json`, which defines the tokenizer completely; without it, every file the tokenizer is built from."""
    complete = directory / "tokenizer.json"
    if complete.exists():
        return [complete]
    return sorted({file for pattern in TOKENIZER_FILES for file in directory.glob(pattern)})


def describe(params: TeacherParams, dtype: str) -> StoreMeta:
    """Identity and fingerprint of a local teacher, from its files alone: no weights are loaded.

    The fingerprint covers weights, tokenizer, every module's configuration and weights, prompts, maximum length,
    normalisation and dimension. It does not cover the model's name or path, so copies under two names share vectors.

    Raises:
        LeafError: there is no such model, its weights are not the expected ones, a configuration file is malformed,
            or `teacher.max_length` is more than the model has positions for.
    """
    directory = resolve_model(params.model, params.revision)
    modules = _modules(directory)
    digests = {"weights": check_sha256(directory, params.sha256, "teacher.sha256")}
    for path in [directory / "config.json", directory / "sentence_bert_config.json", *_tokenizer_files(directory)]:
        if path.exists():
            digests[path.name] = sha256(path)
    for kind, path in modules:
        if path != directory:
            for file in sorted([*path.glob("*.json"), *path.glob("*.safetensors")]):
                digests[f"{kind}/{file.name}"] = sha256(file)
    dim = vector_width(directory)
    fingerprinted = {
        "files": digests,
        "modules": [kind for kind, _ in modules],
        "prompts": asdict(params.prompts),
        "max_length": max_length(params, directory),
        "normalize": params.normalize,
        "dim": dim,
    }
    fingerprint = hashlib.sha256(json.dumps(fingerprinted, sort_keys=True).encode()).hexdigest()
    local = Path(params.model).is_dir()
    identity = {"model": directory.name if local else params.model, "revision": params.revision, **fingerprinted}
    if params.license:
        identity["license"] = params.license
    return StoreMeta(fingerprint=fingerprint, teacher=identity, dim=dim, dtype=dtype, normalized=params.normalize)


def max_length(params: TeacherParams, directory: Path) -> int:
    """Tokens to which texts are cut: `teacher.max_length`, or the model's own limit.

    Raises:
        LeafError: `teacher.max_length` is more than the model has positions for.
    """
    settings = _settings(directory / "config.json")
    positions = _number(directory / "config.json", "max_position_embeddings")
    if positions is not None and settings.get("model_type") in POSITIONS_AFTER_PADDING:
        padding = settings.get("pad_token_id")
        positions -= 1 + (padding if isinstance(padding, int) else 1)
    # Rotary and relative positions continue beyond the configured number; a table of learned positions does not.
    unbounded = settings.get("position_biased_input") is False or any(
        "rope_" in name or "rotary" in name for name in settings
    )
    table = None if unbounded else positions
    if params.max_length is not None:
        if table is not None and params.max_length > table:
            raise LeafError(
                f"teacher.max_length: {params.max_length} is impossible; `{params.model}` has positions for at most "
                f"{table} tokens"
            )
        return params.max_length
    # sentence-transformers 6 keeps the limit in the tokenizer's settings, earlier versions in a file of their own.
    own_limit = _number(directory / "sentence_bert_config.json", "max_seq_length")
    limits = [own_limit] if own_limit else [_number(directory / "tokenizer_config.json", "model_max_length"), positions]
    return min((limit for limit in [*limits, table] if limit and limit < NO_LIMIT), default=DEFAULT_MAX_LENGTH)
