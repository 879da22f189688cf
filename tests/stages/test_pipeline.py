"""The whole pipeline on tiny models, through real DVC."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import yaml
from sentence_transformers import SentenceTransformer

from pipeline.store.store import Store
from tests.conftest import ROOT, sentence

STAGES = ("corpus", "encode", "fit", "evaluate", "export", "report")


class Project:
    """A DVC project in a directory of its own, with tiny models and texts."""

    def __init__(self, folder: Path, params: dict[str, Any]) -> None:
        self.folder = folder
        for name in ("dvc.yaml", ".dvcignore"):
            shutil.copy(ROOT / name, folder / name)
        for package in ("pipeline", "stages"):
            shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
        for place in ("", "sources", "evaluation"):
            (folder / "data" / place).mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / "data" / place / ".gitignore", folder / "data" / place)
        self.write_texts(300)
        self.params = params
        self.set_params()
        self.run("git", "init", "-q")
        self.dvc("init", "-q")
        self.dvc("config", "core.analytics", "false")

    def write_texts(self, records: int) -> None:
        rows = [{"id": f"r{i}", "title": sentence(2 * i), "body": sentence(2 * i + 1)} for i in range(records)]
        pl.DataFrame(rows).write_ndjson(self.folder / "data" / "sources" / "texts.jsonl")

    def set_params(self, **sections: dict[str, Any]) -> None:
        changed = {name: {**keys, **sections.get(name, {})} for name, keys in self.params.items()}
        (self.folder / "params.yaml").write_text(yaml.safe_dump(changed), encoding="utf-8")

    def run(self, *command: str) -> str:
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        result = subprocess.run(
            command,
            cwd=self.folder,
            env={**os.environ, "PATH": path, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(self.folder)},
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        assert result.returncode == 0, f"{result.stdout}\n{result.stderr}"
        return result.stdout + result.stderr

    def dvc(self, *arguments: str) -> str:
        return self.run(sys.executable, "-m", "dvc", *arguments)

    def metrics(self, name: str) -> Any:
        return json.loads((self.folder / "metrics" / f"{name}.json").read_text())

    def ran(self, output: str) -> set[str]:
        return {name for name in STAGES if f"Running stage '{name}'" in output}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, tiny_teacher: Path, tiny_student: Path) -> Project:
    source = {"name": "pairs", "kind": "jsonl", "path": "data/sources/texts.jsonl", "id_field": "id"}
    fields = {"query_field": "title", "document_field": "body"}
    params = {
        "corpus": {"sources": [source | fields], "heldout": 0.2, "shard_rows": 200},
        "teacher": {"model": str(tiny_teacher)},
        "encode": {"shard_rows": 128, "token_budget": 512},
        "fit": {
            "student": {"model": str(tiny_student)},
            "cycles": 1,
            "epochs_per_cycle": 4,
            "learning_rate": 2e-3,
            "learning_rate_end": 1e-4,
            "batch_size": 8,
            "dropout": 0.0,
            "validate_every": 50,
            "checkpoint_every": 50,
        },
        "evaluate": {"bootstrap": 50, "calibration_rows": 64, "cost": {"texts": 8, "queries": 4, "rounds": 2}},
        "export": {"speed_texts": 4, "bootstrap": 50},
    }
    made = Project(tmp_path_factory.mktemp("project"), params)
    made.dvc("repro")
    return made


def test_repro_makes_the_student_its_measurements_and_pictures(project: Project) -> None:
    figures = project.metrics("evaluate")
    assert set(figures["retrieval"]) == {"pairs"}
    assert set(figures["retrieval"]["pairs"]) >= {"teacher", "standard", "asymmetric"}
    assert figures["alignment"]["query"]["n"] > 10
    assert project.metrics("fit")["validation"]["loss"] < project.metrics("fit")["validation_at_start"]["loss"]
    for name in ("fit_loss.csv", "retention.csv", "alignment.csv", "evaluation.svg"):
        assert (project.folder / "plots" / name).stat().st_size > 0
    assert (project.folder / "models" / "student" / "README.md").stat().st_size > 0
    assert "</html>" in (project.folder / "reports" / "report.html").read_text()


def test_dvc_draws_the_plots_and_lists_the_metrics_of_the_report(project: Project) -> None:
    project.dvc("plots", "show", "-o", "drawn")
    drawn = (project.folder / "drawn" / "index.html").read_text()
    assert all(f"{name}.csv" in drawn for name in ("truncation", "quantisation", "map", "retention", "alignment"))
    shown = json.loads(project.dvc("metrics", "show", "--json").partition("\n")[0])
    assert "cost" in str(shown) and "truncation" in str(shown)


def test_the_student_loads_with_sentence_transformers_alone_and_lies_in_the_teachers_space(project: Project) -> None:
    corpus = pl.read_parquet(project.folder / "data" / "corpus" / "*.parquet").filter(pl.col("split") == "heldout")
    script = (
        "import sys, json, numpy; from sentence_transformers import SentenceTransformer; "
        "numpy.save('vectors.npy', SentenceTransformer('models/student', device='cpu')"
        ".encode(json.load(open('texts.json')))); assert 'pipeline' not in sys.modules"
    )
    (project.folder / "texts.json").write_text(json.dumps(corpus["text"].to_list()))
    project.run(sys.executable, "-c", script)
    student = np.load(project.folder / "vectors.npy")
    teacher = Store.open(project.folder / "data" / "embeddings").lookup(corpus["key"].to_list())
    assert student.shape == teacher.shape
    assert np.abs(np.linalg.norm(student, axis=1) - 1).max() < 1e-3
    sums = [figures["cosine"]["mean"] * figures["n"] for figures in project.metrics("evaluate")["alignment"].values()]
    assert abs((student * teacher).sum(1).mean() - sum(sums) / len(corpus)) < 0.01


def test_a_second_repro_runs_nothing(project: Project) -> None:
    assert project.ran(project.dvc("repro")) == set()


def test_what_comes_and_goes_below_data_evaluation_is_noticed(project: Project) -> None:
    file = project.folder / "data/evaluation/labels.csv"
    file.write_text("text,label\nthe list,a\n")
    assert "data/evaluation" in project.dvc("status", "evaluate")
    file.unlink()
    assert "data/evaluation" not in project.dvc("status", "evaluate")


@pytest.mark.parametrize("link", ["hardlink", "symlink"])
def test_stages_by_hand_never_write_through_links_into_the_cache(project: Project, link: str) -> None:
    measured = project.folder / "metrics/export.json"
    before = measured.read_bytes()
    project.dvc("config", "cache.type", link)
    project.dvc("checkout", "--relink")
    page = project.folder / "reports/report.html"
    assert page.is_symlink() if link == "symlink" else page.stat().st_nlink > 1
    for name in ("report", "export")[: 2 if link == "hardlink" else 1]:
        project.run(sys.executable, "-m", f"stages.{name}")
    assert not page.is_symlink() and page.stat().st_nlink == 1
    cached = [file for file in (project.folder / ".dvc/cache/files/md5").glob("*/*") if file.suffix != ".dir"]
    assert len(cached) > 20
    for file in cached:
        assert hashlib.md5(file.read_bytes(), usedforsecurity=False).hexdigest() == file.parent.name + file.name
    measured.write_bytes(before)
    project.dvc("config", "--unset", "cache.type")
    project.dvc("checkout", "--force", "--relink")


def test_a_report_can_be_made_that_holds_no_text(project: Project) -> None:
    def holds_texts() -> set[str]:
        corpus = pl.read_parquet(project.folder / "data" / "corpus" / "*.parquet")
        files = [file for place in ("plots", "reports", "metrics") for file in (project.folder / place).iterdir()]
        return {file.name for file in files if any(text in file.read_text() for text in corpus["text"])}

    assert holds_texts() == {"moved.json", "report.html"}
    project.set_params(evaluate={"texts": False})
    assert project.ran(project.dvc("repro", "report")) >= {"evaluate", "report"}
    assert not holds_texts()
    project.set_params()
    project.dvc("repro")


def test_a_changed_fit_runs_fit_and_evaluate_and_going_back_runs_nothing(project: Project) -> None:
    before = (project.folder / "models" / "student" / "model.safetensors").read_bytes()
    project.set_params(fit={"learning_rate": 1e-3})
    assert project.ran(project.dvc("repro")) == {"fit", "evaluate", "export", "report"}
    assert (project.folder / "models" / "student" / "model.safetensors").read_bytes() != before
    project.set_params()
    assert project.ran(project.dvc("repro")) == set()  # served from DVC's run cache
    assert (project.folder / "models" / "student" / "model.safetensors").read_bytes() == before


def test_a_grown_corpus_encodes_only_what_is_new_and_keeps_the_old_shards(project: Project) -> None:
    old = {info.name for info in Store.open(project.folder / "data" / "embeddings").shards}
    held = pl.read_parquet(project.folder / "data" / "corpus" / "*.parquet").filter(pl.col("split") == "heldout")
    project.write_texts(310)
    assert project.ran(project.dvc("repro", "encode")) == {"corpus", "encode"}
    grown = pl.read_parquet(project.folder / "data" / "corpus" / "*.parquet").filter(pl.col("split") == "heldout")
    assert 0 < project.metrics("encode")["rows_encoded"] <= 20
    assert old < {info.name for info in Store.open(project.folder / "data" / "embeddings").shards}
    assert set(held["key"]) <= set(grown["key"])


def test_one_stage_runs_alone(project: Project) -> None:
    assert project.ran(project.dvc("repro", "-s", "-f", "evaluate")) == {"evaluate"}


def test_every_stage_explains_itself(stage: Callable[..., "subprocess.CompletedProcess[str]"]) -> None:
    for name in STAGES:
        result = stage(name, "--help")
        assert result.returncode == 0 and "--params" in result.stdout


def test_the_saved_student_is_a_plain_model_directory(project: Project) -> None:
    modules = json.loads((project.folder / "models" / "student" / "modules.json").read_text())
    assert all(entry["type"].startswith("sentence_transformers.") for entry in modules)
    assert SentenceTransformer(str(project.folder / "models" / "student"), device="cpu").max_seq_length == 48
