"""Paths of params.yaml that DVC does not watch are named."""

from pathlib import Path

import pytest

from stages.watched import name_outside, unwatched, warn_unwatched


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


@pytest.mark.parametrize(
    ("path", "named"),
    [
        ("texts/a.txt", None),
        ("texts", None),
        ("nowhere/*.txt", None),
        ("lab/data-set-of-the-hub", None),
        ("{outside}/keys/id", "{outside}/keys/id"),
        ("{outside}/keys/*", "{outside}/keys/id"),
        ("../outside/keys", "{outside}/keys"),
        ("linked.txt", "{outside}/keys/id"),
        ("links", "{outside}/keys/id"),
        ("links/*", "{outside}/keys/id"),
    ],
)
def test_what_lies_outside_the_project_is_named_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], path: str, named: str | None
) -> None:
    project, outside = tmp_path / "project", tmp_path / "outside"
    for folder in (project / "texts", project / "links", outside / "keys"):
        folder.mkdir(parents=True)
    (project / "texts/a.txt").touch()
    (outside / "keys/id").touch()
    (project / "texts/b.txt").symlink_to("a.txt")
    for link in ("linked.txt", "links/id"):
        (project / link).symlink_to(outside / "keys/id")
    monkeypatch.chdir(project)
    path = path.format(outside=outside)
    name_outside([path], "corpus.sources")
    expected = f"corpus.sources: reads {named}, outside this project (`{path}`)\n" if named else ""
    assert capsys.readouterr().err == expected.format(outside=outside)


def test_an_address_and_many_places_outside_are_named_in_a_line_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(5):
        (tmp_path / f"{number}.txt").touch()
    (tmp_path / "project").mkdir()
    monkeypatch.chdir(tmp_path / "project")
    name_outside(["s3://bucket/store", "../*.txt"], "encode.reuse")
    first, second = capsys.readouterr().err.splitlines()
    assert first == "encode.reuse: reads s3://bucket/store"
    assert " and 2 more, outside this project (`../*.txt`)" in second
