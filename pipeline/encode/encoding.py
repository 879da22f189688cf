"""Stage one: corpus x teacher -> embedding store.

The pool says which keys exist; the rest is encoded shard by shard, in the corpus's order, and each shard is committed
before the next begins to be written. So a killed run, a grown corpus and another team's vectors are one mechanism,
and the shards of a resumed run are those of a run never killed.
"""

import threading
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from tqdm import tqdm

from pipeline import ask, keys, probe
from pipeline.checks import SAME_VECTOR, cosines
from pipeline.corpus import scan
from pipeline.errors import LeafError
from pipeline.machine import keep_pages, release_pages
from pipeline.params import EncodeParams, TeacherParams
from pipeline.pool import Pool, merged
from pipeline.shard import StoreMeta, contains, key_array
from pipeline.store import Array, Store
from pipeline.teacher import Teacher
from pipeline.teachers import AnyTeacher, describe, load, once

COLUMNS = ["key", "role", "id", "source", "text"]
TOKENIZE_ROWS = 2048  # texts tokenised at once, so that their strings never exist twice as a whole
KEYS_ROWS = 65_536  # keys looked up at once
SAME_LENGTH = 0.02  # most that a reused vector's length may differ, as a share


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
    wanted = merged([key_array(frame.select("key").collect().get_column("key"))])
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


def _pool(teacher: TeacherParams, params: EncodeParams, meta: StoreMeta) -> Pool:
    keep_pages()  # before the pool's own threads begin
    pool = Pool(Path(params.pool), meta)
    if teacher.api is not None and teacher.api.refused == "stop":
        pool.refused.clear()  # they are asked for again, and end the run again
    return pool


def _missing(frame: pl.LazyFrame, pool: Pool, shard_rows: int) -> Iterator[pl.DataFrame]:
    """Rows whose key the pool lacks, in order, `shard_rows` at a time; no more than two shards are in memory."""
    have = _done(pool)  # searched, not joined: a join would build a table of the whole pool for every batch
    held: list[pl.DataFrame] = []
    rows = 0
    for batch in frame.collect_batches(chunk_size=min(shard_rows, KEYS_ROWS), maintain_order=True):
        new = batch.filter(~contains(have, key_array(batch["key"])))
        keys.check(new, "the corpus")
        while rows + new.height >= shard_rows:
            take = shard_rows - rows
            yield pl.concat([*held, new.head(take)])
            held, rows, new = [], 0, new.slice(take)
        held.append(new)
        rows += new.height
    if rows:
        yield pl.concat(held)


def _done(pool: Pool) -> Array:
    """Sorted keys of the texts that need not be asked for: they have a vector, or will have none."""
    return merged([pool.keys(), key_array(list(pool.refused))]) if pool.refused else pool.keys()


def _tokenize(shard: pl.DataFrame, teacher: Teacher) -> list[Sequence[int]]:
    ids: list[Sequence[int]] = []
    for part in shard.iter_slices(TOKENIZE_ROWS):
        # One call a role: the prompt differs, and the order by key mixes the roles.
        by_row: list[Sequence[int]] = [[]] * part.height
        for role in ("query", "document"):
            rows = part.with_row_index("row").filter(pl.col("role") == role)
            tokens = teacher.tokenize(rows["text"].to_list(), role)
            for row, one in zip(rows["row"], tokens, strict=True):
                by_row[row] = array("i", one)  # a list takes nine times the memory, and there are two shards of them
        ids += by_row
    return ids


def _compute(ids: list[Sequence[int]], teacher: Teacher, pool: Pool, timing: Timing, bar: "tqdm[Any]") -> np.ndarray:
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


def _commit(rows: pl.DataFrame, vectors: np.ndarray, pool: Pool, timing: Timing) -> None:
    with timing.of("writing"):
        pool.write(rows, vectors)


def fill(frame: pl.LazyFrame, pool: Pool, params: EncodeParams, load: Callable[[], AnyTeacher]) -> Timing:
    """Encode and commit shard after shard, those texts that the pool lacks; see `_compute_all` and `pipeline.ask`."""
    timing = Timing()
    have = _done(pool)
    found = frame.select("key").collect_batches(chunk_size=KEYS_ROWS)
    missing = sum(int((~contains(have, key_array(batch["key"]))).sum()) for batch in found)
    if not missing:
        return timing
    teacher, shards = load(), _missing(frame, pool, params.shard_rows)
    if isinstance(teacher, ask.ApiTeacher):
        with timing.of("computing"):
            timing.rows = ask.fill(shards, missing, pool, teacher, params.shard_rows)
        meter = teacher.client.meter
        timing.tokens, timing.api = meter.tokens, {"requests": meter.requests, "retries": meter.retries}
    else:
        _compute_all(shards, missing, pool, teacher, timing)
    return timing


def _compute_all(shards: Iterator[pl.DataFrame], missing: int, pool: Pool, teacher: Teacher, timing: Timing) -> None:
    """One thread tokenises ahead, one writes behind, the device never waits."""
    with (
        ThreadPoolExecutor(1, "tokenize") as ahead,
        ThreadPoolExecutor(1, "write") as behind,
        tqdm(total=missing, unit="text", desc="encode") as bar,
    ):

        def fetch() -> tuple[pl.DataFrame, list[Sequence[int]]] | None:
            with timing.of("reading"):
                shard = next(shards, None)
                return None if shard is None else (shard.drop("text"), _tokenize(shard, teacher))

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
    path: str, frame: pl.LazyFrame, wanted: Array, pool: Pool, *, load: Callable[[], AnyTeacher], params: EncodeParams
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


def texts_vectors(texts: pl.DataFrame, teacher: AnyTeacher) -> np.ndarray:
    """Vectors [texts, dim] float32 of a frame with `text` and `role`, in its order; nothing is stored."""
    if isinstance(teacher, ask.ApiTeacher):
        return teacher.vectors(texts)
    return teacher.encode_tokens(_tokenize(texts, teacher))


def compare(place: str, texts: pl.DataFrame, store: Store, teacher: AnyTeacher) -> Array:
    """Encode texts of a store again: the cosine [texts] of each new vector to the stored one.

    Raises:
        LeafError: one is below SAME_VECTOR, or a length differs by more than SAME_LENGTH. `place` begins the message.
    """
    made, theirs = texts_vectors(texts, teacher), store.lookup(texts["key"].to_list())
    found = cosines(made, theirs)
    worst = int(found.argmin())
    if not found[worst] >= SAME_VECTOR:
        raise LeafError(
            f"{place}: the vector of text `{texts['id'][worst]}` has cosine {found[worst]:.4f} to the one that this "
            f"teacher makes now (at least {SAME_VECTOR} expected); do not trust this store"
        )
    lengths = np.linalg.norm(theirs, axis=1) / np.linalg.norm(made, axis=1)
    worst = int(np.abs(lengths - 1).argmax())
    if not abs(lengths[worst] - 1) <= SAME_LENGTH:
        raise LeafError(
            f"{place}: the vector of text `{texts['id'][worst]}` is {lengths[worst]:.4f} times as long as the one that "
            "this teacher makes now; do not trust this store"
        )
    return found
