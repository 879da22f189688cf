"""The engine for a Ray cluster: work orders go to workers on its nodes, which add the shards to the cache themselves.

Ray places the tasks and tells of workers and nodes that die (https://docs.ray.io/en/latest/ray-core/tasks.html). What
was in the hands of a dead one is ordered again here, with a count for each shard: Ray's own retries know no end where
memory runs out. Through Ray go orders, names and figures: no vector ever does.
"""

import logging
import os
import platform
import signal
import socket
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

from tqdm import tqdm

from pipeline.base import LeafError, first_line, import_optional
from pipeline.encode.engines.engine import EncodedShard, EncodeFigures
from pipeline.encode.plan import WorkOrder
from pipeline.encode.worker import Job, Worker, absolute
from pipeline.params import ClusterParams, EncodeParams
from pipeline.store import ShardBucket, ShardCache, ShardInfo, read_rows
from pipeline.teacher import LocalTeacher

WAIT_SECONDS = 1.0
CHECK_SECONDS = 5.0  # between looks at the nodes
LOST_SECONDS = 20.0  # without an answer of the head, after which the run ends; Ray ends the process after 60
NO_NODE_SECONDS = 30.0  # without a node that a worker fits on, after which the run ends
AHEAD = 2  # tasks for each worker that are submitted at a time
OBJECT_STORE_BYTES = 80 << 20  # little more than Ray's least: no vector goes there
GB = 1e9
logger = logging.getLogger(__name__)


class RayEngine:
    """Encodes on the workers of a Ray cluster."""

    def __init__(self, teacher: LocalTeacher, encode: EncodeParams, params: ClusterParams) -> None:
        self.teacher, self.encode, self.params = teacher, absolute(encode), params

    def run(self, orders: Iterable[WorkOrder], rows: int, cache: ShardCache) -> EncodeFigures:
        """Have the orders carried out; see `Engine.run`.

        Raises:
            LeafError: also: Ray is missing or cannot be reached; no node is large enough for a worker; a worker is
                refused (`handshake`), or a shard ends with the death of its worker too often; the head is lost.
        """
        ray = import_optional("ray", "cluster", "cluster.engine: ray")
        job = Job(
            id=cache.job,
            teacher=self.teacher.params,
            encode=self.encode,
            fingerprint=self.teacher.meta.fingerprint,
            threads=self.params.cpus,
            same_bits=self.params.same_bits,
            shards=self.params.shards,
        )
        for notice in self.teacher.notices():
            logger.warning("teacher: %s", notice)
        started = time.perf_counter()
        with _connected(ray, self.params) as cluster, tqdm(total=rows, unit="text", desc="encode") as bar:
            figures = _Run(cluster, self.params, job, cache, bar).all(orders)
        figures.computing = time.perf_counter() - started
        return figures


@lru_cache(maxsize=1)
def _worker(job: Job, directory: str) -> Worker:
    """The worker of this process: loaded once, then used by all tasks that come here."""
    if not Path(directory).is_dir():
        raise LeafError(f"node {platform.node()}: {directory}: not here: every worker must see the project's directory")
    os.chdir(directory)  # parameters may hold paths relative to the project
    return Worker(job)


def carry_out(job: Job, directory: str, orders: list[str]) -> Iterator[dict[str, Any]]:
    """The task: yields where it is, who computes, each shard that is there now, or an error that will not go away."""
    yield {"place": import_optional("ray", "cluster", "a worker").get_runtime_context().get_node_id()}
    try:
        worker = _worker(job, directory)
        yield {"node": worker.node, "process": worker.process, "class": asdict(worker.kind)}
        for shard in worker.carry_out([WorkOrder.from_json(order) for order in orders]):
            yield {"finished": shard} if isinstance(shard, str) else {"encoded": asdict(shard)}
    except LeafError as error:
        yield {"error": str(error)}


class _Cluster:
    """A connection to Ray: what fits on its nodes, and whether its head is alive."""

    def __init__(self, ray: Any, params: ClusterParams) -> None:
        self.ray, self.params = ray, params
        self.head = str(ray.get_runtime_context().gcs_address)
        self._answered = time.monotonic()
        self.task = ray.remote(
            num_cpus=params.cpus,
            num_gpus=params.gpus,
            memory=None if params.memory is None else int(params.memory * GB),
            max_retries=0,
            max_calls=0,  # the process stays: on GPUs Ray would otherwise end it, and its teacher, after each task
            num_returns="streaming",
            scheduling_strategy="SPREAD",
        )(carry_out)

    def alive(self) -> dict[str, int] | None:
        """How many workers fit on each node that is alive, by its id; None where the head gives no answer just now.

        Raises:
            _HeadLostError: it has given none for too long.
        """
        if not self._answers():
            if time.monotonic() - self._answered > LOST_SECONDS:
                raise _HeadLostError(
                    f"cluster.address: the head of the Ray cluster ({self.head}) does not answer any more; finished "
                    "shards are kept: start Ray again, and run again"
                )
            return None  # asking Ray would block
        self._answered = time.monotonic()
        return {node["NodeID"]: self._fitting(node["Resources"]) for node in self.ray.nodes() if node["Alive"]}

    def _answers(self) -> bool:
        host, _, port = self.head.rpartition(":")
        try:
            socket.create_connection((host, int(port)), CHECK_SECONDS).close()
        except OSError:
            return False
        return True

    def _fitting(self, offered: dict[str, float]) -> int:
        asked = {"CPU": self.params.cpus, "GPU": self.params.gpus, "memory": (self.params.memory or 0) * GB}
        return min(int(offered.get(name, 0) / amount) for name, amount in asked.items() if amount)

    def check(self) -> None:
        """LeafError where no node is large enough for a worker."""
        if any((self.alive() or {}).values()):
            return
        wanted = f"{self.params.cpus} CPUs, {self.params.gpus:g} GPUs and {self.params.memory or 0:g} GB"
        nodes = [node for node in self.ray.nodes() if node["Alive"]]
        offers = "; ".join(
            f"{node['NodeManagerHostname']}: {node['Resources'].get('CPU', 0):g} CPUs, "
            f"{node['Resources'].get('GPU', 0):g} GPUs, {node['Resources'].get('memory', 0) / GB:.1f} GB"
            for node in nodes[:10]
        )
        raise LeafError(
            f"cluster: no node offers the {wanted} that a worker asks for; there are {offers}. Lower cluster.cpus, "
            "cluster.gpus or cluster.memory, or add nodes"
        )


class _HeadLostError(LeafError):
    """Nothing more can be asked of Ray, not even to shut down."""


@contextmanager
def _connected(ray: Any, params: ClusterParams) -> Iterator[_Cluster]:
    """Connect to the cluster of `cluster.address`, or start one on this machine; ends both at the end."""
    terminate = signal.getsignal(signal.SIGTERM)
    options: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}  # one bar, not one for each worker
    try:
        if params.address is None:
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            options |= {"include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES}
        ray.init(params.address or "local", **options)
    except Exception as error:  # it raises many kinds
        raise LeafError(f"cluster.address: {_unreached(error, params.address or 'this machine')}") from None
    told: list[int] = []

    def end(number: int, frame: Any) -> None:
        told.append(number)
        if callable(terminate):
            terminate(number, frame)

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, end)  # Ray has put its own in the place
    try:
        cluster = _Cluster(ray, params)
        cluster.check()
        yield cluster
    except _HeadLostError:
        raise
    except BaseException:
        ray.shutdown()
        if told:  # Ray makes other errors of an exit while it waits
            sys.exit(128 + told[0])
        raise
    else:
        ray.shutdown()


def _unreached(error: Exception, place: str) -> str:
    """Why there is no connection to Ray, and what to do."""
    if any("AuthenticationError" in repr(reason) for reason in (error, error.__cause__, error.__context__)):
        return (
            f"the Ray cluster at {place} asks for a token: set RAY_AUTH_MODE=token, and have the head's file "
            "~/.ray/auth_token on this machine and on every node; or start all of them with RAY_AUTH_MODE=disabled"
        )
    return f"no Ray cluster at {place} ({first_line(error)}); start one with `ray start --head`"


class _Run:
    """One run of the engine: the tasks under way, and what has become of each order."""

    def __init__(self, cluster: _Cluster, params: ClusterParams, job: Job, cache: ShardCache, bar: "tqdm[Any]") -> None:
        self.cluster, self.params, self.job, self.cache, self.bar = cluster, params, job, cache, bar
        self.figures = EncodeFigures()
        self.under_way: dict[Any, dict[str, WorkOrder]] = {}
        """By its generator of results: the orders of a task that are not finished."""
        self.again: deque[WorkOrder] = deque()
        self.deaths: Counter[str] = Counter()
        """Of workers, by the shard that they left unfinished."""
        self.workers: dict[tuple[str, int], dict[str, Any]] = {}
        self.of_task: dict[Any, tuple[str, int]] = {}
        self.classes: list[dict[str, Any]] = []
        self.bucket = None
        if params.shards is not None:
            self.bucket = ShardBucket(params.shards, cache.meta, cache.job)
            self.bucket.open()
        self.node_of_task: dict[Any, str] = {}
        self.slots = sum((cluster.alive() or {}).values())
        self._looked = self._fitted = time.monotonic()

    def all(self, orders: Iterable[WorkOrder]) -> EncodeFigures:
        """Carry out all orders."""
        remaining = iter(orders)
        while True:
            while len(self.under_way) < AHEAD * max(self.slots, 1) and (batch := self._next(remaining)):
                self._submit(batch)
            if not self.under_way:
                break
            tasks = list(self.under_way)
            ready, _ = self.cluster.ray.wait(tasks, num_returns=len(tasks), timeout=0)
            if not ready:
                ready, _ = self.cluster.ray.wait(tasks, num_returns=1, timeout=WAIT_SECONDS)
            for task in ready:
                self._receive(task)
            self._look()
        self.figures.cluster = {
            "engine": "ray",
            "workers": list(self.workers.values()),
            "classes": self.classes,
            "deaths": sum(self.deaths.values()),
        }
        return self.figures

    def _next(self, remaining: Iterator[WorkOrder]) -> list[WorkOrder]:
        """The orders of the next task. One that was left by a dead worker comes alone: then it is known who kills."""
        if self.again:
            return [self.again.popleft()]
        return list(islice(remaining, self.params.shards_per_task))

    def _submit(self, orders: list[WorkOrder]) -> None:
        task = self.cluster.task.remote(self.job, str(Path.cwd()), [order.to_json() for order in orders])
        self.under_way[task] = {order.shard: order for order in orders}

    def _receive(self, task: Any) -> None:
        """Take the next result of a task, or note its end."""
        try:
            result = self.cluster.ray.get(next(task))
        except StopIteration:
            unfinished = self.under_way.pop(task)
            assert not unfinished, f"a task has left {unfinished} without a word"
            return
        except self.cluster.ray.exceptions.RayTaskError as error:
            raise LeafError(f"cluster: a worker has failed: {first_line(error.cause)}") from error
        except self.cluster.ray.exceptions.RayError as error:
            return self._lost(task, error)
        if "place" in result:
            self.node_of_task[task] = result["place"]
            return
        if "error" in result:
            raise LeafError(result["error"])
        if "class" in result:
            return self._greet(task, result)
        self._finish(task, result)

    def _greet(self, task: Any, hello: dict[str, Any]) -> None:
        """Note which worker has a task."""
        name = hello["node"], hello["process"]
        self.of_task[task] = name
        self.workers.setdefault(name, {"node": name[0], "process": name[1], "shards": 0, "rows": 0, "tokens": 0})
        if hello["class"] not in self.classes:
            self.classes.append(hello["class"])

    def _finish(self, task: Any, result: dict[str, Any]) -> None:
        """Register a shard, and count it for its worker."""
        if "finished" in result:
            self._register(self.under_way[task].pop(result["finished"]))
            return
        shard = EncodedShard(**result["encoded"])
        self.under_way[task].pop(shard.name)
        self._fetch(shard.name)
        self.figures.add(shard)
        worker = self.workers[self.of_task[task]]
        for name, amount in (("shards", 1), ("rows", shard.rows), ("tokens", shard.tokens)):
            worker[name] += amount
        self._show(shard.rows)

    def _register(self, order: WorkOrder) -> None:
        """Take note of a shard whose worker could not tell of it any more."""
        info = self._fetch(order.shard)
        self.figures.rows += info.rows
        self.figures.tokens += int(read_rows(self.cache.path / order.shard, info)["tokens"].sum())
        self._show(info.rows)

    def _fetch(self, name: str) -> ShardInfo:
        """Take note of a finished shard, after bringing it here where it is in an object store."""
        if self.bucket is not None:
            self.bucket.fetch(name, self.cache.path)
        return self.cache.register(name)

    def _finished(self, name: str) -> bool:
        if self.bucket is not None:
            return self.bucket.holds(name)
        return (self.cache.path / name / "shard.json").exists()

    def _show(self, rows: int) -> None:
        rate = self.figures.tokens / max(self.bar.format_dict["elapsed"], 1e-9)
        busy = min(self.slots, len(self.under_way))
        self.bar.set_postfix_str(f"{rate:,.0f} tokens/s, {busy} workers", refresh=False)
        self.bar.update(rows)

    def _lost(self, task: Any, reason: Exception) -> None:
        """The worker of a task has died, or its node: order again what it has not finished.

        Raises:
            LeafError: a shard has had as many attempts as it may.
        """
        unfinished = self.under_way.pop(task)
        for name, order in unfinished.items():
            if self._finished(name):
                self._register(order)
                continue
            self.deaths[name] += 1
            if self.deaths[name] >= self.params.attempts:
                place = f"{order.pieces[0].part}, from row {order.pieces[0].first:,}"
                raise LeafError(
                    f"shard {name} ({order.rows:,} texts of {place}): its worker has died {self.deaths[name]} times "
                    f"({type(reason).__name__}). Most often memory is short: lower encode.token_budget, or raise "
                    "cluster.memory so that fewer workers share a node. Finished shards are kept"
                )
            self.again.append(order)
        self.bar.write(
            f"a worker was lost ({first_line(reason)[:200]}); what it has not finished of {len(unfinished)} shards is "
            "computed again",
            file=sys.stderr,
        )

    def _look(self) -> None:
        """See now and then how many workers fit; LeafError where none does any more, or the head is lost."""
        now = time.monotonic()
        if now - self._looked < CHECK_SECONDS:
            return
        self._looked = now
        if (alive := self.cluster.alive()) is None:
            return
        self.slots = sum(alive.values())
        for task in [task for task in self.under_way if self.node_of_task.get(task, "") not in {"", *alive}]:
            self._lost(task, TimeoutError("its node does not answer"))  # Ray would wait for the connection to break
        if self.slots:
            self._fitted = now
        elif now - self._fitted > NO_NODE_SECONDS:
            raise LeafError(
                "cluster: no node is left that a worker fits on; finished shards are kept: add nodes, and run again"
            )
