"""Whether corpus, store and student are those that the project records: in `dvc.lock`, and by digests in `metrics/`.

Git carries both records, and DVC the data: after `git pull` without `dvc pull` they belong to different states of the
project, and `dvc status` need not show it. Nothing here calls DVC.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pipeline.base import LeafError, parse_yaml
from pipeline.corpus import corpus_digest
from pipeline.store import Store

LOCK = Path("dvc.lock")


def student_digest(path: Path) -> str:
    """SHA-256 over the files of a student, its card left out."""
    from pipeline.model import model_sha256  # here, so that commands that read no student do not wait for torch

    return model_sha256(path)


RECORDED: dict[Path, tuple[str, Callable[[Path], str]]] = {
    Path("data/corpus"): ("corpus", corpus_digest),
    Path("data/embeddings"): ("encode", lambda path: Store.open(path).digest()),
    Path("models/student"): ("fit", student_digest),
}
"""Directories that stages read by default, the stage that wrote each, and their digests in that stage's metrics."""


def check_recorded(*places: Path) -> None:
    """Refuse a corpus, store or student of RECORDED that is another one than both `dvc.lock` and the metrics say.

    One that either of them knows is good: whoever runs stages by hand brings the metrics up to date, and `dvc commit`
    the other. Without a `dvc.lock` nothing is compared.

    Raises:
        LeafError: it is of another state of the project, or `dvc.lock` has conflicts.
    """
    _check_lock()
    for place in places:
        if place not in RECORDED or not place.is_dir():
            continue
        stage, digest = RECORDED[place]
        locked = _locked_directories().get(place)
        metrics = Path(f"metrics/{stage}.json")
        if locked is None or _read_metrics(metrics).get("digest") == digest(place) or _dvc_md5(place) == locked:
            continue
        raise LeafError(
            f"{place}: is not the one that {LOCK} and {metrics} describe, but of another state of this project: after "
            f"`git pull` or `git checkout` type `dvc pull`; to keep what is here, `dvc commit -f {stage}`"
        )


def _check_lock() -> None:
    """LeafError where `dvc.lock` is there and cannot be read, as a merge with conflicts leaves it."""
    try:
        parse_yaml(LOCK.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return
    except (OSError, ValueError, LeafError):
        raise LeafError(
            f"{LOCK}: cannot be read: where a merge ended in conflicts, take one side (`git checkout --ours {LOCK} "
            "metrics`) and type `dvc repro` (docs/sharing.md)"
        ) from None


def removed_by_dvc(paths: Sequence[Path]) -> list[str]:
    """A sentence for each directory at or below one of `paths` that `dvc.lock` records and that is not there.

    DVC removes the outputs of a stage before it runs it, and leaves it at that where the stage fails.
    """
    lost = [place for place in _locked_directories() if not place.exists() and _is_below(place, paths)]
    return [
        f"{place} is gone for now, as DVC removes outputs before a run: once the cause is mended, running again makes "
        f"it. `dvc checkout {place}` restores the old one, and if it was never here, `dvc pull {place}` fetches it"
        for place in lost
    ]


def _is_below(place: Path, paths: Sequence[Path]) -> bool:
    return any(path == place or path in place.parents for path in paths if path != Path())


def _locked_directories() -> dict[Path, str]:
    """The directories among the outputs in `dvc.lock`, with their MD5; empty where there is no such file."""
    try:
        stages = parse_yaml(LOCK.read_text(encoding="utf-8"))["stages"]
        outputs = [output for stage in stages.values() for output in stage.get("outs", [])]
        return {Path(output["path"]): output["md5"] for output in outputs if output.get("md5", "").endswith(".dir")}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, LeafError):
        return {}


def _read_metrics(file: Path) -> dict[str, Any]:
    try:
        document = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return {}
    return document if isinstance(document, dict) else {}


def _dvc_md5(directory: Path) -> str:
    """The MD5 by which DVC knows a directory: that of the list of its files."""
    files = sorted(file for file in directory.rglob("*") if file.is_file())
    listed = [{"md5": _md5(file), "relpath": file.relative_to(directory).as_posix()} for file in files]
    listed.sort(key=lambda entry: entry["relpath"])
    return hashlib.md5(json.dumps(listed, sort_keys=True).encode(), usedforsecurity=False).hexdigest() + ".dir"


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
