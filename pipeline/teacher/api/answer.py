"""Reading what an embeddings endpoint has answered: which vector belongs to which text, and which are none.

Servers differ. Some number their vectors (`index`), some do not, some say 0 for all; some answer null, NaN or zeros
for a text that they cannot embed, beside right vectors for the others.
"""

import base64
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pipeline.base import Array, LeafError
from pipeline.store import MAX_DIM

SHOWN = 5  # indices quoted in a message


class InvalidAnswer(Exception):  # noqa: N818
    """An answer without a single right vector; the message says why."""


@dataclass(frozen=True)
class Answer:
    """What a request brought: a vector for each text, except for those that `faults` says something about."""

    vectors: Array
    """[texts, dim] float32, in the order of the texts; zeros where there is a fault."""
    tokens: int = 0
    """Tokens that the server counted for the request."""
    faults: dict[int, str] = field(default_factory=dict)
    """What the server gave in place of a text's vector, by the text's position; never of all texts."""
    numbered: bool = True
    """Whether the server said which vector belongs to which text; otherwise they were taken in order."""


def read_answer(document: dict[str, Any], texts: int, dim: int | None, normalize: bool) -> Answer:
    """The answer to a request of so many texts.

    Args:
        document: the body of the response.
        texts: how many vectors are expected.
        dim: the expected dimension; None accepts that of the first vector.
        normalize: whether vectors are scaled to length 1.

    Raises:
        InvalidAnswer: there are more or fewer vectors than texts, or not one of them is right.
        LeafError: the numbers that the server gives its vectors are contradictory.
    """
    entries = document.get("data")
    if not isinstance(entries, list) or len(entries) != texts:
        number = len(entries) if isinstance(entries, list) else "no"
        raise InvalidAnswer(f"an answer with {number} vectors to {texts} texts")
    fields = [entry if isinstance(entry, dict) else {} for entry in entries]
    places, numbered = _places([entry.get("index") for entry in fields])
    vectors: Array | None = None
    faults: dict[int, str] = {}
    for place, entry in zip(places, fields, strict=True):
        try:
            row = _decoded(entry.get("embedding"))
            dim = dim or len(row)
            checked = _checked(row, dim, normalize)
        except InvalidAnswer as fault:
            faults[place] = str(fault)
            continue
        if vectors is None:
            vectors = np.zeros((texts, dim), np.float32)
        vectors[place] = checked
    if vectors is None:
        raise InvalidAnswer(f"an answer with {faults[0]}")
    return Answer(vectors, faults=faults, numbered=numbered)


def _places(indices: list[Any]) -> tuple[list[int], bool]:
    """Positions of the texts that the vectors belong to, and whether the server has said so.

    One number for all says nothing; a server that leaves zeros out of its JSON leaves out the first's.
    """
    if all(index == indices[0] for index in indices):
        return list(range(len(indices))), len(indices) == 1
    places = [0 if index is None else index for index in indices]
    if any(type(place) is not int for place in places) or sorted(places) != list(range(len(places))):
        shown = ", ".join(map(str, indices[:SHOWN])) + (", ..." if len(indices) > SHOWN else "")
        raise LeafError(
            f"teacher.api: the server gives the vectors of {len(indices)} texts the indices {shown:.200}, so that "
            "nobody can tell which belongs to which text; they must be 0, 1, 2 and so on, or left out"
        )
    return places, True


def _decoded(embedding: object) -> Array:
    """One vector from base64 or a list of numbers."""
    if embedding is None:
        raise InvalidAnswer("null in place of a vector")
    try:
        if isinstance(embedding, str):
            return np.frombuffer(base64.b64decode(embedding, validate=True), "<f4")
        with np.errstate(over="ignore"):  # a number too large for float32 becomes infinite, which is refused below
            row = np.asarray(embedding, np.float32)
    except (TypeError, ValueError, OverflowError):
        raise InvalidAnswer("something else than a vector") from None
    if row.ndim != 1:
        raise InvalidAnswer("something else than a vector")
    return row


def _checked(row: Array, dim: int, normalize: bool) -> Array:
    """The vector `[dim]` float32, scaled to length 1 with `normalize`."""
    if len(row) != dim or not 1 <= dim <= MAX_DIM:
        raise InvalidAnswer(f"a vector of dimension {len(row)} instead of {dim}")
    if not np.isfinite(row).all():
        raise InvalidAnswer("NaN or infinity in a vector")
    length = np.linalg.norm(row.astype(np.float64))
    if not length:
        raise InvalidAnswer("a vector of zeros")
    return (row / length).astype(np.float32) if normalize else row
