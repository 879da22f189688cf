"""The key that joins a text to its vector: BLAKE2b-128 over role and text."""

from collections.abc import Iterable
from hashlib import blake2b

KEY_BYTES = 16


def key(role: str, text: str) -> bytes:
    """16 bytes over role and text; the zero byte keeps (`query`, `x`) apart from every other split of the same letters.

    The role is part of it because a teacher's prompts differ by role (mteb #5383 shows what happens otherwise).
    """
    return blake2b(f"{role}\0{text}".encode(), digest_size=KEY_BYTES).digest()


def keys(roles: Iterable[str], texts: Iterable[str]) -> list[bytes]:
    """Keys of many texts, in order."""
    return [key(role, text) for role, text in zip(roles, texts, strict=True)]
