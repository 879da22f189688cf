"""A Ray cluster of several nodes on this machine, in a process of its own; nodes and workers are killed by their ids.

python -m benchmarks.local_cluster NODES    # prints the address, then a line of process ids for each `add` on its input
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.common import ROOT

OBJECT_STORE = 80 << 20
LOADED = "libtorch"  # in the memory of a worker that has had a task: Ray shows no name of a task that yields results


@dataclass
class LocalCluster:
    """A running cluster: its head, which offers no CPUs, and nodes of one CPU each."""

    process: "subprocess.Popen[str]"
    address: str
    head: list[int]
    """Process ids, of Ray's servers on the head."""
    nodes: list[int] = field(default_factory=list)
    """Process id of each node's raylet, which is the parent of its workers."""

    def add(self) -> int:
        """Start another node; returns the process id of its raylet."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write("add\n")
        self.process.stdin.flush()
        self.nodes.append(int(json.loads(self.process.stdout.readline())["raylet"]))
        return self.nodes[-1]

    def workers(self, node: int | None = None) -> list[int]:
        """Process ids of the workers that have a teacher, of one node or of all."""
        parents = set(self.nodes if node is None else [node])
        return [child for child, parent, title in _processes() if parent in parents and _is_worker(child, title)]

    def kill_node(self, node: int) -> None:
        """End a node as a power cut does: its raylet and all its children at once."""
        children = [child for child, parent, _ in _processes() if parent == node]
        signal_all([node, *children], signal.SIGKILL)
        self.nodes.remove(node)

    def family(self, node: int) -> list[int]:
        """The node's raylet and all its children."""
        return [node, *(child for child, parent, _ in _processes() if parent == node)]


def signal_all(processes: list[int], number: int) -> None:
    """Send a signal to those that are still there."""
    for process in processes:
        with suppress(ProcessLookupError):
            os.kill(process, number)


def _processes() -> Iterator[tuple[int, int, bytes]]:
    """Process id, that of the parent, and the title of every process."""
    for place in Path("/proc").iterdir():
        if place.name.isdigit():
            try:
                parent = int((place / "stat").read_text().rpartition(")")[2].split()[1])
                yield int(place.name), parent, (place / "cmdline").read_bytes()
            except (OSError, IndexError):  # it has ended meanwhile
                continue


def workers_of_this_machine() -> list[int]:
    """Process ids of all workers that have a teacher."""
    return [process for process, _, title in _processes() if _is_worker(process, title)]


def _is_worker(process: int, title: bytes) -> bool:
    try:
        return title.startswith(b"ray::") and LOADED in Path(f"/proc/{process}/maps").read_text()
    except OSError:  # it has ended meanwhile
        return False


@contextmanager
def local_cluster(nodes: int, quick_checks: bool = True) -> Iterator[LocalCluster]:
    """A cluster of `nodes` nodes, ended with all its processes at the end.

    With `quick_checks` a silent node is declared dead within 20 seconds; else when Ray does so by default.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.local_cluster", *(["quick"] if quick_checks else [])],
        cwd=ROOT,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_memory_monitor_refresh_ms": "0",
            "HF_HUB_OFFLINE": "1",
        },
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    head = json.loads(process.stdout.readline())
    cluster = LocalCluster(process, head["address"], head["processes"])
    try:
        for _ in range(nodes):
            cluster.add()
        yield cluster
    finally:
        signal_all([child for node in cluster.nodes for child in cluster.family(node)], signal.SIGCONT)
        assert process.stdin is not None
        process.stdin.close()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
        left = [child for node in cluster.nodes for child in cluster.family(node)]
        signal_all([*left, *cluster.head], signal.SIGKILL)


def _serve() -> None:
    from ray.cluster_utils import Cluster

    settings = {"initial_delay_ms": 0, "period_ms": 500, "timeout_ms": 3000, "failure_threshold": 5}
    checks = {f"health_check_{name}": value for name, value in settings.items()} if "quick" in sys.argv else {}
    cluster: Any = Cluster()
    head = cluster.add_node(
        num_cpus=0, object_store_memory=OBJECT_STORE, include_dashboard=False, _system_config=checks
    )
    _say({"address": cluster.address, "processes": _ids(head)})
    for _ in sys.stdin:
        node = cluster.add_node(num_cpus=1, object_store_memory=OBJECT_STORE)
        _say({"raylet": node.all_processes["raylet"][0].process.pid})
    cluster.shutdown()


def _say(entry: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(entry) + "\n")
    sys.stdout.flush()


def _ids(node: Any) -> list[int]:
    return [info.process.pid for infos in node.all_processes.values() for info in infos]


if __name__ == "__main__":
    _serve()
