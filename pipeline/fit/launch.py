"""Start the processes of a fit on this machine, and start them again where one was lost.

By PyTorch's own elastic agent, which `torchrun` is a command line of
(https://docs.pytorch.org/docs/stable/elastic/run.html). Several machines are for `torchrun` itself: docs/scale.md.
"""

import ctypes
import logging
import os
import signal
import sys
import uuid
from collections.abc import Sequence
from pathlib import Path

from pipeline.base import LeafError
from pipeline.fit.ranks import LOST

_PR_SET_PDEATHSIG = 1  # of prctl(2)
MONITOR_SECONDS = 0.5


def launch(script: Path, arguments: Sequence[str], count: int, attempts: int) -> None:
    """Run `python script arguments` in `count` processes that find each other (`ranks.joined`), to their end.

    Where one is killed, all are started again, and go on from the last checkpoint.

    Raises:
        LeafError: they have been lost `attempts` times.
        SystemExit: one has ended with an error, which it has printed.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // count)))
    for _ in range(attempts):
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=count,
            run_id=uuid.uuid4().hex,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            max_restarts=0,
            monitor_interval=MONITOR_SECONDS,
        )
        try:
            elastic_launch(config, sys.executable)(str(script), *arguments)
            return
        except SignalException as error:
            sys.exit(128 + int(error.sigval))
        except ChildFailedError as error:
            codes = [failure.exitcode for failure in error.failures.values()]
            if any(code >= 0 and code != LOST for code in codes):  # below 0 it is the signal that killed it
                sys.exit(1)
    raise LeafError(
        f"cluster.fit_ranks: a process of the fit was lost {attempts} times (killed, most often for want of memory); "
        "the last checkpoint is kept: run again"
    )


def end_with_parent() -> None:
    """Have the kernel end this process when the one that started it ends, so that none trains on unseen (Linux)."""
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
