"""Stage one on a real Ray cluster of this machine: whatever is killed, nothing is lost and nothing is double."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmarks.local_cluster import LocalCluster, local_cluster, signal_all
from pipeline.base.keys import key
from pipeline.encode.encoding import encode
from pipeline.encode.handshake import RECORD
from pipeline.params.sections import EncodeParams, TeacherParams
from pipeline.teacher.teacher import open_teacher
from tests.conftest import ROOT, WORDS, make_model
from tests.store_helpers import contents

pytest.importorskip("ray", reason="needs Ray: pip install -e '.[cluster]'")
SHARDS, SHARD_ROWS = 12, 256
ENDS_WITHIN = 600.0  # seconds after which a test gives up: many times what a run takes on a quiet machine
STARTED: list["subprocess.Popen[str]"] = []
Write = Callable[..., None]


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with local_cluster(2) as running:
        yield running


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Slow enough that a shard takes about a second."""
    return make_model(tmp_path_factory.mktemp("models") / "teacher", width=128, layers=6)


@pytest.fixture(scope="module")
def expected(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, bytes]]:
    """A corpus, and the files of the store that one process makes of it with one thread."""
    folder = tmp_path_factory.mktemp("expected")
    (folder / "corpus").mkdir()
    made = [
        f"{' '.join(WORDS[(n * 7 + i * i) % len(WORDS)] for i in range(30))} {n}" for n in range(SHARDS * SHARD_ROWS)
    ]
    frame = pl.DataFrame(
        {
            "key": [key("document", text) for text in made],
            "id": [f"text-{number}" for number in range(len(made))],
            "text": made,
            "role": ["document"] * len(made),
            "source": ["made"] * len(made),
            "split": ["train"] * len(made),
        }
    ).sort("key")
    for number, rows in enumerate(frame.iter_slices(1000)):
        rows.write_parquet(folder / "corpus" / f"part-{number:05d}.parquet")
    params = EncodeParams(shard_rows=SHARD_ROWS, pool=str(folder / "pool"))
    torch.set_num_threads(1)
    encode(folder / "corpus", open_teacher(TeacherParams(str(teacher)), params), params, folder / "store")
    return folder / "corpus", contents(folder / "store")


@pytest.fixture
def write(tmp_path: Path, teacher: Path, cluster: LocalCluster, expected: tuple[Path, dict[str, bytes]]) -> Write:
    """Writes the params.yaml of a run on the cluster; keyword arguments are keys of the section `cluster`."""
    (tmp_path / "corpus").symlink_to(expected[0])

    def write_params(**section: Any) -> None:
        params = {
            "teacher": {"model": str(teacher)},
            "encode": {"shard_rows": SHARD_ROWS, "pool": "pool"},
            "cluster": {"engine": "ray", "address": cluster.address, "cpus": 1, "shards_per_task": 2, **section},
        }
        (tmp_path / "params.yaml").write_text(json.dumps(params))

    write_params()
    return write_params


@pytest.fixture(autouse=True)
def none_left() -> Iterator[None]:
    """Ends the runs of a test that has failed on the way."""
    yield
    for process in STARTED:
        process.kill()
    STARTED.clear()


def start(folder: Path, **variables: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "stages.encode", "--corpus", "corpus", "--out", "store", "--metrics", "m.json"]
    # What else runs on the machine is not to be answered by Ray with kills of its own.
    quiet = {"RAY_memory_monitor_refresh_ms": "0"}
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", **quiet, **variables}
    STARTED.append(subprocess.Popen(command, cwd=folder, env=environment, text=True, stderr=subprocess.PIPE))
    return STARTED[-1]


def finish(process: "subprocess.Popen[str]", seconds: float = ENDS_WITHIN) -> str:
    """What the run printed; it must succeed."""
    _, errors = process.communicate(timeout=seconds)
    assert process.returncode == 0, errors
    return errors


def refusal(process: "subprocess.Popen[str]", seconds: float = ENDS_WITHIN) -> str:
    """The message of a run that fails."""
    _, errors = process.communicate(timeout=seconds)
    assert process.returncode == 1 and "Traceback" not in errors, errors
    return errors


def shards(folder: Path) -> list[Path]:
    return list(folder.glob("pool/*/*/shard.json"))


def wait_for(condition: Callable[[], Any], seconds: float = ENDS_WITHIN) -> Any:
    """What the condition gives once it is true."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)
    return found


def metrics(folder: Path) -> dict[str, Any]:
    """Metrics of a run."""
    found: dict[str, Any] = json.loads((folder / "m.json").read_text())
    return found


def test_a_killed_worker_costs_the_shards_in_its_hands(
    write: Write, tmp_path: Path, cluster: LocalCluster, expected: tuple[Path, dict[str, bytes]]
) -> None:
    process = start(tmp_path)
    wait_for(lambda: len(shards(tmp_path)) >= 2)
    signal_all(wait_for(cluster.workers)[:1], signal.SIGKILL)
    assert "a worker was lost" in finish(process)
    assert contents(tmp_path / "store") == expected[1]
    figures = metrics(tmp_path)
    assert figures["rows_encoded"] == SHARDS * SHARD_ROWS
    assert 1 <= figures["cluster"]["deaths"] <= 2
    assert len(figures["cluster"]["workers"]) >= 2


def test_a_node_that_dies_and_one_that_joins(
    write: Write, tmp_path: Path, cluster: LocalCluster, expected: tuple[Path, dict[str, bytes]]
) -> None:
    process = start(tmp_path)
    wait_for(lambda: len(shards(tmp_path)) >= 2 and len(cluster.workers()) == 2)
    cluster.kill_node(cluster.nodes[0])
    cluster.add()
    finish(process)
    assert contents(tmp_path / "store") == expected[1]
    assert metrics(tmp_path)["cluster"]["deaths"] >= 1


def test_a_node_that_comes_back_after_it_was_declared_dead(
    write: Write, tmp_path: Path, cluster: LocalCluster, expected: tuple[Path, dict[str, bytes]]
) -> None:
    """Its worker goes on with shards that others have been given meanwhile."""
    process = start(tmp_path)
    wait_for(lambda: len(shards(tmp_path)) >= 2 and len(cluster.workers()) == 2)
    lost = cluster.nodes[0]
    family = cluster.family(lost)
    worker = cluster.workers(lost)
    signal_all(family, signal.SIGSTOP)
    assert process.stderr is not None
    seen: list[str] = []
    reader = threading.Thread(target=lambda: seen.extend(iter(process.stderr.readline, "")))  # type: ignore[union-attr]
    reader.start()
    wait_for(lambda: any("a worker was lost" in line for line in seen))
    signal_all(worker, signal.SIGCONT)  # before its raylet, which would end it
    time.sleep(1)
    signal_all(family, signal.SIGCONT)
    assert process.wait(ENDS_WITHIN) == 0
    reader.join()
    assert contents(tmp_path / "store") == expected[1]
    cluster.kill_node(lost)
    cluster.add()


def test_a_killed_driver_is_started_again(
    write: Write, tmp_path: Path, cluster: LocalCluster, expected: tuple[Path, dict[str, bytes]]
) -> None:
    process = start(tmp_path)
    wait_for(lambda: len(shards(tmp_path)) >= 3)
    process.kill()
    process.wait()
    left = SHARDS - len(shards(tmp_path))
    finish(start(tmp_path))
    assert contents(tmp_path / "store") == expected[1]
    assert metrics(tmp_path)["rows_encoded"] <= left * SHARD_ROWS
    assert not list(tmp_path.glob("pool/*/.tmp-*"))


def test_a_run_that_is_told_to_end_ends_and_is_continued(
    write: Write, tmp_path: Path, cluster: LocalCluster, expected: tuple[Path, dict[str, bytes]]
) -> None:
    """Ray's own handler of SIGTERM would end the process without a word to anyone."""
    process = start(tmp_path)
    wait_for(lambda: len(shards(tmp_path)) >= 1)
    process.terminate()
    _, errors = process.communicate(timeout=ENDS_WITHIN)
    assert process.returncode == 128 + signal.SIGTERM, errors
    finish(start(tmp_path))
    assert contents(tmp_path / "store") == expected[1]


def test_a_shard_that_kills_its_workers_ends_the_run(write: Write, tmp_path: Path, cluster: LocalCluster) -> None:
    write(attempts=2)
    process, over = start(tmp_path), threading.Event()

    def kill_all() -> None:
        while not over.wait(0.2):
            signal_all(cluster.workers(), signal.SIGKILL)

    killer = threading.Thread(target=kill_all)
    killer.start()
    try:
        message = refusal(process)
    finally:
        over.set()
        killer.join()
    assert "its worker has died 2 times" in message and "lower encode.token_budget" in message


def test_a_vector_of_nan_is_not_tried_again(
    write: Write, tmp_path: Path, cluster: LocalCluster, teacher: Path, expected: tuple[Path, dict[str, bytes]]
) -> None:
    bad = tmp_path / "bad"
    shutil.copytree(teacher, bad)
    weights = load_file(bad / "model.safetensors")
    name = next(name for name in weights if "word_embeddings" in name)
    weights[name][5 + WORDS.index("line")] = float("nan")
    save_file(weights, bad / "model.safetensors", metadata={"format": "pt"})
    params = json.loads((tmp_path / "params.yaml").read_text())
    params["teacher"]["model"] = str(bad)
    (tmp_path / "params.yaml").write_text(json.dumps(params))
    message = refusal(start(tmp_path))
    assert "vectors are NaN or infinite as float16, first that of id 'text-" in message
    assert "a worker was lost" not in message


def test_what_fits_on_no_node_is_said_at_once(write: Write, tmp_path: Path, cluster: LocalCluster) -> None:
    write(cpus=64, memory=1.5)
    message = refusal(start(tmp_path))
    assert "no node offers the 64 CPUs, 0 GPUs and 1.5 GB that a worker asks for; there are" in message


def test_a_worker_that_computes_other_bits_is_refused(
    write: Write, tmp_path: Path, cluster: LocalCluster, expected: tuple[Path, dict[str, bytes]]
) -> None:
    finish(start(tmp_path))
    (record,) = tmp_path.glob(f"pool/*/{RECORD}")
    first = json.loads(record.read_text())
    first["class"]["versions"]["torch"] = "0.1"
    record.write_text(json.dumps(first))
    for shard in tmp_path.glob("pool/*/*/shard.json"):
        shutil.rmtree(shard.parent)
    message = refusal(start(tmp_path))
    assert "computes other bits than this shard cache holds: torch " in message and " instead of 0.1" in message
    write(same_bits=False)
    finish(start(tmp_path))
    assert contents(tmp_path / "store") == expected[1]


def test_the_head_is_killed_and_the_run_ends_with_a_message(
    write: Write, tmp_path: Path, expected: tuple[Path, dict[str, bytes]]
) -> None:
    with local_cluster(1) as other:
        write(address=other.address)
        process = start(tmp_path)
        wait_for(lambda: len(shards(tmp_path)) >= 2)
        signal_all(other.head, signal.SIGKILL)
        message = refusal(process)
        assert "the head of the Ray cluster" in message and "finished shards are kept" in message
    done = len(shards(tmp_path))
    write(address=None)  # on a Ray of its own, as after a new start of the cluster
    finish(start(tmp_path))
    assert contents(tmp_path / "store") == expected[1]
    assert metrics(tmp_path)["rows_encoded"] <= (SHARDS - done) * SHARD_ROWS


def test_a_cluster_that_was_started_from_the_shell(
    write: Write, tmp_path: Path, expected: tuple[Path, dict[str, bytes]]
) -> None:
    """With the commands of docs/scale.md, and a token without which nobody is let in."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    address, commands = f"127.0.0.1:{port}", [sys.executable, "-m", "ray.scripts.scripts"]
    (tmp_path / "home").mkdir()
    variables = {"HOME": str(tmp_path / "home"), "RAY_AUTH_MODE": "token", "RAY_USAGE_STATS_ENABLED": "0"}
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_memory_monitor_refresh_ms": "0", **variables}
    subprocess.run([*commands, "get-auth-token", "--generate"], env=environment, check=True, capture_output=True)
    ray = [*commands, "start", "--block", "--object-store-memory=80000000"]
    head = ["--head", f"--port={port}", "--node-ip-address=127.0.0.1", "--num-cpus=0", "--include-dashboard=false"]
    node = [f"--address={address}", "--num-cpus=1"]
    running: list[subprocess.Popen[bytes]] = []

    def is_up(count: int) -> bool:
        assert running[-1].poll() is None, "ray start has ended"
        return nodes(address, environment) == count

    try:
        for count, options in enumerate((head, node), start=1):
            command = [*ray, *options]
            running.append(
                subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, start_new_session=True)
            )
            wait_for(partial(is_up, count))
        write(address=address)
        assert "set RAY_AUTH_MODE=token" in refusal(start(tmp_path, **(variables | {"RAY_AUTH_MODE": "disabled"})))
        finish(start(tmp_path, **variables))
    finally:
        for process in running:
            process.terminate()  # `ray start --block` ends what it has started
        for process in running:
            process.wait(60)
    assert contents(tmp_path / "store") == expected[1]


def test_workers_without_the_shard_cache_put_shards_into_an_object_store(
    write: Write, tmp_path: Path, expected: tuple[Path, dict[str, bytes]], bucket: Any
) -> None:
    """A Ray of the run's own: its workers find the server by the variables that the run has."""
    write(address=None, shards=f"s3://{bucket.name}/shards")
    process = start(tmp_path)
    wait_for(lambda: len(shards(tmp_path)) >= 2)
    process.kill()
    process.wait()
    finish(start(tmp_path))
    assert contents(tmp_path / "store") == expected[1]
    documents = [entry.key for entry in bucket.objects.all() if entry.key.count("/") == 2]
    assert len([key for key in documents if key.endswith(".json")]) == SHARDS + 1  # and that of the handshake


def nodes(address: str, environment: dict[str, str]) -> int:
    """How many nodes a cluster has; 0 where it is not there yet."""
    code = f"import ray; ray.init({address!r}, logging_level='ERROR'); print(len(ray.nodes()))"
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    return int(result.stdout or 0)
