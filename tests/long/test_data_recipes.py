"""Recipes of docs/recipes.md for data and teachers, each through real DVC on some three hundred texts."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import yaml
from sentence_transformers import SentenceTransformer

from pipeline.corpus import scan
from pipeline.evaluate import collection
from pipeline.store import Store
from tests.conftest import ROOT, WORDS, sentence
from tests.stages.test_pipeline import Project

FIT = {
    "cycles": 1,
    "epochs_per_cycle": 2,
    "learning_rate": 2e-3,
    "learning_rate_end": 1e-4,
    "batch_size": 8,
    "dropout": 0.0,
    "validate_every": 100,
    "checkpoint_every": 100,
}


def section(title: str) -> dict[str, list[str]]:
    """The blocks of a section of docs/recipes.md, by their language."""
    text = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    [body] = [part for part in re.split(r"^## ", text, flags=re.MULTILINE) if part.startswith(title)]
    blocks: dict[str, list[str]] = {}
    for language, content in re.findall(r"^```(\w+)\n(.*?)^```$", body, re.MULTILINE | re.DOTALL):
        blocks.setdefault(language, []).append(content)
    return blocks


def made(folder: Path, teacher: Path, student: Path, /, **sections: dict[str, Any]) -> Project:
    """A project with 300 pairs and tiny models, in which nothing has run."""
    source = {"name": "pairs", "kind": "jsonl", "path": "data/sources/texts.jsonl", "id_field": "id"}
    fields = {"query_field": "title", "document_field": "body"}
    params: dict[str, Any] = {
        "corpus": {"sources": [source | fields], "heldout": 0.2},
        "teacher": {"model": str(teacher)},
        "encode": {"shard_rows": 256, "token_budget": 512},
        "fit": {"student": {"model": str(student)}, **FIT},
        "evaluate": {"bootstrap": 50, "cost": {"texts": 0}, "calibration_rows": 64},
        "export": {"speed_texts": 0, "bootstrap": 50},
    }
    return Project(folder, params | {name: params.get(name, {}) | keys for name, keys in sections.items()})


def test_caps_pages_views_and_clusters_through_all_stages(
    tmp_path: Path, tiny_teacher: Path, tiny_student: Path
) -> None:
    origins = {"news": 60, "law": 20, "faq": 4}
    rows = [
        {"id": f"{origin}-{page}{suffix}", "role": role, "origin": origin, "title": f"{WORDS[page % 40]} {suffix}"}
        for origin, pages in origins.items()
        for page in range(pages)
        for suffix, role in (("", "document"), ("/q", "query"), (".2", "document"))
    ]
    texts = [f"{sentence(n)}. The {sentence(3 * n)}. A {sentence(5 * n)}." for n in range(len(rows))]
    frame = pl.DataFrame(rows).with_columns(text=pl.Series(texts))
    [shown] = section("Broad texts")["yaml"]
    source = yaml.safe_load(shown)["corpus"]["sources"][0]
    source |= {"path": "data/sources/broad.parquet", "source_field": "origin", "cap": 30, "title_field": "title"}
    source["views"] = yaml.safe_load(section("Views")["yaml"][0])["corpus"]["sources"][0]["views"] | {"share": 1.0}
    kinds = [{"text": f"{sentence(number)} {WORDS[number % 3] * 2}", "label": f"k{number % 3}"} for number in range(60)]
    project = made(
        tmp_path,
        tiny_teacher,
        tiny_student,
        corpus={"sources": [source], "heldout": 0.3},
        evaluate={"clustering": ["data/evaluation/kinds.csv"], "bootstrap": 20, "cost": {"texts": 0}},
    )
    frame.write_parquet(project.folder / "data" / "sources" / "broad.parquet")
    pl.DataFrame(kinds).write_csv(project.folder / "data" / "evaluation" / "kinds.csv")
    project.dvc("repro")
    drawn = {origin: counts["drawn"] for origin, counts in project.metrics("corpus")["origins"]["broad"].items()}
    assert drawn == {"news": 30, "law": 17, "faq": 4}
    corpus = scan(project.folder / "data" / "corpus").collect()
    sides = corpus.group_by(pl.col("id").str.extract(r"^([^./#]+)")).agg(pl.col("split").n_unique())
    assert sides["split"].unique().to_list() == [1]
    assert {"broad", "broad/views"} == set(corpus["source"])
    figures = project.metrics("evaluate")
    assert set(figures["retrieval"]) == {"broad"} and "start" in figures["retrieval"]["broad"]
    assert figures["clustering"]["kinds"]["clusters"] == 3
    assert "Clustering" in (project.folder / "reports" / "report.html").read_text()


def test_the_filter_of_the_document_stands_between_encode_and_fit(
    tmp_path: Path, tiny_teacher: Path, tiny_student: Path
) -> None:
    [params, graph] = map(yaml.safe_load, section("Filter")["yaml"])
    project = made(tmp_path, tiny_teacher, tiny_student, filter=params["filter"] | {"nearest": 40})
    stages = yaml.safe_load((project.folder / "dvc.yaml").read_text())
    stages["stages"] |= graph["stages"]
    (project.folder / "dvc.yaml").write_text(yaml.safe_dump(stages))
    project.dvc("repro")
    counted = project.metrics("filter")["sources"]["pairs"]
    dropped = counted["queries_dropped"] + counted["documents_dropped"]
    assert 0 < counted["queries_dropped"] < counted["pairs"]
    train = project.metrics("corpus")["splits"]["train"]
    assert project.metrics("fit")["training_rows"] == train - dropped
    whole, left = (scan(project.folder / "data" / name).collect() for name in ("corpus", "filtered"))
    assert left.filter(pl.col("split") == "heldout").equals(whole.filter(pl.col("split") == "heldout"))
    candidates = pl.read_parquet(project.folder / "data" / "candidates.parquet")
    queries = left.filter((pl.col("role") == "query") & (pl.col("split") == "train"))
    assert candidates["key"].to_list() == queries["key"].to_list()
    assert "Running stage" not in project.dvc("repro")
    project.set_params(fit={"learning_rate": 1e-3})
    assert "Running stage 'filter'" not in project.dvc("repro", "fit")


def test_a_teacher_is_turned_and_everything_after_it_uses_the_turned_one(
    tmp_path: Path, tiny_teacher: Path, tiny_student: Path
) -> None:
    project = made(tmp_path, tiny_teacher, tiny_student, evaluate={"dims": [8], "bootstrap": 0, "cost": {"texts": 0}})
    project.dvc("repro")
    plain = project.metrics("evaluate")["truncation"]["pairs"]["dims"]
    assert "of the variance" in project.run(sys.executable, "-m", "stages.rotate")
    [shown] = section("A teacher turned")["yaml"]
    changes = yaml.safe_load(shown)
    project.set_params(**changes)
    project.dvc("repro")
    assert project.metrics("encode")["rows_encoded"] == 0
    turned = project.metrics("evaluate")["truncation"]["pairs"]["dims"]
    assert turned["32"]["teacher"]["ndcg@10"] == pytest.approx(plain["32"]["teacher"]["ndcg@10"], abs=0.02)
    served = SentenceTransformer(str(project.folder / "models" / "asymmetric"), device="cpu")
    texts = scan(project.folder / "data" / "corpus").filter(pl.col("role") == "document").head(10).collect()
    stored = Store.open(project.folder / "data" / "embeddings").lookup(texts["key"].to_list())
    assert (served.encode_document(texts["text"].to_list()) * stored).sum(1).min() > 0.999


def test_queries_alone_make_a_student_that_searches_vectors_without_texts(
    tmp_path: Path, tiny_teacher: Path, tiny_student: Path, shared: Path
) -> None:
    [shown] = section("A text side")["yaml"]
    recipe = yaml.safe_load(shown)
    cran, bare = collection.read(shared / "ir" / "cran"), Path("data/evaluation/pages")
    project = made(
        tmp_path,
        tiny_teacher,
        tiny_student,
        corpus=recipe["corpus"],
        teacher={"model": str(tiny_teacher), "prompts": {"query": "list of "}},
        evaluate=recipe["evaluate"] | {"bootstrap": 50, "cost": {"texts": 0}},
    )
    (project.folder / bare / "qrels").mkdir(parents=True)
    for name in ("queries.jsonl", "qrels/test.tsv"):
        (project.folder / bare / name).write_bytes((shared / "ir" / "cran" / name).read_bytes())
    vectors = SentenceTransformer(str(tiny_teacher), device="cpu").encode(cran.documents["text"].to_list())
    frame = pl.DataFrame({"id": cran.documents["id"], "vector": vectors.tolist()})
    frame.write_parquet(project.folder / bare / "vectors.parquet")
    questions = "\n".join(sentence(number) for number in range(300))
    (project.folder / "data" / "sources" / "questions.txt").write_text(questions)
    project.dvc("repro")
    figures = project.metrics("evaluate")
    searched = figures["indexes"]["pages"]
    assert searched["documents"] == 1400 and searched["queries"] == 225
    assert "standard" not in searched and np.isfinite(searched["asymmetric"]["ndcg@10"])
    assert figures["retrieval"] == {} and set(figures["alignment"]) == {"query"}
    assert json.loads((project.folder / "models" / "student" / "fitted_to.json").read_text())
    assert "pages, asymmetric" in (project.folder / "reports" / "report.html").read_text()
