"""One vector for a text from those of its tokens: the modes of sentence-transformers' Pooling, several side by side."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.base import LeafError, first_line
from pipeline.model.model_files import stored_modules
from pipeline.params import Pooling

__all__ = ["Pooling", "pooled", "poolings_of", "stored_pooling"]


def pooled(blocks: Iterable[Tensor], order: Tensor, pooling: Sequence[Pooling]) -> Tensor:
    """Vectors `[texts, len(pooling) * width]` float32, a mode's beside those of the mode before, in the caller's order.

    Args:
        blocks: hidden states `[texts, tokens, width]` of the texts of each length.
        order: where each text that the caller gave stands among those of all blocks.
        pooling: the modes, computed in float32.
    """
    vectors = [[_MODES[mode](block) for mode in pooling] for block in blocks]
    rows = [modes[0] if len(modes) == 1 else torch.cat(modes, 1) for modes in vectors]
    return torch.cat(rows)[order]


def pooled_padded(block: Tensor, lengths: Tensor, pooling: Sequence[Pooling]) -> Tensor:
    """The same for texts `[texts, tokens, width]` that have padding behind `lengths` tokens; in their own order."""
    places = torch.arange(block.shape[1], device=block.device)
    there = places < lengths[:, None]
    vectors = []
    for mode in pooling:
        if mode == "max":
            vectors.append(block.masked_fill(~there[:, :, None], float("-inf")).amax(1).float())
        else:
            weights = _SHARES[mode](places, lengths[:, None]) * there
            vectors.append(torch.bmm(weights[:, None], block.float()).squeeze(1))
    return vectors[0] if len(vectors) == 1 else torch.cat(vectors, 1)


def _mean(block: Tensor) -> Tensor:
    return block.mean(1, dtype=torch.float32)


def _weighted_mean(block: Tensor) -> Tensor:
    """Weights 1, 2, 3 ... by position (SGPT, arXiv 2202.08904)."""
    weights = torch.arange(1, block.shape[1] + 1, device=block.device, dtype=torch.float32)
    return (block.float() * (weights / weights.sum())[:, None]).sum(1)


_MODES: dict[Pooling, Callable[[Tensor], Tensor]] = {
    "mean": _mean,
    "cls": lambda block: block[:, 0].float(),
    "lasttoken": lambda block: block[:, -1].float(),
    "max": lambda block: block.amax(1).float(),
    "mean_sqrt_len_tokens": lambda block: _mean(block) * block.shape[1] ** 0.5,
    "weightedmean": _weighted_mean,
}

_SHARES: dict[Pooling, Callable[[Tensor, Tensor], Tensor]] = {
    "mean": lambda places, lengths: 1 / lengths,
    "cls": lambda places, lengths: (places == 0).float(),
    "lasttoken": lambda places, lengths: (places == lengths - 1).float(),
    "mean_sqrt_len_tokens": lambda places, lengths: lengths.float().rsqrt(),
    "weightedmean": lambda places, lengths: (places + 1) * 2 / (lengths * (lengths + 1)),
}
"""The share of each token in the vector of its text, for the modes that are sums."""


def poolings_of(module: Any) -> tuple[Pooling, ...]:
    """The modes of a sentence-transformers Pooling module."""
    modes: Any = module.pooling_mode
    return tuple([modes] if isinstance(modes, str) else modes)


def stored_pooling(directory: Path) -> tuple[Pooling, ...] | None:
    """The modes that a sentence-transformers directory pools by; None where it does not say.

    Raises:
        LeafError: its files are damaged.
    """
    from sentence_transformers.sentence_transformer.modules import Pooling as PoolingModule

    places = [place for kind, place in stored_modules(directory) if kind == "Pooling"]
    try:
        return poolings_of(PoolingModule.load(str(directory), subfolder=places[0])) if places else None
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise LeafError(
            f"{directory}: its pooling cannot be read ({first_line(error)}); name one in fit.student.pooling"
        ) from None
