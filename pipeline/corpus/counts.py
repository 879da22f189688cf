"""Counts of the corpus stage, its metrics: texts read, dropped and kept, and their lengths."""

from collections import Counter
from collections.abc import Iterator, Mapping
from math import ceil
from typing import Any

import polars as pl

from pipeline.base import ROLES
from pipeline.corpus.caps import Drawn
from pipeline.corpus.shared_texts import Regrouped
from pipeline.corpus.views import views_source
from pipeline.params import CorpusParams

REASONS = ("sampled_out", "empty", "too_short", "duplicate", "near_duplicate")
FEW_HELDOUT = 20
"""Held-out queries, below which an evaluation means little."""
QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)


class Counts:
    """Texts read, dropped and kept, by source; lengths of the kept ones, by role."""

    def __init__(self, params: CorpusParams) -> None:
        names = [source.name for source in params.sources]
        names += [views_source(source) for source in params.sources if source.views]
        self._shares = [params.heldout if source.heldout is None else source.heldout for source in params.sources]
        self.read: Counter[str] = Counter(dict.fromkeys(names, 0))
        self.passages: Counter[str] = Counter(dict.fromkeys(names, 0))
        """Texts that a source has more because its documents were cut into passages."""
        self.origins: dict[str, dict[str, dict[str, int]]] = {}
        """By source and origin, the records that are there and those that were drawn; only of sources with a `cap`."""
        self._names = names
        self.repeated_ids: Counter[int] = Counter()
        """Records of pairs whose id an earlier one has that they do not follow, by the number of their source."""
        self.dropped = {name: dict.fromkeys(REASONS, 0) for name in names}
        self._kept: dict[str, dict[str, dict[str, int]]] = {name: {} for name in names}
        self._lengths: dict[str, Counter[int]] = {role: Counter() for role in ROLES}

    def draw(self, source: str, drawn: Drawn | None) -> None:
        """Note the records that a source with a `cap` has of each origin, and those that were drawn."""
        if drawn is not None:
            self.origins[source] = drawn.origins

    def drop(self, source: str, reason: str, number: int) -> None:
        """Count texts of a source that were dropped for one of REASONS."""
        self.dropped[source][reason] += number

    def keep(self, rows: pl.DataFrame, kept: pl.DataFrame) -> None:
        """Count the texts of a partition: `rows` with exact duplicates, `kept` without them."""
        for sign, frame in ((1, rows), (-1, kept)) if len(kept) < len(rows) else ():
            for source, number in frame["source"].value_counts().iter_rows():
                self.drop(source, "duplicate", sign * number)
        for source, role, split, number in kept.group_by("source", "role", "split").len().iter_rows():
            splits = self._kept[source].setdefault(role, {"heldout": 0, "train": 0})
            splits[split] += number
        lengths = kept.select("role", pl.col("text").str.len_chars().alias("length"))
        for role, length, number in lengths.group_by("role", "length").len().iter_rows():
            self._lengths[role][length] += number

    def metrics(self, regrouped: Regrouped) -> dict[str, Any]:
        """Counts of texts, and the distribution of their lengths in characters for each role."""
        total = {"heldout": 0, "train": 0}
        by_role, heldout = Counter[str](), Counter[str]()
        for roles in self._kept.values():
            for role, splits in roles.items():
                for split, number in splits.items():
                    total[split] += number
                by_role[role] += sum(splits.values())
                heldout[role] += splits["heldout"]
        return {
            "total": sum(total.values()),
            "splits": total,
            "read": dict(self.read),
            "passages_more": {name: more for name, more in self.passages.items() if more},
            **({"origins": self.origins} if self.origins else {}),
            "rows": self._kept,
            "dropped": self.dropped,
            "shared_texts": {
                "records": regrouped.sharing,
                "groups": regrouped.groups,
                "largest_group": regrouped.largest,
            },
            "notices": [
                *notices_of_split(by_role, heldout, max(self._shares)),
                *_notices_of_groups(regrouped),
                *self._notices_of_ids(),
            ],
            "characters": {role: distribution(lengths) for role, lengths in self._lengths.items() if lengths},
        }

    def _notices_of_ids(self) -> Iterator[str]:
        """What a person may not know about ids, which files of several parts often count anew."""
        for source, number in sorted(self.repeated_ids.items()):
            yield (
                f"source `{self._names[source]}`: {number:,} records have the id of an earlier one elsewhere in it. "
                "All of one id count as one record, and their documents as relevant to all their queries; if that is "
                "not meant, leave id_field out"
            )


def notices_of_split(texts: Mapping[str, int], heldout: Mapping[str, int], share: float) -> Iterator[str]:
    """What a person should know about the split before anything is computed with it, a sentence each.

    Args:
        texts: number of texts by role.
        heldout: those of them that are held out.
        share: `corpus.heldout`, the largest of all sources.
    """
    total, role = sum(texts.values()), "query" if texts.get("query") else "document"
    tested, number = heldout.get(role, 0), texts.get(role, 0)
    if total and sum(heldout.values()) == total:
        yield f"all of {total:,} texts are held out, and nothing is left to train on; lower corpus.heldout"
    elif total and sum(heldout.values()) == 0:
        yield f"none of {total:,} texts is held out{', which is chance' if share else ''}: {_remedy(number, share)}"
    elif role == "query" and tested < FEW_HELDOUT:
        yield f"{tested:,} of {number:,} queries held out are too few to measure with: {_remedy(number, share)}"


def _remedy(number: int, share: float) -> str:
    """What to do where too few of so many texts are held out."""
    enough = min(0.5, ceil(100 * 1.5 * FEW_HELDOUT / number) / 100)
    larger = f"raise corpus.heldout from {share:g} to {enough:g}, for about {round(enough * number):,} of them; "
    return (
        f"{larger if share < enough else ''}bring more texts (or a larger `sample` of them), or name a collection "
        "under evaluate.beir, without which an evaluation means little"
    )


def _notices_of_groups(regrouped: Regrouped) -> Iterator[str]:
    """What a person should know about the records that share texts, if anything."""
    if regrouped.too_large:
        yield (
            f"{regrouped.too_large:,} of {regrouped.groups:,} groups of records that share texts are trained on whole, "
            f"as each is larger than corpus.heldout; the largest has {regrouped.largest:,} records. If too little is "
            "held out, remove the text that so many records have"
        )


def distribution(lengths: Counter[int]) -> dict[str, float]:
    """Minimum, quantiles (nearest rank), maximum and mean of lengths, given how often each occurs."""
    total, seen, quantiles = lengths.total(), 0, {}
    remaining = list(QUANTILES)
    for length, number in sorted(lengths.items()):
        seen += number
        while remaining and seen >= remaining[0] * total:
            quantiles[f"p{remaining.pop(0) * 100:.0f}"] = length
    mean = sum(length * number for length, number in lengths.items()) / total
    return {"min": min(lengths), **quantiles, "max": max(lengths), "mean": round(mean, 2)}
