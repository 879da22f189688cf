"""Attention over texts laid end to end, with gradients, in memory that does not keep the square of the length.

PyTorch's two ways on a CPU both cost fitting dear: its fused kernel has a slow bfloat16 backward pass, and the plain
formula keeps several [texts, heads, length, length] tensors a layer until the backward pass. Here the forward pass
is the fused kernel, and the backward pass computes the probabilities again, group after group of equal length.
"""

from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

Runs = Sequence[tuple[int, int]]


def attention(qkv: Tensor, runs: Runs, heads: int, biases: Sequence[Tensor] = (), dropout: float = 0.0) -> Tensor:
    """Softmax attention within each text: [tokens, 3 * width] -> [tokens, width]; 0 for tokens behind the last text.

    Args:
        qkv: queries, keys and values side by side.
        runs: groups of (texts, tokens each), in the order in which the texts lie.
        heads: number of attention heads.
        biases: nothing, or for each group what is added to its scores, [1, heads, length, length].
        dropout: share of the probabilities that is left out.
    """
    if qkv.is_cuda:
        return masked_attention(qkv, runs, heads, biases[-1] if biases else None, dropout)
    mixed: Tensor = _Attention.apply(qkv, runs, heads, dropout, *biases)  # type: ignore[no-untyped-call]
    return mixed


def masked_attention(qkv: Tensor, runs: Runs, heads: int, bias: Tensor | None, dropout: float = 0.0) -> Tensor:
    """The same in one call over texts padded to the longest, whose `bias` is [1, heads, longest, longest].

    A GPU waits for launches, not for padding: one masked call replaces a call for every length.
    """
    counts, lengths = torch.tensor(runs).T
    longest, width = int(lengths[-1]), qkv.shape[1] // 3
    there = torch.arange(longest) < torch.repeat_interleave(lengths, counts)[:, None]  # [texts, longest]
    slots = there.flatten().nonzero().squeeze(1).to(qkv.device, non_blocking=True)
    dense = qkv.new_zeros(there.numel(), qkv.shape[1]).index_copy(0, slots, qkv[: len(slots)])
    q, k, v = dense.view(len(there), longest, 3, heads, width // heads).permute(2, 0, 3, 1, 4)
    mask = torch.zeros(there.shape, dtype=qkv.dtype).masked_fill(~there, float("-inf")).to(qkv.device)[:, None, None]
    mask = mask.expand(-1, heads, longest, -1) if bias is None else mask + bias
    mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
    found = mixed.transpose(1, 2).reshape(-1, width).index_select(0, slots)
    return torch.cat([found, qkv.new_zeros(len(qkv) - len(slots), width)])


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, qkv: Tensor, runs: Runs, heads: int, dropout: float, *biases: Tensor) -> Tensor:
        out = qkv.new_zeros(len(qkv), qkv.shape[1] // 3)
        kept: list[Tensor] = []
        start = 0
        for (count, length), bias in zip_longest(runs, biases):
            stop = start + count * length
            if dropout:
                q, k, v = _heads(qkv[start:stop], count, 3, heads)
                probabilities = _probabilities(q, k, bias)
                kept.append(torch.empty_like(probabilities, dtype=torch.bool).bernoulli_(1 - dropout))
                mixed = (probabilities * kept[-1] / (1 - dropout)) @ v
            else:
                q, k, v = qkv[start:stop].view(count, length, 3, heads, -1).permute(2, 0, 3, 1, 4)
                mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=bias)
            out[start:stop] = mixed.view(count, heads, length, -1).transpose(1, 2).reshape(stop - start, -1)
            start = stop
        ctx.save_for_backward(qkv, *biases, *kept)
        ctx.runs, ctx.heads, ctx.dropout, ctx.biases = runs, heads, dropout, len(biases)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        qkv, *rest = ctx.saved_tensors
        biases, kept = rest[: ctx.biases], rest[ctx.biases :]
        found, found_biases = torch.zeros_like(qkv), []
        start = 0
        for (count, length), bias, keep in zip_longest(ctx.runs, biases, kept):
            stop = start + count * length
            q, k, v = _heads(qkv[start:stop], count, 3, ctx.heads)
            (out,) = _heads(grad[start:stop], count, 1, ctx.heads)
            probabilities = _probabilities(q, k, bias)
            weight = torch.ones((), dtype=q.dtype) if keep is None else keep / (1 - ctx.dropout)
            grad_v = (probabilities * weight).to(q.dtype).transpose(1, 2) @ out
            scores = torch._softmax_backward_data(
                (out @ v.transpose(1, 2) * weight).to(q.dtype), probabilities, 2, q.dtype
            )
            if bias is not None:
                found_biases.append(scores.view(count, ctx.heads, length, length).sum(0, keepdim=True))
            scores = scores * q.shape[2] ** -0.5
            together = torch.stack([scores @ k, scores.transpose(1, 2) @ q, grad_v])
            found[start:stop] = _joined(together, count)
            start = stop
        return found, None, None, None, *found_biases


def _heads(block: Tensor, count: int, parts: int, heads: int) -> Tensor:
    """[texts * length, parts * width] -> [parts, texts * heads, length, width / heads], contiguous."""
    length = len(block) // count
    split = block.view(count, length, parts, heads, -1).permute(2, 0, 3, 1, 4)
    return split.reshape(parts, count * heads, length, -1)


def _joined(parts: Tensor, count: int) -> Tensor:
    """The reverse of `_heads`."""
    length = parts.shape[2]
    split = parts.view(len(parts), count, -1, length, parts.shape[3]).permute(1, 3, 0, 2, 4)
    return split.reshape(count * length, -1)


def _probabilities(q: Tensor, k: Tensor, bias: Tensor | None) -> Tensor:
    """Softmax of the scaled scores: [texts * heads, length, length]."""
    scores = q @ k.transpose(1, 2) * q.shape[2] ** -0.5
    if bias is not None:
        length = q.shape[1]
        scores = (scores.view(-1, bias.shape[1], length, length) + bias).view(-1, length, length)
    return torch.softmax(scores, 2)
