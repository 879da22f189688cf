"""Which teacher's vectors a model was fitted to: a small file beside the model, and its comparison with a store."""

from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path

from pipeline.base import LeafError, read_json, write_json
from pipeline.store.shard import StoreMeta

FITTED_TO = "fitted_to.json"


def write_fitted_to(directory: Path, meta: StoreMeta) -> None:
    """Record in a model's directory that it was fitted to vectors of `meta`."""
    write_json(directory / FITTED_TO, {"fingerprint": meta.fingerprint})


def check_fitted_to(
    model: Path, fingerprint: str, place: str, earlier: Callable[[], Collection[str]] = tuple
) -> str | None:
    """A sentence where the model at `model` does not say what it was fitted to; None where to vectors as at `place`.

    `earlier` gives other fingerprints of the same teacher, and is asked only where the two differ.

    Raises:
        LeafError: it was fitted to another teacher's vectors: all figures and neighbours would be meaningless.
    """
    if not (model / FITTED_TO).is_file():
        return (
            f"{model}: does not say which teacher's vectors it was fitted to (an earlier version wrote it, or another "
            f"program); make sure that they are those of {place}"
        )
    document = read_json(model / FITTED_TO)
    fitted = str(document.get("fingerprint") if isinstance(document, dict) else document)
    if fitted == fingerprint:
        return None
    with suppress(LeafError):  # without the teacher nothing is known of its earlier fingerprints
        if fitted in earlier():
            return None
    raise LeafError(
        f"{model}: was fitted to vectors of fingerprint {fitted[:16]}, but {place} has those of another teacher, "
        f"{fingerprint[:16]}: name the store that it was fitted to, or run fit (and export) with this one"
    )
