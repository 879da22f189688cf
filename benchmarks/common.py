"""What the measurements share: the machine in a line, sides that take turns, texts of natural lengths, one table."""

import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import torch

ROOT = Path(__file__).parent.parent
SHARED = ROOT.parent / "shared"
RESULTS = ROOT / "benchmarks" / "results.json"
PACKAGES = ("torch", "sentence-transformers", "transformers", "zarr", "polars")


@dataclass(frozen=True)
class Row:
    """One row of the table: `ours` and `theirs` in `unit`, medians of `rounds` alternating runs."""

    name: str
    against: str
    unit: str
    ours: float
    theirs: float
    target: float
    rounds: int

    @property
    def ratio(self) -> float:
        """How many times better ours is."""
        return self.ours / self.theirs


def machine() -> str:
    """Processor, cores, threads and versions, for the head of a table."""
    model = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.processor(),
    )
    versions = ", ".join(f"{package} {version(package)}" for package in PACKAGES)
    return f"{model}, {torch.get_num_threads()} threads, Python {platform.python_version()}, {versions}"


def alternate(sides: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, float]:
    """Median seconds of each side; the sides take turns, so that a drifting machine slows all of them alike.

    A side does one piece of work and returns how much of it there was; the result is amount per second.
    """
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(rounds + 1):
        for name, side in sides.items():
            start = time.perf_counter()
            amount = side()
            if turn:  # the first warms up
                rates[name].append(amount / (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in rates.items()}


def report(rows: list[Row]) -> None:
    """Print the rows and merge them into benchmarks/results.json."""
    print(machine())
    print("| what | against | unit | ours | theirs | ratio | target |")
    print("|---|---|---|---|---|---|---|")
    for row in rows:
        figures = f"{row.ours:,.1f} | {row.theirs:,.1f} | {row.ratio:.2f} | {row.target:g}"
        print(f"| {row.name} | {row.against} | {row.unit} | {figures} |")
    known = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    known |= {f"{row.name} / {row.against}": {**asdict(row), "ratio": row.ratio} for row in rows}
    RESULTS.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")


def texts(count: int) -> list[str]:
    """Texts of natural lengths: package descriptions and definitions where shared/ is there, else docstrings."""
    import polars as pl

    if (SHARED / "text").is_dir():
        frames = [pl.read_parquet(file).select("text") for file in sorted((SHARED / "text").glob("*.parquet"))]
        frame = pl.concat(frames)
    else:
        from pipeline.docstrings import texts as docstrings

        frame = pl.concat([batch.select("text") for batch in docstrings(("stdlib",))])
    chosen: list[str] = frame.sample(count, seed=0, shuffle=True)["text"].to_list()
    return chosen
