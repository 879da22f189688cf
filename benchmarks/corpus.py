"""Measure rows per second and peak memory of the corpus stage, on short texts of random words.

    python -m benchmarks.corpus [ROWS ...]

Each size runs in a process of its own.
"""

import json
import sys
import tempfile
import time
from pathlib import Path

import polars as pl

from benchmarks.common import child, peak_mb
from benchmarks.made import source, write_texts
from pipeline.corpus import build

SIZES = (100_000, 1_000_000)


def measure(file: Path, out: Path) -> None:
    """Run the stage and print its figures as JSON."""
    before = peak_mb()
    start = time.perf_counter()
    metrics = build(source(file), out)
    seconds = time.perf_counter() - start
    print(json.dumps({"seconds": seconds, "peak": peak_mb(), "before": before, "kept": metrics["total"]}))


def main(sizes: tuple[int, ...]) -> None:
    """Print a table row for each size."""
    print(f"{'rows':>12}{'kept':>12}{'text MB':>10}{'seconds':>10}{'rows/s':>10}{'peak MB':>10}{'imports MB':>12}")
    for rows in sizes:
        with tempfile.TemporaryDirectory() as directory:
            file, out = Path(directory) / "texts.parquet", Path(directory) / "corpus"
            write_texts(file, rows)
            size = pl.scan_parquet(file).select(pl.col("text").str.len_bytes().sum()).collect().item() / 1e6
            figures = child("benchmarks.corpus", "--measure", file, out)
        print(
            f"{rows:12,}{figures['kept']:12,}{size:10.1f}{figures['seconds']:10.1f}{rows / figures['seconds']:10,.0f}"
            f"{figures['peak']:10.0f}{figures['before']:12.0f}",
            flush=True,
        )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        measure(Path(sys.argv[2]), Path(sys.argv[3]))
    else:
        main(tuple(map(int, sys.argv[1:])) or SIZES)
