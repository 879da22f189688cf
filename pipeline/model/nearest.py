"""Exact search in blocks: the best of what has been compared so far, and a further block of similarities."""

import torch
from torch import Tensor

Best = tuple[Tensor, Tensor]
"""Scores `[queries, k]` and the rows `[queries, k]` that have them, best first; of equal scores the lower row first."""


def none_yet(queries: int, device: torch.device) -> Best:
    """The best before anything has been compared: `[queries, 0]`."""
    return torch.empty((queries, 0), device=device), torch.empty((queries, 0), dtype=torch.int64, device=device)


def keep_best(best: Best, similarities: Tensor, first: int, k: int) -> Best:
    """The best `k` of `best` and of `similarities [queries, n]`, whose rows are `first` and those that follow it.

    Blocks come in the order of their rows.
    """
    scores, rows = best
    block, block_rows = similarities.topk(min(k, similarities.shape[1]), dim=1)
    block_rows, order = block_rows.sort(dim=1)
    scores = torch.cat([scores, block.gather(1, order)], dim=1)
    rows = torch.cat([rows, block_rows + first], dim=1)
    # Rows of earlier blocks are smaller, and both parts ascend: a stable sort keeps ties in the order of rows.
    order = scores.sort(dim=1, descending=True, stable=True).indices[:, :k]
    return scores.gather(1, order), rows.gather(1, order)
