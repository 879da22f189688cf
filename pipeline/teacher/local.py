"""A sentence-transformers model on this machine as the teacher."""

import threading
from array import array
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from torch.nn import functional

from pipeline.base import Array, LeafError, keep_pages
from pipeline.model import (
    CompiledBackbone,
    bf16_is_fast,
    check_sha256,
    find_backbone,
    load_sentence_transformer,
    pack,
    resolve_model,
    vectors_in_parts,
)
from pipeline.params import EncodeParams, TeacherParams
from pipeline.store import StoreMeta
from pipeline.teacher.local_identity import describe, max_length, vector_width

TOKENIZE_ROWS = 2048  # texts tokenised at once, so that a shard's strings are never all in memory twice


class LocalTeacher:
    """A sentence-transformers model that turns texts into vectors, batch by batch. Loaded at first use."""

    retries_refused = False

    def __init__(self, params: TeacherParams, encode: EncodeParams) -> None:
        """Read nothing yet. Of `encode`, `token_budget` and `dtype` are used."""
        self.params, self.token_budget, self._dtype = params, encode.token_budget, encode.dtype
        self._lock = threading.Lock()
        self._limit = 0
        self._model: Any = None
        self._tail: list[Any] = []
        self._compiled: CompiledBackbone | None = None

    @cached_property
    def meta(self) -> StoreMeta:
        """Identity and fingerprint, from the model's files; see `local_identity.describe`."""
        return describe(self.params, self._dtype)

    @cached_property
    def directory(self) -> Path:
        """Directory of the model on this machine; LeafError if it cannot be found."""
        return resolve_model(self.params.model, self.params.revision)

    @cached_property
    def dim(self) -> int:
        """Dimension of the vectors, from the model's files."""
        return vector_width(self.directory)

    def load(self) -> None:
        """Load the model unless it is loaded already; its SHA-256 is checked first.

        Raises:
            LeafError: it cannot be found or loaded, its weights are not the expected ones, or `teacher.max_length` is
                more than it has positions for.
        """
        with self._lock:
            if self._model is not None:
                return
            check_sha256(self.directory, self.params.sha256, "teacher.sha256")
            keep_pages()
            self._limit = max_length(self.params, self.directory)
            model = load_sentence_transformer(self.directory, self.params.model)
            self._tail = [module for module in list(model)[2:] if type(module).__name__ != "Normalize"]
            self._compiled = self._compiled_backbone(list(model))
            self._model = model

    def _compiled_backbone(self, modules: list[Any]) -> CompiledBackbone | None:
        """A backbone that can run the model, compiled; None leaves the work to sentence-transformers."""
        if [type(module).__name__ for module in modules[:2]] != ["Transformer", "Pooling"]:
            return None
        model, mode = modules[0].auto_model, modules[1].pooling_mode
        pooling = (mode,) if isinstance(mode, str) else tuple(mode)
        kind = find_backbone(model, pooling)
        return kind(model, pooling, modules[0]).compiled(self.token_budget) if kind else None

    def vectors(self, rows: pl.DataFrame) -> Array:
        """Vectors [rows, dim] float32 of a frame with `role, text`, in its order."""
        return self.encode_tokens(self.tokenize_rows(rows))

    def remember(self, cache_root: Path) -> None:
        """Do nothing: a local model's identity can be read from its files at any time."""

    def tokenize(self, texts: Sequence[str], role: str) -> list[list[int]]:
        """Token ids of each text after its role's prompt, special tokens included, cut to the maximum length."""
        self.load()
        prompt = self.params.prompts.query if role == "query" else self.params.prompts.document
        prompted = [prompt + text for text in texts] if prompt else list(texts)
        if not prompted:
            return []
        ids: list[list[int]] = self._model.tokenizer(
            prompted, truncation=True, max_length=self._limit, return_attention_mask=False, return_token_type_ids=False
        )["input_ids"]
        return ids

    def tokenize_rows(self, rows: pl.DataFrame) -> list[Sequence[int]]:
        """`tokenize` for a frame with `role, text` that mixes the roles, in its order."""
        ids: list[Sequence[int]] = []
        for block in rows.iter_slices(TOKENIZE_ROWS):
            # One tokenizer call per role, because each role has its own prompt.
            block_ids: list[Sequence[int]] = [[]] * block.height
            for role in ("query", "document"):
                role_rows = block.with_row_index("row").filter(pl.col("role") == role)
                tokens = self.tokenize(role_rows["text"].to_list(), role)
                for row, text_ids in zip(role_rows["row"], tokens, strict=True):
                    block_ids[row] = array("i", text_ids)  # a list takes nine times the memory
            ids += block_ids
        return ids

    @torch.inference_mode()
    def forward(self, token_ids: Sequence[Sequence[int]]) -> np.ndarray:
        """Vectors [texts, dim] float32 of one batch; LeafError if the model gives another width than its files name."""
        self.load()
        if self._compiled is not None:
            features = {"sentence_embedding": self._compiled(pack(token_ids))}
            for module in self._tail:
                features = module(features)
            vectors = features["sentence_embedding"]
        else:
            vectors = self._forward_padded(token_ids)
        if vectors.shape[1] != self.dim:
            raise LeafError(
                f"teacher `{self.params.model}`: gives vectors of {vectors.shape[1]} dimensions, but its configuration "
                f"files name {self.dim}; correct the width in those of its modules (1_Pooling/config.json)"
            )
        vectors = vectors.float()
        if self.params.normalize:
            vectors = functional.normalize(vectors, dim=1)
        return vectors.cpu().numpy()

    def _forward_padded(self, token_ids: Sequence[Sequence[int]]) -> torch.Tensor:
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
        """Row numbers and vectors [texts, dim] float32 of one batch after another, until all texts are done."""
        self.load()
        return vectors_in_parts(self.forward, token_ids, self.token_budget, self._model.device)

    def encode_tokens(self, token_ids: Sequence[Sequence[int]]) -> np.ndarray:
        """Vectors [texts, dim] float32, in order, of any number of tokenised texts."""
        vectors = np.empty((len(token_ids), self.dim), dtype=np.float32)
        for rows, part in self.parts(token_ids):
            vectors[rows] = part
        return vectors
