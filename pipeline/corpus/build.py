"""Build the corpus: texts of all sources, cleaned, keyed, without duplicates, split, sorted by key, in Parquet files.

Memory is bounded by the size of a batch and of a partition (about a 256th of the corpus), except that records that
share a text need some, and removing near duplicates needs much for every text (`pipeline.corpus.near_duplicates`).
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
from tqdm import tqdm

from pipeline.base import LeafError, access, key_array, keys, written_directory
from pipeline.corpus.caps import Drawn, draw
from pipeline.corpus.counts import Counts
from pipeline.corpus.external_sort import PARTITIONS, SCHEMA, Parts, Spill
from pipeline.corpus.further_records import FurtherRecords
from pipeline.corpus.near_duplicates import NearDuplicates
from pipeline.corpus.output import CORPUS_KIND
from pipeline.corpus.passages import FindModel, Passages
from pipeline.corpus.readers.source import batches, check
from pipeline.corpus.scripts import shorter
from pipeline.corpus.shared_texts import RepeatedIds, SharedTexts
from pipeline.corpus.split import below, draw_hashes, record_hashes
from pipeline.corpus.text import clean
from pipeline.corpus.views import views_of, views_source
from pipeline.params import CorpusParams, SourceParams


def build(params: CorpusParams, out: Path, find_model: FindModel = Path) -> dict[str, Any]:
    """Build the corpus in `out`, which is replaced as a whole or not at all, and return its metrics.

    `find_model` gives the directory of a model whose tokens are counted in passages; by default its name is the path.

    Raises:
        LeafError: a source is unusable, nothing is left of one, `out` cannot be written, or another run writes it.
    """
    names = [source.name for source in params.sources]
    names += [views_source(source) for source in params.sources if source.views]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise LeafError(f"corpus.sources: the name {repeated[0]!r} is given twice; split and counts go by name")
    if not names:
        raise LeafError("corpus.sources: is empty; name at least one source")
    for source in params.sources:
        check(source)
    passages = {
        source.name: Passages(source.passages, f"corpus.sources `{source.name}`", find_model)
        for source in params.sources
        if source.passages
    }
    try:
        with access(), written_directory(out, CORPUS_KIND) as directory:
            return _build(params, passages, directory)
    except (OSError, pa.ArrowException) as error:
        raise LeafError(f"{out}: the corpus cannot be written: {error}") from error


def _build(params: CorpusParams, passages: Mapping[str, Passages], directory: Path) -> dict[str, Any]:
    partitions = directory / "partitions"
    partitions.mkdir()
    spill, shared, counts = Spill(partitions), SharedTexts(partitions), Counts(params)
    parts, further = Parts(directory, params.shard_rows), FurtherRecords(directory)
    views = [views_source(source) for source in params.sources if source.views]
    repeated = RepeatedIds(partitions / "ids")
    try:
        near = NearDuplicates(params.near_duplicates, params.seed) if params.near_duplicates else None
        for number, source in enumerate(params.sources):
            for rows in _texts(source, params, counts, near, passages.get(source.name)):
                are_views = rows["source"].first() in views
                _link(shared, rows, number, by_key=near is not None, are_views=are_views)
                if source.id_field and source.query_field and source.document_field and not are_views:
                    repeated.add(rows["record"].to_numpy(), number)
                spill.add(rows)
        counts.repeated_ids = repeated.counts()
        regrouped = shared.regrouped([_share(source, params) for source in params.sources])
        for spilled in tqdm(spill.sorted(), desc="sort", unit=" partitions", total=PARTITIONS, disable=None):
            if views:  # a text that is a view of another one stands in the corpus by itself
                spilled = spilled.sort("key", pl.col("source").is_in(views), maintain_order=True)  # noqa: PLW2901
            rows = _split(regrouped.apply(spilled))
            first = rows["key"].is_first_distinct()
            kept = rows if first.all() else rows.filter(first)
            counts.keep(rows.filter(pl.col("text") != "") if near else rows, kept)
            parts.add(kept)
            further.add(rows, first)
        parts.finish()
    finally:
        spill.close()
        parts.close()
        further.close()
    partitions.rmdir()  # empty by now: each partition is removed once it is read
    return counts.metrics(regrouped)


def _link(shared: SharedTexts, rows: pl.DataFrame, source: int, *, by_key: bool, are_views: bool) -> None:
    """Note which records have which texts; `by_key` too where near duplicates have the keys of what stays for them."""
    if are_views:  # of records that are counted already
        shared.link(rows["text"].hash().to_numpy(), rows["record"].to_numpy(), source)
        return
    if by_key:
        key_hashes = key_array(rows["key"]).view(np.uint64).reshape(-1, 2)[:, 0]
        shared.link(key_hashes, rows["record"].to_numpy(), source)
        rows = rows.filter(pl.col("text") != "")
    shared.add(rows["text"].hash().to_numpy(), rows["record"].to_numpy(), source)


def _share(source: SourceParams, params: CorpusParams) -> float:
    return params.heldout if source.heldout is None else source.heldout


def _split(rows: pl.DataFrame) -> pl.DataFrame:
    """Rows of SPILLED with the columns of SCHEMA."""
    split = pl.when("heldout").then(pl.lit("heldout")).otherwise(pl.lit("train")).alias("split")
    return rows.select(*SCHEMA.names[:-1], split)


def _texts(
    source: SourceParams, params: CorpusParams, counts: Counts, near: NearDuplicates | None, passages: Passages | None
) -> Iterator[pl.DataFrame]:
    """Clean texts of a source with the columns of SPILLED, in the source's order; dropped texts are counted.

    A near duplicate comes without its text and with the key of the text that stays for it: so its record has that text.
    """
    kept = 0
    with tqdm(desc=source.name, unit=" texts", unit_scale=True, disable=None) as bar:
        for batch in _selected(source, params.seed, counts):
            bar.update(len(batch))
            cut = passages.cut(batch) if passages else batch
            counts.passages[source.name] += len(cut) - len(batch)
            rows = _cleaned(cut, source.name, params.min_characters, counts)
            kept += len(rows)
            frame = _keyed(rows, source, params, counts, near)
            yield frame
            stay = rows if near is None else rows.filter(frame["text"] != "")
            if source.views and len(made := views_of(stay, source.views, params.seed)):
                counts.read[views_source(source)] += len(made)
                views = _cleaned(made, views_source(source), params.min_characters, counts)
                if len(views):
                    yield _keyed(views, source, params, counts).with_columns(source=pl.lit(views_source(source)))
    if kept == 0 and not counts.dropped[source.name]["sampled_out"]:
        reasons = ", ".join(f"{n} {reason}" for reason, n in counts.dropped[source.name].items() if n)
        raise LeafError(f"corpus.sources `{source.name}`: no text is left ({reasons}); see corpus.min_characters")


def _keyed(
    rows: pl.DataFrame, source: SourceParams, params: CorpusParams, counts: Counts, near: NearDuplicates | None = None
) -> pl.DataFrame:
    """Cleaned texts (frame `id, text, role, page`) with the columns of SPILLED."""
    pages, roles, texts = (rows[name].to_list() for name in ("page", "role", "text"))
    row_keys, records = keys(roles, texts), record_hashes(source.name, pages)
    frame = rows.select(
        pl.Series("key", row_keys, dtype=pl.Binary),
        "id",
        "text",
        "role",
        source=pl.lit(source.name),
        record=pl.Series(records),
        heldout=pl.Series(below(records, _share(source, params))),
    )
    if near is None:
        return frame
    stays = pl.Series("key", near.stand_ins(row_keys, roles, texts), dtype=pl.Binary)
    dropped = stays != frame["key"]
    counts.drop(source.name, "near_duplicate", int(dropped.sum()))
    return frame.with_columns(stays, text=pl.when(~dropped).then("text").otherwise(pl.lit("")))


def _selected(source: SourceParams, seed: int, counts: Counts) -> Iterator[pl.DataFrame]:
    """Texts of the records that are drawn by `sample` and `cap`, up to `limit` records.

    Neighbouring texts of the same page belong to one record, which may continue in the next batch.
    """
    drawn = draw(source, seed) if source.cap else None
    counts.draw(source.name, drawn)
    left, last_page = source.limit, None
    for frame in batches(source):
        counts.read[source.name] += len(frame)
        batch = frame
        if source.sample < 1 or drawn:
            chosen = _chosen(source, batch, drawn, seed)
            counts.drop(source.name, "sampled_out", len(batch) - int(chosen.sum()))
            batch = batch.filter(chosen)
        if left is not None and len(batch):
            # Number of each text's record, counted from 1; 0 is the record that the batch before began.
            record = batch["page"].rle_id() + int(batch["page"][0] != last_page)
            last_page, records = batch["page"][-1], int(record[-1])
            limited = batch.filter(record <= left)
            counts.read[source.name] -= len(batch) - len(limited)
            yield limited
            if records > left:
                return
            left -= records
        else:
            yield batch


def _chosen(source: SourceParams, batch: pl.DataFrame, drawn: Drawn | None, seed: int) -> pl.Series:
    """Which texts are of records that `sample` and `cap` take: `[n]` Boolean."""
    hashes = draw_hashes(source.name, batch["page"].to_list(), seed)
    return pl.Series(below(hashes, source.sample) & (True if drawn is None else drawn.contains(hashes)))


def _cleaned(batch: pl.DataFrame, source: str, minimum: int, counts: Counts) -> pl.DataFrame:
    """Cleaned texts of at least `minimum` characters; the others are counted as dropped."""
    rows = batch.with_columns(clean(pl.col("text")))
    short, empty = shorter(rows["text"], max(minimum, 1)), int((rows["text"] == "").sum())
    counts.drop(source, "empty", empty)
    counts.drop(source, "too_short", int(short.sum()) - empty)
    return rows.filter(~short)
