"""Corpus and store must be of the state of the project that git has checked out; what DVC has removed is named."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import click
import polars as pl
import pytest
import yaml
from click.testing import CliRunner

import stages.corpus
import stages.encode
import stages.evaluate
import stages.export
import stages.fit
from pipeline.base.errors import LeafError
from pipeline.corpus.parts import corpus_digest
from stages.recorded import check_recorded, student_digest
from tests.conftest import corpus_frame

CORPUS = Path("data/corpus")


def write_corpus(rows: int) -> None:
    CORPUS.mkdir(parents=True, exist_ok=True)
    corpus_frame(rows).write_parquet(CORPUS / "part-00000.parquet")


def record_metrics(digest: str) -> None:
    Path("metrics").mkdir(exist_ok=True)
    Path("metrics/corpus.json").write_text(json.dumps({"total": 9, "digest": digest}))


def record_lock(md5: str) -> None:
    outs = [{"path": str(CORPUS), "hash": "md5", "md5": md5, "size": 1, "nfiles": 1}, {"path": "plots/a", "md5": "ab"}]
    Path("dvc.lock").write_text(yaml.safe_dump({"schema": "2.0", "stages": {"corpus": {"cmd": "c", "outs": outs}}}))


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_corpus(40)


def md5_by_dvc() -> str:
    """What DVC itself calls the corpus."""
    for command in (["init", "--no-scm", "-q"], ["add", "-q", str(CORPUS)]):
        subprocess.run([sys.executable, "-m", "dvc", *command], check=True, capture_output=True)
    md5: str = yaml.safe_load(Path(f"{CORPUS}.dvc").read_text())["outs"][0]["md5"]
    return md5


@pytest.mark.parametrize("main", [stages.encode.main, stages.fit.main, stages.evaluate.main])
def test_a_corpus_of_another_state_than_dvc_lock_and_metrics_is_refused_before_anything(main: click.Command) -> None:
    """As after `git pull` without `dvc pull`."""
    Path("params.yaml").write_text("teacher: {model: none}\nencode: {}\nfit: {student: {model: none}}\nevaluate: {}\n")
    record_metrics("12" * 32)
    record_lock("34" * 16 + ".dir")
    result = CliRunner().invoke(main, [])
    assert result.exit_code == 1
    assert "data/corpus: is not the one that dvc.lock and metrics/corpus.json describe" in result.output
    assert "`dvc pull`" in result.output


def test_what_the_metrics_or_dvc_lock_describe_is_used() -> None:
    check_recorded(CORPUS)  # nothing is recorded
    record_metrics("12" * 32)
    check_recorded(CORPUS)  # nor without DVC
    record_lock("34" * 16 + ".dir")
    record_metrics(corpus_digest(CORPUS))
    check_recorded(CORPUS)  # a stage by hand
    record_metrics("12" * 32)
    record_lock(md5_by_dvc())
    check_recorded(CORPUS)  # `dvc commit`
    (CORPUS / "part-00001.parquet").write_bytes((CORPUS / "part-00000.parquet").read_bytes())
    with pytest.raises(LeafError, match="is not the one"):
        check_recorded(CORPUS)


@pytest.mark.parametrize("main", [stages.evaluate.main, stages.export.main])
def test_a_student_that_git_does_not_describe_is_refused(
    main: click.Command, tiny_student: Path, project: None
) -> None:
    """As where a bucket is written by others: DVC fetches by MD5 and looks no further."""
    student = Path("models/student")
    shutil.copytree(tiny_student, student)
    Path("params.yaml").write_text(
        "teacher: {model: none}\nencode: {}\nfit: {student: {model: none}}\nevaluate: {}\nexport: {}\n"
    )
    outs = [{"path": str(student), "hash": "md5", "md5": "34" * 16 + ".dir", "size": 1, "nfiles": 1}]
    Path("dvc.lock").write_text(yaml.safe_dump({"schema": "2.0", "stages": {"fit": {"cmd": "c", "outs": outs}}}))
    Path("metrics").mkdir()
    Path("metrics/fit.json").write_text(json.dumps({"digest": student_digest(student)}))
    check_recorded(student)
    (student / "1_Pooling" / "config.json").write_text("{}")
    result = CliRunner().invoke(main, [])
    assert result.exit_code == 1
    assert "models/student: is not the one that dvc.lock and metrics/fit.json describe" in result.output


def test_a_merge_with_conflicts_is_named_and_never_taken_for_a_project_without_records() -> None:
    record_lock("34" * 16 + ".dir")
    lock = Path("dvc.lock").read_text()
    Path("dvc.lock").write_text(f"<<<<<<< HEAD\n{lock}=======\n{lock}>>>>>>> theirs\n")
    with pytest.raises(LeafError, match=r"^dvc.lock: cannot be read: .*git checkout --ours dvc.lock metrics"):
        check_recorded(CORPUS)


def test_a_failed_stage_says_how_to_get_back_what_dvc_has_removed() -> None:
    record_lock("34" * 16 + ".dir")
    source = {"name": "gone", "kind": "jsonl", "path": "data/sources/gone.jsonl", "role": "document"}
    Path("params.yaml").write_text(yaml.safe_dump({"corpus": {"sources": [source], "heldout": 0.1}}))
    result = CliRunner().invoke(stages.corpus.main, [])
    assert result.exit_code == 1
    assert "dvc checkout" not in result.output  # nothing is lost
    for file in CORPUS.iterdir():
        file.unlink()
    CORPUS.rmdir()
    result = CliRunner().invoke(stages.corpus.main, [])
    assert "gone.jsonl: no such file" in result.output
    assert "`dvc checkout data/corpus` restores the old one" in result.output


def test_the_corpus_stage_records_what_it_wrote() -> None:
    pl.DataFrame({"text": ["a text", "another"]}).write_ndjson("texts.jsonl")
    source = {"name": "s", "kind": "jsonl", "path": "texts.jsonl", "role": "document"}
    Path("params.yaml").write_text(yaml.safe_dump({"corpus": {"sources": [source], "heldout": 0.1}}))
    result = CliRunner().invoke(stages.corpus.main, [])
    assert result.exit_code == 0, result.output
    assert json.loads(Path("metrics/corpus.json").read_text())["digest"] == corpus_digest(CORPUS)
