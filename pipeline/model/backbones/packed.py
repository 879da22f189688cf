"""Transformer forward passes without padding.

The texts of a batch are laid end to end, sorted by length. Everything that works on single tokens (projections,
feed-forward, normalisation) runs once over all of them, and no operation is spent on padding. Attention runs over
the texts of one length at a time (`pipeline.attention`).

Two forms of the same computation: `mean_pooled` uses a transformers model's own parameters, so that gradients reach
them (stage two); `Encoder` holds copies laid out for inference (stage one). Families: BERT and MPNet.
"""

from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.base.errors import LeafError
from pipeline.model.attention import attention
from pipeline.model.batch import Batch
from pipeline.model.device import bf16_is_fast

FAMILIES = ("bert", "mpnet")
Pooling = Literal["mean", "cls"]


def check_family(backbone: nn.Module) -> str:
    """Return the family of a transformers model, or raise LeafError if it is none that this module can run."""
    config: Any = backbone.config
    family = str(config.model_type)
    plain = getattr(config, "position_embedding_type", "absolute") == "absolute" and config.hidden_act == "gelu"
    if family not in FAMILIES or not plain:
        wanted = f"{' and '.join(FAMILIES)} models with absolute or MPNet's relative positions and the exact GELU"
        raise LeafError(f"backbone of type `{family}` cannot be run: supported are {wanted}")
    return family


@dataclass(frozen=True)
class _Layer:
    query: nn.Linear
    key: nn.Linear
    value: nn.Linear
    output: nn.Linear
    attention_norm: nn.LayerNorm
    up: nn.Linear
    down: nn.Linear
    norm: nn.LayerNorm


def _layers(backbone: Any, family: str) -> list[_Layer]:
    layers = []
    for layer in backbone.encoder.layer:
        outer = layer.attention
        if family == "bert":
            inner, output, norm = outer.self, outer.output.dense, outer.output.LayerNorm
            projections = (inner.query, inner.key, inner.value)
        else:
            inner, output, norm = outer.attn, outer.attn.o, outer.LayerNorm
            projections = (inner.q, inner.k, inner.v)
        layers.append(
            _Layer(*projections, output, norm, layer.intermediate.dense, layer.output.dense, layer.output.LayerNorm)
        )
    return layers


def _embed(backbone: Any, family: str, batch: Batch) -> Tensor:
    """Token and position embeddings, summed and normalised: [tokens, width]."""
    table = backbone.embeddings
    # MPNet, like RoBERTa, counts positions from the padding id on (transformers: create_position_ids_from_input_ids).
    offset = table.padding_idx + 1 if family == "mpnet" else 0
    hidden = table.word_embeddings(batch.ids) + table.position_embeddings(batch.positions + offset)
    if family == "bert":
        hidden = hidden + table.token_type_embeddings.weight[0]
    normed: Tensor = table.LayerNorm(hidden)
    return normed


def _position_bias(backbone: Any, family: str, length: int) -> Tensor | None:
    """MPNet's relative attention bias [1, heads, length, length]; None for BERT."""
    if family == "bert":
        return None
    at = torch.arange(length, device=backbone.device)
    buckets = backbone.encoder.relative_position_bucket(
        at[None, :] - at[:, None], num_buckets=backbone.config.relative_attention_num_buckets
    )
    bias: Tensor = backbone.encoder.relative_attention_bias(buckets).permute(2, 0, 1)
    return bias.unsqueeze(0)


def _pool(hidden: Tensor, batch: Batch, mode: Pooling) -> Tensor:
    """Mean over each text's tokens, or its first token, in float32 and in the caller's order: [texts, width]."""
    pooled, start = [], 0
    for count, length in batch.length_groups:
        block = hidden[start : start + count * length].view(count, length, -1)
        pooled.append(block.mean(1, dtype=torch.float32) if mode == "mean" else block[:, 0].float())
        start += count * length
    return torch.cat(pooled)[batch.order]


def mean_pooled(backbone: nn.Module, batch: Batch, dtype: torch.dtype = torch.float32) -> Tensor:
    """Mean-pooled last hidden states [texts, width] float32, in the order given to `pack`, with gradients.

    All between the embeddings and the pooling is computed in `dtype`, from the parameters' float32; autocast would
    compute the norms in float32 and convert the hidden states back and forth. Dropout follows `backbone.training`
    and the model's configuration.
    """
    model: Any = backbone
    family, config = check_family(backbone), model.config
    hidden_dropout = config.hidden_dropout_prob if model.training else 0.0
    attention_dropout = config.attention_probs_dropout_prob if model.training else 0.0

    def drop(x: Tensor) -> Tensor:
        return functional.dropout(x, hidden_dropout) if hidden_dropout else x

    def linear(x: Tensor, *modules: nn.Linear) -> Tensor:
        weights, offsets = [m.weight.to(dtype) for m in modules], [m.bias.to(dtype) for m in modules]
        if len(modules) == 1:
            return functional.linear(x, weights[0], offsets[0])
        return functional.linear(x, torch.cat(weights), torch.cat(offsets))

    def normed(x: Tensor, norm: nn.LayerNorm) -> Tensor:
        return functional.layer_norm(x, norm.normalized_shape, norm.weight.to(dtype), norm.bias.to(dtype), norm.eps)

    hidden = drop(_embed(model, family, batch)).to(dtype)
    found = (_position_bias(model, family, length) for _, length in batch.length_groups)
    biases = [bias.to(dtype) for bias in found if bias is not None]
    for layer in _layers(model, family):
        qkv = linear(hidden, layer.query, layer.key, layer.value)
        mixed = attention(qkv, batch.length_groups, config.num_attention_heads, biases, attention_dropout)
        hidden = normed(hidden + drop(linear(mixed, layer.output)), layer.attention_norm)
        hidden = normed(hidden + drop(linear(functional.gelu(linear(hidden, layer.up)), layer.down)), layer.norm)
    return _pool(hidden, batch, "mean")


class _Operation(Protocol):
    def __call__(self, x: Tensor, residual: Tensor | None = None) -> Tensor: ...


class _FusedLinear:
    """oneDNN matrix product with bias and GELU in the same pass; the weight is laid out once.

    A residual is added behind it: inside the product that costs more than a pass of its own.
    """

    def __init__(self, weight: Tensor, bias: Tensor, gelu: bool, rows: int) -> None:
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), rows)
        self.bias, self.activation = bias, "gelu" if gelu else "none"

    def __call__(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        linear = torch.ops.mkldnn._linear_pointwise
        product: Tensor = linear(x, self.weight, self.bias, self.activation, [], "none")
        return product if residual is None else product.add_(residual)


class _PlainLinear:
    def __init__(self, weight: Tensor, bias: Tensor, gelu: bool) -> None:
        self.weight, self.bias, self.gelu = weight, bias, gelu

    def __call__(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        product = functional.linear(x, self.weight, self.bias)
        if residual is not None:
            product += residual
        return functional.gelu(product) if self.gelu else product


@dataclass(frozen=True)
class _Block:
    qkv: _Operation
    output: _Operation
    attention_norm: tuple[Tensor, Tensor]
    up: _Operation
    down: _Operation
    norm: tuple[Tensor, Tensor]


class Encoder:
    """A backbone laid out for inference: fused projections, bfloat16 where the hardware has it."""

    def __init__(self, backbone: nn.Module, token_budget: int, pooling: Pooling = "mean") -> None:
        """Copy the backbone's weights; `token_budget` is about the number of tokens of a batch."""
        model: Any = backbone
        self.family, self.config, self.backbone = check_family(backbone), model.config, model.eval()
        self.device = next(model.parameters()).device
        self.dtype = torch.bfloat16 if bf16_is_fast(self.device) else torch.float32
        self.pooling, self._rows = pooling, token_budget
        self._epsilon = float(model.config.layer_norm_eps)
        self._bias: dict[int, Tensor] = {}
        with torch.inference_mode():
            self._blocks = [self._block(layer) for layer in _layers(model, self.family)]

    def _block(self, layer: _Layer) -> _Block:
        projections = (layer.query, layer.key, layer.value)
        weight, bias = torch.cat([p.weight for p in projections]), torch.cat([p.bias for p in projections])
        return _Block(
            qkv=self._linear(weight, bias),
            output=self._linear(layer.output.weight, layer.output.bias),
            attention_norm=self._norm(layer.attention_norm),
            up=self._linear(layer.up.weight, layer.up.bias, gelu=True),
            down=self._linear(layer.down.weight, layer.down.bias),
            norm=self._norm(layer.norm),
        )

    def _linear(self, weight: Tensor, bias: Tensor, gelu: bool = False) -> _Operation:
        weight, bias = weight.detach().to(self.dtype), bias.detach().to(self.dtype)
        if self.device.type == "cpu" and self.dtype == torch.bfloat16:
            return _FusedLinear(weight, bias, gelu, self._rows)
        return _PlainLinear(weight, bias, gelu)

    def _norm(self, norm: nn.LayerNorm) -> tuple[Tensor, Tensor]:
        return norm.weight.detach().to(self.dtype), norm.bias.detach().to(self.dtype)

    def _biases(self, batch: Batch) -> list[Tensor]:
        if self.family == "bert":
            return []
        for _, length in batch.length_groups:
            if length not in self._bias:
                bias = _position_bias(self.backbone, self.family, length)
                assert bias is not None  # MPNet always has one
                self._bias[length] = bias.to(self.dtype).contiguous()
        return [self._bias[length] for _, length in batch.length_groups]

    @torch.inference_mode()
    def __call__(self, batch: Batch) -> Tensor:
        """Pooled last hidden states [texts, width] float32, in the order given to `pack`."""
        batch = batch.to(self.device)
        hidden = _embed(self.backbone, self.family, batch).to(self.dtype)
        biases, width = self._biases(batch), (hidden.shape[1],)
        for block in self._blocks:
            mixed = attention(block.qkv(hidden), batch.length_groups, self.config.num_attention_heads, biases)
            summed = block.output(mixed, hidden)
            hidden = functional.layer_norm(summed, width, *block.attention_norm, eps=self._epsilon)
            summed = block.down(block.up(hidden), hidden)
            hidden = functional.layer_norm(summed, width, *block.norm, eps=self._epsilon)
        return _pool(hidden, batch, self.pooling)
