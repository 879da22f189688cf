"""Near duplicates by MinHash and locality-sensitive hashing (Broder 1997), with the library `rensa`.

Two texts of a role count as one when the estimated Jaccard similarity of their sets of word pairs (letter case and
punctuation aside) reaches the threshold; the first in source order stays.

Memory grows with the corpus, unlike the rest of the stage: about 4.6 kB a text
(measured on 160,000 short ones): 10 million texts need some 46 GB.
"""

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from pipeline.base.optional import import_optional

PERMUTATIONS = 128
BANDS = 32  # of 4 rows: finds a pair of similarity 0.5 with probability 0.87, of 0.7 with 0.9998
_WORD = re.compile(r"\w+")


class NearDuplicates:
    """The texts kept so far, per role."""

    def __init__(self, threshold: float, seed: int) -> None:
        """Keep no text whose similarity to a kept one of its role is `threshold` or more.

        Raises:
            LeafError: the package `rensa` is missing.
        """
        rensa = import_optional("rensa", "dedup", "corpus.near_duplicates")
        self._sketches: Any = rensa.RMinHash
        self._seed = seed
        self._seen: dict[bytes, bool] = {}
        self._kept = {
            role: rensa.RMinHashDeduplicator(
                threshold=threshold, num_perm=PERMUTATIONS, use_lsh=True, num_bands=BANDS, seed=seed
            )
            for role in ("query", "document")
        }

    def flags(self, keys: Sequence[bytes], roles: Sequence[str], texts: Sequence[str]) -> list[bool]:
        """Which of these texts are near duplicates of an earlier one.

        An exact duplicate gets the flag of its first, so that a kept text's copies are left to be counted as such.
        """
        fresh = []
        for row, key in enumerate(keys):
            if key not in self._seen:
                self._seen[key] = False
                fresh.append(row)
        sketches = self._sketches.from_token_sets([shingles(texts[row]) for row in fresh], PERMUTATIONS, self._seed)
        for row, sketch in zip(fresh, sketches, strict=True):
            self._seen[keys[row]] = not self._kept[roles[row]].add(keys[row].hex(), sketch)
        return [self._seen[key] for key in keys]


def shingles(text: str) -> list[str]:
    """Pairs of neighbouring words in small letters; a single word, or a text without words, stands for itself."""
    words = _WORD.findall(text.casefold())
    return [f"{a} {b}" for a, b in pairwise(words)] or words or [text]
