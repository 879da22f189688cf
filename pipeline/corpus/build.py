"""The corpus: texts of all sources, cleaned, keyed, without duplicates, split, sorted by key and sharded.

Memory is bounded by the size of a batch and of a partition (about a 256th of the corpus), whatever the corpus's
size; near-duplicate removal alone needs more (`pipeline.near`).
"""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
from tqdm import tqdm

from pipeline.base.errors import LeafError
from pipeline.base.files import replace_directory, workspace
from pipeline.base.keys import ROLES, keys
from pipeline.corpus.external_sort import PARTITIONS, Parts, Spill
from pipeline.corpus.near_duplicates import NearDuplicates
from pipeline.corpus.readers import reading as sources
from pipeline.corpus.split import shares
from pipeline.corpus.text import clean
from pipeline.params.sections import CorpusParams, SourceParams

REASONS = ("sampled_out", "empty", "too_short", "duplicate", "near_duplicate")
QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)


def build(params: CorpusParams, out: Path) -> dict[str, Any]:
    """Build the corpus in `out`, whole or not at all, and return its metrics.

    Raises:
        LeafError: a source is unusable, nothing is left of one, `out` cannot be written, or another run writes it.
    """
    names = [source.name for source in params.sources]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise LeafError(f"corpus.sources: the name {twice[0]!r} is given twice; split and counts go by name")
    if not names:
        raise LeafError("corpus.sources: is empty; name at least one source")
    for source in params.sources:
        sources.check(source)
    try:
        with workspace(out, "new") as directory:
            figures = _build(params, directory)
            replace_directory(directory / "result", out)
            return figures
    except (OSError, pa.ArrowException) as error:
        raise LeafError(f"{out}: the corpus cannot be written: {error}") from error


def _build(params: CorpusParams, directory: Path) -> dict[str, Any]:
    spilled, result = directory / "partitions", directory / "result"
    spilled.mkdir()
    result.mkdir()
    spill, counts = Spill(spilled), _Counts(params)
    parts = Parts(result, params.shard_rows)
    try:
        near = NearDuplicates(params.near_duplicates, params.seed) if params.near_duplicates else None
        for source in params.sources:
            for rows in _texts(source, params, counts, near):
                spill.add(rows)
        for rows in tqdm(spill.sorted(), desc="sort", unit=" partitions", total=PARTITIONS, disable=None):
            kept = rows.filter(pl.col("key").is_first_distinct())
            counts.keep(rows, kept)
            parts.add(kept)
        parts.finish()
    finally:
        spill.close()
        parts.close()
    return counts.metrics()


def _texts(
    source: SourceParams, params: CorpusParams, counts: "_Counts", near: NearDuplicates | None
) -> Iterator[pl.DataFrame]:
    """Clean, keyed texts of one source, in its order; what is dropped is counted."""
    share = params.heldout if source.heldout is None else source.heldout
    kept = 0
    with tqdm(desc=source.name, unit=" texts", unit_scale=True, disable=None) as bar:
        for batch in _limited(source, params.seed, counts):
            bar.update(len(batch))
            rows = _cleaned(batch, source.name, params.min_characters, counts)
            kept += len(rows)
            ids, roles, texts = (rows[name].to_list() for name in ("id", "role", "text"))
            hashed = keys(roles, texts)
            heldout = pl.Series(shares(source.name, ids, share), dtype=pl.Boolean)
            frame = rows.select(
                pl.Series("key", hashed, dtype=pl.Binary),
                "id",
                "text",
                "role",
                source=pl.lit(source.name),
                split=pl.when(heldout).then(pl.lit("heldout")).otherwise(pl.lit("train")),
            )
            if near:
                flags = pl.Series(near.flags(hashed, roles, texts), dtype=pl.Boolean)
                counts.drop(source.name, "near_duplicate", int(flags.sum()))
                frame = frame.filter(~flags)
            yield frame
    if kept == 0 and not counts.dropped[source.name]["sampled_out"]:
        reasons = ", ".join(f"{n} {reason}" for reason, n in counts.dropped[source.name].items() if n)
        raise LeafError(f"corpus.sources `{source.name}`: no text is left ({reasons}); see corpus.min_characters")


def _limited(source: SourceParams, seed: int, counts: "_Counts") -> Iterator[pl.DataFrame]:
    """Sampled by the id's hash, then cut after `limit` records; neighbouring texts of one id are one record."""
    left, last = source.limit, None
    for frame in sources.batches(source):
        counts.read[source.name] += len(frame)
        batch = frame
        if source.sample < 1:
            picked = pl.Series(shares(f"{seed}\0{source.name}", batch["id"].to_list(), source.sample))
            counts.drop(source.name, "sampled_out", len(batch) - int(picked.sum()))
            batch = batch.filter(picked)
        if left is not None and len(batch):
            number = batch["id"].rle_id() + int(batch["id"][0] != last)
            last, end = batch["id"][-1], int(number[-1])
            cut = batch.filter(number <= left)
            counts.read[source.name] -= len(batch) - len(cut)
            yield cut
            if end > left:
                return
            left -= end
        else:
            yield batch


def _cleaned(batch: pl.DataFrame, source: str, minimum: int, counts: "_Counts") -> pl.DataFrame:
    rows = batch.with_columns(clean(pl.col("text")))
    length = rows["text"].str.len_chars()
    empty, short = int((length == 0).sum()), int((length < minimum).sum())
    counts.drop(source, "empty", empty)
    counts.drop(source, "too_short", short - empty)
    return rows.filter(length >= max(minimum, 1))


class _Counts:
    """What was read, dropped and kept."""

    def __init__(self, params: CorpusParams) -> None:
        names = [source.name for source in params.sources]
        self.read: Counter[str] = Counter(dict.fromkeys(names, 0))
        self.dropped = {name: dict.fromkeys(REASONS, 0) for name in names}
        self._rows: dict[str, dict[str, dict[str, int]]] = {name: {} for name in names}
        self._lengths: dict[str, Counter[int]] = {role: Counter() for role in ROLES}

    def drop(self, source: str, reason: str, number: int) -> None:
        """Count texts of a source that were dropped for a reason."""
        self.dropped[source][reason] += number

    def keep(self, rows: pl.DataFrame, kept: pl.DataFrame) -> None:
        """Count the texts of a partition, before and after exact duplicates are gone."""
        for sign, frame in ((1, rows), (-1, kept)):
            for name, number in frame["source"].value_counts().iter_rows():
                self.drop(name, "duplicate", sign * number)
        for name, role, split, number in kept.group_by("source", "role", "split").len().iter_rows():
            splits = self._rows[name].setdefault(role, {"heldout": 0, "train": 0})
            splits[split] += number
        lengths = kept.select("role", pl.col("text").str.len_chars().alias("length"))
        for role, length, number in lengths.group_by("role", "length").len().iter_rows():
            self._lengths[role][length] += number

    def metrics(self) -> dict[str, Any]:
        """Counts of texts and, per role, the lengths in characters."""
        total = {"heldout": 0, "train": 0}
        for roles in self._rows.values():
            for splits in roles.values():
                for split, number in splits.items():
                    total[split] += number
        return {
            "total": sum(total.values()),
            "splits": total,
            "read": dict(self.read),
            "rows": self._rows,
            "dropped": self.dropped,
            "characters": {role: quantiles(lengths) for role, lengths in self._lengths.items() if lengths},
        }


def quantiles(lengths: Counter[int]) -> dict[str, float]:
    """Minimum, quantiles (nearest rank), maximum and mean of values given with their numbers of occurrences."""
    total, seen, found = lengths.total(), 0, {}
    wanted = list(QUANTILES)
    for length, number in sorted(lengths.items()):
        seen += number
        while wanted and seen >= wanted[0] * total:
            found[f"p{wanted.pop(0) * 100:.0f}"] = length
    mean = sum(length * number for length, number in lengths.items()) / total
    return {"min": min(lengths), **found, "max": max(lengths), "mean": round(mean, 2)}
