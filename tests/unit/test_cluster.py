"""Stage one on several workers gives the bytes of one process, and what does not belong together is refused."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner

from pipeline.base.errors import LeafError
from pipeline.encode.encoding import encode, engine_on
from pipeline.encode.handshake import RECORD, admit, examine
from pipeline.params.sections import ApiParams, ClusterParams, EncodeParams, TeacherParams
from pipeline.store.shard_cache import ShardCache, ShardWriter
from pipeline.teacher.local import LocalTeacher
from pipeline.teacher.teacher import open_teacher
from stages.leaf import main as leaf
from tests.conftest import ROOT
from tests.store_helpers import META, contents, rows, vectors


@pytest.fixture
def one_thread() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def local_store(tiny_corpus: Path, tiny_teacher: Path, tmp_path: Path, one_thread: None) -> dict[str, bytes]:
    """The files of the store that one process makes of the tiny corpus with one thread."""
    params = EncodeParams(shard_rows=64, pool=str(tmp_path / "local"), token_budget=512)
    encode(tiny_corpus, open_teacher(TeacherParams(str(tiny_teacher)), params), params, tmp_path / "expected")
    return contents(tmp_path / "expected")


def run_leaf(*arguments: object) -> str:
    result = CliRunner().invoke(leaf, [str(argument) for argument in arguments])
    if result.exit_code:
        raise LeafError(result.output)
    return result.output


def test_jobs_of_a_batch_system_make_the_shards_of_a_local_run(
    tiny_corpus: Path,
    tiny_teacher: Path,
    write_params: Callable[..., Path],
    tmp_path: Path,
    local_store: dict[str, bytes],
) -> None:
    params, orders = write_params(), tmp_path / "orders.jsonl"
    planned = run_leaf("plan-shards", "--params", params, "--corpus", tiny_corpus, "--orders", orders)
    assert planned.startswith("7 shards to make")
    share = ["encode-shards", "--params", params, "--orders", orders, "--parts", 3]
    assert "part 1 of 3: 2 shards made, 0 there already" in run_leaf(*share, "--part", 1)
    assert "part 1 of 3: 0 shards made, 2 there already" in run_leaf(*share, "--part", 1)
    run_leaf(*share, "--part", 0)
    run_leaf(*share, "--part", 2)
    settings = EncodeParams(shard_rows=64, pool=str(tmp_path / "pool"), token_budget=512)
    teacher = open_teacher(TeacherParams(str(tiny_teacher)), settings)
    assert encode(tiny_corpus, teacher, settings, tmp_path / "store")["rows_encoded"] == 0
    assert contents(tmp_path / "store") == local_store
    with pytest.raises(LeafError, match="another run has opened the shard cache since this work was planned"):
        run_leaf(*share, "--part", 2)
    with pytest.raises(LeafError, match="--part: 3 is impossible; with --parts 3 it must be at most 2"):
        run_leaf(*share, "--part", 3)
    orders.write_text('{"format": "other"}\n')
    with pytest.raises(LeafError, match=r"orders\.jsonl: holds no work orders; write them with `leaf plan-shards`"):
        run_leaf(*share, "--part", 0)


@pytest.fixture
def leaf_on_path(tmp_path: Path) -> str:
    """A PATH on which `leaf` is that of this checkout."""
    shim = tmp_path / "bin" / "leaf"
    shim.parent.mkdir()
    shim.write_text(f'#!/bin/sh\nexec {sys.executable} -m stages.leaf "$@"\n')
    shim.chmod(0o755)
    return f"{shim.parent}:{os.environ['PATH']}"


def test_the_examples_for_slurm_and_kubernetes_make_all_shards(
    tiny_corpus: Path, write_params: Callable[..., Path], tmp_path: Path, leaf_on_path: str
) -> None:
    params = write_params()
    orders = tmp_path / ".cache" / "orders.jsonl"
    run_leaf("plan-shards", "--params", params, "--corpus", tiny_corpus, "--orders", orders)
    slurm = {"SLURM_SUBMIT_DIR": str(tmp_path), "SLURM_CPUS_PER_TASK": "1"}
    slurm |= {"SLURM_ARRAY_TASK_ID": "1", "SLURM_ARRAY_TASK_MIN": "1", "SLURM_ARRAY_TASK_COUNT": "2"}
    bash(["bash", str(ROOT / "examples/slurm_shards.sh")], Path("/"), leaf_on_path, slurm)
    assert len(list(tmp_path.glob("pool/*/*/shard.json"))) == 3
    job = yaml.safe_load((ROOT / "examples/kubernetes_shards.yaml").read_text())["spec"]
    (container,) = job["template"]["spec"]["containers"]
    given = {entry["name"]: entry["value"] for entry in container["env"]}
    assert int(given["PARTS"]) == job["completions"] and job["completionMode"] == "Indexed"
    pod = given | {"PARTS": "2", "OMP_NUM_THREADS": "1", "JOB_COMPLETION_INDEX": "1"}
    bash([*container["command"], *container["args"]], tmp_path, leaf_on_path, pod)
    assert len(list(tmp_path.glob("pool/*/*/shard.json"))) == 7


def bash(command: list[str], folder: Path, path: str, variables: dict[str, str]) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "PATH": path, **variables}
    subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True, timeout=300)


def test_workers_of_another_teacher_are_refused(
    tiny_corpus: Path, write_params: Callable[..., Path], tmp_path: Path, tiny_student: Path
) -> None:
    orders = tmp_path / "orders.jsonl"
    run_leaf("plan-shards", "--params", write_params(), "--corpus", tiny_corpus, "--orders", orders)
    other = write_params(teacher={"model": str(tiny_student)})
    with pytest.raises(LeafError, match=r"node .*: teacher .* is another model here: fingerprint"):
        run_leaf("encode-shards", "--params", other, "--orders", orders, "--part", 0, "--parts", 1)


def test_what_was_planned_before_the_cache_was_opened_again_adds_nothing(tmp_path: Path) -> None:
    with ShardCache(tmp_path, META) as cache:
        first = ShardWriter(cache.path, META, cache.job)
        assert first.write(rows(0, 30), vectors(0, 30)).rows == 30
    with ShardCache(tmp_path, META) as cache:
        with pytest.raises(LeafError, match="another run has opened the shard cache"):
            first.write(rows(30, 10), vectors(30, 10))
        assert not list(cache.path.glob(".tmp-*")) and len(cache.shards) == 1
        second = ShardWriter(cache.path, META, cache.job)
        name = second.write(rows(30, 10), vectors(30, 10)).name
        assert second.holds(name) and cache.register(name).rows == 10


def test_the_first_worker_is_the_measure_of_all_others(tiny_teacher: Path, tmp_path: Path) -> None:
    own, probe = examine(LocalTeacher(TeacherParams(str(tiny_teacher)), EncodeParams()))
    shards = ShardWriter(tmp_path, META, "job")
    admit(own, probe, shards, same_bits=True)
    record = (tmp_path / RECORD).read_bytes()
    admit(own, probe, shards, same_bits=True)
    other = replace(own, versions={**own.versions, "torch": "0.1"}, threads=99, vectors="0" * 64)
    with pytest.raises(LeafError, match=r"node .*: computes other bits .*torch 0\.1 instead of .*; threads 99 instead"):
        admit(other, probe, shards, same_bits=True)
    nudged = (probe + np.float32(1e-4)).astype(np.float32)
    admit(other, nudged, shards, same_bits=False)
    with pytest.raises(LeafError, match=r"gives other vectors than this shard cache holds: cosine"):
        admit(other, np.roll(probe, 1, axis=0), shards, same_bits=False)
    with pytest.raises(LeafError, match="other vectors of the same texts"):
        admit(replace(own, vectors="0" * 64), nudged, shards, same_bits=True)
    assert (tmp_path / RECORD).read_bytes() == record
    (tmp_path / RECORD).write_text("{}")
    with pytest.raises(LeafError, match=r"workers\.json beside the shards is damaged"):
        admit(own, probe, shards, same_bits=True)


def test_an_api_stays_one_client() -> None:
    params = EncodeParams()
    teacher = open_teacher(TeacherParams("m", api=ApiParams("http://127.0.0.1:9/v1")), params)
    with pytest.raises(
        LeafError, match=r"cluster\.engine: `ray` cannot be used with teacher\.api: an account's limits"
    ):
        engine_on(ClusterParams(engine="ray"), teacher, params)


def test_without_ray_a_sentence_says_how_to_install_it(
    tiny_corpus: Path, tiny_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    params = EncodeParams(pool=str(tmp_path / "pool"))
    teacher = open_teacher(TeacherParams(str(tiny_teacher)), params)
    with pytest.raises(LeafError, match=r"cluster\.engine: ray needs .* `pip install 'leaf-pipeline\[cluster\]'`"):
        encode(tiny_corpus, teacher, params, tmp_path / "s", engine_on(ClusterParams(engine="ray"), teacher, params))


def test_a_ray_on_this_machine_publishes_the_bytes_of_a_local_run(
    tiny_corpus: Path,
    write_params: Callable[..., Path],
    tmp_path: Path,
    stage: Callable[..., Any],
    local_store: dict[str, bytes],
) -> None:
    pytest.importorskip("ray", reason="needs Ray: pip install -e '.[cluster]'")
    write_params(cluster={"engine": "ray", "cpus": 1, "shards_per_task": 2})
    result = stage("encode", "--corpus", "corpus", "--out", "store", "--metrics", "encode.json")
    assert result.returncode == 0, result.stderr
    assert contents(tmp_path / "store") == local_store
    metrics = json.loads((tmp_path / "encode.json").read_text())
    workers = metrics["cluster"]["workers"]
    assert sum(worker["rows"] for worker in workers) == metrics["rows_encoded"] == 400
    assert sum(worker["shards"] for worker in workers) == 7 and metrics["cluster"]["deaths"] == 0
    assert [kind["threads"] for kind in metrics["cluster"]["classes"]] == [1]
    assert " workers" in result.stderr
