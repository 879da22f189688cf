"""A sentence-transformers model on this machine as the teacher."""

import logging
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor
from torch.nn import functional

from pipeline.base import Array, LeafError, first_line, keep_pages, panics_as_errors
from pipeline.model import (
    best_device,
    check_model_sha256,
    in_threads,
    load_sentence_transformer,
    resolve_model,
    traits_of,
    vectors_in_parts,
)
from pipeline.params import EncodeParams, TeacherParams
from pipeline.store import StoreMeta
from pipeline.teacher.layout import ROLES, Layout, read_layout
from pipeline.teacher.local_identity import (
    describe,
    dimension,
    effective_prompts,
    first_fingerprint,
    full_width,
    max_lengths,
    normalizes,
    trusted_revision,
)
from pipeline.teacher.notices import notices, pooling_notice
from pipeline.teacher.runners import Runner, runners_for

TOKENIZE_ROWS = 2048  # texts tokenised at once, so that a shard's strings are never all in memory twice
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TokenisedTexts(Sequence[Any]):
    """Texts that are ready to be computed, in order. The `len` of each is its number of tokens, prompt included."""

    inputs: list[Any]
    """What the runner of its role takes for each text."""
    roles: list[str]
    unread: list[int]
    """Characters of each text behind what the teacher reads; 0 where it reads the text whole."""

    @classmethod
    def joined(cls, parts: Iterable["TokenisedTexts"]) -> "TokenisedTexts":
        """The texts of several, one after the other."""
        joined = cls([], [], [])
        for part in parts:
            joined.inputs.extend(part.inputs)
            joined.roles.extend(part.roles)
            joined.unread.extend(part.unread)
        return joined

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, row: Any) -> Any:
        return self.inputs[row]


class LocalTeacher:
    """A sentence-transformers model that turns texts into vectors, batch by batch. Loaded at first use."""

    retries_refused = False

    def __init__(self, params: TeacherParams, encode: EncodeParams) -> None:
        """Read nothing yet. Of `encode`, `token_budget` and `dtype` are used."""
        self.params, self._dtype = params, encode.dtype
        self.token_budget = encode.token_budget or traits_of(best_device()).encode_tokens
        self._lock = threading.Lock()
        self._model: Any = None
        self._runners: dict[str, Runner] = {}

    @cached_property
    def meta(self) -> StoreMeta:
        """Identity and fingerprint, from the model's files; see `local_identity.describe`."""
        return describe(self.params, self._dtype)

    @cached_property
    def earlier_fingerprints(self) -> tuple[str, ...]:
        """Fingerprints that earlier versions of this program gave to the same files and parameters."""
        first = first_fingerprint(self.params, self.meta)
        return () if first is None else (first,)

    @cached_property
    def directory(self) -> Path:
        """Directory of the model on this machine; LeafError if it cannot be found."""
        return resolve_model(self.params.model, self.params.revision)

    @cached_property
    def layout(self) -> Layout:
        """The model's modules and settings, from its files."""
        return read_layout(self.directory)

    @cached_property
    def dim(self) -> int:
        """Dimension of the vectors, from the model's files and `teacher.dim`."""
        return dimension(self.params, self.layout)

    @cached_property
    def width(self) -> int:
        """Dimension of what the modules give, before any dimensions are cut off."""
        return full_width(self.params, self.layout)

    @cached_property
    def _normalizes(self) -> bool:
        return normalizes(self.params, self.layout)

    def load(self) -> None:
        """Load the model unless it is loaded already; its SHA-256 is checked first.

        Raises:
            LeafError: it cannot be found or loaded, lacks weights, its weights are not the expected ones, or
                `teacher.max_length` is more than it has positions for.
        """
        with self._lock:
            if self._model is not None:
                return
            check_model_sha256(self.directory, self.params.sha256, "teacher.sha256")
            keep_pages()
            limits, prompts = max_lengths(self.params, self.layout), effective_prompts(self.params, self.layout)
            model = load_sentence_transformer(self.directory, self.params.model, trusted_revision(self.params))
            check_model_sha256(self.directory, self.params.sha256, "teacher.sha256")  # nothing was swapped meanwhile
            with self._run_errors("cannot be run"):
                self._runners = runners_for(model, prompts, limits, self.token_budget)
            self._model = model
        for notice in self.notices():
            logger.warning("teacher: %s", notice)

    @contextmanager
    def _run_errors(self, what: str) -> Iterator[None]:
        """Whatever the model's own code or its libraries raise becomes one sentence."""
        try:
            with panics_as_errors():
                yield
        except LeafError:
            raise
        except Exception as error:
            raise LeafError(
                f"teacher `{self.params.model}`: {what} ({type(error).__name__}: {first_line(error)})"
            ) from error

    def notices(self) -> list[str]:
        """What a person should know about this model's prompts, its pooling and its measure, a sentence each."""
        return [*notices(self.params, self.layout), *(pooling_notice(self._model) if self._model else ())]

    def vectors(self, rows: pl.DataFrame) -> Array:
        """Vectors `[rows, dim]` float32 of a frame with `role, text`, in its order."""
        return self.encode_tokens(self.tokenize_rows(rows))

    def remember(self, cache_root: Path) -> None:
        """Do nothing: a local model's identity can be read from its files at any time."""

    def tokenize(self, texts: Sequence[str], role: str) -> TokenisedTexts:
        """Texts of one role, each behind the role's prompt and cut to the maximum length.

        Raises:
            LeafError: the tokenizer makes no token of a text.
        """
        self.load()
        with self._run_errors("its tokenizer breaks off"):
            inputs, unread = self._runners[role].tokenize(texts)
        for text, tokens in zip(texts, inputs, strict=True):
            if not len(tokens):
                raise LeafError(
                    f"teacher `{self.params.model}`: its tokenizer makes no token of the {role} {text!r:.80}; remove "
                    "the text from the sources, or give the model a prompt (teacher.prompts)"
                )
        return TokenisedTexts(inputs, [role] * len(inputs), unread)

    def tokenize_rows(self, rows: pl.DataFrame) -> TokenisedTexts:
        """`tokenize` for a frame with `role, text` that mixes the roles, in its order."""
        self.load()
        blocks = rows.iter_slices(TOKENIZE_ROWS)
        parts = in_threads(self._tokenize_block, blocks, traits_of(self._model.device).tokenize_threads)
        return TokenisedTexts.joined(parts)

    def _tokenize_block(self, block: pl.DataFrame) -> TokenisedTexts:
        inputs: list[Any] = [()] * block.height
        unread = [0] * block.height
        for role in ROLES:  # one call for each, because each has its own prompt
            role_rows = block.with_row_index("row").filter(pl.col("role") == role)
            tokens = self.tokenize(role_rows["text"].to_list(), role)
            for row, text, behind in zip(role_rows["row"], tokens, tokens.unread, strict=True):
                inputs[row], unread[row] = text, behind
        return TokenisedTexts(inputs, block["role"].to_list(), unread)

    def _forward(self, runner: Runner, inputs: Sequence[Any]) -> Tensor:
        """Vectors `[texts, dim]` float32 of one batch; LeafError if their width is not what the model's files name."""
        with torch.inference_mode():
            with self._run_errors(f"breaks off at a text of {max(map(len, inputs))} tokens"):
                vectors = runner.forward(inputs)
            if vectors.shape[1] != self.width:
                raise LeafError(
                    f"teacher `{self.params.model}`: gives vectors of {vectors.shape[1]} dimensions, but its "
                    f"configuration files name {self.width}; correct the width in those of its modules"
                )
            vectors = vectors[:, : self.dim].float()
            if self._normalizes:
                vectors = functional.normalize(vectors, dim=1)
            return vectors

    def parts(self, texts: TokenisedTexts) -> Iterator[tuple[Array, Array]]:
        """Row numbers and vectors `[texts, dim]` float32 of one batch after another, until all texts are done.

        Queries and documents share a batch where one runner computes both.
        """
        self.load()
        rows_of: dict[object, list[int]] = {}
        for row, role in enumerate(texts.roles):
            rows_of.setdefault(self._runners[role].shared, []).append(row)
        for rows in rows_of.values():
            runner = self._runners[texts.roles[rows[0]]]
            inputs, places = [texts.inputs[row] for row in rows], np.array(rows)
            parts = vectors_in_parts(
                partial(self._forward, runner), inputs, self.token_budget, self._model.device, runner.equal_lengths
            )
            for numbers, vectors in parts:
                yield places[numbers], vectors

    def encode_tokens(self, texts: TokenisedTexts) -> Array:
        """Vectors `[texts, dim]` float32, in order, of any number of tokenised texts."""
        vectors = np.empty((len(texts), self.dim), dtype=np.float32)
        for rows, part in self.parts(texts):
            vectors[rows] = part
        return vectors
