"""BERT and its relatives without padding: the texts of a batch are laid end to end, sorted by length.

Whatever works on single tokens (projections, feed-forward, normalisation) runs once over all tokens of the batch.
Attention runs over the texts of one length at a time (`attention.py`). A family of models says where its weights are
(`_Family`); a layer is a block of six operations on them (`_Block`), made for training or for inference; one loop
(`_run_layers`) computes both.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.model.attention import LengthGroups, attention
from pipeline.model.backbones.backbone import Backbone
from pipeline.model.batch import Batch, evened
from pipeline.model.device import bf16_is_fast, traits_of
from pipeline.model.pooling import Pooling, pooled, pooled_padded


@dataclass(frozen=True)
class _Activation:
    """The function between the halves of the feed-forward part."""

    function: Callable[[Tensor], Tensor]
    fused: str
    """oneDNN's name of it."""
    algorithm: str = "none"


_GELU = _Activation(functional.gelu, "gelu")
_GELU_TANH = _Activation(partial(functional.gelu, approximate="tanh"), "gelu", "tanh")
_RELU = _Activation(functional.relu, "relu")
_SILU = _Activation(functional.silu, "swish")
_ACTIVATIONS = {
    "gelu": _GELU,
    "gelu_fast": _GELU_TANH,
    "gelu_new": _GELU_TANH,
    "gelu_pytorch_tanh": _GELU_TANH,
    "relu": _RELU,
    "silu": _SILU,
    "swish": _SILU,
}
"""By the name in a model's configuration. Those that oneDNN computes inside a product."""


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


class _Family:
    """Where a family of models keeps its weights and settings, and how it counts positions. As it is: that of BERT."""

    activation_setting = "hidden_act"
    """Name of a setting in the model's configuration, as are the next two."""
    hidden_dropout_setting = "hidden_dropout_prob"
    attention_dropout_setting = "attention_probs_dropout_prob"
    drops_attention_output = True
    """Whether there is hidden dropout behind the output projection of attention."""

    def stack(self, model: Any) -> Any:
        """The module whose `layer` is the list of layers."""
        return model.encoder

    def modules(self, layer: Any) -> _LayerModules:
        """The modules of a layer."""
        inner, outer = layer.attention.self, layer.attention.output
        return _LayerModules(
            *(inner.query, inner.key, inner.value, outer.dense, outer.LayerNorm),
            *(layer.intermediate.dense, layer.output.dense, layer.output.LayerNorm),
        )

    def layers(self, model: Any) -> list[_LayerModules]:
        """The modules of every layer."""
        return [self.modules(layer) for layer in self.stack(model).layer]

    def activation(self, model: Any) -> _Activation:
        """The activation of the feed-forward part."""
        return _ACTIVATIONS[getattr(model.config, self.activation_setting)]

    def position_offset(self, model: Any) -> int:
        """Rows of the position table that precede that of a text's first token."""
        return 0

    def positions(self, model: Any, batch: Batch) -> Tensor:
        """Row of the position table for each token, `[tokens]`."""
        return batch.positions

    def position_bias(self, model: Any, length: int) -> Tensor | None:
        """What is added to the attention scores of a text, `[1, heads, length, length]`; None for nothing."""
        return None

    def embeddings(self, model: Any, batch: Batch) -> Tensor:
        """Embeddings of tokens and positions, summed, before the norm: `[tokens, width]`.

        With them, where the model has such tables, type 0 of tokens and of tasks (ERNIE).
        """
        tables = model.embeddings
        positions = tables.position_embeddings(self.positions(model, batch))
        summed: Tensor = tables.word_embeddings(batch.ids) + positions
        for name in ("token_type_embeddings", "task_type_embeddings"):
            if (types := getattr(tables, name, None)) is not None:
                summed = summed + types.weight[0]
        return summed

    def projection(self, model: Any) -> nn.Linear | None:
        """From the width of the embeddings to that of the layers (ELECTRA); None where they are of one width."""
        projection: nn.Linear | None = getattr(model, "embeddings_project", None)
        return projection


class _Roberta(_Family):
    def position_offset(self, model: Any) -> int:
        return int(model.embeddings.padding_idx) + 1

    def positions(self, model: Any, batch: Batch) -> Tensor:
        # Counted from the padding id on. A padding token inside a text (who writes `<pad>` gets one) has that very row
        # and is not counted: create_position_ids_from_input_ids in transformers.
        padding = int(model.embeddings.padding_idx)
        counts = (batch.ids != padding).long()
        before = counts.cumsum(0) - counts
        first = torch.arange(counts.shape[0], device=counts.device) - batch.positions  # len() would be fixed in a trace
        return padding + counts * (before - before[first] + 1)


class _MPNet(_Roberta):
    def modules(self, layer: Any) -> _LayerModules:
        inner = layer.attention.attn
        return _LayerModules(
            *(inner.q, inner.k, inner.v, inner.o, layer.attention.LayerNorm),
            *(layer.intermediate.dense, layer.output.dense, layer.output.LayerNorm),
        )

    def position_bias(self, model: Any, length: int) -> Tensor | None:
        positions = torch.arange(length, device=model.device)
        buckets = model.encoder.relative_position_bucket(
            positions[None, :] - positions[:, None], num_buckets=model.config.relative_attention_num_buckets
        )
        bias: Tensor = model.encoder.relative_attention_bias(buckets).permute(2, 0, 1)
        return bias.unsqueeze(0)


class _DistilBert(_Family):
    activation_setting = "activation"
    hidden_dropout_setting = "dropout"
    attention_dropout_setting = "attention_dropout"
    drops_attention_output = False

    def stack(self, model: Any) -> Any:
        return model.transformer

    def modules(self, layer: Any) -> _LayerModules:
        inner, outer = layer.attention, layer.ffn
        return _LayerModules(
            *(inner.q_lin, inner.k_lin, inner.v_lin, inner.out_lin, layer.sa_layer_norm),
            *(outer.lin1, outer.lin2, layer.output_layer_norm),
        )


_FAMILIES: dict[str, _Family] = {
    **dict.fromkeys(("BertModel", "ElectraModel", "ErnieModel"), _Family()),
    **dict.fromkeys(("RobertaModel", "XLMRobertaModel", "CamembertModel"), _Roberta()),
    "MPNetModel": _MPNet(),
    "DistilBertModel": _DistilBert(),
}
"""By the class of transformers."""
MASKED = -10_000.0
"""Added to the scores of padding where these are computed: 0 behind the softmax, and within the range of float16."""
_KNOWN_CODE = ("torch.nn.modules.", "transformers.models.", "transformers.activations")
"""Modules of a model that has no adapters, quantised layers or code of its own."""


class _Block(Protocol):
    """The operations of one layer."""

    def qkv(self, hidden: Tensor) -> Tensor:
        """Queries, keys and values side by side, `[tokens, 3 * width]`."""

    def output(self, mixed: Tensor, residual: Tensor) -> Tensor:
        """Output projection of attention, plus the residual."""

    def attention_norm(self, hidden: Tensor) -> Tensor:
        """The norm behind attention."""

    def up(self, hidden: Tensor) -> Tensor:
        """First half of the feed-forward part, activation included."""

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
    behind: Tensor | None = None,
) -> Tensor:
    """Hidden states behind the last layer, `[tokens, width]`. `dropout` is that of the attention probabilities."""
    for block in blocks:
        mixed = attention(block.qkv(hidden), length_groups, heads, biases, dropout, behind=behind)
        hidden = block.attention_norm(block.output(mixed, hidden))
        hidden = block.norm(block.down(block.up(hidden), hidden))
    return hidden


class PackedBackbone(Backbone):
    """A model of BERT's kind: learned positions, and norms behind attention and feed-forward part."""

    scope = (
        "bert, roberta, xlm-roberta, camembert, distilbert, electra, ernie and mpnet models with a GELU (exact or by "
        "tanh), ReLU or SiLU"
    )
    takes_padding = True

    def __init__(self, model: Any, pooling: Sequence[Pooling] = ("mean",), transformer: Any = None) -> None:
        super().__init__(model, pooling, transformer)
        self.family = _FAMILIES[type(model).__name__]
        if (pooler := getattr(model, "pooler", None)) is not None:
            pooler.requires_grad_(False)  # part of the checkpoint, but these features never pass through it

    @classmethod
    def supports(cls, model: Any, pooling: Sequence[Pooling] = ("mean",), transformer: Any = None) -> bool:
        """See `Backbone.supports`."""
        family, config = _FAMILIES.get(type(model).__name__), model.config
        return (
            family is not None
            and all(type(module).__module__.startswith(_KNOWN_CODE) for module in model.modules())
            and getattr(config, family.activation_setting) in _ACTIVATIONS
            and getattr(config, "position_embedding_type", "absolute") == "absolute"
            and not getattr(config, "is_decoder", False)
            and not (transformer is not None and any(transformer.tokenizer("a").get("token_type_ids", ())))
        )

    @property
    def hidden_size(self) -> int:
        """See `Backbone.hidden_size`."""
        return int(self.model.config.hidden_size)

    @property
    def layers(self) -> int:
        """See `Backbone.layers`."""
        return len(self.family.stack(self.model).layer)

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
        stack = self.family.stack(self.model)
        stack.layer = nn.ModuleList([stack.layer[i] for i in layers])
        self.model.config.num_hidden_layers = len(layers)

    def set_dropout(self, share: float) -> None:
        """See `Backbone.set_dropout`."""
        setattr(self.model.config, self.family.hidden_dropout_setting, share)
        setattr(self.model.config, self.family.attention_dropout_setting, share)

    def features(self, batch: Batch, dtype: torch.dtype = torch.float32) -> Tensor:
        """See `Backbone.features`.

        All between the embeddings and the pooling is computed in `dtype`. Autocast would compute the norms in float32
        and convert the hidden states back and forth.
        """
        return self.features_at(batch, dtype, (self.layers,))[0]

    def features_at(self, batch: Batch, dtype: torch.dtype, depths: Sequence[int]) -> list[Tensor]:
        """See `Backbone.features_at`."""
        model, config, family = self.model, self.model.config, self.family
        hidden_dropout = getattr(config, family.hidden_dropout_setting) if model.training else 0.0
        attention_dropout = getattr(config, family.attention_dropout_setting) if model.training else 0.0
        hidden = _dropped(model.embeddings.LayerNorm(family.embeddings(model, batch)), hidden_dropout).to(dtype)
        if (projection := family.projection(model)) is not None:
            hidden = _cast_linear(hidden, projection)
        by_group = (family.position_bias(model, length) for _, length in batch.length_groups)
        biases = [bias.to(dtype) for bias in by_group if bias is not None]
        dropouts = hidden_dropout if family.drops_attention_output else 0.0, hidden_dropout
        activation = family.activation(model).function
        blocks = [_TrainingBlock(modules, activation, *dropouts) for modules in family.layers(model)]
        heads = config.num_attention_heads
        settings: dict[str, Any] = {"heads": heads, "biases": biases, "dropout": attention_dropout}
        settings["behind"] = batch.behind()
        features = []
        for start, stop in pairwise((0, *depths)):
            hidden = _run_layers(hidden, blocks[start:stop], batch.length_groups, **settings)
            features.append(_pooled(hidden, batch, self.pooling))
        return features

    def padded_states(self, ids: Tensor, mask: Tensor) -> Tensor:
        """See `Backbone.padded_states`.

        Of few and plain operations: products are over all tokens `[texts * tokens, width]`, where a runtime adds the
        bias inside them, and what padding adds to the scores is computed once.
        """
        batch = Batch.padded(ids, mask.sum(1))
        hidden = self.model.embeddings.LayerNorm(self.family.embeddings(self.model, batch))
        if (projection := self.family.projection(self.model)) is not None:
            hidden = projection(hidden)
        bias = (1 - mask[:, None, None].to(hidden.dtype)) * MASKED
        if (of_positions := self.family.position_bias(self.model, ids.shape[1])) is not None:
            bias = bias + of_positions
        shape, activation = (*ids.shape, self.model.config.num_attention_heads, -1), self.family.activation(self.model)
        for modules in self.family.layers(self.model):
            mixed = _plain_attention(hidden, modules, shape, bias)
            hidden = modules.attention_norm(modules.output(mixed) + hidden)
            hidden = modules.norm(modules.down(activation.function(modules.up(hidden))) + hidden)
        states: Tensor = hidden.view(*ids.shape, -1)
        return states

    def compiled(self, token_budget: int) -> "CompiledPacked":
        """See `Backbone.compiled`."""
        return CompiledPacked(self.model.eval(), self.family, self.pooling, token_budget)


def _plain_attention(hidden: Tensor, modules: _LayerModules, shape: tuple[int, ...], bias: Tensor) -> Tensor:
    """Attention over padded texts by the formula: `[texts * tokens, width]` -> the same.

    `shape` is (texts, tokens, heads, -1); `bias` is added to the scores `[texts, heads, tokens, tokens]`.
    """
    projections = modules.query, modules.key, modules.value
    q, k, v = (projection(hidden).view(shape).transpose(1, 2) for projection in projections)
    scores = q @ k.transpose(2, 3) / math.sqrt(q.shape[3]) + bias
    mixed: Tensor = (scores.softmax(3) @ v).transpose(1, 2).reshape(hidden.shape)
    return mixed


def _pooled(hidden: Tensor, batch: Batch, pooling: Sequence[Pooling]) -> Tensor:
    if batch.lengths is not None:
        return pooled_padded(hidden.view(len(batch.lengths), -1, hidden.shape[1]), batch.lengths, pooling)
    return pooled(_texts(hidden, batch.length_groups), batch.order, pooling)


def _texts(hidden: Tensor, length_groups: LengthGroups) -> Iterator[Tensor]:
    """The hidden states of the texts of each length, `[texts, tokens, width]`."""
    start = 0
    for count, length in length_groups:
        yield hidden[start : start + count * length].view(count, length, -1)
        start += count * length


def _dropped(hidden: Tensor, share: float) -> Tensor:
    return functional.dropout(hidden, share) if share else hidden


def _cast_linear(hidden: Tensor, module: nn.Linear) -> Tensor:
    return functional.linear(hidden, module.weight.to(hidden.dtype), module.bias.to(hidden.dtype))


@dataclass(frozen=True)
class _TrainingBlock:
    """Operations on a layer's own float32 parameters, cast to the hidden states' type, so that gradients reach them."""

    modules: _LayerModules
    activation: Callable[[Tensor], Tensor]
    attention_output_dropout: float
    dropout: float

    def qkv(self, hidden: Tensor) -> Tensor:
        projections = (self.modules.query, self.modules.key, self.modules.value)
        weights = [projection.weight.to(hidden.dtype) for projection in projections]
        biases = [projection.bias.to(hidden.dtype) for projection in projections]
        return functional.linear(hidden, torch.cat(weights), torch.cat(biases))

    def output(self, mixed: Tensor, residual: Tensor) -> Tensor:
        return residual + _dropped(_cast_linear(mixed, self.modules.output), self.attention_output_dropout)

    def attention_norm(self, hidden: Tensor) -> Tensor:
        return self._normed(hidden, self.modules.attention_norm)

    def up(self, hidden: Tensor) -> Tensor:
        return self.activation(_cast_linear(hidden, self.modules.up))

    def down(self, hidden: Tensor, residual: Tensor) -> Tensor:
        return residual + _dropped(_cast_linear(hidden, self.modules.down), self.dropout)

    def norm(self, hidden: Tensor) -> Tensor:
        return self._normed(hidden, self.modules.norm)

    def _normed(self, hidden: Tensor, norm: nn.LayerNorm) -> Tensor:
        weight, bias = norm.weight.to(hidden.dtype), norm.bias.to(hidden.dtype)
        return functional.layer_norm(hidden, norm.normalized_shape, weight, bias, norm.eps)


class _Linear(Protocol):
    def __call__(self, hidden: Tensor, residual: Tensor | None = None) -> Tensor: ...


class _FusedLinear:
    """oneDNN matrix product with bias and activation in the same pass; the weight is laid out once.

    A residual is added behind it: inside the product that costs more than a pass of its own.
    """

    def __init__(self, weight: Tensor, bias: Tensor, activation: _Activation | None, rows: int) -> None:
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), rows)
        self.bias = bias
        self.activation, self.algorithm = (activation.fused, activation.algorithm) if activation else ("none", "none")

    def __call__(self, hidden: Tensor, residual: Tensor | None = None) -> Tensor:
        linear = torch.ops.mkldnn._linear_pointwise
        product: Tensor = linear(hidden, self.weight, self.bias, self.activation, [], self.algorithm)
        return product if residual is None else product.add_(residual)


class _PlainLinear:
    """The same with PyTorch's own operations."""

    def __init__(self, weight: Tensor, bias: Tensor, activation: _Activation | None) -> None:
        self.weight, self.bias, self.activation = weight, bias, activation

    def __call__(self, hidden: Tensor, residual: Tensor | None = None) -> Tensor:
        product = functional.linear(hidden, self.weight, self.bias)
        if residual is not None:
            product += residual
        return self.activation.function(product) if self.activation else product


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
    """A model laid out for inference: fused projections, bfloat16 where the device is fast at it."""

    def __init__(self, model: Any, family: _Family, pooling: Sequence[Pooling], token_budget: int) -> None:
        """Copy the model's weights; `token_budget` is about the number of tokens of a batch."""
        self.model, self.family, self.pooling = model, family, pooling
        self.device: torch.device = next(model.parameters()).device
        self.dtype = torch.bfloat16 if bf16_is_fast(self.device) else torch.float32
        self._token_budget = token_budget
        self._bias_of_length: dict[int, Tensor | None] = {}
        with torch.inference_mode():
            projection = family.projection(model)
            self._projection = self._linear(projection.weight, projection.bias) if projection is not None else None
            self._blocks = [self._block(modules) for modules in family.layers(model)]

    def _block(self, modules: _LayerModules) -> _InferenceBlock:
        projections = (modules.query, modules.key, modules.value)
        weight, bias = torch.cat([p.weight for p in projections]), torch.cat([p.bias for p in projections])
        return _InferenceBlock(
            qkv=self._linear(weight, bias),
            output=self._linear(modules.output.weight, modules.output.bias),
            attention_norm=self._norm(modules.attention_norm),
            up=self._linear(modules.up.weight, modules.up.bias, self.family.activation(self.model)),
            down=self._linear(modules.down.weight, modules.down.bias),
            norm=self._norm(modules.norm),
        )

    def _linear(self, weight: Tensor, bias: Tensor, activation: _Activation | None = None) -> _Linear:
        weight, bias = weight.detach().to(self.dtype), bias.detach().to(self.dtype)
        if self.device.type == "cpu" and self.dtype == torch.bfloat16:
            return _FusedLinear(weight, bias, activation, self._token_budget)
        return _PlainLinear(weight, bias, activation)

    def _norm(self, norm: nn.LayerNorm) -> Callable[[Tensor], Tensor]:
        weight, bias = norm.weight.detach().to(self.dtype), norm.bias.detach().to(self.dtype)
        return lambda hidden: functional.layer_norm(hidden, norm.normalized_shape, weight, bias, norm.eps)

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
        batch = (batch if traits_of(self.device).packed else evened(batch)).to(self.device)
        embedded = self.model.embeddings.LayerNorm(self.family.embeddings(self.model, batch))
        hidden = embedded.to(self.dtype) if self._projection is None else self._projection(embedded.to(self.dtype))
        heads, biases = self.model.config.num_attention_heads, self._biases(batch.length_groups)
        settings: dict[str, Any] = {"heads": heads, "biases": biases, "behind": batch.behind()}
        hidden = _run_layers(hidden, self._blocks, batch.length_groups, **settings)
        return _pooled(hidden, batch, self.pooling)
