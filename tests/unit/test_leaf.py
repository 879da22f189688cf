"""The command `leaf` lists every command and finds each; what `leaf repro` does before DVC begins."""

import os
from pathlib import Path

import pytest
from click.testing import CliRunner

from stages.leaf import COMMANDS, main


def test_every_command_that_is_listed_explains_itself() -> None:
    runner = CliRunner()
    listed = runner.invoke(main, ["--help"]).output
    for name in (name for commands in COMMANDS.values() for name in commands):
        assert f"\n  {name} " in listed
        explained = runner.invoke(main, [name, "--help"])
        assert explained.exit_code == 0 and "Usage: main " + name in explained.output


def test_what_is_no_command_is_refused() -> None:
    assert "No such command 'corpse'" in CliRunner().invoke(main, ["corpse"]).output


def test_repro_says_in_one_sentence_that_the_parameters_are_no_yaml(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("dvc.yaml").write_text("stages: {}")
    Path("params.yaml").write_text("a:\n  b: [1\n")
    refused = CliRunner().invoke(main, ["repro"])
    assert refused.exit_code == 1
    assert refused.output.startswith("Error: params.yaml: is not YAML: ") and refused.output.count("\n") == 1


def test_a_name_that_is_nearly_a_section_or_recipe_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "(did you mean `evaluate`?)" in CliRunner().invoke(main, ["params", "evalute"]).output
    refused = CliRunner().invoke(main, ["init", "new", "--recipe", "mpnet-minilmm"]).output
    assert "(did you mean `mpnet-minilm`?)" in refused


def test_repro_tells_a_mistake_in_the_parameters_before_dvc_removes_an_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    became: list[object] = []
    monkeypatch.setattr(os, "execve", lambda *arguments: became.append(arguments))
    Path("dvc.yaml").write_text("stages: {}\n")
    Path("params.yaml").write_text("fit: {student: {model: m}, bach_size: 8}\n")
    refused = CliRunner().invoke(main, ["repro"])
    assert refused.exit_code == 1 and not became
    assert "fit.bach_size: unknown key" in refused.output
    Path("params.yaml").write_text("fit: {student: {model: m}, batch_size: 8}\n")
    assert CliRunner().invoke(main, ["repro"]).exit_code == 0 and became


def test_a_command_outside_of_a_project_says_that_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    refused = CliRunner().invoke(main, ["corpus"])
    assert refused.exit_code == 1
    assert "params.yaml: no such parameter file" in refused.output
    assert "there is no dvc.yaml in this directory" in refused.output
    Path("dvc.yaml").write_text("stages: {}")
    assert "there is no dvc.yaml" not in CliRunner().invoke(main, ["corpus"]).output
