"""What DVC does not watch: paths of params.yaml that lead out of what a stage depends on.

DVC hashes the files below a dependency and follows no linked directory there. It looks at a stage's dependencies before
the stage runs, so they cannot follow `params.yaml`: all that can be done about other files is to say so.
"""

import glob
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from pipeline.base import LeafError, parse_yaml
from stages.common import echo


def warn_unwatched(paths: Iterable[str], stage: str) -> None:
    """Print a sentence for each path whose files may change without a run of the stage."""
    watched = _dependencies(stage)
    if watched is None:
        return
    for path in dict.fromkeys(paths):
        if (place := unwatched(path, watched)) is not None:
            echo(
                f"{path}: DVC does not watch {place}, which is outside of what the stage {stage} depends on or behind "
                f"a linked directory: after a change type `leaf repro -f {stage}`, or name it in the stage's deps "
                "(dvc.yaml), or bring it below one of these (`dvc import-url`)",
                err=True,
            )


def _dependencies(stage: str) -> list[Path] | None:
    """What DVC watches for a stage of `dvc.yaml`; None if there is no such stage."""
    try:
        stages = parse_yaml(Path("dvc.yaml").read_text(encoding="utf-8"))["stages"]
        return [Path(entry) for entry in stages[stage].get("deps", []) if isinstance(entry, str)]
    except (OSError, UnicodeDecodeError, LeafError, KeyError, TypeError, AttributeError):
        return None


def unwatched(path: str, watched: Sequence[Path]) -> Path | None:
    """The first file or directory that `path` (a file, a directory or a glob) means and DVC does not watch; else None.

    A path that leads nowhere on this machine (the name of a data set on a hub) is none.
    """
    expanded = os.path.expanduser(path)  # noqa: PTH111  a Path would lose the glob's last slash
    for match in glob.iglob(expanded, recursive=True):  # noqa: PTH207
        places = [_beyond(Path(match), root) for root in watched]
        if None not in places:
            # Of what is behind a linked directory in one of them, that directory is named.
            return next((place for place in places if place != Path(match)), Path(match))
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
