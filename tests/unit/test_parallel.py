"""Batches side by side: in order, each on its share of the threads, and an error ends them."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.base.arrays import cosines
from pipeline.model.parallel import MAX_WORKERS, run_in_parallel, worker_count
from pipeline.params.sections import EncodeParams, TeacherParams
from pipeline.teacher.local import LocalTeacher
from tests.conftest import sentence

CPU = torch.device("cpu")


@pytest.fixture(params=[1, 2, 3, 9])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def test_results_come_in_order_and_no_more_threads_work_than_before(threads: int) -> None:
    seen: list[tuple[str, int]] = []

    def run(item: int) -> int:
        time.sleep(0.01 * (item % 3))
        seen.append((threading.current_thread().name, torch.get_num_threads()))
        return item * item

    assert list(run_in_parallel(run, list(range(20)), CPU)) == [item * item for item in range(20)]
    at_once = {name for name, _ in seen}
    assert len(at_once) <= worker_count(CPU) == {1: 1, 2: 2, 3: 3, 9: 3}[threads] <= MAX_WORKERS
    assert all(count == threads // worker_count(CPU) for _, count in seen)
    assert torch.get_num_threads() == threads


def test_a_single_batch_has_all_threads(threads: int) -> None:
    assert list(run_in_parallel(lambda _: torch.get_num_threads(), ["only"], CPU)) == [threads]


def test_an_error_is_raised_here_and_the_rest_does_not_begin(threads: int) -> None:
    initial_weights: list[int] = []

    def run(item: int) -> int:
        initial_weights.append(item)
        time.sleep(0.005)
        if item == 2:
            raise ValueError("batch 2")
        return item

    found = run_in_parallel(run, list(range(200)), CPU)
    with pytest.raises(ValueError, match="batch 2"):
        list(found)
    time.sleep(0.05)
    assert len(initial_weights) < 100
    assert torch.get_num_threads() == threads


def test_vectors_do_not_depend_on_who_computed_them(threads: int, tiny_teacher: Path) -> None:
    teacher = LocalTeacher(TeacherParams(str(tiny_teacher)), EncodeParams(token_budget=64))
    ids = teacher.tokenize([sentence(number) for number in range(90)], "document")
    together = teacher.encode_tokens(ids)
    alone = np.concatenate(
        [teacher.encode_tokens(teacher.tokenize([sentence(number)], "document")) for number in range(90)]
    )
    assert (cosines(together, alone) > 0.999).all()  # bfloat16, in batches of other shapes
    assert teacher.encode_tokens(teacher.tokenize([], "document")).shape == (0, teacher.dim)
