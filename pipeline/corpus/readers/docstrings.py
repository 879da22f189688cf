"""Reader of docstrings of installed Python packages: the first sentence is a query, the rest its document.

Source files are parsed with `ast`; nothing of a package is imported or executed.
"""

import ast
import re
import sys
import sysconfig
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from importlib.machinery import PathFinder
from pathlib import Path

from pipeline.base import LeafError
from pipeline.corpus.readers.fields import Frames
from pipeline.corpus.readers.records import frames_of_texts
from pipeline.params import SourceParams

STDLIB = "stdlib"
# Tests, and parts of the standard library that some distributions leave out: the corpus must not depend on those.
SKIPPED = {"test", "tests", "idlelib", "idle_test", "turtledemo", "ensurepip", "site-packages", "dist-packages"}
_NAMED = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
_DOCUMENTED = (ast.Module, *_NAMED)
# A full stop before a small letter belongs to an abbreviation ("e.g. this").
_SENTENCE = re.compile(r"(.+?[.!?])(?:\s+(?=[^a-z\s])|\s*$)", re.DOTALL)


def read(source: SourceParams) -> Frames:
    """Frames of the source's packages; `role` selects the first sentences (query) or the rest (document)."""
    selected = (row for row in texts(source.packages) if source.role in (None, row[2]))
    return frames_of_texts((row[0], row) for row in selected)


def texts(packages: Iterable[str]) -> Iterator[tuple[str, str, str]]:
    """Triples (`module.qualname`, text, role); a docstring of one sentence gives a query only.

    Raises:
        LeafError: a package is not installed or has no Python source.
    """
    for package in packages:
        for module, file in _files(package):
            for name, text in _documented(module, file):
                query, document = split(text)
                yield name, query, "query"
                if document:
                    yield name, document, "document"


def split(text: str) -> tuple[str, str]:
    """The first sentence of the first paragraph, and everything after it."""
    paragraph = re.split(r"\n\s*\n", text, maxsplit=1)[0]
    match = _SENTENCE.match(paragraph)
    end = match.end() if match else len(paragraph)
    return text[:end].strip(), text[end:].strip()


def _files(package: str) -> Iterator[tuple[str, Path]]:
    """Modules of a package and their files, sorted by name."""
    if package == STDLIB:
        root = Path(sysconfig.get_paths()["stdlib"])
        for name in sorted(sys.stdlib_module_names - SKIPPED):
            yield from _walk(name, root / name if (root / name).is_dir() else root / f"{name}.py")
        return
    top, *rest = package.split(".")
    spec = PathFinder.find_spec(top) if top else None
    if spec is None:
        raise LeafError(f"package {package}: not installed in this environment")
    locations = list(spec.submodule_search_locations or ()) or [spec.origin or ""]
    modules = [entry for location in locations for entry in _walk(package, _submodule(Path(location), rest))]
    if not modules:
        raise LeafError(f"package {package}: has no Python source files")
    yield from modules


def _submodule(path: Path, names: list[str]) -> Path:
    """The directory or file of a subpackage or module, given that of its package and the names that lead to it."""
    inner = path.joinpath(*names)
    return inner if inner.is_dir() or not names else inner.with_name(f"{inner.name}.py")


def _walk(name: str, path: Path) -> Iterator[tuple[str, Path]]:
    """Names and files of the module or package `name` at `path` and of everything below it, without SKIPPED."""
    if path.is_file() and path.suffix == ".py":
        yield name, path
    if not path.is_dir():
        return
    for entry in sorted(path.iterdir()):
        if entry.name == "__init__.py":
            yield name, entry
        elif entry.stem not in SKIPPED and entry.stem.isidentifier():
            yield from _walk(f"{name}.{entry.stem}", entry)


def _documented(module: str, file: Path) -> Iterator[tuple[str, str]]:
    """Names and cleaned docstrings of a module; none if this Python cannot parse the file."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError, RecursionError, OSError):  # templates and code for other Pythons
        return
    seen: Counter[str] = Counter()
    for name, text in _visit(module, tree):
        seen[name] += 1
        # A property's getter and setter share a name, but an id must not join the texts of two objects.
        yield (name if seen[name] == 1 else f"{name}#{seen[name]}"), text


def _visit(name: str, node: ast.AST) -> Iterator[tuple[str, str]]:
    """Names and docstrings of the node and of all classes and functions inside it."""
    if isinstance(node, _DOCUMENTED):
        text = ast.get_docstring(node)
        if text and text.strip():
            yield name, text.encode(errors="replace").decode()  # a literal can escape half a surrogate pair
    for child in ast.iter_child_nodes(node):
        if isinstance(child, _NAMED):
            yield from _visit(f"{name}.{child.name}", child)
        elif isinstance(child, ast.stmt | ast.ExceptHandler | ast.match_case):
            yield from _visit(name, child)
