"""The teacher: a sentence-transformers model, identified by a fingerprint of all that decides its vectors."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from pipeline.base.errors import LeafError
from pipeline.base.files import sha256
from pipeline.base.memory import keep_pages
from pipeline.model.backbones.packed import FAMILIES, Encoder
from pipeline.model.batch import pack
from pipeline.model.device import bf16_is_fast
from pipeline.model.model_files import check_sha256, load_sentence_transformer, resolve_model
from pipeline.model.parallel import vectors_in_parts
from pipeline.params.sections import TeacherParams
from pipeline.store.shard import StoreMeta

USUAL_LIMIT = 512  # tokens of a text, where a model's files name no limit
NO_LIMIT = 10**6  # tokenizers without a limit write a huge number (transformers: 1e30)
COUNT_FROM_PADDING = tuple(
    "camembert data2vec-text ibert longformer luke mpnet roberta roberta-prelayernorm "
    "xlm-roberta xlm-roberta-xl xmod".split()
)
"""Model types whose positions begin behind the padding id: the first rows of their table belong to no token."""
TOKENIZER_FILES = ("vocab.*", "merges.txt", "bpe.codes", "*.model", "*.spm", "*token*.json")


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise LeafError(f"model file {path}: cannot be read: {error}") from None


def _settings(path: Path) -> dict[str, Any]:
    """The JSON object in a file."""
    found = _read_json(path)
    if not isinstance(found, dict):
        raise LeafError(f"model file {path}: must hold a JSON object of settings; get the model again")
    return found


def _number(path: Path, *names: str) -> int | None:
    """The first of these settings that is above zero; None without it or the file. LeafError if no whole number."""
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
    whole = isinstance(entries, list) and all(
        isinstance(entry, dict) and isinstance(entry.get("type"), str) and isinstance(entry.get("path"), str)
        for entry in entries
    )
    if not whole:
        raise LeafError(
            f"model file {listing}: must be a list of modules, each with its `type` and `path`; get the model again"
        )
    return [(entry["type"].rpartition(".")[2], directory / entry["path"]) for entry in entries]


def _dim(directory: Path, modules: list[tuple[str, Path]]) -> int:
    """Width of the vectors that the last module gives."""
    dim = _number(directory / "config.json", "hidden_size", "dim", "d_model", "n_embd")
    for kind, path in modules:
        settings = path / "config.json"
        if kind == "Pooling":
            width = _number(settings, "embedding_dimension", "word_embedding_dimension") or dim
            dim = width and width * _pooling_modes(_settings(settings))
        elif kind == "Dense":
            dim = _number(settings, "out_features")
        if kind in ("Pooling", "Dense") and dim is None:
            raise LeafError(f"model file {settings}: does not name the width of the vectors; get the model again")
    if dim is None:
        raise LeafError(f"model file {directory / 'config.json'}: does not name the width of the vectors (hidden_size)")
    return dim


def _pooling_modes(settings: dict[str, Any]) -> int:
    """How many vectors a Pooling module sets side by side: one for each mode that is on."""
    modes = settings.get("pooling_mode")  # a name or a list of names; before sentence-transformers 6 a switch for each
    if modes is None:
        modes = [name for name, on in settings.items() if name.startswith("pooling_mode_") and on]
    return len(modes) if isinstance(modes, list) and modes else 1


def _tokenizer_files(directory: Path) -> list[Path]:
    """`tokenizer.json`, which says all; where there is none, whatever the tokenizer is built from."""
    whole = directory / "tokenizer.json"
    if whole.exists():
        return [whole]
    return sorted({file for pattern in TOKENIZER_FILES for file in directory.glob(pattern)})


def describe(params: TeacherParams, dtype: str) -> StoreMeta:
    """Identity and fingerprint of the teacher, from its files alone: nothing is loaded.

    The fingerprint covers weights, tokenizer, every module's configuration and weights, prompts, maximum length,
    normalisation and dimension; not the model's name or place, so that copies under two names share vectors.

    Raises:
        LeafError: there is no such model, its weights are not the expected ones, a configuration file is malformed,
            or `teacher.max_length` is more than the model has positions for.
    """
    directory = resolve_model(params.model, params.revision)
    modules = _modules(directory)
    parts = {"weights": check_sha256(directory, params.sha256, "teacher.sha256")}
    for path in [directory / "config.json", directory / "sentence_bert_config.json", *_tokenizer_files(directory)]:
        if path.exists():
            parts[path.name] = sha256(path)
    for kind, path in modules:
        if path != directory:
            for file in sorted([*path.glob("*.json"), *path.glob("*.safetensors")]):
                parts[f"{kind}/{file.name}"] = sha256(file)
    dim = _dim(directory, modules)
    decides = {
        "files": parts,
        "modules": [kind for kind, _ in modules],
        "prompts": asdict(params.prompts),
        "max_length": _max_length(params, directory),
        "normalize": params.normalize,
        "dim": dim,
    }
    fingerprint = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()
    local = Path(params.model).is_dir()
    identity = {"model": directory.name if local else params.model, "revision": params.revision, **decides}
    if params.license:
        identity["license"] = params.license
    return StoreMeta(fingerprint=fingerprint, teacher=identity, dim=dim, dtype=dtype, normalized=params.normalize)


def _max_length(params: TeacherParams, directory: Path) -> int:
    """Most tokens of a text that are read: `teacher.max_length`, or the model's own limit.

    Raises:
        LeafError: `teacher.max_length` is more than the model has positions for.
    """
    settings = _settings(directory / "config.json")
    positions = _number(directory / "config.json", "max_position_embeddings")
    if positions is not None and settings.get("model_type") in COUNT_FROM_PADDING:
        padding = settings.get("pad_token_id")
        positions -= 1 + (padding if isinstance(padding, int) else 1)
    # Rotary and relative positions go on behind the number that is named; those in a table do not.
    endless = settings.get("position_biased_input") is False or any(
        "rope_" in name or "rotary" in name for name in settings
    )
    table = None if endless else positions
    if params.max_length is not None:
        if table is not None and params.max_length > table:
            raise LeafError(
                f"teacher.max_length: {params.max_length} is impossible; `{params.model}` has positions for at most "
                f"{table} tokens"
            )
        return params.max_length
    # sentence-transformers 6 keeps the limit in the tokenizer's settings, earlier versions in a file of their own.
    own = _number(directory / "sentence_bert_config.json", "max_seq_length")
    named = [own] if own else [_number(directory / "tokenizer_config.json", "model_max_length"), positions]
    return min((limit for limit in [*named, table] if limit and limit < NO_LIMIT), default=USUAL_LIMIT)


class Teacher:
    """A loaded sentence-transformers model that turns texts into vectors, batch by batch."""

    def __init__(self, params: TeacherParams, token_budget: int) -> None:
        """Load the model, its SHA-256 checked first.

        Raises:
            LeafError: it cannot be found or loaded, its weights are not the expected ones, or `teacher.max_length` is
                more than it has positions for.
        """
        directory = resolve_model(params.model, params.revision)
        check_sha256(directory, params.sha256, "teacher.sha256")
        keep_pages()
        self.params, self.token_budget = params, token_budget
        self._limit = _max_length(params, directory)
        self.dim = _dim(directory, _modules(directory))
        self._model = load_sentence_transformer(directory, params.model)
        self._tail = [module for module in list(self._model)[2:] if type(module).__name__ != "Normalize"]
        self._encoder = self._packed_encoder()

    def _packed_encoder(self) -> Encoder | None:
        """The padding-free encoder where the model's shape allows it; None leaves the work to sentence-transformers."""
        modules = list(self._model)
        if [type(module).__name__ for module in modules[:2]] != ["Transformer", "Pooling"]:
            return None
        backbone, pooling = modules[0].auto_model, modules[1].pooling_mode
        if backbone.config.model_type not in FAMILIES or pooling not in ("mean", "cls"):
            return None
        return Encoder(backbone, self.token_budget, pooling)

    def tokenize(self, texts: Sequence[str], role: str) -> list[list[int]]:
        """Token ids of each text after its role's prompt, special tokens included, cut to the maximum length."""
        prompt = self.params.prompts.query if role == "query" else self.params.prompts.document
        prompted = [prompt + text for text in texts] if prompt else list(texts)
        if not prompted:
            return []
        ids: list[list[int]] = self._model.tokenizer(
            prompted, truncation=True, max_length=self._limit, return_attention_mask=False, return_token_type_ids=False
        )["input_ids"]
        return ids

    @torch.inference_mode()
    def forward(self, token_ids: Sequence[Sequence[int]]) -> np.ndarray:
        """Vectors [texts, dim] float32 of one batch; LeafError if the model gives another width than its files name."""
        if self._encoder is not None:
            features = {"sentence_embedding": self._encoder(pack(token_ids))}
            for module in self._tail:
                features = module(features)
            vectors = features["sentence_embedding"]
        else:
            vectors = self._padded(token_ids)
        if vectors.shape[1] != self.dim:
            raise LeafError(
                f"teacher `{self.params.model}`: gives vectors of {vectors.shape[1]} dimensions, but its configuration "
                f"files name {self.dim}; correct the width in those of its modules (1_Pooling/config.json)"
            )
        vectors = vectors.float()
        if self.params.normalize:
            vectors = functional.normalize(vectors, dim=1)
        return vectors.cpu().numpy()

    def _padded(self, token_ids: Sequence[Sequence[int]]) -> torch.Tensor:
        device = self._model.device
        padded = self._model.tokenizer.pad({"input_ids": [list(ids) for ids in token_ids]}, return_tensors="pt")
        features = {name: value.to(device) for name, value in padded.items()}
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16_is_fast(device)):
            for module in self._model:
                if type(module).__name__ != "Normalize":
                    features = module(features)
        vectors: torch.Tensor = features["sentence_embedding"]
        return vectors

    def parts(self, token_ids: Sequence[Sequence[int]]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Row numbers and vectors [texts, dim] float32, batch by batch until every text had its turn."""
        return vectors_in_parts(self.forward, token_ids, self.token_budget, self._model.device)

    def encode_tokens(self, token_ids: Sequence[Sequence[int]]) -> np.ndarray:
        """Vectors [texts, dim] float32, in order, of any number of tokenised texts."""
        vectors = np.empty((len(token_ids), self.dim), dtype=np.float32)
        for rows, part in self.parts(token_ids):
            vectors[rows] = part
        return vectors
