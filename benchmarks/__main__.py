"""Every measurement with a target, one after the other: `make bench`. Writes benchmarks/results.json."""

import subprocess
import sys

PARTS = ("benchmarks.encode", "benchmarks.fit", "benchmarks.corpus")

if __name__ == "__main__":
    for part in PARTS:
        print(f"\n## python -m {part}\n", flush=True)
        subprocess.run([sys.executable, "-m", part], check=True)
