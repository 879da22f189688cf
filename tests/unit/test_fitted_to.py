"""A model says which teacher's vectors it was fitted to, and every stage that uses it compares that with the store."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

import stages.encode
import stages.evaluate
import stages.export
import stages.fit
import stages.search
from tests.conftest import make_model

EXPORT = {"speed_texts": 0, "bootstrap": 0, "rows": 8}


def run(command: click.Command, *arguments: str) -> Result:
    """A stage's command in this process, in the working directory."""
    return CliRunner().invoke(command, ["--corpus", "corpus", *arguments])


def succeeded(command: click.Command, *arguments: str) -> Result:
    result = run(command, *arguments)
    assert result.exit_code == 0, result.output
    return result


@pytest.fixture
def others(
    tiny_store: Any, tmp_path: Path, write_params: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Result]:
    """A fitted and exported student, and `others`, a store of the same texts by a teacher of the same shape."""
    monkeypatch.chdir(tmp_path)
    write_params(teacher={"model": str(make_model(tmp_path / "another", seed=7))})
    succeeded(stages.encode.main, "--out", "others", "--metrics", "others.json")
    write_params(fit={"max_steps": 2, "validate_every": 2}, export=EXPORT)
    succeeded(stages.fit.main, "--embeddings", "store")
    succeeded(stages.export.main, "--embeddings", "store")
    return run


@pytest.mark.parametrize("stage", ["evaluate", "export", "search"])
def test_a_student_of_another_teachers_store_is_refused_by_fingerprint(
    others: Callable[..., Result], stage: str, write_params: Callable[..., Path], tmp_path: Path
) -> None:
    """Of one dimension, so that nothing else would tell."""
    write_params(teacher={"model": str(tmp_path / "another")}, export=EXPORT)
    command: click.Command = getattr(stages, stage).main
    query = ("copy a file",) if stage == "search" else ()
    refused = others(command, "--embeddings", "others", *query)
    assert refused.exit_code == 1
    fitted = json.loads((tmp_path / "models/student/fitted_to.json").read_text())["fingerprint"]
    assert f"was fitted to vectors of fingerprint {fitted[:16]}, but others has" in refused.output
    assert not Path("metrics/evaluate.json").exists()


def test_a_student_that_does_not_say_is_used_with_a_word(
    others: Callable[..., Result], write_params: Callable[..., Path]
) -> None:
    Path("models/student/fitted_to.json").unlink()
    shutil.rmtree("models/onnx")
    write_params(evaluate={"bootstrap": 0, "cost": {"texts": 0}}, export=EXPORT)
    for command in (stages.evaluate.main, stages.export.main):
        assert "does not say which teacher's vectors" in succeeded(command, "--embeddings", "store").stderr
    assert "does not say" in succeeded(stages.search.main, "--embeddings", "store", "copy a file").stderr


def test_the_students_own_store_needs_no_word(others: Callable[..., Result]) -> None:
    assert succeeded(stages.search.main, "--embeddings", "store", "copy a file").stderr == ""
