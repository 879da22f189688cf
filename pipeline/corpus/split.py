"""TODO."""

from collections.abc import Sequence
from hashlib import blake2b


def shares(prefix: str, ids: Sequence[str], share: float) -> list[bool]:
    """Whether BLAKE2b-64 of `prefix`, a zero byte and the id, scaled to [0, 1), is below `share`.

    A function of the id alone: the choice of one record does not depend on what else the corpus holds.
    """
    limit, seed = int(share * 2**64), f"{prefix}\0".encode()
    return [int.from_bytes(blake2b(seed + name.encode(), digest_size=8).digest()) < limit for name in ids]
