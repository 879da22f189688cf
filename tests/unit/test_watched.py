"""Paths of params.yaml that DVC does not watch are named."""

from pathlib import Path

import pytest

from stages.watched import unwatched, warn_unwatched


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`data/sources` with a file and a directory, seen from the project's root; `far` lies outside."""
    monkeypatch.chdir(tmp_path)
    for place in ("data/sources/whole", "far/below"):
        Path(place).mkdir(parents=True)
        Path(place, "texts.jsonl").touch()
    Path("data/sources/texts.jsonl").touch()
    return Path("data/sources")


@pytest.mark.parametrize("path", ["texts.jsonl", "*.jsonl", "whole", "**/*.jsonl", "../sources/texts.jsonl", "."])
def test_what_lies_below_the_dependency_is_watched(sources: Path, path: str) -> None:
    assert unwatched(f"{sources}/{path}", [sources]) is None
    assert unwatched(f"{Path.cwd()}/{sources}/{path}", [sources]) is None


@pytest.mark.parametrize("path", ["far/below/texts.jsonl", "far/**/*.jsonl", "data/sources/../../far"])
def test_what_lies_outside_is_not(sources: Path, path: str) -> None:
    assert unwatched(path, [sources]) is not None


@pytest.mark.parametrize("path", ["linked/*.jsonl", "linked/below/texts.jsonl", "linked", "*/*.jsonl", "."])
def test_what_lies_behind_a_linked_directory_is_not(sources: Path, path: str) -> None:
    (sources / "linked").symlink_to(Path("far").absolute())
    if path == "linked/*.jsonl":
        Path("far/texts.jsonl").touch()
    if path == "*/*.jsonl":
        (sources / "whole/texts.jsonl").unlink()
        Path("far/texts.jsonl").touch()
    assert unwatched(f"{sources}/{path}", [sources]) == Path.cwd() / sources / "linked"


def test_a_linked_file_and_a_linked_dependency_are_watched(sources: Path) -> None:
    """As tried with DVC: it reads the file, and walks what the dependency itself leads to."""
    (sources / "linked.jsonl").symlink_to(Path("far/below/texts.jsonl").absolute())
    assert unwatched(f"{sources}/linked.jsonl", [sources]) is None
    sources.rename("elsewhere")
    sources.symlink_to(Path("elsewhere").absolute())
    assert unwatched(f"{sources}/texts.jsonl", [sources]) is None


def test_a_name_on_a_hub_is_no_path_and_a_project_without_dvc_needs_no_word(
    sources: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert unwatched("organisation/data-set", [sources]) is None
    warn_unwatched(["far"], "corpus")
    assert capsys.readouterr().err == ""
    Path("dvc.yaml").write_text("stages: {corpus: {cmd: leaf corpus, deps: [data/sources]}}")
    warn_unwatched(["far", "far"], "corpus")
    assert capsys.readouterr().err.count("`leaf repro -f corpus`") == 1
    warn_unwatched(["far"], "evaluate")  # a stage that is not there
    assert capsys.readouterr().err == ""


def test_a_file_and_a_directory_that_the_pipeline_names_are_watched(
    sources: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("dvc.yaml").write_text("stages: {corpus: {cmd: leaf corpus, deps: [far/texts.jsonl, data/sources]}}")
    Path("far/texts.jsonl").touch()
    warn_unwatched(["far/texts.jsonl", "data/sources/*.jsonl"], "corpus")
    assert capsys.readouterr().err == ""
    warn_unwatched(["far"], "corpus")
    assert "does not watch far," in capsys.readouterr().err


def test_a_stage_without_dependencies_watches_nothing(sources: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("dvc.yaml").write_text("stages: {evaluate: {cmd: leaf evaluate}}")
    warn_unwatched(["far"], "evaluate")
    assert "does not watch far," in capsys.readouterr().err
