"""The wheel: every room is in it, and it works in an environment and a directory that know nothing of the checkout."""

import json
import os
import shutil
import site
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

from pipeline.encode import encode
from pipeline.export import write_graphs
from pipeline.model import build
from pipeline.params import EncodeParams, StudentParams, TeacherParams
from pipeline.teacher import open_teacher
from tests.conftest import ROOT, make_model, sentence

QUESTIONS = 40


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


def test_a_stage_and_a_search_run_from_the_wheel(environment: Path, tmp_path: Path) -> None:
    assert "search" in run(environment, tmp_path, "leaf", "--help")
    rows = [{"id": f"q{n}", "question": f"{sentence(n)}?", "answer": sentence(n + 500)} for n in range(QUESTIONS)]
    (tmp_path / "faq.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
    source = {"name": "faq", "kind": "jsonl", "path": "faq.jsonl", "id_field": "id"}
    fields = {"query_field": "question", "document_field": "answer"}
    (tmp_path / "params.yaml").write_text(
        yaml.safe_dump({"corpus": {"sources": [source | fields], "heldout": 0.1}}), encoding="utf-8"
    )
    run(environment, tmp_path, "leaf", "corpus")

    corpus, embeddings = tmp_path / "data" / "corpus", tmp_path / "data" / "embeddings"
    settings = EncodeParams(pool=str(tmp_path / "cache"), token_budget=512)
    teacher = open_teacher(TeacherParams(model=str(make_model(tmp_path / "teacher"))), settings)
    encode(corpus, teacher, settings, embeddings)
    student = build(StudentParams(model=str(make_model(tmp_path / "checkpoint", width=16, seed=1))), 32, normalize=True)
    (tmp_path / "models" / "onnx").mkdir(parents=True)
    write_graphs(student, tmp_path / "models" / "onnx")

    answer = json.loads(run(environment, tmp_path, "leaf", "search", "copy the file", "--json"))
    assert len(answer["hits"]) == 5
    assert {hit["id"] for hit in answer["hits"]} <= {row["id"] for row in rows}
