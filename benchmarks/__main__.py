"""Run every benchmark with a target, one after the other, and print the whole table at the end: `make bench`.

    python -m benchmarks [--quick]

Writes benchmarks/results.json; the output says why a row is missing there. With --quick the sizes are tiny, which
only shows that everything runs, and results.json stays as it is.
"""

import os
import subprocess
import sys
import time

import click

from benchmarks.common import RESULTS, results, table

PARTS = ("benchmarks.encode", "benchmarks.onnx", "benchmarks.fit", "benchmarks.store", "benchmarks.memory")


@click.command()
@click.option("--quick", is_flag=True, help="Show that everything runs; measure nothing.")
def main(quick: bool) -> None:
    """Run every part, each in a process of its own."""
    if quick:
        os.environ["LEAF_BENCH_QUICK"] = "1"
    else:
        RESULTS.unlink(missing_ok=True)
    began = time.monotonic()
    for part in PARTS:
        print(f"\n## python -m {part}\n", flush=True)
        subprocess.run([sys.executable, "-m", part], check=True)
    print(f"\n## All of it, in {(time.monotonic() - began) / 60:.1f} minutes\n")
    if not quick:
        print(table(results()))


if __name__ == "__main__":
    main()
