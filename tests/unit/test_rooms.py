"""The rooms of `pipeline/` and their order, which docs/architecture.md explains."""

import ast
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT

ORDER = "base params store corpus serve model teacher filter fit encode evaluate export report".split()
"""A room imports only rooms that stand before it."""
APART = {("fit", "teacher")}  # stage two cannot load a teacher
IMPORTERS = ("import_module", "import_optional", "__import__")


def imports(tree: ast.AST) -> Iterator[tuple[int, str, tuple[str, ...]]]:
    """Line, module and names of every import, wherever it stands; of a whole module the names are empty."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name, ()) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            yield node.lineno, module, tuple(alias.name for alias in node.names)
        elif isinstance(node, ast.Call) and getattr(node.func, "id", getattr(node.func, "attr", "")) in IMPORTERS:
            named = [part.value for part in node.args if isinstance(part, ast.Constant)]
            yield from ((node.lineno, name, ()) for name in named if isinstance(name, str))


def violations(library: Path) -> list[str]:
    """What is wrong with the imports of the library in a directory, a line each."""
    wrong = []
    for file in sorted(library.rglob("*.py")):
        inside = file.relative_to(library)
        room = inside.parts[0]
        if "templates" in inside.parts or room == "__init__.py":
            continue
        for line, module, names in imports(ast.parse(file.read_text(encoding="utf-8"))):
            place = f"{inside}, line {line}"
            if module.startswith("."):
                wrong.append(f"{place}: a relative import")
            if module.split(".")[0] in ("click", "stages"):
                wrong.append(f"{place}: the library imports {module}")
            for target in (module, *(f"pipeline.{name}" for name in names if module == "pipeline")):
                other = target.split(".")[1] if target.startswith("pipeline.") else room
                if other == room:
                    continue
                if other not in ORDER[: ORDER.index(room)] or (room, other) in APART:
                    wrong.append(f"{place}: {room} imports {other}, which does not stand before it")
                elif target != f"pipeline.{other}":
                    wrong.append(f"{place}: {target} is inside {other}; import what pipeline.{other} exports")
    return wrong


def circles(library: Path) -> list[list[str]]:
    """Files of a room that import each other in a circle."""
    names = {
        file: ".".join(("pipeline", *file.relative_to(library).with_suffix("").parts)).removesuffix(".__init__")
        for file in library.rglob("*.py")
    }
    files = set(names.values())
    graph: dict[str, set[str]] = {}
    for file, name in names.items():
        graph[name] = set()
        for _, module, parts in imports(ast.parse(file.read_text(encoding="utf-8"))):
            inner = {f"{module}.{part}" for part in parts}
            graph[name] |= inner & files if inner <= files and inner else (inner & files) | ({module} & files)
    closed: list[list[str]] = []

    def visit(name: str, path: list[str]) -> None:
        if name in path:
            closed.append([*path[path.index(name) :], name])
        elif name not in done:
            for following in sorted(graph[name]):
                visit(following, [*path, name])
            done.add(name)

    done: set[str] = set()
    for name in sorted(graph):
        visit(name, [])
    return closed


def test_every_room_imports_only_rooms_before_it_and_only_what_they_export() -> None:
    library = ROOT / "pipeline"
    rooms = sorted(path.name for path in library.iterdir() if (path / "__init__.py").exists())
    assert rooms == sorted(ORDER)
    assert violations(library) == []


def test_no_files_import_each_other_in_a_circle() -> None:
    assert circles(ROOT / "pipeline") == []


@pytest.mark.parametrize(
    "planted",
    [
        "from pipeline.teacher import Teacher\n",
        "def lazily() -> None:\n    from pipeline.evaluate import metrics\n",
        "import importlib\n\nevaluate = importlib.import_module('pipeline.evaluate')\n",
        "from pipeline import report\n",
        "from pipeline.base.files import sync\n",
        "from ..base import sync\n",
        "import click\n",
    ],
)
def test_a_planted_import_is_reported(tmp_path: Path, planted: str) -> None:
    library = tmp_path / "pipeline"
    shutil.copytree(ROOT / "pipeline", library)
    (library / "store" / "planted.py").write_text(planted)
    assert len(violations(library)) == 1
    assert "planted.py" in violations(library)[0]


def test_a_planted_circle_is_reported(tmp_path: Path) -> None:
    library = tmp_path / "pipeline"
    (library / "store").mkdir(parents=True)
    (library / "store" / "one.py").write_text("from pipeline.store.two import b\n")
    (library / "store" / "two.py").write_text("def lazily() -> None:\n    from pipeline.store import one\n")
    assert circles(library) == [["pipeline.store.one", "pipeline.store.two", "pipeline.store.one"]]


def room_imports(library: Path) -> dict[str, set[str]]:
    """The rooms that each room imports, without those that one of these imports by itself."""
    direct: dict[str, set[str]] = {room: set() for room in ORDER}
    for file in library.glob("*/**/*.py"):
        room = file.relative_to(library).parts[0]
        for _, module, _names in imports(ast.parse(file.read_text(encoding="utf-8"))):
            if module.startswith("pipeline.") and module.split(".")[1] != room:
                direct[room].add(module.split(".")[1])
    reach: dict[str, set[str]] = {}
    for room in ORDER:
        reach[room] = direct[room].union(*(reach[other] for other in direct[room]))
    return {
        room: {other for other in rooms if not any(other in reach[one] for one in rooms)}
        for room, rooms in direct.items()
    }


def test_fit_cannot_load_a_teacher() -> None:
    check = "import sys, stages.fit; print([name for name in sys.modules if name.startswith('pipeline.teacher')])"
    assert _python(check) == "[]"


def test_what_needs_no_model_does_not_wait_for_torch() -> None:
    assert _python("import sys, stages.leaf, stages.report, stages.corpus; print('torch' in sys.modules)") == "False"


def test_the_map_has_every_room_in_order_its_imports_and_files_that_exist() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)/` \|", text, re.MULTILINE)
    assert rows == ORDER
    arrows = {(room, other) for room, others in room_imports(ROOT / "pipeline").items() for other in others}
    picture = text.partition("flowchart BT\n")[2].partition("```")[0]
    assert set(re.findall(r"(\w+) --> (\w+)", picture)) == arrows
    for path in set(re.findall(rf"`(?:pipeline/)?((?:{'|'.join(ORDER)})/[\w/]+\.py)`", text)):
        assert (ROOT / "pipeline" / path).is_file(), path


def _python(code: str) -> str:
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return ended.stdout.strip()
