"""The benchmarks run, and their tables say what was measured."""

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import stages.corpus
import stages.encode
from benchmarks import figures, fit, gpu, scale, trade
from benchmarks.common import RESULTS, ROOT, Row, alternate, table
from benchmarks.made import write_texts
from pipeline.model import TRAITS
from tests.conftest import sentence

CHEAP = ("corpus", "encode: fill the cache", "encode: publish", "verify", "corpus, 1 % more", "encode, 1 % more")


def test_a_larger_ratio_is_better_whatever_the_unit() -> None:
    assert Row("speed", "theirs", "tokens/s", 8.0, 2.0, 4.0).ratio == 4.0
    assert Row("memory", "limit", "MB", 2.0, 8.0, 1.0, less_is_better=True).ratio == 4.0


def test_the_first_round_warms_up_and_a_side_may_report_its_own_seconds() -> None:
    turns = iter([(1.0, 1.0), (6.0, 2.0), (9.0, 3.0), (50.0, 10.0)])
    assert alternate({"side": lambda: next(turns)}, rounds=3) == {"side": 3.0}


def test_the_table_says_which_targets_are_met() -> None:
    row = {"unit": "s", "ours": 1.0, "theirs": 2.0, "ratio": 2.0, "target": 1.5}
    lines = table({"good": row, "bad": row | {"target": 3.0}}).splitlines()
    assert lines[-2].endswith("| yes |")
    assert lines[-1].endswith("| no |")


@pytest.mark.long
@pytest.mark.parametrize("part", ["encode", "onnx", "fit", "store", "memory", "profile"])
def test_every_measurement_runs(part: str) -> None:
    if part == "fit" and not all(map(find_spec, ("datasets", "accelerate"))):
        pytest.skip("the trainer it is compared with needs datasets and accelerate: pip install -e '.[bench]'")
    before = RESULTS.read_bytes()
    small = os.environ | {"LEAF_BENCH_QUICK": "1"}
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{part}"], cwd=ROOT, env=small, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "\n|---|" in done.stdout
    assert RESULTS.read_bytes() == before


def test_all_that_a_cpu_can_do_of_the_measurements_on_a_gpu_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(TRAITS, "cpu", TRAITS["cpu"])
    monkeypatch.setenv(gpu.ACCELERATED, "")
    monkeypatch.setattr(gpu, "find_spec", lambda name: None)  # the trainer of sentence-transformers is measured above
    done = CliRunner().invoke(gpu.main, ["--small", "--json", str(tmp_path / "gpu.json")])
    assert done.exit_code == 0, done.output
    figures = json.loads((tmp_path / "gpu.json").read_text())
    assert figures["broke"] == []
    assert len(figures["rows"]) == 10
    met = {name: row["ratio"] >= row["target"] for name, row in figures["rows"].items()}
    assert all(met[name] for name in met if "worst text" in name or name.startswith("fit,"))


def test_without_a_gpu_it_says_so() -> None:
    done = CliRunner().invoke(gpu.main, [])
    assert done.exit_code == 1
    assert "no GPU: PyTorch sees no accelerator here; --small runs" in done.output


def test_the_measurement_of_the_loss_fits_both_ways(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit, "LOSS_STEPS", 2)
    vectors = np.random.default_rng(0).normal(size=(90, 384)).astype(np.float32)
    fit.prepare(tmp_path, [f"text {number}" for number in range(90)], vectors, 0.2)
    losses = [fit._fitted(precision, tmp_path)["loss"] for precision in ("auto", "float32")]
    assert losses[0] == pytest.approx(losses[1], rel=0.05)


def test_the_family_table_says_what_was_measured() -> None:
    command = [sys.executable, "-m", "benchmarks.families", "bert", "gpt2"]  # the packed and the padded path
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in done.stdout.splitlines()]
    head, rows = lines[0], {line[0]: dict(zip(lines[0], line, strict=True)) for line in lines[2:]}
    assert list(rows) == ["bert", "gpt2"]
    for family, path in (("bert", "packed"), ("gpt2", "padded")):
        row = rows[family]
        assert row["path"].split(",")[0] == row["student's path"] == path
        assert row["continued"] == "bit for bit"
        before, after = map(float, row["loss"].split(" -> "))
        assert after < before
        measured = [float(row[name]) for name in (head[1], "saved", "Router", "ONNX")]
        assert min(measured) > 0.999


def test_the_law_is_the_exponent_of_growth() -> None:
    assert scale.law((100, 5.0), (1000, 5.0)) == 0
    assert scale.law((100, 5.0), (1000, 500.0)) == pytest.approx(2)
    assert math.isnan(scale.law((100, 0.0), (1000, 500.0)))


def test_steps_of_scale_leave_the_files_that_are_measured(tmp_path: Path) -> None:
    write_texts(tmp_path / "texts.parquet", 2000)
    write_texts(tmp_path / "more.parquet", 20, first=2000)
    figures = {step: scale.measure_step(step, tmp_path) for step in CHEAP}
    assert figures["encode: publish"]["MB"] == pytest.approx(2048 * 768 * 2 / 1e6, rel=0.1)
    assert figures["encode: publish"]["files"] == 6
    assert figures["encode, 1 % more"]["files"] == 9
    assert all(step["seconds"] > 0 for step in figures.values())


def test_the_trade_has_a_row_for_each_student(
    write_params: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = [{"id": n, "query": sentence(n), "document": sentence(n + 500)} for n in range(80)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)), encoding="utf-8")
    fields = {"id_field": "id", "query_field": "query", "document_field": "document"}
    source = {"name": "tiny", "kind": "jsonl", "path": str(tmp_path / "pairs.jsonl"), **fields}
    write_params(corpus={"sources": [source], "heldout": 0.3}, fit={"max_steps": 3})
    monkeypatch.chdir(tmp_path)
    for stage in (stages.corpus.main, stages.encode.main):
        made = CliRunner().invoke(stage, [])
        assert made.exit_code == 0, made.output
    done = CliRunner().invoke(trade.main, ["--project", str(tmp_path), "--layers", "all", "--layers", "1"])
    assert done.exit_code == 0, done.output
    rows = [line.split(" | ") for line in done.stdout.splitlines() if line.startswith("| ")][1:]
    names = [row[0].removeprefix("| ") for row in rows]
    pairs_of_rows = [name for name in ("2 layers", "1 layer", "static") for _ in range(2)]
    assert names == ["2 layers, mean+cls", *pairs_of_rows], done.stdout
    sizes = [int(row[4].replace(",", "")) for row in rows]
    assert sizes[1] > sizes[3] > sizes[5] > 0, done.stdout
    assert not list((tmp_path / "runs/trade/work").glob("*/state*"))


def test_the_figures_of_all_documents_are_those_of_one_file() -> None:
    runs = json.loads(figures.FIGURES.read_text())
    blocks = set()
    for document in figures.DOCUMENTS:
        text = document.read_text(encoding="utf-8")
        assert figures.with_tables(text, runs) == text, f"{document.name}: run python -m benchmarks.figures"
        blocks |= {name for name in figures.TABLES if f"<!-- {name} -->" in text}
    assert blocks == set(figures.TABLES)


def test_figures_are_taken_of_a_projects_metrics(tmp_path: Path) -> None:
    mode = {"ndcg@10": 0.5, "retention": 0.9, "interval": {"retention": [0.8, 1.0]}}
    retrieval = {"faq": {"queries": 3, "documents": 4, "teacher": mode, "standard": mode, "asymmetric": mode}}
    value = {"value": 2.0}
    side = {"texts_per_s": value, "latency_p50_ms": value, "latency_p95_ms": value}
    models = {name: {"parameters": 5, "bytes": 6} for name in ("teacher", "student")}
    (tmp_path / "metrics").mkdir()
    (tmp_path / "metrics/evaluate.json").write_text(json.dumps({"retrieval": retrieval}))
    (tmp_path / "metrics/cost.json").write_text(
        json.dumps({"models": models, "threads": {"1": {"teacher": side, "student": side}}})
    )
    runs = {"demo": figures.figures_of(tmp_path), "mpnet": json.loads(figures.FIGURES.read_text())["mpnet"]}
    table = figures.with_tables("<!-- demo -->\n<!-- /demo -->", runs)
    assert "| 3 queries, 4 documents | 0.500 | 0.500 | 0.500 |" in table
    assert "0.900 (0.800 to 1.000)" in table
