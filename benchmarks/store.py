"""Speed of the store: the loader alone, and the encode stage where every vector is in the shard cache already.

    python -m benchmarks.store [--rounds N]

262,144 texts of random words and 768-d float16 vectors. `loader` runs whole epochs of `Loader.batches`, in one thread:
vectors read, rows shuffled and sorted by length, token ids packed, targets as float32. It is compared with 10,000
samples/s, the assumed need of a fit on an H100, which this benchmark does not measure.

`encode` runs the whole stage: it looks for every key, hashes every byte of the cached shards, and publishes them by
hard links, so that it writes no vector. It is compared with `shutil.copytree` of the published store.
"""

import os
import shutil
import tempfile
from pathlib import Path

import click
import polars as pl

from benchmarks.common import QUICK, Row, Work, alternate, report
from benchmarks.made import FreeTeacher, corpus, tiny_teacher
from pipeline.base import keep_pages
from pipeline.corpus import corpus_digest, part_files
from pipeline.encode import ThreadsEngine, encode, fill
from pipeline.fit import Loader, Position, tokenize
from pipeline.model import build
from pipeline.params import EncodeParams, FitParams, StudentParams, TeacherParams
from pipeline.store import ShardCache, Store
from pipeline.teacher import Teacher, open_teacher

ROWS = 4096 if QUICK else 262_144
REPEATS = 1.08  # more texts are drawn than needed, since the corpus stage drops duplicates
NEED, LOADER_TARGET, COPY_TARGET = 10_000, 30.0, 0.5


@click.command()
@click.option("--rounds", default=1 if QUICK else 3, show_default=True, help="Runs of each side, after a warm-up.")
def main(rounds: int) -> None:
    """Measure and print the table."""
    keep_pages()  # as the fit stage does
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory)
        texts, model = corpus(folder, round(ROWS * REPEATS)), tiny_teacher(folder / "model")
        shorten(texts, ROWS)
        params = EncodeParams(pool=str(folder / "pool"))
        teacher = open_teacher(TeacherParams(str(model)), params)
        with ShardCache(folder / "pool", teacher.meta) as cache:
            fill(part_files(texts), cache, params.shard_rows, ThreadsEngine(FreeTeacher()))  # type: ignore[arg-type]
        encode(texts, teacher, params, folder / "store")
        report([loader(folder, texts, model, rounds), copy(folder, texts, teacher, params, rounds)])


def shorten(texts: Path, rows: int) -> None:
    """Cut a corpus to its first `rows` texts, in one part."""
    parts = sorted(texts.glob("*.parquet"))
    frame = pl.read_parquet(parts).head(rows)
    assert len(frame) == rows
    for part in parts[1:]:
        part.unlink()
    frame.write_parquet(parts[0])


def loader(folder: Path, texts: Path, model: Path, rounds: int) -> Row:
    """Samples per second of an epoch of the loader."""
    store = Store.open(folder / "store")
    student = build(StudentParams(str(model)), store.meta.dim, True, 0.0, 0)
    tokens = tokenize(texts, corpus_digest(texts), student.tokenizer(), folder / "tokens")
    defaults = FitParams(StudentParams(str(model)))
    loaded = Loader(store, tokens, defaults.batch_size, defaults.buffer_rows, seed=0)
    batches = loaded.batches(Position())

    def epoch() -> Work:
        return float(sum(len(next(batches).targets) for _ in range(loaded.batches_per_epoch)))

    rate = alternate({"ours": epoch}, rounds)["ours"]
    name = f"loader alone, {len(tokens):,} x {store.meta.dim} float16"
    return Row(name, "need of a fit on an H100", "samples/s", rate, NEED, LOADER_TARGET)


def copy(folder: Path, texts: Path, teacher: Teacher, params: EncodeParams, rounds: int) -> Row:
    """Bytes per second of publishing by the encode stage, and of copying."""
    size = float(sum(file.stat().st_size for file in (folder / "store").rglob("*") if file.is_file()))
    run = iter(range(1_000_000))

    def publish() -> Work:
        encode(texts, teacher, params, folder / f"published-{next(run)}")
        return size / 1e6

    def copy_bytes() -> Work:
        shutil.copytree(folder / "store", folder / f"copied-{next(run)}")
        return size / 1e6

    os.sync()
    rates = alternate({"ours": publish, "theirs": copy_bytes}, rounds)
    return Row(
        "encode, all cached (links)",
        "copy of the bytes",
        "MB/s",
        rates["ours"],
        rates["theirs"],
        COPY_TARGET,
    )


if __name__ == "__main__":
    main()
