"""Rows per second and peak memory of the corpus stage, on short texts made of random words.

    python -m benchmarks.corpus [ROWS ...]

Each size runs in a process of its own, and the peak is the kernel's `VmHWM` (Linux). `ru_maxrss` would not do: it
starts at the size of the process that started this one.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.corpus import build
from pipeline.params import CorpusParams, SourceParams

SIZES = (100_000, 1_000_000)
WORDS = 20_000
BATCH = 50_000
SEED = 0


def write_texts(file: Path, rows: int) -> None:
    """Texts of 4 to 24 words in batches; every twentieth repeats the one before."""
    random = np.random.default_rng(SEED)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyzéß"))
    words = np.array(["".join(random.choice(letters, length)) for length in random.integers(2, 11, WORDS)])
    schema = pa.schema([("id", pa.string()), ("text", pa.string())])
    with pq.ParquetWriter(file, schema, compression="zstd") as writer:
        for start in range(0, rows, BATCH):
            numbers = range(start, min(start + BATCH, rows))
            texts = [
                " ".join(words[random.integers(0, WORDS, length)]) for length in random.integers(4, 25, len(numbers))
            ]
            texts[1::20] = texts[::20][: len(texts[1::20])]
            writer.write_table(pa.table({"id": [str(n) for n in numbers], "text": texts}, schema=schema))


def measure(file: Path, out: Path) -> None:
    """Run the stage and print its figures as JSON."""
    source = SourceParams(name="made", kind="parquet", path=str(file), role="document", id_field="id")
    before = peak_mb()
    start = time.perf_counter()
    metrics = build(CorpusParams(sources=(source,), heldout=0.02), out)
    seconds = time.perf_counter() - start
    print(json.dumps({"seconds": seconds, "peak": peak_mb(), "before": before, "kept": metrics["total"]}))


def peak_mb() -> float:
    """The largest resident size of this process so far, in MB."""
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith("VmHWM:")) * 1024 / 1e6


def main(sizes: tuple[int, ...]) -> None:
    """Print one table row a size."""
    print(f"{'rows':>12}{'kept':>12}{'text MB':>10}{'seconds':>10}{'rows/s':>10}{'peak MB':>10}{'imports MB':>12}")
    for rows in sizes:
        with tempfile.TemporaryDirectory() as directory:
            file, out = Path(directory) / "texts.parquet", Path(directory) / "corpus"
            write_texts(file, rows)
            size = pl.scan_parquet(file).select(pl.col("text").str.len_bytes().sum()).collect().item() / 1e6
            command = [sys.executable, "-m", "benchmarks.corpus", "--measure", str(file), str(out)]
            one = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        print(
            f"{rows:12,}{one['kept']:12,}{size:10.1f}{one['seconds']:10.1f}{rows / one['seconds']:10,.0f}"
            f"{one['peak']:10.0f}{one['before']:12.0f}",
            flush=True,
        )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        measure(Path(sys.argv[2]), Path(sys.argv[3]))
    else:
        main(tuple(map(int, sys.argv[1:])) or SIZES)
