"""Stage one: corpus x teacher -> embedding store.

The pool says which keys exist; the rest is encoded shard by shard, in the corpus's order, and each shard is committed
before the next begins to be written. So a killed run, a grown corpus and another team's vectors are one mechanism,
and the shards of a resumed run are those of a run never killed.
"""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from tqdm import tqdm

from pipeline.base.arrays import Array
from pipeline.base.errors import LeafError
from pipeline.base.keys import contains, key_array, merge_sorted
from pipeline.base.memory import keep_pages, release_pages
from pipeline.corpus.files import check_rows, scan
from pipeline.encode.comparison import compare, tokenize_rows
from pipeline.encode.engines import api as ask
from pipeline.params.sections import EncodeParams, TeacherParams
from pipeline.store.shard import StoreMeta
from pipeline.store.shard_cache import ShardCache
from pipeline.store.store import Store
from pipeline.teacher.api import identity as probe
from pipeline.teacher.api.api_teacher import ApiTeacher
from pipeline.teacher.local import Teacher
from pipeline.teacher.teacher import AnyTeacher, describe, load, once

COLUMNS = ["key", "role", "id", "source", "text"]
KEYS_ROWS = 65_536  # keys looked up at once


@dataclass
class Timing:
    """Seconds of each kind of work, and what was done in them. Reading and writing overlap with computing."""

    reading: float = 0.0
    computing: float = 0.0
    writing: float = 0.0
    rows: int = 0
    tokens: int = 0
    api: dict[str, int] = field(default_factory=dict)
    """Requests and retries of a teacher behind an API."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    @contextmanager
    def of(self, what: str) -> Iterator[None]:
        """Count the time of the block as `what`."""
        start = time.perf_counter()
        yield
        with self.lock:
            setattr(self, what, getattr(self, what) + time.perf_counter() - start)


@dataclass
class Taken:
    """What came from another store instead of the teacher."""

    rows: int = 0
    tokens: int = 0


def encode(corpus: Path, teacher: TeacherParams, params: EncodeParams, out: Path) -> dict[str, object]:
    """Bring the store at `out` to hold a vector for every text of the corpus; return the metrics.

    Raises:
        LeafError: bad corpus, teacher or reused store; a vector of NaN, of zeros or of the wrong length; a run is
            already under way; no space left. Finished shards stay in the pool in every case.
    """
    frame = scan(corpus).select(COLUMNS)
    wanted = merge_sorted([key_array(frame.select("key").collect().get_column("key"))])
    if not len(wanted):
        raise LeafError(f"{corpus}: the corpus holds no text; look at the sources under corpus.sources")
    meta = replace(describe(teacher, params), license=params.license)
    with _pool(teacher, params, meta) as pool:
        get = once(lambda: load(teacher, params, meta))
        taken = [_take_over(path, frame, wanted, pool, load=get, params=params) for path in params.reuse]
        timing = fill(frame, pool, params, get)
        refused = [pool.refused[key] for key in sorted(pool.left_out(wanted))]
        pool.publish(out, wanted)
        if teacher.api is not None:
            probe.keep(meta, teacher, Path(params.pool))
    return {
        "rows_encoded": timing.rows,
        "rows_reused": len(wanted) - timing.rows - len(refused),
        **({} if teacher.api is None else {"api": timing.api | {"refused": len(refused)}}),
        **({"refused": [vars(one) for one in refused]} if refused else {}),
        "taken_over": {path: one.rows for path, one in zip(params.reuse, taken, strict=True)},
        "tokens_saved": sum(one.tokens for one in taken),
        "tokens": timing.tokens,
        "tokens_per_s": round(timing.tokens / timing.computing, 1) if timing.rows else 0.0,
        "seconds": {
            "reading": round(timing.reading, 2),
            "computing": round(timing.computing, 2),
            "writing": round(timing.writing, 2),
        },
    }


def ensure(
    texts: pl.DataFrame, teacher: TeacherParams, params: EncodeParams, view: Path, store: Store | None = None
) -> Store:
    """A store at `view` with a vector for each of `texts` (columns key, role, id, source, text), duplicates allowed.

    Goes through the same pool as `encode`, so that no text is ever encoded twice; the teacher is loaded only if one
    is missing. `store` is one of the same teacher's, whose fingerprint the new one shall have.

    Raises:
        LeafError: as `encode`; or a teacher behind an API refuses a text.
    """
    unique = texts.select(COLUMNS).unique("key", keep="first").sort("key")
    meta = describe(teacher, params, store)
    with _pool(teacher, params, meta) as pool:
        fill(unique.lazy(), pool, params, lambda: load(teacher, params, meta))
        made = pool.publish(view, unique["key"])
    if len(made.refused):
        first = unique.filter(pl.col("key").is_in(made.refused.tolist()))["id"][0]
        raise LeafError(
            f"teacher.api: the server refuses {len(made.refused)} texts that need a vector, first `{first}`"
        )
    return made


def _pool(teacher: TeacherParams, params: EncodeParams, meta: StoreMeta) -> ShardCache:
    keep_pages()  # before the pool's own threads begin
    pool = ShardCache(Path(params.pool), meta)
    if teacher.api is not None and teacher.api.refused == "stop":
        pool.refused.clear()  # they are asked for again, and end the run again
    return pool


def _missing(frame: pl.LazyFrame, pool: ShardCache, shard_rows: int) -> Iterator[pl.DataFrame]:
    """Rows whose key the pool lacks, in order, `shard_rows` at a time; no more than two shards are in memory."""
    have = _done(pool)  # searched, not joined: a join would build a table of the whole pool for every batch
    held: list[pl.DataFrame] = []
    rows = 0
    for batch in frame.collect_batches(chunk_size=min(shard_rows, KEYS_ROWS), maintain_order=True):
        new = batch.filter(~contains(have, key_array(batch["key"])))
        check_rows(new, "the corpus")
        while rows + new.height >= shard_rows:
            take = shard_rows - rows
            yield pl.concat([*held, new.head(take)])
            held, rows, new = [], 0, new.slice(take)
        held.append(new)
        rows += new.height
    if rows:
        yield pl.concat(held)


def _done(pool: ShardCache) -> Array:
    """Sorted keys of the texts that need not be asked for: they have a vector, or will have none."""
    return merge_sorted([pool.keys(), key_array(list(pool.refused))]) if pool.refused else pool.keys()


def _compute(
    ids: list[Sequence[int]], teacher: Teacher, pool: ShardCache, timing: Timing, bar: "tqdm[Any]"
) -> np.ndarray:
    # As it will be stored: two shards are held at once, and float32 would double them. What overflows is refused there.
    vectors = np.empty((len(ids), teacher.dim), np.float16 if pool.meta.dtype == "float16" else np.float32)
    parts = teacher.parts(ids)
    while True:
        with timing.of("computing"):
            rows, part = next(parts, (None, None))
        if rows is None:
            return vectors
        with np.errstate(over="ignore"):
            vectors[rows] = part
        timing.rows += len(rows)
        timing.tokens += sum(len(ids[row]) for row in rows)
        bar.set_postfix_str(f"{timing.tokens / timing.computing:,.0f} tokens/s", refresh=False)
        bar.update(len(rows))


def _commit(rows: pl.DataFrame, vectors: np.ndarray, pool: ShardCache, timing: Timing) -> None:
    with timing.of("writing"):
        pool.write(rows, vectors)


def fill(frame: pl.LazyFrame, pool: ShardCache, params: EncodeParams, load: Callable[[], AnyTeacher]) -> Timing:
    """Encode and commit shard after shard, those texts that the pool lacks; see `_compute_all` and `pipeline.ask`."""
    timing = Timing()
    have = _done(pool)
    found = frame.select("key").collect_batches(chunk_size=KEYS_ROWS)
    missing = sum(int((~contains(have, key_array(batch["key"]))).sum()) for batch in found)
    if not missing:
        return timing
    teacher, shards = load(), _missing(frame, pool, params.shard_rows)
    if isinstance(teacher, ApiTeacher):
        with timing.of("computing"):
            timing.rows = ask.fill(shards, missing, pool, teacher, params.shard_rows)
        meter = teacher.client.meter
        timing.tokens, timing.api = meter.tokens, {"requests": meter.requests, "retries": meter.retries}
    else:
        _compute_all(shards, missing, pool, teacher, timing)
    return timing


def _compute_all(
    shards: Iterator[pl.DataFrame], missing: int, pool: ShardCache, teacher: Teacher, timing: Timing
) -> None:
    """One thread tokenises ahead, one writes behind, the device never waits."""
    with (
        ThreadPoolExecutor(1, "tokenize") as ahead,
        ThreadPoolExecutor(1, "write") as behind,
        tqdm(total=missing, unit="text", desc="encode") as bar,
    ):

        def fetch() -> tuple[pl.DataFrame, list[Sequence[int]]] | None:
            with timing.of("reading"):
                shard = next(shards, None)
                return None if shard is None else (shard.drop("text"), tokenize_rows(shard, teacher))

        written: Future[None] | None = None
        following = ahead.submit(fetch)
        while (current := following.result()) is not None:
            following = ahead.submit(fetch)
            rows, ids = current
            vectors = _compute(ids, teacher, pool, timing, bar)
            if written is not None:
                written.result()
            rows = rows.with_columns(tokens=pl.Series([len(one) for one in ids], dtype=pl.Int32))
            written = behind.submit(_commit, rows, vectors, pool, timing)
            release_pages()
        if written is not None:
            written.result()


def _take_over(
    path: str,
    frame: pl.LazyFrame,
    wanted: Array,
    pool: ShardCache,
    *,
    load: Callable[[], AnyTeacher],
    params: EncodeParams,
) -> Taken:
    """Bring the wanted (sorted) keys' vectors of another store into the pool; a sample is encoded again.

    Of a store behind a URL only the rows files and the shards that hold a wanted key are fetched.
    """
    store = Store.open(path)
    if store.meta.fingerprint != pool.meta.fingerprint or store.meta.dtype != pool.meta.dtype:
        raise LeafError(
            f"encode.reuse: {path} holds {store.meta.dtype} vectors of fingerprint {store.meta.fingerprint[:16]}, but "
            f"this run makes {pool.meta.dtype} of {pool.meta.fingerprint[:16]}; the teacher, its prompts, max_length, "
            "normalize and encode.dtype must be the same"
        )

    def shared(index: int) -> pl.DataFrame:
        rows = store.shard_rows_frame(index).with_row_index("row")
        found = key_array(rows["key"])
        return rows.filter(contains(wanted, found) & ~pool.has(found))

    first = [shared(index)["key"].sort().head(max(1, params.verify_rows)) for index in range(len(store.shards))]
    useful = [index for index, one in enumerate(first) if len(one)]
    if params.verify_rows and useful:
        # Keys are random: the smallest are a fair sample of all, and of each shard its smallest is one of its own.
        sample = pl.concat([pl.concat(first).sort().head(params.verify_rows), *(one.head(1) for one in first)])
        texts = frame.filter(pl.col("key").is_in(sample.unique().implode())).collect(engine="streaming")
        compare(f"encode.reuse: {path}", texts, store, load())
    taken = Taken()
    for index in useful:
        rows = shared(index)
        store.verify_shard(index)
        stored = [part[rows["row"].to_numpy()] for part in store.stored(index)]
        pool.write_stored(rows.drop("row"), stored)
        taken.rows += len(rows)
        taken.tokens += int(rows["tokens"].sum())
    return taken
