"""What a source would give the corpus: its texts as they will be stored, how many, how long, in which language."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import polars as pl

from pipeline.base import Array
from pipeline.corpus.language import language
from pipeline.corpus.passages import Passages
from pipeline.corpus.readers.source import batches
from pipeline.corpus.scripts import UNSPACED, shorter
from pipeline.corpus.split import below, record_hashes
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
    """Those that are held out together, as of a page, count once."""
    duplicates: int = 0
    """Texts that others of their role repeat, and that will be dropped."""
    tokens: int = 0
    """Of texts without duplicates. Estimated: four characters make a token, or one and a half in scripts without
    spaces."""
    short: int = 0
    """Texts that are empty or too short and will be dropped."""
    lengths: dict[str, tuple[int, int, int]] = field(default_factory=dict)
    """Characters of the texts of a role: median, 95 % and most."""
    language: str | None = None
    examples: pl.DataFrame = field(default_factory=pl.DataFrame)
    """Some texts with their `role` and `id`, as the corpus will hold them."""
    record_hashes: dict[str, Array] = field(default_factory=dict)
    """By role, `[n]` uint64: those of the texts' records, which decide what is held out."""

    @property
    def distinct(self) -> int:
        """Texts without duplicates."""
        return sum(self.texts.values()) - self.duplicates

    def heldout(self, share: float) -> dict[str, int]:
        """How many texts of each role such a share of the records will hold out, but for what records share."""
        return {role: int(below(hashes, share).sum()) for role, hashes in self.record_hashes.items()}


def preview(source: SourceParams, corpus: CorpusParams, examples: int = 5) -> Preview:
    """Read a source and describe it.

    Raises:
        LeafError: what reading it raises.
    """
    result, lengths, sample, records = Preview(), _Lengths(), _Sample(corpus.seed), _Records(source.name)
    passages = Passages(source.passages, f"corpus.sources `{source.name}`", Path) if source.passages else None
    most = min(MOST_TEXTS, source.limit or MOST_TEXTS)
    for frame in batches(source):
        cut = passages.cut(frame) if passages else frame
        cleaned = cut.with_columns(clean(pl.col("text")))
        short = shorter(cleaned["text"], corpus.min_characters)
        kept = cleaned.filter(~short)
        result.short += int(short.sum())
        lengths.add(kept)
        records.add(kept)
        sample.add(kept)
        if lengths.texts >= most:
            result.whole = False
            break
    drawn = sample.texts()
    result.texts, result.lengths = lengths.counts(), lengths.quantiles()
    result.record_hashes, result.records = records.by_role(), records.number()
    result.duplicates, result.tokens = lengths.without_duplicates()
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
        self._by_role: dict[str, list[Array]] = {}
        self._hashes, self._tokens = [np.empty(0, np.uint64)], [np.empty(0)]
        self.texts = 0

    def add(self, frame: pl.DataFrame) -> None:
        """Count a frame's texts."""
        self.texts += len(frame)
        counted = frame.select(
            "role",
            characters=pl.col("text").str.len_chars(),
            unspaced=pl.col("text").str.count_matches(f"[{UNSPACED}]"),
        )
        for (role,), part in counted.group_by("role"):
            self._by_role.setdefault(str(role), []).append(part["characters"].to_numpy())
        characters, unspaced = counted["characters"].to_numpy(), counted["unspaced"].to_numpy()
        self._tokens.append((characters - unspaced) / 4 + unspaced / 1.5 + 2)
        self._hashes.append(frame.select(pl.struct("role", "text").hash()).to_series().to_numpy())

    def without_duplicates(self) -> tuple[int, int]:
        """How many texts are duplicates, and an estimate of the tokens of the others."""
        first = np.unique(np.concatenate(self._hashes), return_index=True)[1]
        return self.texts - len(first), int(np.concatenate(self._tokens)[first].sum())

    def counts(self) -> dict[str, int]:
        return {role: sum(map(len, parts)) for role, parts in sorted(self._by_role.items())}

    def quantiles(self) -> dict[str, tuple[int, int, int]]:
        joined = {role: np.concatenate(parts) for role, parts in sorted(self._by_role.items())}
        return {
            role: (int(np.median(values)), int(np.quantile(values, 0.95)), int(values.max()))
            for role, values in joined.items()
        }


class _Records:
    """The records of texts, by role."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._hashes: dict[str, list[Array]] = {}

    def add(self, frame: pl.DataFrame) -> None:
        """Note the records of a frame's texts."""
        for (role,), part in frame.group_by("role"):
            self._hashes.setdefault(str(role), []).append(record_hashes(self._source, part["page"].to_list()))

    def by_role(self) -> dict[str, Array]:
        """`[n]` uint64 for each role: the hash of each text's record."""
        return {role: np.concatenate(hashes) for role, hashes in self._hashes.items()}

    def number(self) -> int:
        """How many records there are."""
        return len(np.unique(np.concatenate([np.empty(0, np.uint64), *self.by_role().values()])))


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
