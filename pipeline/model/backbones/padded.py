"""Any transformers model by its own forward pass over padded texts.

Texts are padded on the right, whatever side their tokenizer pads on: positions then begin at 0 and a causal model never
sees what follows a text, so that a text's vector does not depend on its neighbours. Only texts of similar length are
padded to one length, and where a model's vectors depend on padding even so, texts of equal length.
"""

import copy
import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.base import LeafError, first_line
from pipeline.model.attention import LengthGroups
from pipeline.model.backbones.backbone import Backbone
from pipeline.model.backbones.layers import keep_layers, set_dropout
from pipeline.model.batch import Batch
from pipeline.model.device import bf16_is_fast, traits_of
from pipeline.model.pooling import Pooling, pooled
from pipeline.model.vocabulary import token_table

SPARE_SHARE = 0.2
"""Most padding of texts that are computed together, as a share of their tokens, where it is more than a few tokens
(`DeviceTraits.spare_tokens`)."""
POSITION_TABLES = ("position_embeddings", "position_embedding", "wpe", "embed_positions")
"""Names that transformers' models give to a table of learned positions."""
BF16_COSINE = 0.995
"""Least cosine of a text's vector in bfloat16 to that in float32; a model that stays below it is run in float32."""
PROBE_TOKENS = (3, 4, 5, 8, 13, 21)
"""Lengths of the texts that bfloat16 is tried on."""
UNLIMITED = 1 << 30
"""Tokens of a text where neither a table nor the configuration limits them."""


@dataclass(frozen=True)
class _TokenTypes:
    """The types that a tokenizer gives to a text's tokens: those of the first ones, of the last ones, and between."""

    first: tuple[int, ...] = ()
    between: int = 0
    last: tuple[int, ...] = ()

    @classmethod
    def of(cls, tokenizer: Any) -> "_TokenTypes":
        """As the tokenizer types a word among its special tokens."""
        encoding = tokenizer.backend_tokenizer.encode("a")
        words = [place for place, special in enumerate(encoding.special_tokens_mask) if not special] or [0]
        types = encoding.type_ids or [0]
        return cls(tuple(types[: words[0]]), types[words[0]], tuple(types[words[-1] + 1 :]))

    def like(self, lengths: Tensor, longest: int) -> Tensor:
        """`[texts, longest]` for texts of these lengths, padded on the right."""
        places = torch.arange(longest, device=lengths.device).expand(lengths.shape[0], -1)
        types = torch.full_like(places, self.between)
        for place, kind in enumerate(self.first):
            types[:, place] = kind
        for place, kind in enumerate(reversed(self.last), 1):
            types = torch.where(places == lengths[:, None] - place, kind, types)
        return types


class PaddedBackbone(Backbone):
    """A transformers model that maps `input_ids, attention_mask` to `last_hidden_state`."""

    scope = "models that map token ids to a hidden state for each token"

    def __init__(self, model: Any, pooling: Sequence[Pooling] = ("mean",), transformer: Any = None) -> None:
        """See `Backbone.__init__`; LeafError where the model cannot compute a text."""
        super().__init__(model, pooling, transformer)
        if (pooler := getattr(model, "pooler", None)) is not None:
            pooler.requires_grad_(False)  # part of the checkpoint, but these features never pass through it
        tokenizer = getattr(transformer, "tokenizer", None)
        self._forward = PaddedForward(_padding_id(model, tokenizer), _token_types(model, tokenizer))
        self._hidden_size = self._probe()

    @classmethod
    def supports(cls, model: Any, pooling: Sequence[Pooling] = ("mean",), transformer: Any = None) -> bool:
        """See `Backbone.supports`."""
        inputs = inspect.signature(model.forward).parameters
        return {"input_ids", "attention_mask"} <= set(inputs) and isinstance(token_table(model), nn.Embedding)

    @torch.no_grad()
    def _probe(self) -> int:
        """Find out what hidden states depend on, and whether bfloat16 is near enough; returns their dimension."""
        rows, device = self.token_embeddings.num_embeddings, self.model.device
        ids = (torch.arange(24, device=device) + rows // 2) % rows  # the first rows are special tokens
        training = self.model.training
        self.model.eval()
        try:
            alone = next(self._forward.together(self.model, ids[:7], ((1, 7),)))
            padded, longer = self._forward.together(self.model, torch.cat([ids[:7], ids]), ((1, 7), (1, 24)))
        except Exception as error:  # whatever a model's own code raises
            raise LeafError(
                f"backbone of type `{self.model.config.model_type}` cannot be run: {first_line(error)}"
            ) from None
        self._forward.equal_lengths = not _close(padded, alone)
        self._forward.bf16 = self._holds_in_bf16()
        self.causal = _close(longer[:, :4], alone[:, :4])
        self.model.train(training)
        return int(alone.shape[-1])

    def _holds_in_bf16(self) -> bool:
        """Whether texts of several lengths, of tokens drawn from all of the vocabulary, keep their vectors."""
        rows, chance = self.token_embeddings.num_embeddings, torch.Generator().manual_seed(0)
        ids = torch.randint(rows, (sum(PROBE_TOKENS),), generator=chance).to(self.model.device)

        def means() -> Tensor:
            texts = torch.split(ids, list(PROBE_TOKENS))
            blocks = (next(self._forward.together(self.model, text, ((1, len(text)),))) for text in texts)
            return torch.cat([block.float().mean(1) for block in blocks])

        expected = means()
        try:
            with torch.autocast(ids.device.type, torch.bfloat16):
                found = means()
        except RuntimeError:  # DeBERTa masks by a number that bfloat16 does not reach
            return False
        return bool((functional.cosine_similarity(found, expected) >= BF16_COSINE).all())

    @property
    def hidden_size(self) -> int:
        """See `Backbone.hidden_size`."""
        return self._hidden_size

    @property
    def layers(self) -> int:
        """See `Backbone.layers`."""
        return int(self.model.config.num_hidden_layers)

    @property
    def max_tokens(self) -> int:
        """See `Backbone.max_tokens`; relative and rotary positions have no table, but a length they were made for."""
        tables = [
            table.num_embeddings - _offset(table)
            for name, table in self.model.named_modules()
            if name.rpartition(".")[2] in POSITION_TABLES and isinstance(table, nn.Embedding)
        ]
        configured = getattr(self.model.config, "max_position_embeddings", None) or -1
        return min(tables) if tables else configured if configured > 0 else UNLIMITED

    @property
    def token_embeddings(self) -> nn.Embedding:
        """See `Backbone.token_embeddings`."""
        table: nn.Embedding = self.model.get_input_embeddings()
        return table

    def keep_layers(self, layers: Sequence[int]) -> None:
        """See `Backbone.keep_layers`; LeafError where the family's layers cannot be cut so."""
        keep_layers(self.model, layers)

    def set_dropout(self, share: float) -> None:
        """See `Backbone.set_dropout`."""
        set_dropout(self.model, share)

    def features(self, batch: Batch, dtype: torch.dtype = torch.float32) -> Tensor:
        """See `Backbone.features`; matrix products in `dtype`, by autocast."""
        return self._forward(self.model, batch, self.pooling, dtype)

    def padded_states(self, ids: Tensor, mask: Tensor) -> Tensor:
        """See `Backbone.padded_states`."""
        return self._forward.padded_states(self.model, ids, mask)

    def compiled(self, token_budget: int) -> "CompiledPadded":
        """See `Backbone.compiled`."""
        return CompiledPadded(self.model.eval(), self._forward, self.pooling)


class PaddedForward:
    """Pads the texts of a batch, runs a model over them, and pools each text's own tokens."""

    def __init__(self, padding_id: int, token_types: _TokenTypes | None) -> None:
        """`token_types` is None for models that take none."""
        self.padding_id, self.token_types = padding_id, token_types
        self.equal_lengths, self.bf16 = False, True
        """Whether only texts of one length may be computed together; whether bfloat16 is near enough."""

    def __call__(self, model: Any, batch: Batch, pooling: Sequence[Pooling], dtype: torch.dtype) -> Tensor:
        """Features `[texts, width]` float32, in the order given to `pack`; bfloat16 only where that is near enough."""
        with torch.autocast(batch.ids.device.type, dtype, enabled=self.bf16 and dtype != torch.float32):
            return pooled(self.blocks(model, batch.ids, batch.length_groups), batch.order, pooling)

    def blocks(self, model: Any, ids: Tensor, length_groups: LengthGroups) -> Iterator[Tensor]:
        """The hidden states of the texts of each length, `[texts, tokens, width]`."""
        start = 0
        spare = traits_of(ids.device).spare_tokens
        cuts = [[group] for group in length_groups] if self.equal_lengths else _similar(length_groups, spare)
        for groups in cuts:
            stop = start + sum(count * length for count, length in groups)
            yield from self.together(model, ids[start:stop], groups)
            start = stop

    def together(self, model: Any, ids: Tensor, length_groups: LengthGroups) -> Iterator[Tensor]:
        """The same in one pass over all texts, padded to the longest."""
        longest = length_groups[-1][1]
        lengths = torch.tensor([length for count, length in length_groups for _ in range(count)]).to(ids.device)
        places = torch.arange(longest, device=ids.device)
        there = places < lengths[:, None]
        flat = (lengths.cumsum(0) - lengths)[:, None] + places
        padded = torch.where(there, ids[flat.clamp(max=len(ids) - 1)], self.padding_id)
        hidden = self.padded_states(model, padded, there.long())
        row = 0
        for count, length in length_groups:
            yield hidden[row : row + count, :length]
            row += count

    def padded_states(self, model: Any, ids: Tensor, mask: Tensor) -> Tensor:
        """See `Backbone.padded_states`."""
        inputs = {"input_ids": ids, "attention_mask": mask}
        if self.token_types is not None:
            inputs["token_type_ids"] = self.token_types.like(mask.sum(1), mask.shape[1])
        states: Tensor = model(**inputs).last_hidden_state
        return states


def _close(hidden: Tensor, expected: Tensor) -> bool:
    return bool((hidden - expected).abs().max() <= 1e-3 * expected.abs().max())


def _similar(length_groups: LengthGroups, spare_tokens: int) -> Iterator[list[tuple[int, int]]]:
    """Cut length groups, shortest first, where padding them to one length would add too many tokens."""
    groups: list[tuple[int, int]] = []
    texts = tokens = 0
    for count, length in length_groups:
        spare = texts * length - tokens
        if groups and spare > max(SPARE_SHARE * tokens, spare_tokens):
            yield groups
            groups, texts, tokens = [], 0, 0
        groups.append((count, length))
        texts, tokens = texts + count, tokens + count * length
    yield groups


def _padding_id(model: Any, tokenizer: Any) -> int:
    """Any id will do for what is masked, but some models tell positions by the id that their tokenizer pads with."""
    ids = (getattr(owner, "pad_token_id", None) for owner in (tokenizer, model.config))
    return next((number for number in ids if isinstance(number, int) and number >= 0), 0)


def _token_types(model: Any, tokenizer: Any) -> _TokenTypes | None:
    takes_them = "token_type_ids" in inspect.signature(model.forward).parameters
    if not takes_them or tokenizer is None or "token_type_ids" not in tokenizer.model_input_names:
        return None
    return _TokenTypes.of(tokenizer)


def _offset(table: nn.Embedding) -> int:
    """Rows of a position table that precede that of a text's first token."""
    if (offset := getattr(table, "offset", None)) is not None:  # OPT, BART
        return int(offset)
    return 0 if table.padding_idx is None else table.padding_idx + 1  # RoBERTa counts on from the padding id


class CompiledPadded:
    """A copy of a model for inference: the weights of matrix products in bfloat16 where the device is fast at it.

    All else stays in float32, which autocast converts where a product needs it.
    """

    def __init__(self, model: Any, forward: PaddedForward, pooling: Sequence[Pooling]) -> None:
        """Copy the model's weights."""
        self.model, self._forward, self._pooling = copy.deepcopy(model), forward, pooling
        self.device: torch.device = next(model.parameters()).device
        self.dtype = torch.bfloat16 if forward.bf16 and bf16_is_fast(self.device) else torch.float32
        for module in self.model.modules():
            if isinstance(module, nn.Linear):
                module.to(self.dtype)

    @torch.inference_mode()
    def __call__(self, batch: Batch) -> Tensor:
        """See `CompiledBackbone.__call__`."""
        return self._forward(self.model, batch.to(self.device), self._pooling, self.dtype)
