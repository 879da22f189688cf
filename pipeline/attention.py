"""Attention over texts laid end to end, with gradients, in bounded memory.

PyTorch's two ways on a CPU are both dear: its fused kernel is slow for short texts and has a slow bfloat16 backward
pass, and the plain formula keeps several [texts, heads, length, length] tensors a layer until the backward pass. Here
the probabilities are kept, once; those of very long texts come from the fused kernel and are computed again if needed.

Texts of neighbouring lengths share a call where padding costs less than another dozen of small operations: batches of
32 have a length for almost every long text.
"""

from collections.abc import Sequence
from functools import lru_cache
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

Runs = Sequence[tuple[int, int]]
Group = tuple[tuple[int, int], ...]
KEPT = 1 << 23
"""Most probabilities of one group of texts, so that memory stays bounded; a text that has more by itself keeps none
(unless there is dropout)."""
GROUP_COST = 50_000
"""What a group costs whatever its size, in scores of one head. A rough figure: a group more or less is hard to see."""
REGISTER = 32
"""Keys are padded to a multiple of this many bfloat16 values: PyTorch's softmax takes what fills no whole register of
512 bits value by value, and 30 keys cost four times what 32 do."""


def attention(qkv: Tensor, runs: Runs, heads: int, biases: Sequence[Tensor] = (), dropout: float = 0.0) -> Tensor:
    """Softmax attention within each text: [tokens, 3 * width] -> [tokens, width]; 0 for tokens behind the last text.

    Args:
        qkv: queries, keys and values side by side.
        runs: groups of (texts, tokens each), in the order in which the texts lie: shortest first, each length once.
        heads: number of attention heads.
        biases: nothing, or for each group what is added to its scores, [1, heads, length, length]. That of a shorter
            one must be the upper left part of a longer one's, which takes its gradient where both share a call.
        dropout: share of the probabilities that is left out.
    """
    if qkv.is_cuda:
        return fused_attention(qkv, tuple(runs), heads, biases[-1] if biases else None, dropout)
    mixed: Tensor = _Attention.apply(qkv, runs, heads, dropout, *biases)  # type: ignore[no-untyped-call]
    return mixed


def fused_attention(qkv: Tensor, group: Group, heads: int, bias: Tensor | None, dropout: float = 0.0) -> Tensor:
    """The same by PyTorch's fused kernel in one call, over texts padded to the longest, whose `bias` it takes.

    A GPU waits for launches, not for padding: one call replaces a call for every length.
    """
    count, length, tokens = _size(group)
    q, k, v = _padded(qkv[:tokens], group).view(count, length, 3, heads, -1).permute(2, 0, 3, 1, 4)
    mask = bias
    if len(group) > 1:
        behind = _places(group, qkv.device)[1][:, :length].to(qkv.dtype)[:, None, None]
        mask = behind.expand(-1, heads, length, -1) if bias is None else behind + bias
    mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
    found = _unpadded(mixed.transpose(1, 2).reshape(count * length, -1), group)
    return found if len(qkv) == tokens else torch.cat([found, found.new_zeros(len(qkv) - tokens, found.shape[1])])


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, qkv: Tensor, runs: Runs, heads: int, dropout: float, *biases: Tensor) -> Tensor:
        out = qkv.new_zeros(len(qkv), qkv.shape[1] // 3)
        groups = merged(runs, heads)
        by_length = {bias.shape[3]: bias for bias in biases}
        saved: list[tuple[Tensor | None, ...]] = []
        start = 0
        for group in groups:
            count, length, tokens = _size(group)
            stop = start + tokens
            block, bias = qkv[start:stop], by_length.get(length)
            if not dropout and count * heads * length * _keys(length) > KEPT:
                out[start:stop] = fused_attention(block, group, heads, bias)
                found: tuple[Tensor | None, ...] = block, None, None
            else:
                three = _heads(_padded(block, group), count, 3, heads, _keys(length))
                q, k, v = three
                probabilities = _probabilities(q[:, :length], k, bias, group)
                kept = _kept(probabilities, dropout)
                used = probabilities if kept is None else probabilities * kept
                _put(out[start:stop], group, used @ v)
                found = three, probabilities, kept
            if any(ctx.needs_input_grad):
                saved.append(found)  # else the next group takes its memory
            start = stop
        if saved:
            ctx.save_for_backward(*biases, *chain.from_iterable(saved))
            ctx.groups, ctx.heads, ctx.biases, ctx.tokens = groups, heads, len(biases), len(qkv)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        biases, saved = ctx.saved_tensors[: ctx.biases], iter(ctx.saved_tensors[ctx.biases :])
        by_length = {bias.shape[3]: bias for bias in biases}
        found = grad.new_zeros(ctx.tokens, 3 * grad.shape[1])
        found_biases: dict[int, Tensor] = {}
        start = 0
        for group, block, known, kept in zip(ctx.groups, saved, saved, saved, strict=True):
            count, length, tokens = _size(group)
            stop = start + tokens
            three = _heads(block, count, 3, ctx.heads, _keys(length)) if known is None else block
            q, k, v = three[0][:, :length], three[1], three[2]
            probabilities = _probabilities(q, k, by_length.get(length), group) if known is None else known
            (out,) = _heads(_padded(grad[start:stop], group), count, 1, ctx.heads, length)
            used, wanted = probabilities, out @ v.transpose(1, 2)
            if kept is not None:
                used, wanted = used * kept, wanted * kept
            of_v = used.transpose(1, 2) @ out
            scores = torch._softmax_backward_data(wanted, probabilities, 2, q.dtype)
            if biases:
                of_bias = scores.view(count, ctx.heads, length, -1)[..., :length].sum(0, keepdim=True)
                found_biases[length] = found_biases[length] + of_bias if length in found_biases else of_bias
            of_q, of_k = _scaled(scores, k, q.shape[2]), _scaled(scores.transpose(1, 2), q, q.shape[2])
            _put(found[start:stop], group, of_q, of_k, of_v)
            start = stop
        return found, None, None, None, *(found_biases.get(bias.shape[3]) for bias in biases)


def merged(runs: Runs, heads: int) -> list[Group]:
    """Runs, shortest first, cut where a group would be too large, and neighbours put together while padding costs less
    than a group of its own."""
    groups: list[Group] = []
    for texts, length in runs:
        most, left = max(1, KEPT // (heads * length * _keys(length))), texts
        while left:
            count = min(left, most)
            before, longest, _ = _size(groups[-1]) if groups else (0, 0, 0)
            padding = before * (length**2 - longest**2)
            if groups and length > longest and padding < GROUP_COST and before + count <= most:
                groups[-1] = (*groups[-1], (count, length))
            else:
                groups.append(((count, length),))
            left -= count
    return groups


def _keys(length: int) -> int:
    """Keys of a text of so many tokens, those that are padding included."""
    return -(-length // REGISTER) * REGISTER


def _size(group: Group) -> tuple[int, int, int]:
    """Texts, tokens of the longest, tokens of all."""
    return sum(count for count, _ in group), group[-1][1], sum(count * length for count, length in group)


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # else what an encoder made first could not serve a backward pass later
def _places(group: Group, device: torch.device) -> tuple[Tensor, Tensor]:
    """Where each token stands among texts padded to the longest, [tokens]; for each key -inf behind a text's end."""
    counts, lengths = torch.tensor(group).T
    longest = group[-1][1]
    there = torch.arange(_keys(longest)) < torch.repeat_interleave(lengths, counts)[:, None]  # [texts, keys]
    places = there[:, :longest].flatten().nonzero().squeeze(1)
    mask = torch.zeros(there.shape).masked_fill_(~there, float("-inf"))
    return places.to(device, non_blocking=True), mask.to(device, non_blocking=True)


def _padded(block: Tensor, group: Group) -> Tensor:
    """[tokens, width] -> [texts * longest, width], 0 behind a text's end."""
    if len(group) == 1:
        return block
    count, length, _ = _size(group)
    return block.new_zeros(count * length, block.shape[1]).index_copy(0, _places(group, block.device)[0], block)


def _unpadded(dense: Tensor, group: Group) -> Tensor:
    """The reverse of `_padded`."""
    return dense if len(group) == 1 else dense.index_select(0, _places(group, dense.device)[0])


def _kept(probabilities: Tensor, dropout: float) -> Tensor | None:
    """What each probability is multiplied with: 0, or 1 / (1 - dropout)."""
    if not dropout:
        return None
    return torch.empty_like(probabilities).bernoulli_(1 - dropout).div_(1 - dropout)


def _heads(block: Tensor, count: int, parts: int, heads: int, keys: int) -> Tensor:
    """[texts * length, parts * width] -> [parts, texts * heads, keys, width / heads], 0 from the length on."""
    length = len(block) // count
    split = block.view(count, length, parts, heads, -1).permute(2, 0, 3, 1, 4)
    found = block.new_empty(parts, count, heads, keys, split.shape[4])
    found[:, :, :, :length], found[:, :, :, length:] = split, 0
    return found.flatten(1, 2)


def _put(into: Tensor, group: Group, *parts: Tensor) -> None:
    """The reverse of `_padded` and `_heads`, into [tokens, parts * width]."""
    count, length, _ = _size(group)
    dense = into if len(group) == 1 else into.new_empty(count * length, into.shape[1])
    where = dense.view(count, length, len(parts), -1, parts[0].shape[2])
    for number, part in enumerate(parts):
        where[:, :, number] = part[:, :length].view(count, -1, length, part.shape[2]).transpose(1, 2)
    if dense is not into:
        torch.index_select(dense, 0, _places(group, dense.device)[0], out=into)


def _probabilities(q: Tensor, k: Tensor, bias: Tensor | None, group: Group) -> Tensor:
    """Softmax of the scaled scores: [texts * heads, length, keys]."""
    (texts, length, _), keys = _size(group), k.shape[1]
    if bias is None and len(group) == 1 and keys == length:
        return torch.softmax(_scaled(q, k.transpose(1, 2), q.shape[2]), 2)
    # What is added to the scores goes in as what the product is added to: a pass over them less.
    mask = _places(group if len(group) > 1 else ((1, length),), q.device)[1].to(q.dtype)[:, None, None]
    scores = q.new_empty(texts, len(q) // texts, length, keys)
    scores.copy_(mask if bias is None else functional.pad(bias, (0, keys - length)) + mask)
    return torch.softmax(scores.flatten(0, 1).baddbmm_(q, k.transpose(1, 2), alpha=q.shape[2] ** -0.5), 2)


def _scaled(a: Tensor, b: Tensor, width: int) -> Tensor:
    """Batched a @ b / sqrt(width), the scaling inside the product."""
    nothing = a.new_empty(()).expand(len(a), a.shape[1], b.shape[2])
    return torch.baddbmm(nothing, a, b, beta=0, alpha=width**-0.5)
