"""Feed hostile stores, models, parameters and answers of servers to their readers: `python -m benchmarks.fuzz`.

Each kind of input (`benchmarks.hostile`) is read in a process of its own, whose memory is limited. A reader may accept
or raise LeafError. Anything else is a failure: another exception, a panic or a crash of native code, a file that
appears elsewhere, more memory than the limit, a minute for an example.
"""

import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import click
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from benchmarks.hostile import KINDS, ROOT, Kind

SECONDS = 60  # for a round's examples each
MEMORY = 2 * 2**30  # bytes beyond what is mapped once all libraries are loaded


def run_round(kind: Kind, number: int, counts: Counter[str]) -> None:
    """Run a round of examples from a seed."""

    @seed(number)
    @settings(
        max_examples=kind.examples,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(data=st.data())
    def run(data: st.DataObject) -> None:
        signal.alarm(SECONDS)  # native code cannot be interrupted: the signal ends the process
        counts[kind.example(data)] += 1

    try:
        run()
    finally:
        signal.alarm(0)


def rounds(kind: str, minutes: float, first_seed: int, state: Path) -> None:
    """Run rounds until the time is up; after each, `state` holds the next seed, counts by outcome, and failures."""
    counts: Counter[str] = Counter()
    failures: list[str] = []
    end, number = time.monotonic() + 60 * minutes, first_seed
    with tempfile.TemporaryDirectory() as directory:
        target: Kind = KINDS[kind](Path(directory))
        run_round(target, 10**9, Counter())  # loads all libraries
        _limit_memory()
        while time.monotonic() < end:
            try:
                run_round(target, number, counts)
            except BaseException as error:  # including panics of native code
                if isinstance(error, KeyboardInterrupt):
                    raise
                failures.append(f"seed {number}: {type(error).__name__}: {error!s:.300}")
            number += 1
            grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            state.write_text(json.dumps({"next": number, "counts": counts, "failures": failures, "peak": grown}))


def _limit_memory() -> None:
    status = Path("/proc/self/status").read_text().splitlines()
    mapped = next(int(line.split()[1]) for line in status if line.startswith("VmSize:")) * 1024
    resource.setrlimit(resource.RLIMIT_AS, (mapped + MEMORY, mapped + MEMORY))


def watched(kind: str, minutes: float, first_seed: int) -> dict[str, Any]:
    """`rounds` in processes of their own: one that ends by a signal is a failure, and the next goes on behind it."""
    total: dict[str, Any] = {"counts": Counter(), "failures": [], "peak": 0.0}
    end, number = time.monotonic() + 60 * minutes, first_seed
    while (left := end - time.monotonic()) > 0:
        with tempfile.TemporaryDirectory() as directory:
            state = Path(directory) / "state.json"
            (work := Path(directory) / "work").mkdir()
            done = _run_child([kind, str(left / 60), str(number), str(state)], work)
            nothing: dict[str, Any] = {"next": number, "counts": {}, "failures": []}
            known = json.loads(state.read_text()) if state.exists() else nothing
            leftovers = [path.name for path in work.iterdir()]
        total["counts"] += Counter(known["counts"])
        total["failures"] += known["failures"]
        total["peak"] = max(total["peak"], known.get("peak", 0.0))
        if done.returncode:
            total["failures"].append(f"seed {known['next']}: ended with {done.returncode}: {done.stderr[-300:]}")
        if leftovers:
            total["failures"].append(f"files appeared in the working directory: {leftovers}")
        number = known["next"] + 1
    return total


def _run_child(arguments: list[str], directory: Path) -> "subprocess.CompletedProcess[str]":
    code = "import sys; from pathlib import Path; from benchmarks.fuzz import rounds\n"
    code += "rounds(sys.argv[1], float(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "LEAF_CACHE": f"{directory}.cache"}
    environment["HYPOTHESIS_STORAGE_DIRECTORY"] = f"{directory}.hypothesis"
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True, check=False)


@click.command()
@click.option("--minutes", type=float, default=10.0, show_default=True, help="Of all kinds together.")
@click.option("--kind", "kinds", type=click.Choice(list(KINDS)), multiple=True, default=list(KINDS), show_default=True)
@click.option("--seed", "first_seed", type=int, default=0, show_default=True)
def main(minutes: float, kinds: tuple[str, ...], first_seed: int) -> None:
    """Print how many hostile inputs were read, by kind and outcome; exit code 1 on any failure."""
    failed = False
    for kind in kinds:
        result = watched(kind, minutes / len(kinds), first_seed)
        share, counts = minutes / len(kinds), result["counts"]
        click.echo(f"{counts.total():,} hostile {kind} in {share:g} minutes; peak memory {result['peak']:,.0f} MiB")
        for outcome, count in sorted(counts.items()):
            click.echo(f"  {outcome:<60}{count:>8,}")
        click.echo(f"failures: {len(result['failures'])}")
        for failure in result["failures"][:20]:
            click.echo(failure)
        failed |= bool(result["failures"])
    raise SystemExit(failed)


if __name__ == "__main__":
    main()
