"""Attention over texts laid end to end, with gradients, in bounded memory.

On a CPU both of PyTorch's implementations are expensive: its fused kernel is slow for short texts and has a slow
bfloat16 backward pass, and the plain formula keeps several [texts, heads, length, length] tensors a layer until the
backward pass. Here the texts of each length are two batched products and a softmax, and only the probabilities are
kept. Texts too long for that go through the fused kernel, and their probabilities are computed again going back.

Scores are laid out [keys, queries] and the softmax runs down the columns: PyTorch then computes whole registers of
queries at once. Along a row it would end each softmax in a sum over one register, and compute a row that fills no
register value by value. So queries are padded, which needs no mask; keys are not.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import lru_cache
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from pipeline.model.device import traits_of, upload

LengthGroups = Sequence[tuple[int, int]]
Group = tuple[tuple[int, int], ...]
KEPT = 1 << 23
"""Most probabilities computed together, so that memory stays bounded; a text with more of its own keeps none (unless
there is dropout)."""
SPARE_BYTES = 1 << 27
"""Memory of a call is kept for the next one unless it is larger."""
REGISTER = 32
"""Queries are padded to a multiple of this many bfloat16 values, a register of 512 bits."""


def attention(
    qkv: Tensor,
    length_groups: LengthGroups,
    heads: int,
    biases: Sequence[Tensor] = (),
    dropout: float = 0.0,
    *,
    behind: Tensor | None = None,
) -> Tensor:
    """Softmax attention within each text: [tokens, 3 * width] -> [tokens, width]; 0 for tokens behind the last text.

    Args:
        qkv: queries, keys and values side by side.
        runs: groups of (texts, tokens each), in the order in which the texts lie: shortest first, each length once.
        heads: number of attention heads.
        biases: nothing, or for each group what is added to its scores, [1, heads, length, length]. That of a shorter
            length must be the upper left part of a longer length's, which takes its gradient where both share a call.
        dropout: share of the probabilities that is left out.
        behind: for texts padded to one length, which keys are padding, [texts, length].
    """
    if behind is not None or not traits_of(qkv.device).packed:
        longest = biases[-1] if biases else None
        return fused_attention(qkv, tuple(length_groups), heads, longest, dropout, behind=behind)
    mixed: Tensor = _Attention.apply(qkv, length_groups, heads, dropout, *biases)  # type: ignore[no-untyped-call]
    return mixed


def fused_attention(
    qkv: Tensor,
    group: Group,
    heads: int,
    bias: Tensor | None,
    dropout: float = 0.0,
    *,
    behind: Tensor | None = None,
) -> Tensor:
    """The same by PyTorch's fused kernel, once over all texts padded to the longest, whose `bias` is taken.

    For GPUs, where launching a kernel for every length costs more than computing on padding.
    """
    count, length, tokens = _size(group)
    q, k, v = _padded(qkv[:tokens], group).view(count, length, 3, heads, -1).permute(2, 0, 3, 1, 4)
    mask = bias
    if len(group) > 1:
        behind = _places(group, qkv.device)[1]
    if behind is not None:
        hidden = q.new_zeros(behind.shape).masked_fill_(behind, float("-inf"))[:, None, None]
        mask = hidden.expand(-1, heads, length, -1) if bias is None else hidden + bias
    mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
    texts = _unpadded(mixed.transpose(1, 2).reshape(count * length, -1), group)
    return texts if len(qkv) == tokens else torch.cat([texts, texts.new_zeros(len(qkv) - tokens, texts.shape[1])])


def _size(group: Group) -> tuple[int, int, int]:
    """Texts, tokens of the longest, tokens of all."""
    return sum(count for count, _ in group), group[-1][1], sum(count * length for count, length in group)


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # else a tensor cached during inference could not be used in a backward pass
def _places(group: Group, device: torch.device) -> tuple[Tensor, Tensor]:
    """Where each token stands among texts padded to the longest, [tokens]; which keys are behind a text's end."""
    counts, lengths = torch.tensor(group).T
    there = torch.arange(group[-1][1]) < torch.repeat_interleave(lengths, counts)[:, None]  # [texts, keys]
    places = there.flatten().nonzero().squeeze(1)
    return upload(places, device), upload(~there, device)


def _padded(block: Tensor, group: Group) -> Tensor:
    """[tokens, width] -> [texts * longest, width], 0 behind a text's end."""
    if len(group) == 1:
        return block
    count, length, _ = _size(group)
    return block.new_zeros(count * length, block.shape[1]).index_copy(0, _places(group, block.device)[0], block)


def _unpadded(dense: Tensor, group: Group) -> Tensor:
    """The reverse of `_padded`."""
    return dense if len(group) == 1 else dense.index_select(0, _places(group, dense.device)[0])


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, qkv: Tensor, length_groups: LengthGroups, heads: int, dropout: float, *biases: Tensor
    ) -> Tensor:
        out = qkv.new_empty(len(qkv), qkv.shape[1] // 3)
        by_length = {bias.shape[3]: bias for bias in biases}
        cut, needed = _cut(length_groups, heads), any(ctx.needs_input_grad)
        saved: list[tuple[Tensor | None, ...]] = []
        start = 0
        explicit = [piece for piece in cut if dropout or _bounded(*piece, heads)]
        with nullcontext() if needed else _spare(qkv, explicit, heads) as spare:
            for count, length in cut:
                stop = start + count * length
                block, bias = qkv[start:stop], by_length.get(length)
                if not dropout and not _bounded(count, length, heads):
                    out[start:stop] = fused_attention(block, ((count, length),), heads, bias)
                    for_backward: tuple[Tensor | None, ...] = block, None, None, None, None
                else:
                    q, k, v, scores = _laid_out(block, length, heads, spare)
                    probabilities = _probabilities(q, k, bias, scores)
                    kept = _kept(probabilities, dropout)
                    used = probabilities if kept is None else probabilities * kept
                    mixed = torch.bmm(used.transpose(1, 2), v, out=None if needed else q)
                    _put(out[start:stop], length, mixed)
                    for_backward = q, k, v, probabilities, kept
                if needed:
                    saved.append(for_backward)
                start = stop
        out[start:] = 0
        if saved:
            ctx.save_for_backward(*biases, *chain.from_iterable(saved))
            ctx.cut, ctx.heads, ctx.biases, ctx.tokens = cut, heads, len(biases), len(qkv)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        biases, saved = ctx.saved_tensors[: ctx.biases], iter(ctx.saved_tensors[ctx.biases :])
        by_length = {bias.shape[3]: bias for bias in biases}
        grad_qkv = grad.new_empty(ctx.tokens, 3 * grad.shape[1])
        grad_biases: dict[int, Tensor] = {}
        start = 0
        for (count, length), first, *others, kept in zip(ctx.cut, *[saved] * 5, strict=True):
            stop = start + count * length
            q, k, v, probabilities = first, *others
            if probabilities is None:  # too many to keep
                q, k, v, scores = _laid_out(first, length, ctx.heads)
                probabilities = _probabilities(q, k, by_length.get(length), scores)
            grad_out = torch.empty_like(q)
            _put_heads(grad[start:stop].view(count, length, ctx.heads, -1), grad_out)
            used, grad_used = probabilities, torch.bmm(v, grad_out.transpose(1, 2))  # 0 for padding queries
            if kept is not None:
                used, grad_used = used * kept, grad_used * kept
            grad_v = torch.bmm(used, grad_out)
            scores = torch._softmax_backward_data(grad_used, probabilities, 1, q.dtype)
            if biases:
                by_head = scores.view(count, ctx.heads, length, -1)[..., :length]
                summed = by_head.sum(0, keepdim=True).transpose(2, 3)
                grad_biases[length] = grad_biases[length] + summed if length in grad_biases else summed
            grad_q, grad_k = _scaled(scores.transpose(1, 2), k, q.shape[2]), _scaled(scores, q, q.shape[2])
            _put(grad_qkv[start:stop], length, grad_q, grad_k, grad_v)
            start = stop
        grad_qkv[start:] = 0
        return grad_qkv, None, None, None, *(grad_biases.get(bias.shape[3]) for bias in biases)


def _cut(length_groups: LengthGroups, heads: int) -> list[tuple[int, int]]:
    """The length groups, in as many pieces as keep the probabilities of each within bounds."""
    pieces = []
    for texts, length in length_groups:
        most = max(1, KEPT // (heads * length * _columns(length)))
        pieces += [(min(most, texts - done), length) for done in range(0, texts, most)]
    return pieces


def _bounded(texts: int, length: int, heads: int) -> bool:
    """Whether the probabilities of these texts may be kept."""
    return texts * heads * length * _columns(length) <= KEPT


def _columns(length: int) -> int:
    """Queries of a text of so many tokens, padding included."""
    return -(-length // REGISTER) * REGISTER


def _kept(probabilities: Tensor, dropout: float) -> Tensor | None:
    """Factor of each probability under dropout: 0, or 1 / (1 - dropout)."""
    if not dropout:
        return None
    return torch.empty_like(probabilities).bernoulli_(1 - dropout).div_(1 - dropout)


def _laid_out(qkv: Tensor, length: int, heads: int, spare: Tensor | None = None) -> tuple[Tensor, ...]:
    """Queries [texts * heads, columns, width / heads], 0 from the length on; keys; values; memory for the scores.

    Each is contiguous, since PyTorch would copy a strided view before it multiplies. They lie in `spare` if given.
    """
    parts = qkv.view(-1, length, 3, heads, qkv.shape[1] // (3 * heads)).unbind(2)
    matrices, columns, width = len(parts[0]) * heads, _columns(length), parts[0].shape[3]
    sizes = _sizes(matrices, length, width)
    flat = qkv.new_empty(sum(sizes)) if spare is None else spare[: sum(sizes)]
    q, k, v, scores = torch.split(flat, sizes)
    laid_out = q.view(matrices, columns, width), k.view(matrices, length, width), v.view(matrices, length, width)
    for part, into in zip(parts, laid_out, strict=True):
        _put_heads(part, into)
    return *laid_out, scores.view(matrices, length, columns)


def _sizes(matrices: int, length: int, width: int) -> list[int]:
    """Number of elements of queries, keys, values and scores, for so many matrices (texts times heads)."""
    columns = _columns(length)
    return [matrices * size for size in (columns * width, length * width, length * width, length * columns)]


_SPARES: list[Tensor] = []


@contextmanager
def _spare(qkv: Tensor, cut: LengthGroups, heads: int) -> Iterator[Tensor]:
    """Uninitialised memory of `_laid_out` for any of these texts; the next call uses it again.

    Memory that was just used is in the processor's caches and causes no page faults, unlike buffers of changing sizes.
    """
    width = qkv.shape[1] // (3 * heads)
    wanted = max((sum(_sizes(texts * heads, length, width)) for texts, length in cut), default=0) * qkv.itemsize
    try:
        memory = _SPARES.pop()
    except IndexError:
        memory = None
    if memory is None or len(memory) < wanted or memory.device != qkv.device:
        with torch.inference_mode(False):  # else it could not be written to outside of inference mode
            memory = torch.empty(wanted, dtype=torch.uint8, device=qkv.device)
    yield memory[:wanted].view(qkv.dtype)
    if len(memory) <= SPARE_BYTES:
        _SPARES.append(memory)


def _put_heads(block: Tensor, into: Tensor) -> None:
    """[texts, length, heads, width / heads] into [texts * heads, rows, width / heads], 0 from the length on."""
    texts, length, heads, width = block.shape
    target = into.view(texts, heads, -1, width)
    if target.shape[2] > length:
        target[:, :, length:] = 0
        target = target[:, :, :length]
    target.copy_(block.transpose(1, 2))


def _put(into: Tensor, length: int, *parts: Tensor) -> None:
    """The reverse of `_put_heads`, into [texts * length, parts * width]."""
    width = parts[0].shape[2]
    where = into.view(-1, length, len(parts), into.shape[1] // (len(parts) * width), width)
    for part, there in zip(parts, where.unbind(2), strict=True):
        texts, _, heads, _ = there.shape
        there.copy_(part.view(texts, heads, -1, width)[:, :, :length].transpose(1, 2))


def _probabilities(q: Tensor, k: Tensor, bias: Tensor | None, scores: Tensor) -> Tensor:
    """Softmax of the scaled scores, in their place: [texts * heads, keys, queries]."""
    if bias is not None:
        # The bias is what the product is added to, which saves a pass over the scores.
        padded = functional.pad(bias.transpose(2, 3), (0, scores.shape[2] - bias.shape[2]))
        scores.view(-1, bias.shape[1], *scores.shape[1:]).copy_(padded)
    torch.baddbmm(scores, k, q.transpose(1, 2), beta=float(bias is not None), alpha=q.shape[2] ** -0.5, out=scores)
    return torch.softmax(scores, 1, out=scores)


def _scaled(a: Tensor, b: Tensor, width: int) -> Tensor:
    """Batched a @ b / sqrt(width), the scaling inside the product."""
    nothing = a.new_empty(()).expand(len(a), a.shape[1], b.shape[2])
    return torch.baddbmm(nothing, a, b, beta=0, alpha=width**-0.5)
