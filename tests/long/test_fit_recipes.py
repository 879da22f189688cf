"""Every recipe of docs/recipes.md through real DVC, on some three hundred texts and tiny models."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import yaml

from pipeline.model import Student
from pipeline.store import FittedTo, Store
from tests.conftest import ROOT, make_model
from tests.stages.test_pipeline import Project

STORES = {"second": "data/embeddings-second", "start": "data/embeddings-start"}
CANDIDATES = "data/candidates.parquet"
RECIPES: dict[str, dict[str, Any]] = {
    "graded-start": {"start_share": 0.2, "start_share_first": 0.8},
    "last-points": {"average_last": 3, "average_spacing": 10, "schedule": "stable", "warmup_steps": 4},
    "head-first": {"head_steps": 20, "frozen_layers": 1, "schedule": "cosine"},
    "jasper": {
        "loss": "cosine",
        "loss_weight": 10,
        "similarity": {"weight": 200},
        "relative": {"weight": 20},
        "prefixes": [16, 8],
        "one_source_batches": True,
        "further_stores": [STORES["second"]],
    },
    "fading-similarity": {"similarity": {"weight": 20, "fade": 0.2}},
    "anchor": {"anchor": {"store": STORES["start"], "weight": 0.2}},
    "soft-distillation": {"candidates": {"path": CANDIDATES, "weight": 0.5}},
    "assistants": {"assistants": {"depths": [1], "distill": 0.5}},
}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, tiny_teacher: Path, tiny_student: Path) -> Project:
    """A project with the corpus, the teacher's store, a second teacher's and the start's, as stages of its own."""
    models = tmp_path_factory.mktemp("models")
    teachers = {"second": make_model(models / "second", width=24, seed=5), "start": tiny_student}
    source = {"name": "pairs", "kind": "jsonl", "path": "data/sources/texts.jsonl", "id_field": "id"}
    fields = {"query_field": "title", "document_field": "body"}
    params = {
        "corpus": {"sources": [source | fields], "heldout": 0.2},
        "teacher": {"model": str(tiny_teacher)},
        "encode": {"shard_rows": 128, "token_budget": 512},
        "fit": {
            "student": {"model": str(tiny_student), "head": "ridge", "head_rows": 1_000_000},
            "cycles": 1,
            "epochs_per_cycle": 2,
            "learning_rate": 2e-3,
            "batch_size": 8,
            "dropout": 0.0,
            "validate_every": 50,
            "checkpoint_every": 20,
        },
        "evaluate": {"bootstrap": 0, "calibration_rows": 0, "cost": {"texts": 0}},
        "export": {"speed_texts": 0, "bootstrap": 0},
    }
    made = Project(tmp_path_factory.mktemp("recipes"), params)
    stages = yaml.safe_load((made.folder / "dvc.yaml").read_text())
    for name, model in teachers.items():
        sections = {**params, "teacher": {"model": str(model)}}
        (made.folder / f"params-{name}.yaml").write_text(yaml.safe_dump(sections))
        stages["stages"][f"encode-{name}"] = {
            "cmd": f"python -m stages.encode --params params-{name}.yaml --out {STORES[name]} --metrics {name}.json",
            "deps": ["data/corpus"],
            "params": [{f"params-{name}.yaml": ["teacher", "encode"]}],
            "outs": [STORES[name]],
        }
    stages["stages"]["fit"]["deps"] += [*STORES.values(), CANDIDATES]
    (made.folder / "dvc.yaml").write_text(yaml.safe_dump(stages))
    made.dvc("repro", "encode", *(f"encode-{name}" for name in teachers))
    write_candidates(made.folder)
    return made


def write_candidates(folder: Path) -> None:
    """The three documents that the teacher finds nearest to each training query, as the filter stage writes them."""
    texts = pl.read_parquet(folder / "data/corpus/*.parquet").filter(split="train").sort("key")
    store = Store.open(folder / "data/embeddings")
    queries, documents = (texts.filter(role=role)["key"].to_list() for role in ("query", "document"))
    cosines = store.lookup(queries) @ store.lookup(documents).T
    nearest = np.argsort(-cosines, axis=1)[:, :3]
    frame = pl.DataFrame(
        {
            "key": queries,
            "candidates": [[documents[row] for row in rows] for rows in nearest],
            "cosines": np.take_along_axis(cosines, nearest, 1).tolist(),
        }
    )
    frame.with_columns(pl.col("cosines").cast(pl.List(pl.Float32))).write_parquet(folder / CANDIDATES)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_a_few_keys_of_the_parameters(project: Project, name: str) -> None:
    project.set_params(fit=RECIPES[name])
    assert "fit" in project.ran(project.dvc("repro", "fit"))
    figures = project.metrics("fit")
    assert figures["validation"]["cosine"] > 0.8
    assert figures["validation"] != figures["validation_at_start"]
    student = Student.load(project.folder / "models/student")
    if name == "jasper":
        assert student.dim == 32 + 24
        second = ["--params", "params-second.yaml", "--embeddings", STORES["second"], "--out", "second.json"]
        project.run("python", "-m", "stages.evaluate", *second)
        project.dvc("repro", "evaluate")
        assert project.metrics("evaluate")["retrieval"]["pairs"]["asymmetric"]["ndcg@10"] > 0
        assert json.loads((project.folder / "second.json").read_text())["alignment"]["query"]["cosine"]["mean"] > 0.5
        project.run("python", "-m", "stages.export")
        exported = FittedTo.read(project.folder / "models/onnx")
        assert exported == FittedTo(Store.open(project.folder / "data/embeddings").meta.fingerprint)
    if name == "assistants":
        project.run("python", "-m", "stages.evaluate", "--model", "models/student-depths/1", "--out", "depth.json")
        assert json.loads((project.folder / "depth.json").read_text())["retrieval"]["pairs"]


def test_a_chain_over_an_assistant_ends_in_the_teachers_space(project: Project, tiny_student: Path) -> None:
    project.set_params()
    stages = yaml.safe_load((project.folder / "dvc.yaml").read_text())
    chain = {**project.params, "teacher": {"model": "models/assistant"}}
    chain["fit"] = {**chain["fit"], "student": {"model": str(tiny_student), "layers": [0]}}
    (project.folder / "params-chain.yaml").write_text(yaml.safe_dump(chain))
    stages["stages"] |= yaml.safe_load(documented_chain())["stages"]
    (project.folder / "dvc.yaml").write_text(yaml.safe_dump(stages))
    project.dvc("repro", "fit-chain")
    small = project.folder / "models/small"
    assert Student.load(small).backbone.layers == 1
    project.run("python", "-m", "stages.evaluate", "--model", "models/small", "--out", "chain.json")
    assert json.loads((project.folder / "chain.json").read_text())["alignment"]["query"]["cosine"]["mean"] > 0.5


def documented_chain() -> str:
    """The stages of the chain that docs/recipes.md shows."""
    text = (ROOT / "docs/recipes.md").read_text(encoding="utf-8")
    found = re.search(r"```yaml\n(stages:\n  fit-assistant:.*?)```", text, re.DOTALL)
    assert found
    return found[1]


def test_every_recipe_has_its_page() -> None:
    text = (ROOT / "docs/recipes.md").read_text(encoding="utf-8")
    keys = {key for recipe in RECIPES.values() for key in recipe}
    assert all(f"`fit.{key}`" in text or f"{key}:" in text for key in keys)
