"""Stage one runs with a teacher and an engine of the test, and its plan is data that other processes can carry out."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from pipeline.base.errors import LeafError
from pipeline.base.keys import key_array
from pipeline.corpus.parts import corpus_keys
from pipeline.encode.comparison import sample
from pipeline.encode.encoding import encode, engine_for
from pipeline.encode.engines.engine import EncodeFigures
from pipeline.encode.plan import WorkOrder, count_missing, order_blocks, plan, read_order
from pipeline.encode.sampling import draw, proof
from pipeline.params.sections import EncodeParams, TeacherParams
from pipeline.store.shard import StoreMeta
from pipeline.store.shard_cache import ShardCache
from pipeline.store.store import Store
from pipeline.teacher.teacher import Teacher, open_teacher
from tests.conftest import ROOT, corpus_frame
from tests.faults.test_encode_faults import contents

NONE = key_array([])


@pytest.fixture
def parts(tmp_path: Path) -> list[Path]:
    """A corpus of about 300 texts in three part files."""
    folder = tmp_path / "parts"
    folder.mkdir()
    for number, rows in enumerate(corpus_frame(300).iter_slices(110)):
        rows.write_parquet(folder / f"part-{number:05d}.parquet")
    return sorted(folder.iterdir())


def rows_of(parts: list[Path]) -> pl.DataFrame:
    return pl.read_parquet(parts).select("key", "role", "id", "source", "text")


def test_orders_hold_the_missing_rows_in_the_corpus_order(parts: list[Path]) -> None:
    orders = list(plan(parts, NONE, 64))
    assert [order.rows for order in orders] == [64] * (len(orders) - 1) + [orders[-1].rows]
    assert pl.concat([read_order(order) for order in orders]).equals(rows_of(parts))
    assert len({order.shard for order in orders}) == len(orders)
    assert all(len(order.to_json()) < 1024 and piece.chosen is None for order in orders for piece in order.pieces)


@pytest.mark.parametrize("shard_rows", [1, 7, 64, 1000])
def test_rows_that_are_done_leave_holes(parts: list[Path], shard_rows: int) -> None:
    rows = rows_of(parts)
    hole = np.random.default_rng(0).random(len(rows)) < 0.4
    done = np.sort(key_array(rows["key"])[hole])
    orders = list(plan(parts, done, shard_rows))
    left = rows.filter(pl.Series(~hole))
    assert sum(order.rows for order in orders) == len(left) == count_missing(parts, done)
    assert pl.concat([read_order(order) for order in orders]).equals(left)
    assert list(plan(parts, corpus_keys(parts[0].parent), shard_rows)) == []


def test_the_orders_that_are_left_do_not_change_when_others_are_carried_out(parts: list[Path]) -> None:
    orders = list(plan(parts, NONE, 32))
    finished = orders[:3] + orders[5:6]
    done = np.sort(key_array(pl.concat([read_order(order) for order in finished])["key"]))
    left = list(plan(parts, done, 32))
    assert [order.shard for order in left] == [order.shard for order in orders if order not in finished]


def test_an_order_is_the_same_after_a_trip_through_json(parts: list[Path]) -> None:
    keys = corpus_keys(parts[0].parent)
    for order in [*plan(parts, NONE, 64), *plan(parts, keys[::3], 64)]:
        again = WorkOrder.from_json(order.to_json())
        assert again == order and read_order(again).equals(read_order(order))


def test_the_rows_of_an_order_are_read_a_block_at_a_time(parts: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Holes, row groups and blocks of any size give the same rows."""
    done = np.sort(key_array(rows_of(parts)["key"].gather_every(3)))
    (whole,) = plan(parts, done, 10**6)
    expected = read_order(whole)
    assert len(expected) == len(rows_of(parts)) - len(done)
    for part in parts:
        pl.read_parquet(part).write_parquet(part, row_group_size=13)
    for rows, size in ((7, 1 << 20), (65_536, 2000)):
        monkeypatch.setattr("pipeline.corpus.parts.BLOCK_ROWS", rows)
        monkeypatch.setattr("pipeline.corpus.parts.BLOCK_BYTES", size)
        blocks = list(order_blocks(whole))
        assert len(blocks) > 5 and max(map(len, blocks)) < 30
        assert pl.concat(blocks).equals(expected)


def test_rows_that_are_not_those_planned_are_refused(parts: list[Path]) -> None:
    order = next(plan(parts, NONE, 64))
    rows = pl.read_parquet(parts[0])
    rows.reverse().write_parquet(parts[0])
    with pytest.raises(LeafError, match=rf"{parts[0].name}: the corpus has changed since shard {order.shard}"):
        read_order(order)
    rows.with_columns(text=pl.lit("edited")).write_parquet(parts[0])
    with pytest.raises(LeafError, match="changed by hand"):
        read_order(order)
    rows.head(10).write_parquet(parts[0])
    with pytest.raises(LeafError, match="has fewer rows"):
        read_order(order)
    parts[0].write_bytes(b"not Parquet")
    with pytest.raises(LeafError, match=r"damaged .*run the stage `corpus` again"):
        read_order(order)


WORKER = """
import json, sys
from pathlib import Path
import polars as pl, torch
from pipeline.encode.plan import WorkOrder, read_order
from pipeline.params.parsing import parse
from pipeline.encode.sampling import draw, proof
from pipeline.params.sections import EncodeParams, TeacherParams
from pipeline.store.shard import encoded
from pipeline.store.shard_cache import commit_shard
from pipeline.store.validation import checked_rows, checked_vectors
from pipeline.teacher.teacher import open_teacher

order_file, teacher_file, cache, threads = sys.argv[1:]
torch.set_num_threads(int(threads))
given = json.loads(Path(teacher_file).read_text())
params = parse(EncodeParams, "encode", given["encode"])
teacher = open_teacher(parse(TeacherParams, "teacher", given["teacher"]), params)
order = WorkOrder.from_json(Path(order_file).read_text())
rows = read_order(order)
ids = teacher.tokenize_rows(rows)
rows = checked_rows(rows.with_columns(tokens=pl.Series([len(tokens) for tokens in ids], dtype=pl.Int32)))
vectors = checked_vectors(rows, teacher.encode_tokens(ids), teacher.meta)
assert commit_shard(Path(cache), rows, encoded(vectors, teacher.meta), teacher.meta).name == order.shard
"""


class ProcessEngine:
    """Hands every order to a new process as JSON, two at a time, and takes note of the shards that they commit."""

    def __init__(self, teacher: Path, folder: Path, threads: int) -> None:
        self.teacher, self.folder, self.threads = teacher, folder, threads

    def run(self, orders: Iterable[WorkOrder], rows: int, cache: ShardCache) -> EncodeFigures:
        figures = EncodeFigures()
        under_way: list[tuple[WorkOrder, subprocess.Popen[bytes]]] = []
        for order in orders:
            under_way.append((order, self.start(order, cache)))
            if len(under_way) == 2:
                self.finish(*under_way.pop(0), cache, figures)
        for order, process in under_way:
            self.finish(order, process, cache, figures)
        assert figures.rows == rows
        return figures

    def start(self, order: WorkOrder, cache: ShardCache) -> "subprocess.Popen[bytes]":
        file = self.folder / f"{order.shard}.json"
        file.write_text(order.to_json())
        command = [sys.executable, "-c", WORKER, str(file), str(self.teacher), str(cache.path), str(self.threads)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
        return subprocess.Popen(command, env=environment, cwd=self.folder)

    def finish(
        self, order: WorkOrder, process: "subprocess.Popen[bytes]", cache: ShardCache, figures: EncodeFigures
    ) -> None:
        assert process.wait(600) == 0
        figures.rows += cache.register(order.shard).rows


def test_an_engine_in_other_processes_publishes_the_same_bytes(
    tiny_corpus: Path, tiny_teacher: Path, tmp_path: Path
) -> None:
    import torch

    teacher_params = TeacherParams(str(tiny_teacher))
    here = EncodeParams(shard_rows=150, pool=str(tmp_path / "here-cache"), token_budget=512)
    encode(tiny_corpus, open_teacher(teacher_params, here), here, tmp_path / "here" / "store")

    there = EncodeParams(shard_rows=150, pool=str(tmp_path / "there-cache"), token_budget=512)
    file = tmp_path / "teacher.json"
    sections = {"teacher": {"model": teacher_params.model}, "encode": {"token_budget": 512}}
    file.write_text(json.dumps(sections))
    engine = ProcessEngine(file, tmp_path, torch.get_num_threads())
    figures = encode(tiny_corpus, open_teacher(teacher_params, there), there, tmp_path / "there" / "store", engine)
    assert figures["rows_encoded"] == len(pl.read_parquet(tiny_corpus))
    assert contents(tmp_path / "there" / "store") == contents(tmp_path / "here" / "store")
    assert encode(tiny_corpus, open_teacher(teacher_params, there), there, tmp_path / "again")["rows_encoded"] == 0


class HashTeacher:
    """Vectors from a digest of role and text."""

    directory = None
    retries_refused = False
    earlier_fingerprints = ()
    params = TeacherParams("hash")
    meta = StoreMeta("ab" * 32, {"model": "hash"}, 16, "float32", normalized=False)

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.roots: list[Path] = []

    def vectors(self, rows: pl.DataFrame) -> np.ndarray:
        self.asked += rows["text"].to_list()
        digests = [
            hashlib.shake_128(f"{role} {text}".encode()).digest(16) for role, text in rows["role", "text"].rows()
        ]
        return np.stack([np.frombuffer(digest, np.uint8) for digest in digests]).astype(np.float32) + 1

    def remember(self, cache_root: Path) -> None:
        self.roots.append(cache_root)


class PlainEngine:
    """One order after the other, with nothing but `Teacher.vectors`."""

    def __init__(self, teacher: Teacher) -> None:
        self.teacher = teacher

    def run(self, orders: Iterable[WorkOrder], rows: int, cache: ShardCache) -> EncodeFigures:
        figures = EncodeFigures()
        for order in orders:
            batch = read_order(order)
            cache.write(batch.with_columns(tokens=pl.lit(1, pl.Int32)), self.teacher.vectors(batch))
            figures.rows += len(batch)
        return figures


def test_a_teacher_without_a_model_goes_through_stage_one(tiny_corpus: Path, tmp_path: Path) -> None:
    teacher = HashTeacher()
    params = EncodeParams(shard_rows=64, pool=str(tmp_path / "cache"), dtype="float32")
    figures = encode(tiny_corpus, teacher, params, tmp_path / "store", PlainEngine(teacher))
    rows = pl.read_parquet(tiny_corpus)
    store = Store.open(tmp_path / "store")
    store.verify()
    assert figures["rows_encoded"] == len(rows) and teacher.asked == rows["text"].to_list()
    assert np.array_equal(store.lookup(rows["key"].to_list()), HashTeacher().vectors(rows))
    assert store.meta.fingerprint == teacher.meta.fingerprint and teacher.roots == [tmp_path / "cache"]

    drawn = [reused_texts(tiny_corpus, store, tmp_path / f"second-{number}") for number in range(2)]
    keys_of = [set(store.shard_rows_frame(number)["key"]) for number in range(len(store.shards))]
    for texts in drawn:
        keys = set(rows.filter(pl.col("text").is_in(texts))["key"])
        assert 32 <= len(texts) < 32 + len(store.shards) and all(keys & shard for shard in keys_of)
    assert drawn[0] != drawn[1]  # nobody can foresee which: whoever leaves those right may swap all others


def reused_texts(corpus: Path, store: Store, directory: Path) -> set[str]:
    """The texts that are encoded again when a store is reused."""
    params = EncodeParams(shard_rows=64, pool=str(directory / "pool"), reuse=(str(store.path),), verify_rows=32)
    teacher = HashTeacher()
    figures = encode(corpus, teacher, params, directory / "store", PlainEngine(teacher))
    assert figures["rows_encoded"] == 0
    assert figures["compared"] == {store.name: f"{len(teacher.asked)} rows: {proof(len(teacher.asked), store.rows)}"}
    return set(teacher.asked)


def test_a_store_that_is_right_only_where_keys_are_smallest_is_found_out(tiny_corpus: Path, tmp_path: Path) -> None:
    rows = pl.read_parquet(tiny_corpus).sort("key").with_columns(tokens=pl.lit(1, pl.Int32))
    right = HashTeacher().vectors(rows)
    forged = np.concatenate([right[:40], np.roll(right[40:], 1, axis=0)])
    with ShardCache(tmp_path / "pool", HashTeacher().meta) as cache:
        cache.write(rows, forged)
        store = cache.publish(tmp_path / "forged", cache.keys())
    with pytest.raises(LeafError, match="do not trust this store"):
        reused_texts(tiny_corpus, store, tmp_path / "ours")
    with pytest.raises(LeafError, match="do not trust this store"):
        sample(store, tiny_corpus, HashTeacher(), 40)


def test_what_agreement_proves_is_what_chance_says() -> None:
    assert proof(256, 10_000) == "1% of wrong vectors would have been noticed with 92.4 %"
    assert proof(5000, 10_000).endswith("99.9 %") and proof(8, 8) == "every row"
    drawn = draw([1000, 0, 3, 100_000], 500)
    assert [len(drawn[number]) > 0 for number in range(4)] == [True, False, True, True]
    assert 500 <= sum(map(len, drawn)) <= 502
    assert all(len(set(part.tolist())) == len(part) for part in drawn) and drawn[3].max() < 100_000


def test_a_teacher_without_an_engine_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(TypeError, match="no engine is known for HashTeacher"):
        engine_for(HashTeacher())


def test_opening_a_teacher_reads_nothing() -> None:
    teacher = open_teacher(TeacherParams("./nowhere"), EncodeParams())
    with pytest.raises(LeafError, match="no such directory"):
        _ = teacher.meta
    with pytest.raises(LeafError, match="no such directory"):
        teacher.vectors(corpus_frame(2))
