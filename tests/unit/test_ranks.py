"""The shares of several processes add up to the step of one. Threads stand for processes here."""

import copy
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.fit.ranks import ALONE, Ranks
from pipeline.fit.step import PackedStep, PaddedStep, step_for
from pipeline.model.student import Student
from pipeline.params.sections import FitParams
from tests.unit.test_device import assert_equal_weights, checkpoint, params, student, trained

__all__ = ["checkpoint", "student"]
MakeStep = Callable[[Student, FitParams, Ranks], Any]


class Threads:
    """Adds the tensors of several threads up, in the order of their numbers."""

    def __init__(self, size: int) -> None:
        self.given: list[Sequence[Tensor]] = [()] * size
        self.barrier = threading.Barrier(size)

    def sum(self, rank: int, tensors: Sequence[Tensor]) -> None:
        self.given[rank] = [tensor.detach().clone() for tensor in tensors]
        self.barrier.wait(60)
        for tensor, parts in zip(tensors, zip(*self.given, strict=True), strict=True):
            tensor.detach().copy_(torch.stack(parts).sum(0))
        self.barrier.wait(60)


class ThreadRanks(Ranks):
    """One of these threads."""

    def __init__(self, rank: int, threads: Threads) -> None:
        super().__init__(rank, len(threads.given))
        self.threads = threads

    def sum(self, tensors: Sequence[Tensor], divisor: float = 1.0) -> None:
        assert divisor == 1.0
        self.threads.sum(self.rank, tensors)


def packed(student: Student, settings: FitParams, ranks: Ranks) -> Any:
    return PackedStep(student, settings, torch.float32, ranks)


def padded(student: Student, settings: FitParams, ranks: Ranks) -> Any:
    return PaddedStep(student, settings, torch.float32, lambda run: run, ranks)


@pytest.mark.parametrize("make", [packed, padded])
@pytest.mark.parametrize("size", [2, 3])
def test_shares_change_the_weights_as_the_whole_batch_does(
    student: Student, checkpoint: Path, make: MakeStep, size: int
) -> None:
    """The last batch has fewer texts than a full one; with three threads, two of them."""
    settings = params(checkpoint, batch_size=3 if size == 3 else 8)
    whole, losses = trained(make(copy.deepcopy(student), settings, ALONE), size=settings.batch_size)
    threads = Threads(size)
    steps = [make(copy.deepcopy(student), settings, ThreadRanks(rank, threads)) for rank in range(size)]
    with ThreadPoolExecutor(size) as pool:
        results = list(pool.map(lambda step: trained(step, size=settings.batch_size), steps))
    for weights, own_losses in results:
        assert own_losses == pytest.approx(losses, rel=1e-4)
        assert_equal_weights(weights, whole)
        assert all(torch.equal(weights[name], value) for name, value in results[0][0].items())


def test_a_step_alone_asks_nobody(student: Student, checkpoint: Path) -> None:
    settings = params(checkpoint)
    first, _ = trained(step_for(copy.deepcopy(student), settings, torch.float32))
    second, _ = trained(PackedStep(copy.deepcopy(student), settings, torch.float32))
    assert all(torch.equal(first[name], value) for name, value in second.items())
