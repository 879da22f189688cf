"""The recipes go the whole way from `leaf init --recipe` to the report, with small stand-ins for models and data.

A stand-in lies in the project's directory under the name that its original has on the hub, where it comes first; so the
recipes run as they are. Data sets have the layout of the public ones: configurations, columns, types.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
import yaml

from tests.conftest import ROOT, make_model, sentence

ROWS = 60


def numbered(name: str, first: int) -> list[str]:
    return [f"{sentence(first + n)} {name}" for n in range(ROWS)]


def mixed(path: Path, first: int) -> None:
    """Texts of both roles in one file, a query's id its document's and `/q`."""
    ids = [f"d{n}" for n in range(ROWS)]
    queries, documents = numbered("first", first), numbered("last", first + ROWS)
    frame = {"id": [*(f"{i}/q" for i in ids), *ids], "role": ["query"] * ROWS + ["document"] * ROWS}
    pl.DataFrame(frame | {"text": [*queries, *documents]}).write_parquet(path)


def collection(path: Path) -> None:
    """A test collection in BEIR layout."""
    (path / "qrels").mkdir(parents=True)
    documents = [{"_id": f"{n}", "title": "", "text": text} for n, text in enumerate(numbered("old", 900))]
    queries = [{"_id": f"q{n}", "text": sentence(900 + n)} for n in range(10)]
    pl.DataFrame(documents).write_ndjson(path / "corpus.jsonl")
    pl.DataFrame(queries).write_ndjson(path / "queries.jsonl")
    rows = "".join(f"q{n}\t{n}\t1\n" for n in range(10))
    (path / "qrels" / "test.tsv").write_text(f"query-id\tcorpus-id\tscore\n{rows}")


def labelled(folder: Path) -> None:
    """Files of the tasks that the recipe names."""
    for task in ("sts", "classification", "clustering"):
        (folder / task).mkdir()
    texts, labels = numbered("of", 1200), [f"k{n % 3}" for n in range(ROWS)]
    pairs = {"sentence1": texts, "sentence2": numbered("at", 1300), "score": [n % 6 for n in range(ROWS)]}
    pl.DataFrame(pairs).write_csv(folder / "sts" / "stsbenchmark-test.csv")
    for name in ("banking77", "trec6"):
        splits = ["test" if n % 4 == 0 else "train" for n in range(ROWS)]
        frame = pl.DataFrame({"text": texts, "label": labels, "split": splits})
        frame.write_csv(folder / "classification" / f"{name}.csv")
    kinds = pl.DataFrame({"text": texts, "label": labels})
    kinds.write_csv(folder / "clustering" / "newsgroups-subjects.csv")


DATA_SETS: dict[str, tuple[str | None, Callable[[], dict[str, list[object]]]]] = {
    "HuggingFaceFW/fineweb": ("sample-10BT", lambda: {
        "text": [*numbered("web", 0)], "id": [f"<urn:uuid:{n}>" for n in range(ROWS)],
        "dump": ["CC-MAIN-2013-20"] * ROWS, "token_count": [*range(ROWS)], "language_score": [0.9] * ROWS,
    }),
    "vblagoje/cc_news": (None, lambda: {
        "title": [*numbered("title", 100)], "text": [*numbered("news", 100)], "domain": ["example.org"] * ROWS,
        "date": ["2019-01-01"] * ROWS, "description": [""] * ROWS, "url": ["https://example.org"] * ROWS,
    }),
    "sentence-transformers/amazon-qa": (None, lambda: {
        "query": [*numbered("in", 200)], "answer": [*numbered("for", 300)],
    }),
    "sentence-transformers/msmarco-corpus": ("query", lambda: {
        "qid": [str(n) for n in range(ROWS)], "text": [*numbered("that", 400)],
    }),
    "qiaojin/PubMedQA": ("pqa_artificial", lambda: {
        "pubid": [*range(ROWS)], "question": [*numbered("is", 500)],
        "context": [{"contexts": [sentence(n)], "labels": ["A"], "meshes": ["B"]} for n in range(ROWS)],
        "long_answer": [*numbered("to", 600)], "final_decision": ["yes"] * ROWS,
    }),
    "mandarjoshi/trivia_qa": ("rc.nocontext", lambda: {
        "question": [*numbered("and", 700)], "question_id": [f"tc_{n}" for n in range(ROWS)],
        "question_source": ["http://example.org"] * ROWS, "answer": [{"value": "x", "aliases": ["y"]}] * ROWS,
    }),
}  # fmt: skip
"""Data sets of the hub: the configuration that the recipes name, and their columns."""

TEACHERS = {"leaf-ir": "Snowflake/snowflake-arctic-embed-m-v1.5", "leaf-mt": "mixedbread-ai/mxbai-embed-large-v1"}
STUDENT = "nreimers/MiniLM-L6-H384-uncased"


def write_data_set(directory: Path, configuration: str | None, columns: dict[str, list[object]]) -> None:
    (directory / "data").mkdir(parents=True)
    pl.DataFrame(columns, strict=False).write_parquet(directory / "data" / "train-00000-of-00001.parquet")
    named = {"config_name": configuration or "default", "data_files": [{"split": "train", "path": "data/train-*"}]}
    (directory / "README.md").write_text(f"---\n{yaml.safe_dump({'configs': [named]})}---\n")


def leaf(folder: Path, *arguments: str) -> str:
    ended = subprocess.run(
        [sys.executable, "-m", "stages.leaf", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / ".hf")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, f"{ended.stdout[-3000:]}\n{ended.stderr[-3000:]}"
    return ended.stdout


def check(project: Path) -> None:
    """Every stage has left what it is for."""
    figures = json.loads((project / "metrics" / "fit.json").read_text())
    assert figures["validation"]["loss"] < figures["validation_at_start"]["loss"]
    assert json.loads((project / "metrics" / "evaluate.json").read_text())["retrieval"]
    assert (project / "models" / "student" / "model.safetensors").is_file()
    assert "</html>" in (project / "reports" / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("recipe", list(TEACHERS))
def test_a_recipe_of_the_paper_goes_the_whole_way(recipe: str, tmp_path: Path) -> None:
    for name, (configuration, columns) in DATA_SETS.items():
        write_data_set(tmp_path / name, configuration, columns())
    make_model(tmp_path / TEACHERS[recipe], positions=514)
    make_model(tmp_path / STUDENT, width=16, seed=1, positions=514)
    assert "Needs the model hub" in leaf(tmp_path, "init", ".", "--recipe", recipe, "--heldout", "0.1")
    params = yaml.safe_load((tmp_path / "params.yaml").read_text())
    assert {source["path"] for source in params["corpus"]["sources"]} == set(DATA_SETS)
    assert params["teacher"]["model"] == TEACHERS[recipe]
    leaf(tmp_path, "repro")
    check(tmp_path)
    texts = json.loads((tmp_path / "metrics" / "corpus.json").read_text())["total"]
    steps = json.loads((tmp_path / "metrics" / "fit.json").read_text())["steps"]
    assert steps > 3 * 10 * texts * 0.8 // 32  # three cycles of ten epochs


def test_the_recipe_for_two_cores_goes_the_whole_way(tmp_path: Path) -> None:
    for folder in ("data/sources", "data/evaluation"):
        (tmp_path / folder).mkdir(parents=True)
    for number, name in enumerate(("debian", "wordnet", "broad")):
        mixed(tmp_path / "data" / "sources" / f"{name}.parquet", 300 * number)
    for name in ("cran", "npl", "cacm"):
        collection(tmp_path / "data" / "evaluation" / name)
    labelled(tmp_path / "data" / "evaluation")
    teacher = make_model(tmp_path / "models" / "teacher", positions=256)
    student = make_model(tmp_path / "models" / "checkpoint", width=16, seed=1, positions=256)
    models = ("--teacher", str(teacher), "--student", str(student), "--heldout", "0.1")
    printed = leaf(tmp_path, "init", ".", "--recipe", "mpnet-minilm", *models)
    assert "bring what is not there yet, or change params.yaml: data/stores/mpnet-broad\n" in printed
    params = yaml.safe_load((tmp_path / "params.yaml").read_text())
    assert params["encode"].pop("reuse") == ["data/stores/mpnet-broad"]  # which nobody has brought
    params["fit"] |= {"snapshots": [0], "warmup_steps": 5}  # of a run of a hundred steps
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    leaf(tmp_path, "repro")
    check(tmp_path)
    figures = json.loads((tmp_path / "metrics" / "evaluate.json").read_text())
    assert set(figures["retrieval"]) >= {"cran", "npl", "cacm"}
    assert all("start" in result for result in figures["retrieval"].values())
    assert set(figures["classification"]) == {"banking77", "trec6"}
    assert set(figures["sts"]) | set(figures["clustering"]) == {"stsbenchmark-test", "newsgroups-subjects"}
