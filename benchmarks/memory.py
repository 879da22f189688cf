"""Peak memory of the encode and the fit stage with 0.1 and 1 million texts.

    python -m benchmarks.memory

A real teacher would take days for a million texts. This one is a tiny real model: a sentence-transformers directory of
one BERT layer, 32 wide, with random weights and a head to 768 dimensions. So corpus, tokenising, batches, shards, shard
cache and store are as always. The fit is a
hundred steps of all-MiniLM-L6-v2 with a head 384 -> 768: everything that grows with the corpus (tokens, join, plan of
an epoch, validation of the store) is done before the first step. A large teacher's weights and activations come on top,
and so do oneDNN's kernels for other numbers of tokens in a longer fit; neither grows with the corpus.

Each stage runs in its own process; its peak is the kernel's `VmHWM`, which also counts mapped files.
"""

import json
import tempfile
from pathlib import Path

import click

from benchmarks.common import MINILM, QUICK, Row, child, peak_mb, report
from benchmarks.made import corpus, tiny_teacher

SIZES = (2_000, 4_000) if QUICK else (100_000, 1_000_000)
STEPS = 2 if QUICK else 100
LONG = 0.05  # share of texts of up to 256 tokens, since oneDNN keeps a kernel for every number of tokens in a batch
LIMIT = 3 * 2**30 / 1e6  # MB
FLAT = 0.8  # "flat": ten times the texts, at most a quarter more memory


@click.command()
@click.option(
    "--stage", type=(click.Choice(["encode", "fit"]), Path), help="Run one stage; used by the command itself."
)
def main(stage: tuple[str, Path] | None) -> None:
    """Measure and print the table."""
    if stage:
        name, folder = stage
        {"encode": _encode, "fit": _fit}[name](folder)
        print(json.dumps({"peak": peak_mb()}))
        return
    peaks: dict[str, list[float]] = {"encode": [], "fit": []}
    for rows in SIZES:
        with tempfile.TemporaryDirectory() as directory:
            folder = Path(directory)
            tiny_teacher(folder / "model")
            corpus(folder, rows, LONG)
            for name, stage_peaks in peaks.items():
                stage_peaks.append(child("benchmarks.memory", "--stage", name, folder)["peak"])
                print(f"{name}, {rows:,} texts: {stage_peaks[-1]:,.0f} MB", flush=True)
    small, large = (f"{rows:,} texts" for rows in SIZES)
    report(
        [
            row
            for name, (before, after) in peaks.items()
            for row in (
                Row(f"peak memory of {name}, {large}", "3 GiB", "MB", after, LIMIT, 1.0, less_is_better=True),
                Row(f"peak memory of {name}, {large}", small, "MB", after, before, FLAT, less_is_better=True),
            )
        ]
    )


def _encode(folder: Path) -> None:
    from pipeline.encode import encode
    from pipeline.params import EncodeParams, TeacherParams
    from pipeline.teacher import open_teacher

    params = EncodeParams(pool=str(folder / "pool"))
    teacher = open_teacher(TeacherParams(str(folder / "model")), params)
    encode(folder / "corpus", teacher, params, folder / "store")


def _fit(folder: Path) -> None:
    from pipeline.fit import fit
    from pipeline.params import FitParams, StudentParams
    from pipeline.store import Store

    params = FitParams(StudentParams(MINILM, max_length=256), max_steps=STEPS)
    fit(folder / "corpus", Store.open(folder / "store"), params, folder / "student", folder / "work")


if __name__ == "__main__":
    main()
