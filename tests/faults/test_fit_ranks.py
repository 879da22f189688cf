"""A student that several processes fit is that of one, whatever is killed on the way."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from pipeline.base.errors import LeafError
from pipeline.fit.losses import LOSSES
from pipeline.fit.ranks import check_separable
from pipeline.model.batch import pack, portion
from tests.conftest import ROOT
from tests.faults.test_fit_resume import WEIGHTS, Stage, arguments, encoded, states
from tests.forked import Process, Start

__all__ = ["encoded"]
TOLERANCE = 1e-5  # of a weight, after 200 steps at a rate of 1e-3: sums of float32 in another order
STEPS: dict[str, Any] = {
    "epochs_per_cycle": 5,
    "max_steps": 200,
    "validate_every": 100,
    "checkpoint_every": 10,
    "dropout": 0.0,
    "precision": "float32",
}


def weights(student: Path) -> dict[str, Tensor]:
    return {f"{file} {name}": value for file in WEIGHTS for name, value in load_file(student / file).items()}


def check_same(first: dict[str, Tensor], second: dict[str, Tensor], tolerance: float = 0.0) -> None:
    assert first.keys() == second.keys()
    for name, value in first.items():
        # The gradient of a key's bias is rounding alone, as it moves all scores of a softmax alike; so is its sign.
        if not tolerance or not name.endswith("key.bias"):
            assert torch.allclose(second[name], value, atol=tolerance, rtol=0), name


@pytest.mark.parametrize("number", [2, 3, 5])
def test_portions_hold_each_text_once(number: int) -> None:
    texts = [list(range(1, 2 + length % 7)) for length in range(13)]
    batch = pack(texts)
    portions = [portion(batch, part, number) for part in range(number)]
    assert sorted(row for _, rows in portions for row in rows.tolist()) == list(range(13))
    for own, rows in portions:
        assert own is not None
        again = pack([texts[row] for row in rows])
        assert torch.equal(own.ids, again.ids) and own.length_groups == again.length_groups
        assert len(rows) in (13 // number, 13 // number + 1)
    assert portion(pack(texts[:1]), 1, 2)[0] is None


def test_a_loss_that_compares_texts_is_not_computed_by_shares() -> None:
    for name, loss in LOSSES.items():
        check_separable(loss, name, 32)
    with pytest.raises(LeafError, match=r"fit\.loss: `relations` compares the texts of a batch with each other"):
        check_separable(
            lambda vectors, targets: (vectors @ vectors.T - targets @ targets.T).square().mean(1), "relations", 32
        )


def test_two_processes_give_the_student_of_one_and_survive_kills(
    encoded: Path, write_params: Callable[..., Path], stage: Stage, start: Start
) -> None:
    write_params(fit=STEPS)
    one = stage("fit", *arguments("one"), OMP_NUM_THREADS="1")
    assert one.returncode == 0, one.stderr
    write_params(fit=STEPS, cluster={"fit_ranks": 2})
    two = stage("fit", *arguments("two"))
    assert two.returncode == 0, two.stderr
    check_same(weights(encoded / "one/student"), weights(encoded / "two/student"), TOLERANCE)
    assert "So many processes shared each batch: 2 from step 0." in (encoded / "two/student/README.md").read_text()

    process, kills = start("fit", *arguments("torn")), 0
    for victim in (1, 0, "agent"):  # each time all are started again, and go on from the last checkpoint
        wait_for_checkpoint(encoded / "torn", process)
        if process.poll() is None and (ranks := ranks_below(encoded)):
            kills += 1
            os.kill(process.pid if isinstance(victim, str) else ranks[victim], signal.SIGKILL)
    process.wait()
    assert kills
    wait_until(lambda: not ranks_below(encoded))  # the kernel ends them with their parent
    torn = stage("fit", *arguments("torn"))
    assert torn.returncode == 0, torn.stderr
    check_same(weights(encoded / "two/student"), weights(encoded / "torn/student"))


def wait_for_checkpoint(folder: Path, process: Process) -> None:
    """Until another one is written, or the fit has ended."""
    before = written_at(folder)
    wait_until(lambda: written_at(folder) > before or process.poll() is not None)


def written_at(folder: Path) -> float:
    """When the last checkpoint was written."""
    return max((file.stat().st_mtime for file in states(folder)), default=0.0)


def ranks_below(folder: Path) -> list[int]:
    """Process ids of the fit's processes, by their number."""
    found: dict[int, int] = {}
    for place in Path("/proc").iterdir():
        try:
            if (place / "cwd").resolve() != folder.resolve():
                continue
            variables = dict(part.split("=", 1) for part in (place / "environ").read_text().split("\0") if "=" in part)
            found |= {int(variables["RANK"]): int(place.name)} if "RANK" in variables else {}
        except (OSError, ValueError):
            continue
    return [found[rank] for rank in sorted(found)]


def wait_until(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


@pytest.mark.long
def test_replicas_are_averaged_and_continued(
    encoded: Path, write_params: Callable[..., Path], stage: Stage, start: Start
) -> None:
    """Half as many steps for the same texts; killed and continued, the same bits."""
    write_params(fit={**STEPS, "max_steps": None, "dropout": 0.1, "replicas": 2, "average_every": 4})
    whole = stage("fit", *arguments("whole"))
    assert whole.returncode == 0, whole.stderr
    process = start("fit", *arguments("torn"))
    wait_until(lambda: written_at(encoded / "torn") or process.poll() is not None)
    time.sleep(0.2)
    process.kill()
    process.wait()
    wait_until(lambda: not ranks_below(encoded))
    torn = stage("fit", *arguments("torn"))
    assert torn.returncode == 0, torn.stderr
    check_same(weights(encoded / "whole/student"), weights(encoded / "torn/student"))
    card = (encoded / "whole/student/README.md").read_text()
    assert "2 replicas trained side by side and were averaged every 4 steps." in card


@pytest.mark.long
def test_two_agents_of_torchrun_fit_as_two_nodes_do(
    encoded: Path, write_params: Callable[..., Path], stage: Stage
) -> None:
    """The command of docs/scale.md."""
    write_params(fit={**STEPS, "max_steps": 20}, cluster={"fit_ranks": 2})
    two = stage("fit", *arguments("two"))
    assert two.returncode == 0, two.stderr
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1", "--rdzv-id=fit"]
    command = [*torchrun, "--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{port}", "--local-addr=127.0.0.1"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    agents = [
        subprocess.Popen([*command, "-m", "stages.fit", *arguments("nodes")], cwd=encoded, env=environment)
        for _ in range(2)
    ]
    assert [agent.wait(280) for agent in agents] == [0, 0]
    check_same(weights(encoded / "two/student"), weights(encoded / "nodes/student"))


def test_more_processes_than_texts_in_a_batch_are_refused(
    encoded: Path, write_params: Callable[..., Path], stage: Stage
) -> None:
    write_params(fit={"batch_size": 1}, cluster={"fit_ranks": 2})
    refused = stage("fit", *arguments("refused"))
    assert refused.returncode == 1 and "Traceback" not in refused.stderr
    assert "cluster.fit_ranks: 2 processes cannot share a batch of 1 texts (fit.batch_size)" in refused.stderr
