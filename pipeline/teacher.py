"""The teacher: a sentence-transformers model, identified by a fingerprint of all that decides its vectors."""

import hashlib
import importlib.util
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from pipeline.errors import LeafError
from pipeline.machine import bf16_is_fast, keep_pages
from pipeline.packed import FAMILIES, Encoder, pack
from pipeline.params import TeacherParams
from pipeline.shard import sha256
from pipeline.store import StoreMeta
from pipeline.streams import vectors_in_parts

PACKAGE = "package:"
LARGEST_INDEX = 64  # files of sharded weights that are looked at


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
    return _from_hub(model, revision)


def _from_hub(model: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    wanted = ["*.json", "*.safetensors", "*.txt", "*.model"]
    try:
        return Path(snapshot_download(model, revision=revision, allow_patterns=wanted))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise LeafError(
            f"model `{model}`: neither a local directory nor to be had from the model hub ({reason})"
        ) from None


def weights_sha256(directory: Path) -> str:
    """SHA-256 of `model.safetensors`; of the lines `name sha256` where the weights are split over several files."""
    files = sorted(directory.glob("*.safetensors"))[:LARGEST_INDEX]
    if not files:
        raise LeafError(f"{directory.name}: holds no *.safetensors; weights in other formats are not loaded")
    if len(files) == 1:
        return sha256(files[0])
    lines = "".join(f"{file.name} {sha256(file)}\n" for file in files)
    return hashlib.sha256(lines.encode()).hexdigest()


def check_sha256(directory: Path, expected: str | None, name: str) -> str:
    """Return the digest of the weights; LeafError if `expected` is given and differs."""
    found = weights_sha256(directory)
    if expected is not None and found != expected.lower():
        raise LeafError(
            f"{name}: the weights have SHA-256 {found}, but the parameters want {expected}; "
            "do not trust them, or correct the parameter if you meant to change models"
        )
    return found


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise LeafError(f"model file {path.name}: cannot be read: {error}") from None


def _modules(directory: Path) -> list[tuple[str, Path]]:
    """Module class names and directories of a sentence-transformers model; empty for a plain transformers one."""
    listing = directory / "modules.json"
    if not listing.exists():
        return []
    return [(str(entry["type"]).rpartition(".")[2], directory / entry["path"]) for entry in _read_json(listing)]


def _dim(directory: Path, modules: list[tuple[str, Path]]) -> int:
    dim = int(_read_json(directory / "config.json").get("hidden_size", 0))
    for kind, path in modules:
        if kind == "Dense":
            dim = int(_read_json(path / "config.json")["out_features"])
    return dim


def describe(params: TeacherParams, dtype: str) -> StoreMeta:
    """Identity and fingerprint of the teacher, from its files alone: nothing is loaded.

    The fingerprint covers weights, tokenizer, every module's configuration and weights, prompts, maximum length,
    normalisation and dimension; not the model's name or place, so that copies under two names share vectors.
    """
    directory = resolve_model(params.model, params.revision)
    modules = _modules(directory)
    parts = {"weights": check_sha256(directory, params.sha256, "teacher.sha256")}
    for path in [directory / "tokenizer.json", directory / "config.json", directory / "sentence_bert_config.json"]:
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
        "max_length": params.max_length or _model_limit(directory),
        "normalize": params.normalize,
        "dim": dim,
    }
    fingerprint = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()
    local = Path(params.model).is_dir()
    identity = {"model": directory.name if local else params.model, "revision": params.revision, **decides}
    if params.license:
        identity["license"] = params.license
    return StoreMeta(fingerprint=fingerprint, teacher=identity, dim=dim, dtype=dtype, normalized=params.normalize)


def _model_limit(directory: Path) -> int:
    settings = directory / "sentence_bert_config.json"
    limit = _read_json(settings).get("max_seq_length") if settings.exists() else None
    return int(limit or _read_json(directory / "config.json").get("max_position_embeddings", 512))


class Teacher:
    """A loaded sentence-transformers model that turns texts into vectors, batch by batch."""

    def __init__(self, params: TeacherParams, token_budget: int) -> None:
        """Load the model, its SHA-256 checked first.

        Raises:
            LeafError: it cannot be found or loaded, or its weights are not the expected ones.
        """
        directory = resolve_model(params.model, params.revision)
        check_sha256(directory, params.sha256, "teacher.sha256")
        keep_pages()
        self.params, self.token_budget = params, token_budget
        self._model = load_sentence_transformer(directory, params.model)
        self._limit = params.max_length or _model_limit(directory)
        self.dim = _dim(directory, _modules(directory))
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
        """Vectors [texts, dim] float32 of one batch."""
        if self._encoder is not None:
            features = {"sentence_embedding": self._encoder(pack(token_ids))}
            for module in self._tail:
                features = module(features)
            vectors = features["sentence_embedding"]
        else:
            vectors = self._padded(token_ids)
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


def load_sentence_transformer(directory: Path, name: str) -> Any:
    """Load a model from a directory: safetensors only, no code of the model's own; LeafError where that fails."""
    from sentence_transformers import SentenceTransformer

    try:
        return SentenceTransformer(
            str(directory),
            trust_remote_code=False,
            local_files_only=True,
            model_kwargs={"use_safetensors": True, "dtype": torch.float32},
        ).eval()
    except Exception as error:  # every library below raises its own; the person needs one sentence
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise LeafError(f"model `{name}`: cannot be loaded as a sentence-transformers model: {reason}") from None
