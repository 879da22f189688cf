"""Find near duplicates with MinHash and locality-sensitive hashing (Broder 1997), by the library `rensa`.

Two texts with the same role are near duplicates if the estimated Jaccard similarity of their sets of word pairs,
without letter case and punctuation, reaches the threshold. The first in source order stays. In scripts without spaces
each CHARACTERS neighbouring characters are a word, so that a pair of words is one character more.

Memory grows with the corpus, unlike in the rest of the stage: about 4.6 kB a text (measured on 160,000 short ones), so
10 million texts need some 46 GB.
"""

import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

from pipeline.base import ROLES, import_optional
from pipeline.corpus.scripts import UNSPACED

PERMUTATIONS = 128
BANDS = 32  # of 4 hashes each: a pair of similarity 0.5 is found with probability 0.87, of 0.7 with 0.9998
CHARACTERS = 3
"""With fewer, long texts of an alphabet (Thai) that have nothing to do with each other become alike: of 13,000
characters, joined from sentences, similarity 0.55 with 1, 0.29 with 2, 0.16 with 3."""
_UNSPACED = re.compile(f"[{UNSPACED}]")
_WORD = re.compile(rf"[{UNSPACED}]+|[^\W{UNSPACED}]+")


class NearDuplicates:
    """Finds near duplicates of the texts that it was given before, which it remembers by role."""

    def __init__(self, threshold: float, seed: int) -> None:
        """A text is a near duplicate if its similarity to a kept text with the same role is `threshold` or more.

        Raises:
            LeafError: the package `rensa` is missing.
        """
        rensa = import_optional("rensa", "dedup", "corpus.near_duplicates")
        self._sketches: Any = rensa.RMinHash
        self._seed = seed
        self._stays: dict[bytes, bytes] = {}
        self._kept = {
            role: rensa.RMinHashDeduplicator(
                threshold=threshold, num_perm=PERMUTATIONS, use_lsh=True, num_bands=BANDS, seed=seed
            )
            for role in ROLES
        }

    def stand_ins(self, keys: Sequence[bytes], roles: Sequence[str], texts: Sequence[str]) -> list[bytes]:
        """The key of the text that stays for each of these: `[n]`; another than its own for a near duplicate.

        Copies of a text that stays have its key: they are removed and counted later, as exact duplicates.
        """
        new_rows = []
        for row, key in enumerate(keys):
            if key not in self._stays:
                self._stays[key] = key
                new_rows.append(row)
        tokens = [shingles(texts[row]) for row in new_rows]
        sketches = self._sketches.from_token_sets(tokens, PERMUTATIONS, self._seed)
        for row, sketch in zip(new_rows, sketches, strict=True):
            kept = self._kept[roles[row]]
            if not kept.add(keys[row].hex(), sketch):
                self._stays[keys[row]] = bytes.fromhex(min(kept.get_duplicates(sketch)))
        return [self._stays[key] for key in keys]


def shingles(text: str) -> list[str]:
    """Pairs of neighbouring words in lower case; of a single word the word, of a text without words the text."""
    words = list(_words(text.casefold()))
    return [f"{a} {b}" for a, b in pairwise(words)] or words or [text]


def _words(text: str) -> Iterator[str]:
    for run in _WORD.findall(text):
        if len(run) > CHARACTERS and _UNSPACED.match(run):
            yield from (run[start : start + CHARACTERS] for start in range(len(run) - CHARACTERS + 1))
        else:
            yield run
