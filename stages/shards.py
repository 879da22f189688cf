"""`leaf plan-shards` and `leaf encode-shards`: stage one in the hands of a batch system.

    leaf plan-shards --orders orders.jsonl
    leaf encode-shards --orders orders.jsonl --part 3 --parts 100     # in each of 100 jobs, --part 0 to 99
    dvc repro                                                         # encodes what is left, and publishes

Slurm arrays and Kubernetes Indexed Jobs number their jobs themselves; examples/ has a file for each.
"""

import socket
from pathlib import Path

import click
from tqdm import tqdm

from pipeline.base import LeafError
from pipeline.params import ClusterParams, EncodeParams, TeacherParams, load_section
from stages.common import command, echo, params_option

orders_option = click.option("--orders", type=Path, required=True, help="File of work orders.")


@command
@params_option
@click.option("--corpus", type=Path, default=Path("data/corpus"), show_default=True, help="Corpus directory.")
@orders_option
def plan(params: Path, corpus: Path, orders: Path) -> None:
    """Write the work orders of stage one, one for each shard that is left to make, for `leaf encode-shards`.

    They hold until a stage opens the shard cache again. Sections read: teacher, encode.
    """
    from pipeline.encode import check_local, plan_shards
    from pipeline.teacher import open_teacher

    settings = load_section(params, "encode", EncodeParams)
    teacher = open_teacher(load_section(params, "teacher", TeacherParams), settings)
    check_local(teacher, "leaf plan-shards")
    count = plan_shards(corpus, teacher, settings, orders)
    echo(f"{count:,} shards to make\n{orders}")


@command
@params_option
@orders_option
@click.option("--part", type=click.IntRange(0), required=True, help="Number of this job, from 0.")
@click.option("--parts", type=click.IntRange(1), required=True, help="How many jobs share the orders.")
def encode(params: Path, orders: Path, part: int, parts: int) -> None:
    """Make one part of the shards of `leaf plan-shards` and add them to the shard cache; then `dvc repro` publishes.

    Killed and started again, it goes on behind the last finished shard. Sections read: teacher, encode, cluster.
    """
    from pipeline.encode import Job, Worker, check_local, read_orders
    from pipeline.teacher import open_teacher

    if part >= parts:
        raise LeafError(f"--part: {part} is impossible; with --parts {parts} it must be at most {parts - 1}")
    teacher = load_section(params, "teacher", TeacherParams)
    settings = load_section(params, "encode", EncodeParams)
    cluster = load_section(params, "cluster", ClusterParams, ClusterParams())
    check_local(open_teacher(teacher, settings), "leaf encode-shards")
    job, fingerprint, chosen = read_orders(orders, part, parts)
    worker = Worker(Job(job, teacher, settings, fingerprint, threads=None, same_bits=cluster.same_bits))
    encoded = finished = 0
    with tqdm(total=sum(order.rows for order in chosen), unit="text", desc=f"part {part}") as bar:

        def show(texts: int, tokens: int, seconds: float) -> None:
            bar.update(texts)

        for shard in worker.carry_out(chosen, show):
            encoded, finished = encoded + (not isinstance(shard, str)), finished + isinstance(shard, str)
    echo(f"{socket.gethostname()}: part {part} of {parts}: {encoded:,} shards made, {finished:,} there already")
