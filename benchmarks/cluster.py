"""Stage one on a Ray cluster of this machine, against one process: throughput, costs of a shard, memory, recovery.

    python -m benchmarks.cluster [throughput] [overhead] [memory] [recovery] [orders]     (all where none is named)

Every run is the stage `encode` as a process. Throughput is that of all-MiniLM-L6-v2 with the same threads in all: one
worker of one thread against a local run with one, two against two. What a start costs is taken out: each side encodes a
small and a large corpus, and the rate is that of the difference. Everything else uses a teacher of one tiny layer, so
that what is left is the data path.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import made
from benchmarks.common import MINILM, QUICK, ROOT, machine
from benchmarks.local_cluster import LocalCluster, local_cluster, signal_all, workers_of_this_machine

SMALL, LARGE = (200, 600) if QUICK else (4_000, 24_000)  # texts of a measurement of throughput
SHARD_ROWS = 64 if QUICK else 2048
MILLION = 2_000 if QUICK else 1_000_000
ORDERS = 20 if QUICK else 10_000
ORDER_ROWS = 16


@dataclass(frozen=True)
class Encoded:
    """A finished run of the stage."""

    seconds: float
    metrics: dict[str, Any]
    driver_mb: float
    """Peak memory of the process that was started."""
    worker_mb: float
    """Peak memory of its largest worker."""


def encode(
    folder: Path, corpus: Path, model: str, shard_rows: int, threads: int = 1, cluster: dict[str, Any] | None = None
) -> Encoded:
    """Run the stage in a new directory below `folder`, with a shard cache of its own."""
    place = Path(tempfile.mkdtemp(dir=folder))
    process = start(place, corpus, model, shard_rows, threads, cluster)
    began, driver, worker = time.perf_counter(), 0.0, 0.0
    while process.poll() is None:
        time.sleep(0.2)
        driver = max(driver, peak_mb(process.pid))
        worker = max([worker, *map(peak_mb, workers_of_this_machine())])
    if process.returncode:
        raise RuntimeError((place / "log").read_text()[-2000:])
    return Encoded(time.perf_counter() - began, json.loads((place / "m.json").read_text()), driver, worker)


def start(
    place: Path, corpus: Path, model: str, shard_rows: int, threads: int, cluster: dict[str, Any] | None
) -> "subprocess.Popen[bytes]":
    """Start the stage; what it says goes to the file `log`."""
    params: dict[str, Any] = {"teacher": {"model": model}, "encode": {"shard_rows": shard_rows, "pool": "pool"}}
    if cluster is not None:
        params["cluster"] = {"engine": "ray", "cpus": threads, **cluster}
    (place / "params.yaml").write_text(json.dumps(params))
    command = [sys.executable, "-m", "stages.encode", "--corpus", str(corpus), "--out", "store", "--metrics", "m.json"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    with (place / "log").open("wb") as log:
        return subprocess.Popen(command, cwd=place, env=environment, stdout=log, stderr=log)


def peak_mb(process: int) -> float:
    """The kernel's `VmHWM` of a process; 0 where it has ended."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
        return next(int(line.split()[1]) / 1e3 for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        return 0.0


def throughput(folder: Path) -> None:
    """Tokens a second of workers and of one process with as many threads as they have together."""
    small, large = made.corpus(_new(folder), SMALL), made.corpus(_new(folder), LARGE)
    print("| | tokens/s | share of local |\n|---|---|---|", flush=True)
    for count in (1, 2):
        with local_cluster(count) as running:

            def rate(threads: int, cluster: dict[str, Any] | None) -> float:
                first, second = (encode(folder, c, MINILM, SHARD_ROWS, threads, cluster) for c in (small, large))
                tokens = second.metrics["tokens"] - first.metrics["tokens"]
                return float(tokens / (second.seconds - first.seconds))

            local = rate(count, None)
            ray = rate(1, {"address": running.address, "shards_per_task": 1})
        print(f"| local, {count} threads | {local:,.0f} | |")
        print(f"| Ray, {count} workers of 1 thread | {ray:,.0f} | {ray / local:.1%} |", flush=True)


def overhead(folder: Path) -> None:
    """Seconds that a shard costs more on a worker than in one process."""
    teacher, corpus = str(made.tiny_teacher(folder / "teacher")), made.corpus(_new(folder), LARGE)
    rows, count = SHARD_ROWS // 8, -(-LARGE // (SHARD_ROWS // 8))
    with local_cluster(1) as running:
        ray = {"address": running.address, "shards_per_task": 8}
        extra = []
        for cluster in (None, ray):
            whole, many = (encode(folder, corpus, teacher, size, 1, cluster).seconds for size in (LARGE, rows))
            extra.append((many - whole) / (count - 1))
    print(f"| a shard costs | local {extra[0] * 1e3:.1f} ms | Ray {extra[1] * 1e3:.1f} ms |", flush=True)


def memory(folder: Path) -> None:
    """Peak memory of driver and worker at a million texts."""
    teacher, corpus = str(made.tiny_teacher(folder / "teacher")), made.corpus(_new(folder), MILLION)
    with local_cluster(1) as running:
        result = encode(folder, corpus, teacher, 65_536, 1, {"address": running.address})
    print(f"| {MILLION:,} texts | driver {result.driver_mb:,.0f} MB | worker {result.worker_mb:,.0f} MB |", flush=True)


def recovery(folder: Path) -> None:
    """Seconds from the death of a node until its shards are under way again, with Ray's own health checks."""
    corpus = made.corpus(_new(folder), LARGE)
    with local_cluster(2, quick_checks=False) as running:
        for name, lose in (("killed", _kill), ("silent", _silence)):
            print(f"| a node is {name} | {_recover(folder, corpus, running, lose):.1f} s |", flush=True)
            running.add()


def _recover(folder: Path, corpus: Path, running: LocalCluster, lose: Callable[[LocalCluster], None]) -> float:
    place = _new(folder)
    process = start(place, corpus, MINILM, SHARD_ROWS, 1, {"address": running.address})
    _wait(lambda: len(running.workers()) == 2 and list(place.glob("pool/*/*/shard.json")), process)
    began = time.perf_counter()
    lose(running)
    _wait(lambda: b"a worker was lost" in (place / "log").read_bytes(), process)
    seconds = time.perf_counter() - began
    process.wait()
    return seconds


def _kill(cluster: LocalCluster) -> None:
    cluster.kill_node(cluster.nodes[0])


def _silence(cluster: LocalCluster) -> None:
    """Stop a node, as a network does that loses it, and end it after two minutes."""
    family = cluster.family(cluster.nodes.pop(0))
    signal_all(family, signal.SIGSTOP)
    timer = threading.Timer(120.0, signal_all, (family, signal.SIGKILL))
    timer.daemon = True
    timer.start()


def _wait(condition: Callable[[], Any], process: "subprocess.Popen[bytes]") -> None:
    while not condition():
        if process.poll() is not None:
            raise RuntimeError("the run ended before its node could be taken away")
        time.sleep(0.05)


def orders(folder: Path) -> None:
    """Many small orders through the driver: what it costs there."""
    teacher, corpus = str(made.tiny_teacher(folder / "teacher")), made.corpus(_new(folder), ORDERS * ORDER_ROWS)
    with local_cluster(2) as running:
        result = encode(folder, corpus, teacher, ORDER_ROWS, 1, {"address": running.address, "shards_per_task": 16})
    shards = sum(worker["shards"] for worker in result.metrics["cluster"]["workers"])
    print(f"| {shards:,} orders | {result.seconds:,.0f} s | driver {result.driver_mb:,.0f} MB |", flush=True)


def _new(folder: Path) -> Path:
    return Path(tempfile.mkdtemp(dir=folder))


PARTS: dict[str, Callable[[Path], None]] = {
    "throughput": throughput,
    "overhead": overhead,
    "memory": memory,
    "recovery": recovery,
    "orders": orders,
}


def main(names: Sequence[str]) -> None:
    """Run the parts of these names, or all."""
    print(machine())
    for name in names or PARTS:
        print(f"\n{name}: {PARTS[name].__doc__}\n", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            PARTS[name](Path(folder))


if __name__ == "__main__":
    main(sys.argv[1:])
