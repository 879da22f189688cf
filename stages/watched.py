"""What DVC does not watch: paths of params.yaml that lead out of the directory that a stage depends on.

DVC hashes the files below a dependency and follows no linked directory there. It looks at a stage's dependencies before
the stage runs, so they cannot follow `params.yaml`: all that can be done about other files is to say so.
"""

import glob
import os
from collections.abc import Iterable
from pathlib import Path

import click
import yaml


def warn_unwatched(paths: Iterable[str], root: Path, stage: str) -> None:
    """Print a sentence for each path whose files may change without a run of the stage, which depends on `root`."""
    if not Path("dvc.yaml").is_file():
        return
    for path in dict.fromkeys(paths):
        if (place := unwatched(path, root)) is not None:
            click.echo(
                f"{path}: DVC does not watch {place}, which is outside {root} or behind a linked directory: after a "
                f"change there, type `dvc repro -f {stage}`, or bring it below {root} (`dvc import-url`)",
                err=True,
            )


def warn_without_dependency(paths: Iterable[str], stage: str) -> None:
    """Print a sentence for each local path that a stage reads and `dvc.yaml` does not name among its dependencies."""
    try:
        described = yaml.safe_load(Path("dvc.yaml").read_text(encoding="utf-8"))["stages"][stage]
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
        return
    named = {os.path.normpath(dependency) for dependency in described.get("deps", []) if isinstance(dependency, str)}
    for path in dict.fromkeys(paths):
        if Path(path).exists() and os.path.normpath(path) not in named:
            click.echo(
                f"{path}: is no dependency of the stage {stage} in dvc.yaml, so DVC will not run it again when this "
                "changes: add it to `deps`",
                err=True,
            )


def unwatched(path: str, root: Path) -> Path | None:
    """The first file or directory that `path` (a file, a directory or a glob) means and DVC does not watch; else None.

    A path that leads nowhere on this machine (the name of a data set on a hub) is none.
    """
    expanded = os.path.expanduser(path)  # noqa: PTH111  a Path would lose the glob's last slash
    for match in glob.iglob(expanded, recursive=True):  # noqa: PTH207
        if (place := _beyond(Path(match), root)) is not None:
            return place
    return None


def _beyond(place: Path, root: Path) -> Path | None:
    inside = Path(os.path.abspath(place))  # noqa: PTH100  resolving would follow the links that are looked for
    top = Path(os.path.abspath(root))  # noqa: PTH100
    if top != inside and top not in inside.parents:
        return place
    between = [inside, *(parent for parent in inside.parents if top in parent.parents)]
    if linked := next((entry for entry in between if entry.is_symlink() and entry.is_dir()), None):
        return linked
    folders = (Path(folder, name) for folder, names, _ in os.walk(inside) for name in names)
    return next((folder for folder in folders if folder.is_symlink()), None)
