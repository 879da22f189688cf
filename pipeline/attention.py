"""Attention over texts laid end to end, with gradients, in memory that does not keep the square of the length.

PyTorch's two ways on a CPU both cost fitting dear: its fused kernel has a slow bfloat16 backward pass, and the plain
formula keeps several [texts, heads, length, length] tensors a layer until the backward pass. Here the probabilities
of short texts are kept, once; those of long ones come from the fused kernel and are computed again when needed.

Texts of neighbouring lengths share a call where padding costs less than another dozen of small operations: batches of
32 have a length for almost every long text.
"""

from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate, chain, zip_longest
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

Runs = Sequence[tuple[int, int]]
Group = tuple[tuple[int, int], ...]
KEPT = 1 << 23
"""Most probabilities of one group of texts that are kept for the backward pass, so that memory stays bounded."""
GROUP_COST = 50_000
"""What a group costs whatever its size, in scores of one head. A rough figure: a group more or less is hard to see."""


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
        behind = _places(group, qkv.device)[1].to(qkv.dtype)[:, None, None]
        mask = behind.expand(-1, heads, length, -1) if bias is None else behind + bias
    mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
    found = _unpadded(mixed.transpose(1, 2).reshape(count * length, -1), group)
    return found if len(qkv) == tokens else torch.cat([found, found.new_zeros(len(qkv) - tokens, found.shape[1])])


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, qkv: Tensor, runs: Runs, heads: int, dropout: float, *biases: Tensor) -> Tensor:
        out = qkv.new_zeros(len(qkv), qkv.shape[1] // 3)
        # A mask and a bias for every text, of which nothing is kept, cost more than calls of their own.
        groups = merged(runs, heads) if ctx.needs_input_grad[0] or not biases else [(run,) for run in runs]
        longest = _last_of_each(groups, biases)
        saved: list[tuple[Tensor | None, ...]] = []
        start = 0
        for group, bias in zip_longest(groups, longest):
            count, length, tokens = _size(group)
            stop = start + tokens
            block = qkv[start:stop]
            if dropout or (ctx.needs_input_grad[0] and count * heads * length * length <= KEPT):
                three = _heads(_padded(block, group), count, 3, heads)
                q, k, v = three
                probabilities = _probabilities(q, k, bias, group)
                kept = _kept(probabilities, dropout)
                mixed = _joined(((probabilities if kept is None else probabilities * kept) @ v)[None], count)
                out[start:stop] = _unpadded(mixed, group)
                saved.append((three, probabilities, kept))
            else:
                out[start:stop] = fused_attention(block, group, heads, bias)
                saved.append((block, None, None))
            start = stop
        ctx.save_for_backward(*longest, *chain.from_iterable(saved))
        ctx.groups, ctx.heads, ctx.biases, ctx.tokens = groups, heads, len(longest), len(qkv)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        biases, saved = ctx.saved_tensors[: ctx.biases], iter(ctx.saved_tensors[ctx.biases :])
        found = grad.new_zeros(ctx.tokens, 3 * grad.shape[1])
        found_biases: list[Tensor | None] = []
        start = 0
        for group, bias, block, known, kept in zip_longest(ctx.groups, biases, saved, saved, saved):
            count, length, tokens = _size(group)
            stop = start + tokens
            q, k, v = _heads(block, count, 3, ctx.heads) if known is None else block
            probabilities = _probabilities(q, k, bias, group) if known is None else known
            (out,) = _heads(_padded(grad[start:stop], group), count, 1, ctx.heads)
            grads = q.new_empty(3, *q.shape)
            used, wanted = probabilities, out @ v.transpose(1, 2)
            if kept is not None:
                used, wanted = used * kept, wanted * kept
            torch.bmm(used.transpose(1, 2), out, out=grads[2])
            scores = torch._softmax_backward_data(wanted, probabilities, 2, q.dtype)
            if bias is not None:
                found_biases += [None] * (len(group) - 1)
                found_biases.append(scores.view(count, ctx.heads, length, length).sum(0, keepdim=True))
            _scaled(scores, k, q.shape[2], out=grads[0])
            _scaled(scores.transpose(1, 2), q, q.shape[2], out=grads[1])
            found[start:stop] = _unpadded(_joined(grads, count), group)
            start = stop
        return found, None, None, None, *found_biases


def merged(runs: Runs, heads: int) -> list[Group]:
    """Neighbouring runs, shortest first, put together while padding costs less than a group of its own."""
    groups: list[Group] = []
    for count, length in runs:
        texts, longest, _ = _size(groups[-1]) if groups else (0, 0, 0)
        padding = texts * (length**2 - longest**2)
        if groups and padding < GROUP_COST and (texts + count) * heads * length**2 <= KEPT:
            groups[-1] = (*groups[-1], (count, length))
        else:
            groups.append(((count, length),))
    return groups


def _last_of_each(groups: Sequence[Group], biases: Sequence[Tensor]) -> list[Tensor]:
    """The bias of each group's longest run: that of a shorter one is its upper left part."""
    ends = list(accumulate(len(group) for group in groups))
    return [biases[end - 1] for end in ends] if biases else []


def _size(group: Group) -> tuple[int, int, int]:
    """Texts, tokens of the longest, tokens of all."""
    return sum(count for count, _ in group), group[-1][1], sum(count * length for count, length in group)


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # else what an encoder made first could not serve a backward pass later
def _places(group: Group, device: torch.device) -> tuple[Tensor, Tensor]:
    """Where each token stands among texts padded to the longest, [tokens]; and there, -inf behind a text's end."""
    counts, lengths = torch.tensor(group).T
    there = torch.arange(group[-1][1]) < torch.repeat_interleave(lengths, counts)[:, None]  # [texts, longest]
    places, mask = there.flatten().nonzero().squeeze(1), torch.zeros(there.shape).masked_fill_(~there, float("-inf"))
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


def _probabilities(q: Tensor, k: Tensor, bias: Tensor | None, group: Group) -> Tensor:
    """Softmax of the scaled scores: [texts * heads, length, length]."""
    scores, (count, length, _) = _scaled(q, k.transpose(1, 2), q.shape[2]), _size(group)
    by_text = scores.view(count, -1, length, length)
    if bias is not None:
        by_text += bias
    if len(group) > 1:
        by_text += _places(group, scores.device)[1].to(scores.dtype)[:, None, None]
    return torch.softmax(scores, 2)


def _scaled(a: Tensor, b: Tensor, width: int, out: Tensor | None = None) -> Tensor:
    """Batched a @ b / sqrt(width), the scaling inside the product."""
    nothing = a.new_empty(()).expand(len(a), a.shape[1], b.shape[2])
    return torch.baddbmm(nothing, a, b, beta=0, alpha=width**-0.5, out=out)
