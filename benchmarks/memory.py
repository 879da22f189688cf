"""Peak memory of the encode and the fit stage at 0.1 and 1 million texts.

    python -m benchmarks.memory

A real teacher would take days here for a million texts. This one is real in all but size: a sentence-transformers
directory of one BERT layer 32 wide with random weights and a head to 768 dimensions, so that corpus, tokenising,
batches, shards, pool and store are what they always are. The fit is of all-MiniLM-L6-v2 with a head 384 -> 768, a
hundred steps of it: everything that grows with the corpus (tokens, join, plan of an epoch, validation of the store) is
done before the first. What a large teacher's weights and activations take comes on top, and so do oneDNN's kernels for
numbers of tokens that a longer fit meets; neither grows with the corpus.

Each stage runs in a process of its own; its peak is the kernel's `VmHWM`, which counts mapped files, too.
"""

import json
import tempfile
from pathlib import Path

import click

from benchmarks.common import MINILM, QUICK, Row, child, peak_mb, report
from benchmarks.made import corpus, tiny_teacher

SIZES = (2_000, 4_000) if QUICK else (100_000, 1_000_000)
STEPS = 2 if QUICK else 100
LONG = 0.05  # share of texts of up to 256 tokens: oneDNN keeps a kernel for every number of tokens of a batch
LIMIT = 3 * 2**30 / 1e6  # MB
FLAT = 0.8  # "flat": ten times the texts, at most a quarter more memory


@click.command()
@click.option("--stage", type=(click.Choice(["encode", "fit"]), Path), help="Used by the command itself.")
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
            for name, found in peaks.items():
                found.append(child("benchmarks.memory", "--stage", name, folder)["peak"])
                print(f"{name}, {rows:,} texts: {found[-1]:,.0f} MB", flush=True)
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
    from pipeline.encode.encoding import encode
    from pipeline.params.sections import EncodeParams, TeacherParams
    from pipeline.teacher.teacher import open_teacher

    params = EncodeParams(pool=str(folder / "pool"))
    teacher = open_teacher(TeacherParams(str(folder / "model")), params)
    encode(folder / "corpus", teacher, params, folder / "store")


def _fit(folder: Path) -> None:
    from pipeline.fit.trainer import fit
    from pipeline.params.sections import FitParams, StudentParams
    from pipeline.store.store import Store

    params = FitParams(StudentParams(MINILM, max_length=256), max_steps=STEPS)
    fit(folder / "corpus", Store.open(folder / "store"), params, folder / "student", folder / "work")


if __name__ == "__main__":
    main()
