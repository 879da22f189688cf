"""Forward passes in parallel: on a CPU, workers that each have a batch of their own do not wait for each other."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from pipeline.model.batch import token_batches
from pipeline.model.device import download

T = TypeVar("T")
R = TypeVar("R")
MAX_WORKERS = 4  # batches computed at once; where there are more cores, several share one


def worker_count(device: torch.device) -> int:
    """How many batches `run_in_parallel` computes at once, if there are that many: as many as leave no core idle."""
    threads = torch.get_num_threads() if device.type == "cpu" else 1
    return max(range(1, min(threads, MAX_WORKERS) + 1), key=lambda count: (threads // count * count, count))


def run_in_parallel(run: Callable[[T], R], batches: Sequence[T], device: torch.device) -> Iterator[R]:
    """`run` of every batch, in order. On a CPU several are computed at once, each on its share of the threads.

    A batch's result does not depend on the others, only on the number of its threads. An exception of `run` is raised
    here, and batches that have not begun are left out.
    """
    threads, count = torch.get_num_threads(), min(worker_count(device), len(batches))
    if count < 2:
        yield from map(run, batches)
        return
    try:
        # PyTorch keeps the number of threads for each thread that sets it, so that of the caller stays.
        with ThreadPoolExecutor(count, "forward", torch.set_num_threads, (threads // count,)) as workers:
            yield from workers.map(run, batches)  # cancels the rest where it ends early
    finally:
        torch.set_num_threads(threads)  # threads started later take the number that was set last


def in_threads(run: Callable[[T], R], items: Iterable[T], threads: int) -> Iterator[R]:
    """`run` of every item, in order, several at once. The first runs alone: it may set up what all of them share."""
    remaining = iter(items)
    yield from map(run, islice(remaining, None if threads < 2 else 1))
    with ThreadPoolExecutor(threads) as pool:
        yield from pool.map(run, remaining)


def vectors_in_parts(
    forward: Callable[[list[Sequence[int]]], Tensor],
    token_ids: Sequence[Sequence[int]],
    budget: int,
    device: torch.device,
    equal_lengths: bool = False,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Row numbers, and `forward` of those texts `[texts, dim]`, batch by batch until all texts are done.

    At most `budget` tokens (or a text for each worker) are computed at once; with `equal_lengths`, only texts of one
    length together. An accelerator is given the next batch before the vectors of the last one are waited for.
    """
    lengths = np.fromiter(map(len, token_ids), dtype=np.int64, count=len(token_ids))
    workers = worker_count(device)
    batches = token_batches(lengths, budget // workers, workers, equal_lengths)
    results = run_in_parallel(lambda rows: download(forward([token_ids[row] for row in rows])), batches, device)
    arrived = (wait().numpy() for wait in _behind(results, 0 if device.type == "cpu" else 1))
    return zip(batches, arrived, strict=True)


def _behind(items: Iterator[T], count: int) -> Iterator[T]:
    """The same items, each given out only after `count` further ones were taken."""
    held: deque[T] = deque()
    for item in items:
        held.append(item)
        if len(held) > count:
            yield held.popleft()
    yield from held
