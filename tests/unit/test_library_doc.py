"""docs/library.md lists what a program may call; examples and benchmarks call nothing else of the library."""

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

from tests.conftest import ROOT, make_model


def listed() -> set[tuple[str, str]]:
    """(room, name) of each name in the document's tables."""
    rows = re.findall(r"^\| `(\w+)` \| ([^|]+) \|", (ROOT / "docs" / "library.md").read_text(encoding="utf-8"), re.M)
    return {(room, name) for room, names in rows for name in re.findall(r"`(\w+)`", names)}


def imported(directory: str) -> set[tuple[str, str]]:
    """(module without `pipeline.`, name) of what the scripts of a directory import from the library."""
    return {
        (node.module.removeprefix("pipeline."), alias.name)
        for file in (ROOT / directory).glob("*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("pipeline")
        for alias in node.names
    }


def test_every_name_that_is_listed_can_be_imported_and_says_what_it_does() -> None:
    for room, name in sorted(listed()):
        module = importlib.import_module(f"pipeline.{room}")
        assert name in module.__all__, f"{room}: {name}"
        value = getattr(module, name)
        assert not callable(value) or value.__doc__, f"{room}: {name}"


def test_examples_and_benchmarks_use_what_is_listed_and_nothing_else() -> None:
    assert imported("examples") | imported("benchmarks") <= listed()
    assert {("fit", "fit"), ("encode", "encode"), ("evaluate", "evaluate")} <= imported("examples")


def test_every_file_that_contributors_are_sent_to_is_there() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`([\w/.]+/[\w.]+\.(?:py|md|yaml))`", text))
    assert len(named) > 15
    for path in named:
        whole, short = ROOT / path, ROOT / "pipeline" / "corpus" / path
        assert "NAME" in path or whole.is_file() or short.is_file(), path


def test_five_hundred_texts_are_distilled_in_python(tmp_path: Path) -> None:
    teacher, student = make_model(tmp_path / "teacher"), make_model(tmp_path / "student", width=16, seed=1)
    script = ROOT / "examples" / "distil_in_python.py"
    command = [sys.executable, str(script), str(teacher), str(student)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr[-2000:]
    encoded, loss, *_, last = ended.stdout.splitlines()
    assert 400 <= int(encoded.split()[0]) <= 600
    before, after = re.findall(r"\d\.\d+", loss)
    assert float(after) < float(before)
    assert re.match(r"0\.\d+  ", last)
