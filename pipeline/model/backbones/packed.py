"""BERT and MPNet without padding: the texts of a batch are laid end to end, sorted by length.

Whatever works on single tokens (projections, feed-forward, normalisation) runs once over all tokens of the batch.
Attention runs over the texts of one length at a time (`attention.py`). A family of models says where its weights are
(`_Family`); a layer is a block of six operations on them (`_Block`), made for training or for inference; one loop
(`_run_layers`) computes both.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.model.attention import LengthGroups, attention
from pipeline.model.backbones.backbone import Backbone
from pipeline.model.batch import Batch
from pipeline.model.device import bf16_is_fast
from pipeline.model.pooling import Pooling, pooled


@dataclass(frozen=True)
class _LayerModules:
    """The modules of one transformer layer, by what they do."""

    query: nn.Linear
    key: nn.Linear
    value: nn.Linear
    output: nn.Linear
    attention_norm: nn.LayerNorm
    up: nn.Linear
    down: nn.Linear
    norm: nn.LayerNorm


class _Family(ABC):
    """Where a family of models keeps its weights, and how it embeds tokens and positions."""

    @abstractmethod
    def attention_modules(self, layer: Any) -> tuple[nn.Linear, nn.Linear, nn.Linear, nn.Linear, nn.LayerNorm]:
        """Projections to queries, keys and values, output projection, and the norm behind attention."""

    @abstractmethod
    def position_offset(self, model: Any) -> int:
        """Rows of the position table that precede that of a text's first token."""

    @abstractmethod
    def position_bias(self, model: Any, length: int) -> Tensor | None:
        """What is added to the attention scores of a text, `[1, heads, length, length]`; None for nothing."""

    def layers(self, model: Any) -> list[_LayerModules]:
        """The modules of every layer."""
        return [
            _LayerModules(
                *self.attention_modules(layer), layer.intermediate.dense, layer.output.dense, layer.output.LayerNorm
            )
            for layer in model.encoder.layer
        ]

    def embeddings(self, model: Any, batch: Batch) -> Tensor:
        """Token and position embeddings, summed, before the norm: `[tokens, width]`."""
        table = model.embeddings
        positions = table.position_embeddings(batch.positions + self.position_offset(model))
        summed: Tensor = table.word_embeddings(batch.ids) + positions
        return summed


class _Bert(_Family):
    def attention_modules(self, layer: Any) -> tuple[nn.Linear, nn.Linear, nn.Linear, nn.Linear, nn.LayerNorm]:
        inner, outer = layer.attention.self, layer.attention.output
        return inner.query, inner.key, inner.value, outer.dense, outer.LayerNorm

    def position_offset(self, model: Any) -> int:
        return 0

    def position_bias(self, model: Any, length: int) -> Tensor | None:
        return None

    def embeddings(self, model: Any, batch: Batch) -> Tensor:
        token_type: Tensor = model.embeddings.token_type_embeddings.weight[0]
        return super().embeddings(model, batch) + token_type


class _MPNet(_Family):
    def attention_modules(self, layer: Any) -> tuple[nn.Linear, nn.Linear, nn.Linear, nn.Linear, nn.LayerNorm]:
        inner = layer.attention.attn
        return inner.q, inner.k, inner.v, inner.o, layer.attention.LayerNorm

    def position_offset(self, model: Any) -> int:
        # Positions are counted from the padding id on, as in RoBERTa (create_position_ids_from_input_ids there).
        return int(model.embeddings.padding_idx) + 1

    def position_bias(self, model: Any, length: int) -> Tensor | None:
        positions = torch.arange(length, device=model.device)
        buckets = model.encoder.relative_position_bucket(
            positions[None, :] - positions[:, None], num_buckets=model.config.relative_attention_num_buckets
        )
        bias: Tensor = model.encoder.relative_attention_bias(buckets).permute(2, 0, 1)
        return bias.unsqueeze(0)


_FAMILIES: dict[str, _Family] = {"bert": _Bert(), "mpnet": _MPNet()}


class _Block(Protocol):
    """The operations of one layer."""

    def qkv(self, hidden: Tensor) -> Tensor:
        """Queries, keys and values side by side, `[tokens, 3 * width]`."""

    def output(self, mixed: Tensor, residual: Tensor) -> Tensor:
        """Output projection of attention, plus the residual."""

    def attention_norm(self, hidden: Tensor) -> Tensor:
        """The norm behind attention."""

    def up(self, hidden: Tensor) -> Tensor:
        """First half of the feed-forward part, GELU included."""

    def down(self, hidden: Tensor, residual: Tensor) -> Tensor:
        """Second half of it, plus the residual."""

    def norm(self, hidden: Tensor) -> Tensor:
        """The norm behind the feed-forward part."""


def _run_layers(
    hidden: Tensor,
    blocks: Iterable[_Block],
    length_groups: LengthGroups,
    *,
    heads: int,
    biases: Sequence[Tensor],
    dropout: float = 0.0,
) -> Tensor:
    """Hidden states behind the last layer, `[tokens, width]`. `dropout` is that of the attention probabilities."""
    for block in blocks:
        mixed = attention(block.qkv(hidden), length_groups, heads, biases, dropout)
        hidden = block.attention_norm(block.output(mixed, hidden))
        hidden = block.norm(block.down(block.up(hidden), hidden))
    return hidden


class PackedBackbone(Backbone):
    """A BERT or MPNet model."""

    scope = "bert and mpnet models with absolute or MPNet's relative positions and the exact GELU"

    def __init__(self, model: Any, pooling: Sequence[Pooling] = ("mean",), transformer: Any = None) -> None:
        super().__init__(model, pooling, transformer)
        self.family = _FAMILIES[model.config.model_type]
        if (pooler := getattr(model, "pooler", None)) is not None:
            pooler.requires_grad_(False)  # part of the checkpoint, but these features never pass through it

    @classmethod
    def supports(cls, model: Any, pooling: Sequence[Pooling] = ("mean",)) -> bool:
        """See `Backbone.supports`."""
        config = model.config
        absolute = getattr(config, "position_embedding_type", "absolute") == "absolute"
        return config.model_type in _FAMILIES and absolute and config.hidden_act == "gelu"

    @property
    def hidden_size(self) -> int:
        """See `Backbone.hidden_size`."""
        return int(self.model.config.hidden_size)

    @property
    def layers(self) -> int:
        """See `Backbone.layers`."""
        return len(self.model.encoder.layer)

    @property
    def max_tokens(self) -> int:
        """See `Backbone.max_tokens`."""
        return int(self.model.config.max_position_embeddings) - self.family.position_offset(self.model)

    @property
    def token_embeddings(self) -> nn.Embedding:
        """See `Backbone.token_embeddings`."""
        table: nn.Embedding = self.model.get_input_embeddings()
        return table

    def keep_layers(self, layers: Sequence[int]) -> None:
        """See `Backbone.keep_layers`."""
        self.model.encoder.layer = nn.ModuleList([self.model.encoder.layer[i] for i in layers])
        self.model.config.num_hidden_layers = len(layers)

    def set_dropout(self, share: float) -> None:
        """See `Backbone.set_dropout`."""
        self.model.config.hidden_dropout_prob = self.model.config.attention_probs_dropout_prob = share

    def features(self, batch: Batch, dtype: torch.dtype = torch.float32) -> Tensor:
        """See `Backbone.features`.

        All between the embeddings and the pooling is computed in `dtype`. Autocast would compute the norms in float32
        and convert the hidden states back and forth.
        """
        config, family = self.model.config, self.family
        hidden_dropout = config.hidden_dropout_prob if self.model.training else 0.0
        attention_dropout = config.attention_probs_dropout_prob if self.model.training else 0.0
        embedded = self.model.embeddings.LayerNorm(family.embeddings(self.model, batch))
        hidden = _dropped(embedded, hidden_dropout).to(dtype)
        by_group = (family.position_bias(self.model, length) for _, length in batch.length_groups)
        biases = [bias.to(dtype) for bias in by_group if bias is not None]
        blocks = [_TrainingBlock(modules, dtype, hidden_dropout) for modules in family.layers(self.model)]
        heads = config.num_attention_heads
        hidden = _run_layers(hidden, blocks, batch.length_groups, heads=heads, biases=biases, dropout=attention_dropout)
        return pooled(_texts(hidden, batch.length_groups), batch.order, self.pooling)

    def compiled(self, token_budget: int) -> "CompiledPacked":
        """See `Backbone.compiled`."""
        return CompiledPacked(self.model.eval(), self.family, self.pooling, token_budget)


def _texts(hidden: Tensor, length_groups: LengthGroups) -> Iterator[Tensor]:
    """The hidden states of the texts of each length, `[texts, tokens, width]`."""
    start = 0
    for count, length in length_groups:
        yield hidden[start : start + count * length].view(count, length, -1)
        start += count * length


def _dropped(hidden: Tensor, share: float) -> Tensor:
    return functional.dropout(hidden, share) if share else hidden


@dataclass(frozen=True)
class _TrainingBlock:
    """Operations on a layer's own float32 parameters, cast to `dtype` on the way, so that gradients reach them."""

    modules: _LayerModules
    dtype: torch.dtype
    dropout: float

    def qkv(self, hidden: Tensor) -> Tensor:
        projections = (self.modules.query, self.modules.key, self.modules.value)
        weights, biases = [p.weight.to(self.dtype) for p in projections], [p.bias.to(self.dtype) for p in projections]
        return functional.linear(hidden, torch.cat(weights), torch.cat(biases))

    def output(self, mixed: Tensor, residual: Tensor) -> Tensor:
        return residual + _dropped(self._linear(mixed, self.modules.output), self.dropout)

    def attention_norm(self, hidden: Tensor) -> Tensor:
        return self._normed(hidden, self.modules.attention_norm)

    def up(self, hidden: Tensor) -> Tensor:
        return functional.gelu(self._linear(hidden, self.modules.up))

    def down(self, hidden: Tensor, residual: Tensor) -> Tensor:
        return residual + _dropped(self._linear(hidden, self.modules.down), self.dropout)

    def norm(self, hidden: Tensor) -> Tensor:
        return self._normed(hidden, self.modules.norm)

    def _linear(self, hidden: Tensor, module: nn.Linear) -> Tensor:
        return functional.linear(hidden, module.weight.to(self.dtype), module.bias.to(self.dtype))

    def _normed(self, hidden: Tensor, norm: nn.LayerNorm) -> Tensor:
        weight, bias = norm.weight.to(self.dtype), norm.bias.to(self.dtype)
        return functional.layer_norm(hidden, norm.normalized_shape, weight, bias, norm.eps)


class _Linear(Protocol):
    def __call__(self, hidden: Tensor, residual: Tensor | None = None) -> Tensor: ...


class _FusedLinear:
    """oneDNN matrix product with bias and GELU in the same pass; the weight is laid out once.

    A residual is added behind it: inside the product that costs more than a pass of its own.
    """

    def __init__(self, weight: Tensor, bias: Tensor, gelu: bool, rows: int) -> None:
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), rows)
        self.bias, self.activation = bias, "gelu" if gelu else "none"

    def __call__(self, hidden: Tensor, residual: Tensor | None = None) -> Tensor:
        linear = torch.ops.mkldnn._linear_pointwise
        product: Tensor = linear(hidden, self.weight, self.bias, self.activation, [], "none")
        return product if residual is None else product.add_(residual)


class _PlainLinear:
    """The same with PyTorch's own operations."""

    def __init__(self, weight: Tensor, bias: Tensor, gelu: bool) -> None:
        self.weight, self.bias, self.gelu = weight, bias, gelu

    def __call__(self, hidden: Tensor, residual: Tensor | None = None) -> Tensor:
        product = functional.linear(hidden, self.weight, self.bias)
        if residual is not None:
            product += residual
        return functional.gelu(product) if self.gelu else product


@dataclass(frozen=True)
class _InferenceBlock:
    """Operations on copies of a layer's weights that are laid out for inference."""

    qkv: _Linear
    output: Callable[[Tensor, Tensor], Tensor]
    attention_norm: Callable[[Tensor], Tensor]
    up: _Linear
    down: Callable[[Tensor, Tensor], Tensor]
    norm: Callable[[Tensor], Tensor]


class CompiledPacked:
    """A BERT or MPNet model laid out for inference: fused projections, bfloat16 where the device is fast at it."""

    def __init__(self, model: Any, family: _Family, pooling: Sequence[Pooling], token_budget: int) -> None:
        """Copy the model's weights; `token_budget` is about the number of tokens of a batch."""
        self.model, self.family, self.pooling = model, family, pooling
        self.device: torch.device = next(model.parameters()).device
        self.dtype = torch.bfloat16 if bf16_is_fast(self.device) else torch.float32
        self._token_budget = token_budget
        self._epsilon = float(model.config.layer_norm_eps)
        self._bias_of_length: dict[int, Tensor | None] = {}
        with torch.inference_mode():
            self._blocks = [self._block(modules) for modules in family.layers(model)]

    def _block(self, modules: _LayerModules) -> _InferenceBlock:
        projections = (modules.query, modules.key, modules.value)
        weight, bias = torch.cat([p.weight for p in projections]), torch.cat([p.bias for p in projections])
        return _InferenceBlock(
            qkv=self._linear(weight, bias),
            output=self._linear(modules.output.weight, modules.output.bias),
            attention_norm=self._norm(modules.attention_norm),
            up=self._linear(modules.up.weight, modules.up.bias, gelu=True),
            down=self._linear(modules.down.weight, modules.down.bias),
            norm=self._norm(modules.norm),
        )

    def _linear(self, weight: Tensor, bias: Tensor, gelu: bool = False) -> _Linear:
        weight, bias = weight.detach().to(self.dtype), bias.detach().to(self.dtype)
        if self.device.type == "cpu" and self.dtype == torch.bfloat16:
            return _FusedLinear(weight, bias, gelu, self._token_budget)
        return _PlainLinear(weight, bias, gelu)

    def _norm(self, norm: nn.LayerNorm) -> Callable[[Tensor], Tensor]:
        weight, bias = norm.weight.detach().to(self.dtype), norm.bias.detach().to(self.dtype)
        return lambda hidden: functional.layer_norm(hidden, norm.normalized_shape, weight, bias, self._epsilon)

    def _biases(self, length_groups: LengthGroups) -> list[Tensor]:
        """The attention bias of each group's length, each computed once."""
        for _, length in length_groups:
            if length not in self._bias_of_length:
                bias = self.family.position_bias(self.model, length)
                self._bias_of_length[length] = None if bias is None else bias.to(self.dtype).contiguous()
        biases = (self._bias_of_length[length] for _, length in length_groups)
        return [bias for bias in biases if bias is not None]

    @torch.inference_mode()
    def __call__(self, batch: Batch) -> Tensor:
        """See `CompiledBackbone.__call__`."""
        batch = batch.to(self.device)
        embedded = self.model.embeddings.LayerNorm(self.family.embeddings(self.model, batch))
        heads, biases = self.model.config.num_attention_heads, self._biases(batch.length_groups)
        hidden = _run_layers(embedded.to(self.dtype), self._blocks, batch.length_groups, heads=heads, biases=biases)
        return pooled(_texts(hidden, batch.length_groups), batch.order, self.pooling)
