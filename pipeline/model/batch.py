"""Batches of token ids: texts laid end to end in order of length, and how many texts are cut into batches."""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from pipeline.base import LeafError
from pipeline.model.device import upload

TOKEN_MULTIPLE = 64
"""The tokens of a batch are rounded up to a multiple of this: oneDNN builds a kernel for every shape that it has not
seen, and keeps the last of them, some hundreds of kilobytes each."""
SPARE_SHARE = 0.25  # tokens that `evened` may add


@dataclass(frozen=True)
class Batch:
    """Texts laid end to end, shortest first.

    Behind the last text there are up to TOKEN_MULTIPLE - 1 tokens of no text: none attends to them, and no pooling
    counts them. Batches of one shape, which a step on an accelerator wants, have them behind every text (`pad`).
    """

    ids: Tensor
    """`[tokens]`."""
    positions: Tensor
    """`[tokens]`: place of each token in its text, from 0."""
    length_groups: tuple[tuple[int, int], ...]
    """(texts, tokens of each) for each length, ascending."""
    order: Tensor
    """`[texts]`: where each text that the caller gave stands among those of the batch."""
    lengths: Tensor | None = None
    """`[texts]`: tokens of each text without padding, where all are padded to one length and in the caller's order."""

    @classmethod
    def padded(cls, ids: Tensor, lengths: Tensor) -> "Batch":
        """Texts padded to one length: token ids `[texts, length]` and the tokens of each without padding `[texts]`."""
        count, length = ids.shape
        positions = torch.arange(length, device=ids.device).repeat(count)
        order = torch.arange(count, device=ids.device)
        return cls(ids.reshape(-1), positions, ((count, length),), order, lengths)

    def to(self, device: torch.device) -> "Batch":
        """The same batch on another device."""
        lengths = None if self.lengths is None else upload(self.lengths, device)
        ids, positions, order = (upload(tensor, device) for tensor in (self.ids, self.positions, self.order))
        return Batch(ids, positions, self.length_groups, order, lengths)

    def behind(self) -> Tensor | None:
        """`[texts, length]`: whether a token is padding; None if the texts are not padded."""
        if self.lengths is None:
            return None
        places = torch.arange(self.length_groups[0][1], device=self.lengths.device)
        return places >= self.lengths[:, None]


def pack(token_ids: Sequence[Sequence[int] | np.ndarray], shortest: int = 1) -> Batch:
    """Lay texts, given as token ids with their special tokens, end to end in order of length (stable).

    Raises:
        LeafError: there is no text, or one has fewer than `shortest` tokens.
    """
    lengths = np.fromiter((len(ids) for ids in token_ids), dtype=np.int64, count=len(token_ids))
    if lengths.size == 0 or lengths.min() < shortest:
        raise LeafError("a batch needs at least one text and every text at least one token")
    by_length = np.argsort(lengths, kind="stable")
    spare = np.zeros(-int(lengths.sum()) % TOKEN_MULTIPLE, dtype=np.int64)
    flat = np.concatenate([*(np.asarray(token_ids[i], dtype=np.int64) for i in by_length), spare])
    values, counts = np.unique(lengths, return_counts=True)
    positions = np.concatenate([*(np.tile(np.arange(v), c) for v, c in zip(values, counts, strict=True)), spare])
    order = np.empty_like(by_length)
    order[by_length] = np.arange(len(by_length))
    length_groups = tuple((int(c), int(v)) for v, c in zip(values, counts, strict=True))
    return Batch(torch.from_numpy(flat), torch.from_numpy(positions), length_groups, torch.from_numpy(order))


def pad(batch: Batch, texts: int, length: int) -> tuple[Tensor, Tensor]:
    """Token ids `[texts, length]` in the caller's order, and the tokens of each text `[texts]`.

    The batch may hold fewer texts; those that are added have one token.
    """
    own = np.repeat([length for _, length in batch.length_groups], [count for count, _ in batch.length_groups])
    sorted_ids = np.zeros((len(own), length), dtype=np.int64)
    sorted_ids[np.arange(length) < own[:, None]] = batch.ids[: own.sum()].numpy()
    ids, lengths = torch.zeros(texts, length, dtype=torch.int64), torch.ones(texts, dtype=torch.int64)
    order = batch.order.numpy()
    ids.numpy()[: len(own)], lengths.numpy()[: len(own)] = sorted_ids[order], own[order]
    return ids, lengths


def evened(batch: Batch) -> Batch:
    """The batch with its texts padded to the longest, where that adds few tokens; else the same batch."""
    texts, longest = len(batch.order), batch.length_groups[-1][1]
    if len(batch.length_groups) == 1 or texts * longest > (1 + SPARE_SHARE) * len(batch.ids):
        return batch
    return Batch.padded(*pad(batch, texts, longest))


def split(batch: Batch, budget: int) -> list[tuple[Batch, Tensor]]:
    """Parts of at most `budget` tokens (or one text), each with the caller's row numbers of its texts, in its order."""
    rows = torch.argsort(batch.order)
    if len(batch.ids) <= budget:
        return [(batch, torch.arange(len(rows)))]
    lengths = np.repeat([length for _, length in batch.length_groups], [count for count, _ in batch.length_groups])
    texts = np.split(batch.ids[: lengths.sum()].numpy(), np.cumsum(lengths)[:-1])
    cuts, tokens = [0], 0
    for place, length in enumerate(lengths):
        if tokens and tokens + length > budget:
            cuts.append(place)
            tokens = 0
        tokens += length
    bounds = pairwise([*cuts, len(texts)])
    return [(pack(texts[start:stop]), rows[start:stop]) for start, stop in bounds]  # sorted already: `pack` is stable


def portion(batch: Batch, number: int, of: int) -> tuple[Batch | None, Tensor]:
    """Portion `number` of `of`: in order of length every `of`-th text, so that all have about as many tokens.

    None where there are fewer texts than portions. The second is as in `split`: the caller's row numbers of its texts.
    """
    lengths = np.repeat([length for _, length in batch.length_groups], [count for count, _ in batch.length_groups])
    rows = torch.argsort(batch.order)[number::of]
    if not len(rows):
        return None, rows
    ends = np.cumsum(lengths)
    return pack(np.split(batch.ids[: ends[-1]].numpy(), ends[:-1])[number::of]), rows


def token_batches(lengths: np.ndarray, budget: int, workers: int = 1, equal_lengths: bool = False) -> list[np.ndarray]:
    """Cut texts into batches of similar length and at most `budget` tokens (or one text): lists of row numbers.

    There are as few batches as possible, but a multiple of the number of `workers`, and all are about equally large.
    They come in a fixed random order, so that a rate measured halfway holds for the rest. With `equal_lengths` all
    texts of a batch have the same length, and there are as many batches as that takes.
    """
    if equal_lengths:
        groups = [np.flatnonzero(lengths == length) for length in np.unique(lengths)]
        return [rows[cut] for rows in groups for cut in token_batches(lengths[rows], budget)]
    order = np.argsort(-lengths, kind="stable")
    ends = np.cumsum(lengths[order])
    if not len(order):
        return []
    most = -(-(len(_cuts(ends, budget)) - 1) // workers) * workers
    least = min(int(ends[-1]) // most, budget)
    even = bisect_left(range(budget), True, lo=least, key=lambda size: len(_cuts(ends, size)) - 1 <= most)
    batches = [order[a:b] for a, b in pairwise(_cuts(ends, even))]
    return [batches[i] for i in np.random.default_rng(0).permutation(len(batches))]


def _cuts(ends: np.ndarray, budget: int) -> list[int]:
    """Where batches of at most `budget` tokens begin, and where the last ends; `ends` are cumulative token counts."""
    cuts = [0]
    while cuts[-1] < len(ends):
        done = int(ends[cuts[-1] - 1]) if cuts[-1] else 0
        cuts.append(max(cuts[-1] + 1, int(np.searchsorted(ends, done + budget, side="right"))))
    return cuts
