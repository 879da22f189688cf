"""The key that joins a text to its vector: BLAKE2b-128 over role and text."""

from collections.abc import Iterable
from hashlib import blake2b

import polars as pl

from pipeline.errors import LeafError

KEY_BYTES = 16
ROLES = ("query", "document")


def key(role: str, text: str) -> bytes:
    """16 bytes over role and text; the zero byte keeps (`query`, `x`) apart from every other split of the same letters.

    The role is part of it because a teacher's prompts differ by role (mteb #5383 shows what happens otherwise).
    """
    return blake2b(f"{role}\0{text}".encode(), digest_size=KEY_BYTES).digest()


def keys(roles: Iterable[str], texts: Iterable[str]) -> list[bytes]:
    """Keys of many texts, in order."""
    return [key(role, text) for role, text in zip(roles, texts, strict=True)]


def check(rows: pl.DataFrame, place: str) -> None:
    """Refuse rows (`key, role, id, text`) that the corpus stage did not write: a vector lies under its key for good.

    Raises:
        LeafError: a text, its role or its id is missing, a role is unknown, or a key is not that of its text.
    """
    right = rows["role"].is_in(ROLES) & rows["text"].is_not_null() & rows["id"].is_not_null()
    right = right.fill_null(value=False)
    if right.all():
        right = rows["key"] == pl.Series(keys(rows["role"], rows["text"]), dtype=pl.Binary)
        right = right.fill_null(value=False)
    if not right.all():
        row = int(right.arg_min() or 0)
        raise LeafError(
            f"{place}: text `{rows['id'][row]}` has no text, no known role, or a key that is not its own: the corpus "
            "was changed by hand; run the stage `corpus` again"
        )
