"""What paths of params.yaml lead out of: the project, and what a stage depends on, which DVC watches.

A file from somebody else may name any file of this machine as a source of texts, which then go to an API or into a
corpus that is shared. So what lies outside the project is named before it is read.

DVC hashes the files below a dependency and follows no linked directory there. It looks at a stage's dependencies before
the stage runs, so they cannot follow `params.yaml`: all that can be done about other files is to say so.
"""

import glob
import itertools
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from pipeline.base import LeafError, parse_yaml
from stages.common import echo

SHOWN = 3  # places in a message


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


def name_outside(paths: Iterable[str], key: str) -> None:
    """Print a sentence for each path or URL under `key` of params.yaml that leads out of this directory."""
    for path in dict.fromkeys(paths):
        if "://" in path:
            echo(f"{key}: reads {path}", err=True)
        elif outside := _outside(path):
            more = f" and {len(outside) - SHOWN:,} more" if len(outside) > SHOWN else ""
            shown = ", ".join(str(place) for place in outside[:SHOWN])
            echo(f"{key}: reads {shown}{more}, outside this project (`{path}`)", err=True)


def _outside(path: str) -> list[Path]:
    """The places outside this directory that a path (a file, a directory or a glob) means, through links too."""
    here = Path.cwd().resolve()
    expanded = os.path.expanduser(path)  # noqa: PTH111  a Path would lose the glob's last slash
    found: dict[Path, None] = {}
    for match in map(Path, glob.iglob(expanded, recursive=True)):  # noqa: PTH207
        inner = (Path(folder, name) for folder, folders, files in os.walk(match) for name in [*folders, *files])
        for place in itertools.chain([match], (entry for entry in inner if entry.is_symlink())):
            resolved = place.resolve()
            if here != resolved and here not in resolved.parents:
                found[resolved] = None
    return list(found)


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
