"""Which teacher's vectors a model was fitted to: a small file beside the model, and its comparison with a store."""

from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.base import LeafError, read_json, write_json
from pipeline.store.shard import StoreMeta

FITTED_TO = "fitted_to.json"


@dataclass(frozen=True)
class FittedPart:
    """The part of a student's vector that is one of several teachers'."""

    fingerprint: str
    dim: int


@dataclass(frozen=True)
class FittedTo:
    """The vectors that a model was fitted to."""

    fingerprint: str
    parts: tuple[FittedPart, ...] = ()
    """Of a student of several teachers: whose vector each part of its own vector is, in their order."""
    space: str | None = None
    """Of the student of an assistant, which is a student itself: the fingerprint of the vectors that the assistant was
    fitted to. All three live in their space."""

    @classmethod
    def of(cls, meta: StoreMeta) -> "FittedTo":
        """Vectors of `meta`; those of several teachers name them under `teacher["parts"]`."""
        return cls(meta.fingerprint, _parts(meta.teacher.get("parts") or []), meta.teacher.get("fitted_to"))

    @classmethod
    def read(cls, model: Path) -> "FittedTo | None":
        """What the model at `model` says; None where it says nothing. LeafError if the file is damaged."""
        if not (model / FITTED_TO).is_file():
            return None
        document = read_json(model / FITTED_TO)
        if not isinstance(document, dict):
            return cls(str(document))
        try:
            return cls(str(document.get("fingerprint")), _parts(document.get("parts", [])), document.get("space"))
        except (TypeError, KeyError, ValueError):
            raise LeafError(f"{model / FITTED_TO}: its parts are damaged; run fit again") from None

    def columns(self, fingerprint: str) -> slice | None:
        """Where the vectors of this fingerprint stand in the student's; None if they are not a part of them."""
        start = 0
        for part in self.parts:
            if part.fingerprint == fingerprint:
                return slice(start, start + part.dim)
            start += part.dim
        return None


def _parts(entries: Any) -> tuple[FittedPart, ...]:
    return tuple(FittedPart(str(entry["fingerprint"]), int(entry["dim"])) for entry in entries)


def write_fitted_to(directory: Path, fitted: FittedTo) -> None:
    """Record in a model's directory what it was fitted to."""
    parts = [{"fingerprint": part.fingerprint, "dim": part.dim} for part in fitted.parts]
    optional = {"parts": parts, "space": fitted.space}
    document = {"fingerprint": fitted.fingerprint} | {name: value for name, value in optional.items() if value}
    write_json(directory / FITTED_TO, document)


def check_fitted_to(
    model: Path, fingerprint: str, place: str, earlier: Callable[[], Collection[str]] = tuple
) -> str | None:
    """A sentence where the model at `model` does not say what it was fitted to; None where to vectors as at `place`.

    `earlier` gives other fingerprints of the same teacher, and is asked only where the two differ.

    Raises:
        LeafError: it was fitted to another teacher's vectors: all figures and neighbours would be meaningless.
    """
    fitted = FittedTo.read(model)
    if fitted is None:
        return (
            f"{model}: does not say which teacher's vectors it was fitted to (an earlier version wrote it, or another "
            f"program); make sure that they are those of {place}"
        )
    if fingerprint in (fitted.fingerprint, fitted.space) or fitted.columns(fingerprint):
        return None
    with suppress(LeafError):  # without the teacher nothing is known of its earlier fingerprints
        if fitted.fingerprint in earlier():
            return None
    raise LeafError(
        f"{model}: was fitted to vectors of fingerprint {fitted.fingerprint[:16]}, but {place} has those of another "
        f"teacher, {fingerprint[:16]}: name the store that it was fitted to, or run fit (and export) with this one"
    )
