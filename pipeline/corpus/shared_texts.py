"""Which records share a text, directly or through others, so that they are held out together or not at all.

A text counts as shared whatever its roles: a student reads a query and a document of the same words alike. The texts'
hashes are kept on disk and looked through a 64th at a time; memory grows only with the records that share a text.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from pipeline.base import Array
from pipeline.corpus.split import below

PARTITIONS = 64
HELD_ENTRIES = 1 << 17  # 24 bytes each; written into the partitions together
ENTRY = np.dtype([("text", np.uint64), ("record", np.uint64), ("place", np.uint64)])
"""A text's hash, its record's, and where the text stands: the number of its source above NUMBER_BITS, its own below."""
NUMBER_BITS = 40


@dataclass(frozen=True)
class Regrouped:
    """Records that share texts with others: what is decided about them, and how many there are."""

    records: Array
    """`[n]` uint64, sorted: hashes of the records about which the group decides otherwise than their own hash."""
    heldout: Array
    """`[n]` bool: what it decides."""
    sharing: int
    """Records that share a text with another."""
    groups: int
    """Groups of such records."""
    largest: int
    """Records of the largest group."""
    too_large: int
    """Groups that are not held out because they have more records than are to be held out in all."""

    def apply(self, rows: pl.DataFrame) -> pl.DataFrame:
        """The rows with the group's decision in their column `heldout`, by their column `record`."""
        if not len(self.records):
            return rows
        places = np.searchsorted(self.records, record := rows["record"].to_numpy()).clip(max=len(self.records) - 1)
        other = self.records[places] == record
        return rows.with_columns(heldout=pl.Series(np.where(other, self.heldout[places], rows["heldout"].to_numpy())))


class SharedTexts:
    """Collects the texts of records, and finds the groups of records that are joined by texts of the same hash."""

    def __init__(self, directory: Path) -> None:
        """Write into files in `directory`, which exists."""
        self._directory = directory
        self._held: list[Array] = []
        self._entries = 0
        self.records = 0
        """Records seen; one whose texts do not follow each other counts again."""
        self._last: np.uint64 | None = None
        self._texts = 0

    def add(self, texts: Array, records: Array, source: int) -> None:
        """Add texts by their hashes and those of their records: `[n]` uint64 each, of the source of this number."""
        if not len(texts):
            return
        self.records += int((records[1:] != records[:-1]).sum()) + int(records[0] != self._last)
        self._last = records[-1]
        self.link(texts, records, source)

    def link(self, texts: Array, records: Array, source: int) -> None:
        """Add further texts of records that are counted by `add`."""
        entries = np.empty(len(texts), dtype=ENTRY)
        entries["text"], entries["record"] = texts, records
        entries["place"] = np.arange(self._texts, self._texts + len(texts), dtype=np.uint64) | (source << NUMBER_BITS)
        self._texts += len(texts)
        self._held.append(entries)
        self._entries += len(entries)
        if self._entries >= HELD_ENTRIES:
            self._flush()

    def _flush(self) -> None:
        if not self._held:
            return
        entries = np.concatenate(self._held)
        self._held, self._entries = [], 0
        partition = (entries["text"] >> np.uint64(58)).astype(np.uint8)
        entries = entries[np.argsort(partition, kind="stable")]
        ends = np.cumsum(np.bincount(partition, minlength=PARTITIONS))
        for number, part in enumerate(np.split(entries, ends[:-1])):
            if len(part):
                with self._file(number).open("ab") as file:
                    part.tofile(file)

    def _file(self, number: int) -> Path:
        return self._directory / f"{number:03d}.texts"

    def regrouped(self, shares: Sequence[float]) -> Regrouped:
        """Decide about the groups: `shares` are those to be held out of each source, by its number.

        A group is held out if the hash of the first of its records is below the largest share of its sources. Files are
        removed once they are read.
        """
        return _decide(np.concatenate([np.empty((0, 2), dtype=ENTRY), *self.links()]), shares, self.records)

    def links(self) -> Iterator[Array]:
        """`[links, 2]` entries of each partition, as `_links` gives them; its file is removed."""
        self._flush()
        for file in sorted(self._directory.glob("*.texts")):
            yield _links(np.fromfile(file, dtype=ENTRY))
            file.unlink()


class RepeatedIds:
    """Counts records that have the id of an earlier one which they do not follow: all of one id count as one record."""

    def __init__(self, directory: Path) -> None:
        """Write into `directory`, which is made."""
        directory.mkdir()
        self._directory, self._ids = directory, SharedTexts(directory)
        self._last: np.uint64 | None = None
        self._records = 0

    def add(self, records: Array, source: int) -> None:
        """Add texts by the hashes of their records: `[n]` uint64, of the source of this number."""
        if not len(records):
            return
        begins = np.append(self._last is None or records[0] != self._last, records[1:] != records[:-1])
        self._last = records[-1]
        numbers = np.arange(self._records, self._records + begins.sum(), dtype=np.uint64)
        self._records += len(numbers)
        self._ids.link(records[begins], numbers, source)

    def counts(self) -> Counter[int]:
        """How many there are in each source, by its number. The directory is removed."""
        found: Counter[int] = Counter()
        for links in self._ids.links():
            found.update((links["place"][:, 1] >> np.uint64(NUMBER_BITS)).tolist())
        self._directory.rmdir()
        return found


def _links(entries: Array) -> Array:
    """`[links, 2]` entries with one text and different records, enough to join all records that share a text."""
    entries = entries[np.argsort(entries["text"], kind="stable")]
    linked = np.flatnonzero(
        (entries["text"][1:] == entries["text"][:-1]) & (entries["record"][1:] != entries["record"][:-1])
    )
    links: Array = np.stack([entries[linked], entries[linked + 1]], axis=1)
    return links


def _decide(links: Array, shares: Sequence[float], total: int) -> Regrouped:
    """What `SharedTexts.regrouped` returns, from `[links, 2]` entries of which each joins two records."""
    if not len(links):
        return Regrouped(np.empty(0, np.uint64), np.empty(0, bool), 0, 0, 0, 0)
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    entries = links.reshape(-1)
    entries = entries[np.argsort(entries["place"], kind="stable")]
    records, firsts = np.unique(entries["record"], return_index=True)
    places, source = entries["place"][firsts], (entries["place"][firsts] >> np.uint64(NUMBER_BITS)).astype(np.int64)
    ends = (np.searchsorted(records, links["record"][:, side]) for side in (0, 1))
    graph = coo_array((np.ones(len(links), dtype=bool), tuple(ends)), shape=(len(records), len(records)))
    groups, group = connected_components(graph, directed=False)
    own = np.array(shares, dtype=np.float64)[source]
    share, size = np.zeros(groups), np.bincount(group, minlength=groups)
    np.maximum.at(share, group, own)
    in_order = np.argsort(places, kind="stable")
    first = in_order[np.unique(group[in_order], return_index=True)[1]]  # of each group, the record that came first
    too_large = (share < 1) & (size > share * total)
    heldout = _below(records[first], share) & ~too_large
    changed = heldout[group] != _below(records, own)
    return Regrouped(
        records[changed],
        heldout[group][changed],
        len(records),
        groups,
        int(size.max()),
        int((too_large & (share > 0)).sum()),
    )


def _below(hashes: Array, shares: Array) -> Array:
    """`[n]` bool: `split.below`, each hash with a share of its own."""
    chosen = np.zeros(len(hashes), dtype=bool)
    for share in np.unique(shares):
        rows = shares == share
        chosen[rows] = below(hashes[rows], float(share))
    return chosen
