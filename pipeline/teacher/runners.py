"""How a local teacher computes vectors: packed where a backbone knows the model, else through the library's modules.

A runner belongs to the texts of one role: it puts the role's prompt before them and takes the role's route through a
Router. What is computed equals what sentence-transformers gives for each text alone. Where padding would change that
(absolute positions counted from the padding, token-level layers that see it), texts of equal length share a batch.
"""

from abc import ABC, abstractmethod
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional

from pipeline.base import LeafError, Prefixes, portions
from pipeline.model import CompiledBackbone, PackedBackbone, bf16_is_fast, check_words, pack, poolings_of, token_table

PROBES = ("a", "how a text becomes a vector", "the same words again and again, as long as it takes. " * 4)
"""Texts of different lengths, by which a runner finds out what padding and bfloat16 do to the model's vectors."""
PROBE_TOKENS = (2, 3, 4, 5, 6, 8, 10, 13, 17, 21, 27, 34)  # of further such texts, made of the model's own tokens
SHORT_TOKENS = (2, 3, 4, 5, 6, 8) * 6  # of more texts that bfloat16 is tried on, as rounding shows most in short ones
PACKED_TOKENS = (2, 3, 5, 8)  # the same for models of which only rounding is in doubt: whoever waits for them pays
NOISE = 1e-4  # most that rounding in float32 changes a vector, as a share of its length
PACKED_COSINE = 0.999  # of vectors laid end to end in bfloat16 to the library's in float32: what is promised
BF16_COSINE = 0.9995  # of vectors in bfloat16 to those in float32; below it a model is computed in float32
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
"""Settings by which a configuration names the experts among which a model chooses."""
ROUTERS = ("Router", "Asym")
PLAIN_FEATURES = {"input_ids", "attention_mask", "token_type_ids"}


class Runner(ABC):
    """Computes the vectors of the texts of one role."""

    equal_lengths = False
    """Whether only texts of equal length may share a batch."""

    @property
    def shared(self) -> object:
        """Runners with an equal value here compute alike: their texts may share a batch."""
        return self

    @abstractmethod
    def tokenize(self, texts: Sequence[str]) -> tuple[list[Any], list[int]]:
        """What `forward` takes for each text behind the prompt, cut to the maximum length; its `len` is its tokens.

        And how many characters of each are never read, being behind the last token that is kept.
        """

    @abstractmethod
    def forward(self, inputs: Sequence[Any]) -> Tensor:
        """Vectors `[texts, width]` of one batch, before the last normalisation."""


class TextReader:
    """Reads texts behind a prompt with a tokenizer of transformers, which keeps `limit` tokens."""

    def __init__(self, tokenizer: Any, prompt: str, limit: int) -> None:
        self._tokenizer, self._prompt, self._limit = tokenizer, prompt, limit
        backend = getattr(tokenizer, "backend_tokenizer", None)  # one of Python code has none
        side = tokenizer.truncation_side
        self._prefixes = Prefixes(
            backend if isinstance(backend, Tokenizer) else None, limit, from_right=side == "right"
        )

    def read(self, texts: Sequence[str], **options: bool) -> Iterator[tuple[Any, list[int]]]:
        """What the tokenizer gives, some of the texts at a time, and how many characters of each are never read."""
        for prompted in portions([self._prompt + text for text in texts] if self._prompt else texts):
            prefixes = [self._prefixes.cut(text) for text in prompted]
            encoded = self._tokenizer(prefixes, truncation=True, max_length=self._limit, **options)
            encodings = encoded.encodings or [None] * len(prompted)
            yield encoded, [_unread(*pair) for pair in zip(prompted, encodings, strict=True)]


def _unread(text: str, encoding: Any) -> int:
    """Characters of a text behind its last token that is kept; 0 where all are kept, or it is not known."""
    if encoding is None or not encoding.overflowing:
        return 0
    ends = [end for (_, end), added in zip(encoding.offsets, encoding.special_tokens_mask, strict=True) if not added]
    return len(text) - max(ends, default=0)


class PackedRunner(Runner):
    """A Transformer that the packed backbone can run, its pooling, and what follows."""

    def __init__(self, modules: Sequence[Any], prompt: str, limit: int, compiled: CompiledBackbone) -> None:
        """`compiled` is the backbone of these modules; runners of both roles share it."""
        self.reader = TextReader(modules[0].tokenizer, prompt, limit)
        self.tail, self.compiled = modules[2:], compiled

    @property
    def shared(self) -> object:
        """See `Runner.shared`. Routes of a Router may share a transformer and go on with different modules."""
        return (self.compiled, *self.tail)

    @staticmethod
    def supports(modules: Sequence[Any], prompt: str) -> bool:
        """Whether the packed path computes what these modules would."""
        if [type(module).__name__ for module in modules[:2]] != ["Transformer", "Pooling"]:
            return False
        transformer, pooling = modules[:2]
        return (
            _reads_plain_text(transformer)
            and (pooling.include_prompt or not prompt)
            and PackedBackbone.supports(transformer.auto_model, poolings_of(pooling), transformer)
        )

    def is_near(self, library: "LibraryRunner") -> bool:
        """Whether vectors are near those of the modules in float32; large weights can make bfloat16 too coarse."""
        if not bf16_is_fast(self.compiled.device):
            return True
        texts = library.drawn_texts(PACKED_TOKENS)
        with torch.inference_mode():
            vectors = self.forward(self.tokenize(texts)[0]).float()
            exact = library.forward(library.tokenize(texts)[0]).float()
        return bool((functional.cosine_similarity(vectors, exact) >= PACKED_COSINE).all())

    def tokenize(self, texts: Sequence[str]) -> tuple[list[Any], list[int]]:
        """See `Runner.tokenize`."""
        inputs: list[Any] = []
        unread: list[int] = []
        for encoded, behind in self.reader.read(texts, return_attention_mask=False, return_token_type_ids=False):
            inputs += [array("i", ids) for ids in encoded["input_ids"]]  # a list takes nine times the memory
            unread += behind
        return inputs, unread

    def forward(self, inputs: Sequence[Any]) -> Tensor:
        """See `Runner.forward`."""
        features = {"sentence_embedding": self.compiled(pack(inputs))}
        for module in self.tail:
            features = module(features)
        return features["sentence_embedding"]


class LibraryRunner(Runner):
    """Any other model: tokenised and computed by the library's own modules, in batches that this class pads."""

    def __init__(self, model: Any, modules: Sequence[Any], role: str, prompt: str) -> None:
        """In float32 and with padding, until `probe` is called."""
        self.model, self.modules, self.role, self.prompt = model, modules, role, prompt
        self.bf16 = False

    def probe(self) -> None:
        """Find out whether padding changes vectors, and whether bfloat16 is fast and near enough."""
        inputs = self._probes([*PROBES, *self.drawn_texts(PROBE_TOKENS)])
        if not inputs:
            return  # a tokenizer that makes no token of any; texts will be refused one by one
        with torch.inference_mode():
            alone = torch.cat([self.forward([text]) for text in inputs]).float()
            apart = (self.forward(inputs).float() - alone).norm(dim=1) / alone.norm(dim=1).clamp_min(1e-9)
            self.equal_lengths = not bool((apart <= NOISE).all())
            tried = bf16_is_fast(self.model.device) and not self._routes_tokens()
            self.bf16 = tried and self._near(inputs + self._probes([*PROBES, *self.drawn_texts(SHORT_TOKENS)]))

    def _routes_tokens(self) -> bool:
        """Whether the model chooses experts for each token: rounding may choose others, which no probe can rule out."""
        config = getattr(getattr(self.modules[0], "auto_model", None), "config", None)
        return any(getattr(config, name, None) for name in EXPERTS)

    def drawn_texts(self, lengths: Sequence[int]) -> list[str]:
        """Texts of the tokens of the model's own vocabulary, in a fixed random order; none without a vocabulary."""
        tokenizer: Any = getattr(self.modules[0], "tokenizer", None)
        if not hasattr(tokenizer, "decode") or not hasattr(tokenizer, "get_vocab"):
            return []
        ids = sorted(set(tokenizer.get_vocab().values()) - set(getattr(tokenizer, "all_special_ids", ())))
        chosen = np.random.default_rng(0).choice(ids, sum(lengths))
        return [tokenizer.decode(piece.tolist()) for piece in np.split(chosen, np.cumsum(lengths)[:-1])]

    def _probes(self, texts: Sequence[str]) -> list[Any]:
        """Those of the texts of which the tokenizer makes any token."""
        return [text for text in self.tokenize(texts)[0] if len(text)]

    def _near(self, inputs: Sequence[Any]) -> bool:
        """Whether the vectors in bfloat16 are near the exact ones; not where an operation has no such form."""
        batches: dict[int, list[Any]] = {}
        for text in inputs:
            batches.setdefault(len(text) if self.equal_lengths else 0, []).append(text)
        exact = torch.cat([self.forward(batch) for batch in batches.values()]).float()
        self.bf16 = True
        try:
            rounded = torch.cat([self.forward(batch) for batch in batches.values()]).float()
        except RuntimeError:
            return False
        return bool((functional.cosine_similarity(exact, rounded) >= BF16_COSINE).all())

    def tokenize(self, texts: Sequence[str]) -> tuple[list[Any], list[int]]:
        """See `Runner.tokenize`. Texts are only counted here: what the modules read is made with the whole batch.

        What they leave unread is not known.
        """
        return [PlainText(text, self._tokens(text)) for text in texts], [0] * len(texts)

    def _features(self, texts: Sequence[str]) -> dict[str, Any]:
        return dict(self.model.preprocess(list(texts), prompt=self.prompt or None, task=self.role))

    def _tokens(self, text: str) -> int:
        ids = self._features([text]).get("input_ids")
        return int(ids.numel()) if isinstance(ids, Tensor) else 1

    def forward(self, inputs: Sequence[Any]) -> Tensor:
        """See `Runner.forward`."""
        return self._computed(self._features([given.text for given in inputs]))

    def _computed(self, features: dict[str, Any]) -> Tensor:
        device = self.model.device
        features = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in features.items()}
        with torch.autocast(device.type, torch.bfloat16, enabled=self.bf16):
            for module in self.modules:
                routed = {"task": self.role} if type(module).__name__ in ROUTERS else {}
                features = module(features, **routed)
        vectors: Tensor = features["sentence_embedding"]
        return vectors


@dataclass(frozen=True, slots=True)
class PlainText:
    """A text, and how many tokens the model makes of it."""

    text: str
    tokens: int

    def __len__(self) -> int:
        return self.tokens


@dataclass(frozen=True, slots=True)
class TokenisedText:
    """Token ids of a text, and their types where the tokenizer gives any."""

    ids: "array[int]"
    types: "array[int] | None"

    def __len__(self) -> int:
        return len(self.ids)


class TransformerRunner(LibraryRunner):
    """A transformer of any family behind a tokenizer: the modules' own forward pass over a padded batch."""

    def __init__(self, model: Any, modules: Sequence[Any], role: str, prompt: str, limit: int) -> None:
        self.tokenizer, self.limit = modules[0].tokenizer, limit
        self.prompt = prompt
        self.reader = TextReader(self.tokenizer, prompt, limit)
        self.left = self.tokenizer.padding_side == "left"
        self.padding_id = self.tokenizer.pad_token_id or 0  # hidden by the mask, so that any id will do
        self.padding_type = getattr(self.tokenizer, "pad_token_type_id", 0)
        super().__init__(model, modules, role, prompt)

    @staticmethod
    def supports(modules: Sequence[Any]) -> bool:
        """Whether the first module reads plain text through a tokenizer of ids, masks and types alone."""
        first = modules[0]
        return (
            type(first).__name__ == "Transformer"
            and _reads_plain_text(first)
            and set(first.tokenizer(PROBES[1])) <= PLAIN_FEATURES
        )

    @cached_property
    def _prompt_tokens(self) -> int:
        """Tokens of the prompt with what the tokenizer puts before it, which some poolings leave out."""
        ids = self.tokenizer(self.prompt, truncation=True, max_length=self.limit)["input_ids"]
        return len(ids) - (ids[-1] in self.tokenizer.all_special_ids)

    def tokenize(self, texts: Sequence[str]) -> tuple[list[Any], list[int]]:
        """See `Runner.tokenize`."""
        inputs: list[Any] = []
        unread: list[int] = []
        for encoded, behind in self.reader.read(texts):
            types = encoded.get("token_type_ids")
            for row, ids in enumerate(encoded["input_ids"]):
                inputs.append(TokenisedText(array("i", ids), array("i", types[row]) if types else None))
            unread += behind
        return inputs, unread

    def forward(self, inputs: Sequence[Any]) -> Tensor:
        """See `Runner.forward`."""
        features: dict[str, Any] = {
            "input_ids": self._padded([text.ids for text in inputs], self.padding_id),
            "attention_mask": self._padded([array("i", [1]) * len(text) for text in inputs], 0),
        }
        if inputs[0].types is not None:
            features["token_type_ids"] = self._padded([text.types for text in inputs], self.padding_type)
        features["modality"] = "text"
        if self.prompt:
            features["prompt_length"] = self._prompt_tokens
        return self._computed(features)

    def _padded(self, rows: Sequence["array[int]"], padding: int) -> Tensor:
        """`[texts, longest]` int64."""
        longest = max(map(len, rows))
        fill = [[padding] * (longest - len(row)) for row in rows]
        return torch.tensor([
            [*empty, *row] if self.left else [*row, *empty] for row, empty in zip(rows, fill, strict=True)
        ])  # fmt: skip


def _reads_plain_text(transformer: Any) -> bool:
    """Whether a Transformer module passes a text as it is to a tokenizer, and takes its token embeddings."""
    from transformers import PreTrainedTokenizerBase

    return (
        isinstance(transformer.processor, PreTrainedTokenizerBase)
        and "message" not in transformer.modality_config
        and transformer.module_output_name == "token_embeddings"
        and not transformer.processing_kwargs
        and transformer.query_length is transformer.document_length is transformer.query_expansion is None
    )


def runners_for(
    model: Any, prompts: Mapping[str, str], limits: Mapping[str, int | None], token_budget: int
) -> dict[str, Runner]:
    """For each role the fastest runner that gives the library's vectors of its texts, without a last normalisation.

    Args:
        model: a SentenceTransformer in evaluation mode.
        prompts: role -> what is put before each of its texts; "" for nothing.
        limits: role -> most tokens of a text; None for all.
        token_budget: about the number of tokens of a batch.

    Raises:
        LeafError: tokenizer and model disagree.
    """
    compiled: dict[Any, CompiledBackbone | None] = {}
    runners: dict[str, Runner] = {}
    for role, prompt in prompts.items():
        modules, limit = role_modules(model, role), limits[role]
        first = modules[0]
        if type(first).__name__ == "Transformer":
            _check_vocabulary(first)
        if limit is not None:
            first.max_seq_length = limit
        library = _library_runner(model, modules, role, prompt, limit)
        if limit is not None and PackedRunner.supports(modules, prompt):
            which = first, poolings_of(modules[1])  # a copy of the weights for each, so one for both roles if it can be
            if which not in compiled:
                tried = PackedBackbone(first.auto_model, which[1]).compiled(token_budget)
                packed = PackedRunner(modules, prompt, limit, tried)
                compiled[which] = tried if packed.is_near(library) else None
            if (shared := compiled[which]) is not None:
                runners[role] = PackedRunner(modules, prompt, limit, shared)
                continue
        library.probe()
        runners[role] = library
    return runners


def _library_runner(model: Any, modules: Sequence[Any], role: str, prompt: str, limit: int | None) -> "LibraryRunner":
    if limit is not None and TransformerRunner.supports(modules):
        return TransformerRunner(model, modules, role, prompt, limit)
    return LibraryRunner(model, modules, role, prompt)


def role_modules(model: Any, role: str) -> list[Any]:
    """The modules that a text of this role passes through, without a normalisation at the end."""
    modules = [*_route(model[0], role), *list(model)[1:]]
    while type(modules[-1]).__name__ == "Normalize":
        modules.pop()
    return modules


def _route(module: Any, role: str) -> list[Any]:
    """The modules that stand for a Router without mappings, for texts of this role; any other module is itself."""
    if type(module).__name__ not in ROUTERS or module.route_mappings:
        return [module]
    routes = module.sub_modules
    return list(routes[role if role in routes else "text"])


def _check_vocabulary(transformer: Any) -> None:
    """Refuse a tokenizer that knows no words, or one with ids for which the model has no row to read."""
    tokenizer = transformer.tokenizer
    if not hasattr(tokenizer, "get_vocab"):
        return
    check_words(tokenizer, "teacher.model")
    rows = getattr(token_table(transformer.auto_model), "num_embeddings", None)
    if rows is None:
        return
    beyond = sorted((number, token) for token, number in tokenizer.get_vocab().items() if number >= rows)
    if beyond:
        raise LeafError(
            f"teacher.model: the tokenizer has {len(beyond)} tokens more than the model's table of {rows:,} rows, "
            f"first `{beyond[0][1]}`; remove them from the tokenizer, or give the model rows for them "
            "(resize_token_embeddings)"
        )
