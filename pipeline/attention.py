"""Attention over texts laid end to end, with gradients, in memory that does not keep the square of the length.

PyTorch's two ways on a CPU both cost fitting dear: its fused kernel has a slow bfloat16 backward pass, and the plain
formula keeps several [texts, heads, length, length] tensors a layer until the backward pass. Here the probabilities
of short texts are kept, once; those of long ones come from the fused kernel and are computed again when needed.
"""

from collections.abc import Sequence
from itertools import chain, zip_longest
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

Runs = Sequence[tuple[int, int]]
KEPT = 1 << 23
"""Most probabilities of one group of texts that are kept for the backward pass, so that memory stays bounded."""


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
        groups: list[tuple[Tensor | None, ...]] = []
        start = 0
        for (count, length), bias in zip_longest(runs, biases):
            stop = start + count * length
            block = qkv[start:stop]
            if dropout or (ctx.needs_input_grad[0] and count * heads * length * length <= KEPT):
                three = _heads(block, count, 3, heads)
                q, k, v = three
                probabilities = _probabilities(q, k, bias)
                kept = _kept(probabilities, dropout)
                out[start:stop] = _joined(((probabilities if kept is None else probabilities * kept) @ v)[None], count)
                groups.append((three, probabilities, kept))
            else:
                q, k, v = block.view(count, length, 3, heads, -1).permute(2, 0, 3, 1, 4)
                mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=bias)
                out[start:stop] = mixed.transpose(1, 2).reshape(stop - start, -1)
                groups.append((block, None, None))
            start = stop
        ctx.save_for_backward(*biases, *chain.from_iterable(groups))
        ctx.runs, ctx.heads, ctx.biases, ctx.tokens = runs, heads, len(biases), len(qkv)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        biases, saved = ctx.saved_tensors[: ctx.biases], iter(ctx.saved_tensors[ctx.biases :])
        found, found_biases = grad.new_zeros(ctx.tokens, 3 * grad.shape[1]), []
        start = 0
        for (count, length), bias, block, known, kept in zip_longest(ctx.runs, biases, saved, saved, saved):
            stop = start + count * length
            q, k, v = _heads(block, count, 3, ctx.heads) if known is None else block
            probabilities = _probabilities(q, k, bias) if known is None else known
            (out,) = _heads(grad[start:stop], count, 1, ctx.heads)
            grads = q.new_empty(3, *q.shape)
            used, wanted = probabilities, out @ v.transpose(1, 2)
            if kept is not None:
                used, wanted = used * kept, wanted * kept
            torch.bmm(used.transpose(1, 2), out, out=grads[2])
            scores = torch._softmax_backward_data(wanted, probabilities, 2, q.dtype)
            if bias is not None:
                found_biases.append(scores.view(count, ctx.heads, length, length).sum(0, keepdim=True))
            _scaled(scores, k, q.shape[2], out=grads[0])
            _scaled(scores.transpose(1, 2), q, q.shape[2], out=grads[1])
            found[start:stop] = _joined(grads, count)
            start = stop
        return found, None, None, None, *found_biases


def _kept(probabilities: Tensor, dropout: float) -> Tensor | None:
    """What each probability is multiplied with: 0, or 1 / (1 - dropout)."""
    if not dropout:
        return None
    return torch.empty_like(probabilities).bernoulli_(1 - dropout).div_(1 - dropout)


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
    scores = _scaled(q, k.transpose(1, 2), q.shape[2])
    if bias is not None:
        length = q.shape[1]
        scores = (scores.view(-1, bias.shape[1], length, length) + bias).view(-1, length, length)
    return torch.softmax(scores, 2)


def _scaled(a: Tensor, b: Tensor, width: int, out: Tensor | None = None) -> Tensor:
    """Batched a @ b / sqrt(width), the scaling inside the product."""
    nothing = a.new_empty(()).expand(len(a), a.shape[1], b.shape[2])
    return torch.baddbmm(nothing, a, b, beta=0, alpha=width**-0.5, out=out)
