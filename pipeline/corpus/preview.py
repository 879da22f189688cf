"""What a source would give the corpus: its texts as they will be stored, how many, how long, in which language."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import polars as pl

from pipeline.corpus.language import language
from pipeline.corpus.passages import Passages
from pipeline.corpus.readers.source import batches
from pipeline.corpus.scripts import UNSPACED, shorter
from pipeline.corpus.text import clean
from pipeline.params import CorpusParams, SourceParams

MOST_TEXTS = 2_000_000  # of a source, that are read
_KEPT = 2000  # texts that are kept to be shown and to tell the language by


@dataclass
class Preview:
    """What was read of a source."""

    whole: bool = True
    """Whether it was read to its end; otherwise it holds more than is counted here."""
    texts: dict[str, int] = field(default_factory=dict)
    """Number of texts by role."""
    records: int = 0
    tokens: int = 0
    """Estimated: four characters make a token, or one and a half in scripts without spaces."""
    short: int = 0
    """Texts that are empty or too short and will be dropped."""
    lengths: dict[str, tuple[int, int, int]] = field(default_factory=dict)
    """Characters of the texts of a role: median, 95 % and most."""
    language: str | None = None
    examples: pl.DataFrame = field(default_factory=pl.DataFrame)
    """Some texts with their `role` and `id`, as the corpus will hold them."""


def preview(source: SourceParams, corpus: CorpusParams, examples: int = 5) -> Preview:
    """Read a source and describe it.

    Raises:
        LeafError: what reading it raises.
    """
    result, lengths, sample = Preview(), _Lengths(), _Sample(corpus.seed)
    passages = Passages(source.passages, f"corpus.sources `{source.name}`", Path) if source.passages else None
    last_id = None
    for frame in batches(source):
        result.records += int(frame["id"].rle_id().n_unique()) - int(len(frame) > 0 and frame["id"][0] == last_id)
        last_id = frame["id"][-1] if len(frame) else last_id
        cut = passages.cut(frame) if passages else frame
        cleaned = cut.with_columns(clean(pl.col("text")))
        short = shorter(cleaned["text"], corpus.min_characters)
        kept = cleaned.filter(~short)
        result.short += int(short.sum())
        result.tokens += lengths.add(kept)
        sample.add(kept)
        if lengths.texts >= MOST_TEXTS:
            result.whole = False
            break
    drawn = sample.texts()
    result.texts, result.lengths = lengths.counts(), lengths.quantiles()
    result.language = language(drawn["text"].to_list()) if len(drawn) else None
    result.examples = _spread(drawn, examples)
    return result


def _spread(drawn: pl.DataFrame, examples: int) -> pl.DataFrame:
    """Some of the texts, of both roles where there are two, in the order of the source."""
    if drawn.is_empty():
        return drawn
    by_role = drawn.with_columns(turn=pl.int_range(pl.len()).over("role")).sort("turn", "place").head(examples)
    return by_role.sort("place").select("role", "id", "text")


class _Lengths:
    """Characters of texts, counted by role."""

    def __init__(self) -> None:
        self._by_role: dict[str, list[np.ndarray]] = {}
        self.texts = 0

    def add(self, frame: pl.DataFrame) -> int:
        """Count a frame's texts; returns an estimate of their tokens."""
        self.texts += len(frame)
        counted = frame.select(
            "role",
            characters=pl.col("text").str.len_chars(),
            unspaced=pl.col("text").str.count_matches(f"[{UNSPACED}]"),
        )
        for (role,), part in counted.group_by("role"):
            self._by_role.setdefault(str(role), []).append(part["characters"].to_numpy())
        unspaced = int(counted["unspaced"].sum())
        return int((int(counted["characters"].sum()) - unspaced) / 4 + unspaced / 1.5) + 2 * len(frame)

    def counts(self) -> dict[str, int]:
        return {role: sum(map(len, parts)) for role, parts in sorted(self._by_role.items())}

    def quantiles(self) -> dict[str, tuple[int, int, int]]:
        joined = {role: np.concatenate(parts) for role, parts in sorted(self._by_role.items())}
        return {
            role: (int(np.median(values)), int(np.quantile(values, 0.95)), int(values.max()))
            for role, values in joined.items()
        }


class _Sample:
    """A sample of the texts of a source of unknown size: those with the smallest random numbers."""

    def __init__(self, seed: int) -> None:
        self._random = np.random.default_rng(seed)
        self._frames: list[pl.DataFrame] = []
        self._rows = 0

    def add(self, frame: pl.DataFrame) -> None:
        numbered = frame.with_columns(
            draw=pl.Series(self._random.random(len(frame))), place=pl.int_range(self._rows, self._rows + len(frame))
        )
        self._rows += len(frame)
        self._frames = [pl.concat([*self._frames, numbered]).bottom_k(_KEPT, by="draw")]

    def texts(self) -> pl.DataFrame:
        """In random order."""
        return self._frames[0].sort("draw") if self._frames else pl.DataFrame()
