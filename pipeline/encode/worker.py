"""A worker of stage one: it carries out work orders and adds the shards to the shard cache by itself.

It knows no scheduler: Ray calls it (`engines/ray.py`), and so does `leaf encode-shards` in whatever job it is started.
Nothing but orders comes in and nothing but names and figures goes out; vectors go to the shard cache alone.
"""

import json
import os
import platform
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from pipeline.base import LeafError, disk, written_file
from pipeline.encode.engines.engine import EncodedShard, SharedShards
from pipeline.encode.engines.threads import Progress, ThreadsEngine
from pipeline.encode.handshake import admit, examine
from pipeline.encode.plan import WorkOrder
from pipeline.params import EncodeParams, TeacherParams
from pipeline.store import ShardBucket, ShardCache, ShardWriter, StoreMeta, shard_directory
from pipeline.teacher import LocalTeacher

ORDERS_FORMAT = "leaf-work-orders"
ORDERS_VERSION = 1


@dataclass(frozen=True)
class Job:
    """What all workers of a run are told."""

    id: str
    """Of the shard cache when the work was planned (`ShardCache.job`)."""
    teacher: TeacherParams
    encode: EncodeParams
    fingerprint: str
    """Of the teacher, as whoever planned the work sees it."""
    threads: int | None
    """Threads that compute; None leaves those that PyTorch finds."""
    same_bits: bool
    """See `ClusterParams`, as the next one."""
    shards: str | None = None


class Worker:
    """A process that holds the teacher and computes shards."""

    def __init__(self, job: Job) -> None:
        """Loads the teacher and shakes hands.

        Raises:
            LeafError: the teacher cannot be loaded or is another one here; the shard cache is not here, or was opened
                by another run; this machine computes other bits.
        """
        if job.threads is not None:
            torch.set_num_threads(job.threads)
        self.node, self.process = platform.node(), os.getpid()
        self.teacher = LocalTeacher(job.teacher, job.encode)
        if self.teacher.meta.fingerprint != job.fingerprint:
            raise LeafError(
                f"node {self.node}: teacher `{job.teacher.model}` is another model here: fingerprint "
                f"{self.teacher.meta.fingerprint[:16]} instead of {job.fingerprint[:16]}"
            )
        self.shards = _shared(job, self.teacher.meta, self.node)
        self.shards.check_current()
        self.kind, vectors = examine(self.teacher)
        admit(self.kind, vectors, self.shards, job.same_bits)

    def carry_out(
        self, orders: Sequence[WorkOrder], progress: Progress = lambda *_: None
    ) -> Iterator[EncodedShard | str]:
        """Encode the orders whose shard is not finished yet; gives out each committed shard, and finished ones' names.

        Raises:
            LeafError: the corpus, the teacher or a vector is bad; the disk is full; another run has taken over.
        """
        self.shards.check_current()
        finished = [order.shard for order in orders if self.shards.holds(order.shard)]
        yield from finished
        left = [order for order in orders if order.shard not in finished]
        yield from ThreadsEngine(self.teacher).carry_out(left, self.shards, progress)


def _shared(job: Job, meta: StoreMeta, node: str) -> SharedShards:
    if job.shards is not None:
        return ShardBucket(job.shards, meta, job.id)
    cache = shard_directory(Path(job.encode.pool), meta)
    if not cache.is_dir():
        raise LeafError(
            f"node {node}: {cache.absolute()}: not here: every worker must see the shard cache (encode.pool), or an "
            "object store (cluster.shards)"
        )
    return ShardWriter(cache, meta, job.id)


def write_orders(file: Path, cache: ShardCache, orders: Iterable[WorkOrder]) -> int:
    """Write work orders for `read_orders`, an order a line behind a line about the shard cache; returns how many."""
    header = {
        "format": ORDERS_FORMAT,
        "version": ORDERS_VERSION,
        "job": cache.job,
        "fingerprint": cache.meta.fingerprint,
    }
    count = 0
    with disk(file), written_file(file) as new, new.open("w", encoding="utf-8") as out:
        out.write(json.dumps(header) + "\n")
        for order in orders:
            out.write(order.to_json() + "\n")
            count += 1
    return count


def read_orders(file: Path, part: int, parts: int) -> tuple[str, str, list[WorkOrder]]:
    """The job and the teacher's fingerprint of a file of `write_orders`, and of its orders number `part` of `parts`.

    `part` counts from 0. Parts are neighbouring orders, and as large as one another to within one order.

    Raises:
        LeafError: it is no such file.
    """
    try:
        with file.open(encoding="utf-8") as lines:
            header = json.loads(next(lines, ""))
            if (header["format"], header["version"]) != (ORDERS_FORMAT, ORDERS_VERSION):
                raise ValueError
            everything = list(lines)
        chosen = everything[len(everything) * part // parts : len(everything) * (part + 1) // parts]
        return header["job"], header["fingerprint"], [WorkOrder.from_json(line) for line in chosen]
    except OSError as error:
        raise LeafError(f"{file}: cannot be read ({error.strerror})") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise LeafError(f"{file}: holds no work orders; write them with `leaf plan-shards`") from None


def absolute(encode: EncodeParams) -> EncodeParams:
    """The parameters with the shard cache's path in full, for processes that were started elsewhere."""
    return replace(encode, pool=str(Path(encode.pool).absolute()))
