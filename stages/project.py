"""The files of a project: `dvc.yaml`, `params.yaml`, what git and DVC ignore, texts. Overwrites nothing."""

import glob
import logging
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path

from pipeline.base import LeafError, first_line, glob_root, written_file
from pipeline.params import CorpusParams, EvaluateParams, commented

SOURCES, EVALUATION = "data/sources", "data/evaluation"
RECIPES = files("stages").joinpath("recipes")
SITE_CACHE = ".cache/dvc"
"""Where DVC keeps its index: by default in a place that everybody may write to. It would make this one and `repo` in it
writable for everybody too, unless they are there; so git brings them."""
SECTIONS = ("corpus", "teacher", "encode", "fit", "evaluate", "export")
"""The sections that `dvc.yaml` names; there they must be in `params.yaml`, if only as `{}`."""
_HEAD = (
    "# What is left out has its default: `leaf params` lists and explains every key. After a change type\n"
    "# `leaf repro`, which runs the stages that depend on what was changed, and no others.\n"
)


class Project:
    """A directory in which `dvc repro` runs the pipeline."""

    def __init__(self, directory: Path) -> None:
        """Raises LeafError if there is a pipeline already, or no directory can be."""
        self.directory = Path(os.path.abspath(directory.expanduser()))  # noqa: PTH100  links in it stay as they are
        for name in ("dvc.yaml", "params.yaml"):
            if (self.directory / name).exists():
                raise LeafError(
                    f"{directory / name}: is there already, and nothing is overwritten; name another directory, which "
                    "may lie in this one"
                )
        if self.directory.exists() and not self.directory.is_dir():
            raise LeafError(f"{directory}: is a file; name a directory")
        self._copies: list[tuple[Path, Path]] = []

    @property
    def root(self) -> Path:
        """The repository, git's or DVC's, that the project lies in, else the project itself."""
        parents = (self.directory, *self.directory.parents)
        return next((place for place in parents if (place / ".git").exists() or (place / ".dvc").is_dir()), parents[0])

    def place(self, path: str, folder: str) -> str:
        """The path in `params.yaml` of a file, directory or glob, which is copied below `folder` if it lies elsewhere.

        Raises:
            LeafError: the project lies in it, or its place is taken.
        """
        source = Path(os.path.abspath(Path(path).expanduser()))  # noqa: PTH100
        root = glob_root(source)
        holds_project = root == self.directory or root in self.directory.parents
        if holds_project and root == source:
            raise LeafError(f"{path}: holds the project itself; name a directory that holds the texts alone")
        if source.is_relative_to(self.root) and not holds_project:
            return os.path.relpath(source, self.directory)
        target = self.directory / folder / root.name
        placed = str(Path(folder) / source.relative_to(root.parent))
        if (source, target) in self._copies:  # a directory with files of several kinds is several sources
            return placed
        if target.exists() or any(target == taken for _, taken in self._copies):
            raise LeafError(f"{target}: is there already, and nothing is overwritten; rename {path}")
        self._copies.append((source, target))
        return placed

    def model(self, name: str) -> str:
        """The name of a model in `params.yaml`: a directory of this repository is named as the project sees it."""
        place = Path(os.path.abspath(Path(name).expanduser()))  # noqa: PTH100
        if not place.is_dir():
            return name
        inside = os.path.relpath(place, self.directory)
        return (inside if inside.startswith(".") else f"./{inside}") if place.is_relative_to(self.root) else str(place)

    def write(self, sections: Mapping[str, object], head: str = "") -> list[str]:
        """Write the project; returns a sentence for each thing that was made."""
        self.directory.mkdir(parents=True, exist_ok=True)
        said = [self._copy(source, target) for source, target in self._copies]
        sources, evaluation = map(self._roots, (source_paths(sections), evaluation_paths(sections)))
        pipeline = pipeline_file(_top(sources, SOURCES), _top(evaluation, EVALUATION))
        for name, text in (("dvc.yaml", pipeline), ("params.yaml", f"{head or _HEAD}\n{commented(sections)}")):
            with written_file(self.directory / name) as file:
                file.write_text(text, encoding="utf-8")
            said.append(f"wrote {name}")
        for name in (".gitignore", ".dvcignore"):
            said += self._ignore(name)
        return said + self._start_dvc()

    def _roots(self, paths: Iterable[str]) -> list[str]:
        """The paths, with the directories in which globs match in place of these: DVC knows no globs."""
        roots = {path: glob_root(self.directory / path) for path in paths}
        return [
            path if root == self.directory / path else os.path.relpath(root, self.directory)
            for path, root in roots.items()
        ]

    def _copy(self, source: Path, target: Path) -> str:
        root = glob_root(source)
        matches = [source] if root == source else list(map(Path, glob.glob(str(source), recursive=True)))  # noqa: PTH207
        for match in [file for file in matches if file.is_file()] or matches:  # directories only where it means them
            copy = target / match.relative_to(root)
            copy.parent.mkdir(parents=True, exist_ok=True)
            if match.is_dir():
                shutil.copytree(match, copy, ignore=shutil.ignore_patterns(".*"), dirs_exist_ok=True)
            else:
                shutil.copy(match, copy)
        inside = target.relative_to(self.directory)
        return f"copied {source} to {inside}: the pipeline reads the copy (`dvc add {inside}` keeps it for colleagues)"

    def _ignore(self, name: str) -> list[str]:
        """Add to a file of git or DVC the lines that it lacks."""
        file = self.directory / name
        present = file.read_text(encoding="utf-8") if file.exists() else ""
        wanted = files("stages").joinpath(f"templates/{name[1:]}").read_text(encoding="utf-8").splitlines()
        if missing := [line for line in wanted if line not in present.splitlines()]:
            separator = "\n" if present and not present.endswith("\n") else ""
            with written_file(file) as new:
                new.write_text(f"{present}{separator}" + "\n".join(missing) + "\n", encoding="utf-8")
            return [f"added {len(missing)} lines to {name}" if present else f"wrote {name}"]
        return []

    def _start_dvc(self) -> list[str]:
        """Make it a project of DVC, if it lies in none; in a repository of git one that git follows."""
        if any((place / ".dvc").is_dir() for place in (self.directory, *self.directory.parents)):
            return []
        from dvc.exceptions import DvcException
        from dvc.repo import Repo

        logging.getLogger("dvc").setLevel(logging.WARNING)  # what was made is said below, once
        has_git = (self.root / ".git").exists()
        try:
            with (
                Repo.init(
                    str(self.directory), no_scm=not has_git, subdir=has_git and self.root != self.directory
                ) as made,
                made.config.edit() as settings,
            ):
                settings["core"] |= {"analytics": False, "site_cache_dir": SITE_CACHE}
        except DvcException as error:
            raise LeafError(f"{self.directory}: DVC cannot start there: {first_line(error)}") from None
        place = self.directory / SITE_CACHE / "repo"
        place.mkdir(parents=True, exist_ok=True)
        (place / ".gitignore").write_text("*\n!.gitignore\n", encoding="utf-8")
        return [f"made it a DVC project{'' if has_git else ' without git'} (.dvc)"]


def source_paths(sections: Mapping[str, object]) -> list[str]:
    """Files and directories that the corpus is made of; not the names of data sets on the hub."""
    corpus = sections["corpus"]
    assert isinstance(corpus, CorpusParams)
    return [source.path for source in corpus.sources if source.path and source.kind != "huggingface"]


def evaluation_paths(sections: Mapping[str, object]) -> list[str]:
    """Files and collections that the student is measured on."""
    evaluate = sections["evaluate"]
    assert isinstance(evaluate, EvaluateParams)
    return [*evaluate.beir, *evaluate.sts, *evaluate.classification, *evaluate.clustering]


def _top(paths: Iterable[str], folder: str) -> list[str]:
    """What DVC has to watch: a path itself, or the folder of the project that it lies in."""
    return list(dict.fromkeys(folder if path.startswith(f"{folder}/") else path for path in paths))


def pipeline_file(sources: Sequence[str], evaluation: Sequence[str]) -> str:
    """The text of `dvc.yaml` for files that the stages corpus and evaluate read."""
    text = files("stages").joinpath("templates/project.yaml").read_text(encoding="utf-8")
    quoted = [", ".join(map(_quoted, paths)) for paths in (sources, evaluation)]
    text = text.replace(f"    deps: [{SOURCES}]\n", f"    deps: [{quoted[0]}]\n" if sources else "")
    return text.replace(f"{EVALUATION}, ", f"{quoted[1]}, " if evaluation else "")


def _quoted(path: str) -> str:
    """A path as an entry of a YAML list."""
    return path if path.replace("/", "").replace("-", "").replace(".", "").replace("_", "").isalnum() else f'"{path}"'
