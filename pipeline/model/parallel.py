"""Forward passes side by side: on a CPU, cores that each have a batch of their own need not wait for each other."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import torch

from pipeline.model.batch import token_batches

T = TypeVar("T")
R = TypeVar("R")
MOST = 4  # batches under way at once; where there are more cores, several share one


def worker_count(device: torch.device) -> int:
    """How many batches `run_in_parallel` computes at once, given as many: the number that leaves no core idle."""
    threads = torch.get_num_threads() if device.type == "cpu" else 1
    return max(range(1, min(threads, MOST) + 1), key=lambda count: (threads // count * count, count))


def run_in_parallel(run: Callable[[T], R], batches: Sequence[T], device: torch.device) -> Iterator[R]:
    """`run` of every batch, in order. On a CPU several are under way at once, each on its share of the threads.

    A batch's result does not depend on the others: only on how many threads it has. An exception of `run` is raised
    here, and batches that have not begun are left out.
    """
    threads, count = torch.get_num_threads(), min(worker_count(device), len(batches))
    if count < 2:
        yield from map(run, batches)
        return
    try:
        # PyTorch keeps the number of threads for each thread that asks, so the caller's own stays.
        with ThreadPoolExecutor(count, "stream", torch.set_num_threads, (threads // count,)) as pool:
            yield from pool.map(run, batches)  # which cancels the rest where it ends early
    finally:
        torch.set_num_threads(threads)  # threads to come take the number that was set last


def vectors_in_parts(
    forward: Callable[[list[Sequence[int]]], np.ndarray],
    token_ids: Sequence[Sequence[int]],
    budget: int,
    device: torch.device,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Row numbers and what `forward` makes of these texts, [texts, dim], batch by batch until every text had its turn.

    At most `budget` tokens (or a text for each batch) are under way at once.
    """
    lengths = np.fromiter(map(len, token_ids), dtype=np.int64, count=len(token_ids))
    count = worker_count(device)
    batches = token_batches(lengths, budget // count, count)
    return zip(
        batches, run_in_parallel(lambda rows: forward([token_ids[row] for row in rows]), batches, device), strict=True
    )
