"""Where the time of the README's two commands goes: `python -m benchmarks.times demo`, `... tests`.

    python -m benchmarks.times demo e23ef4d HEAD --rounds 2 --write   # from empty clones, the commits in turns
    python -m benchmarks.times tests --write                          # `make test` in a fresh clone of HEAD

Everything is made anew, environments included, in a directory that is removed at the end. With --write the table
replaces the one in docs/benchmarks.md.
"""

import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections import defaultdict
from pathlib import Path

import click

from benchmarks.common import ROOT, machine, write_table

DOCUMENT = ROOT / "docs" / "benchmarks.md"
SHARED = ROOT.parent / "shared"
PARTS = ("installation", "start of a process", "corpus", "encode", "fit", "evaluate", "export", "report", "the rest")
MOST_FILES = 12


@click.group()
def main() -> None:
    """Measure what the README's two commands take."""


@main.command()
@click.argument("commits", nargs=-1, required=True)
@click.option("--rounds", default=1, show_default=True, help="Runs of each commit.")
@click.option("--write", is_flag=True, help="Put the table into docs/benchmarks.md.")
def demo(commits: tuple[str, ...], rounds: int, write: bool) -> None:
    """`make demo` of the commits, from empty clones: seconds by part, the median of all rounds."""
    before, taken = machine(), {commit: defaultdict[str, list[float]](list) for commit in commits}
    for turn in range(rounds):
        for commit in commits if turn % 2 == 0 else reversed(commits):
            for part, seconds in _demo(commit).items():
                taken[commit][part].append(seconds)
    lines = [before, "", "| seconds | " + " | ".join(map(_short, commits)) + " |", "|---" * (len(commits) + 1) + "|"]
    for part in (*PARTS, "all"):
        cells = [f"{statistics.median(taken[commit][part]):,.1f}" for commit in commits]
        lines.append(f"| {part} | " + " | ".join(cells) + " |")
    _done("demo-times", lines, write)


@main.command()
@click.option("--write", is_flag=True, help="Put the table into docs/benchmarks.md.")
def tests(write: bool) -> None:
    """`make test` in a fresh clone of HEAD: its minutes, and which files of tests take the most of all processes'."""
    before = machine()
    with tempfile.TemporaryDirectory() as directory:
        clone = _clone("HEAD", Path(directory))
        began = time.monotonic()
        _run(["make", "setup"], clone)
        installed = time.monotonic()
        junit = Path(directory) / "tests.xml"
        _run(["make", "test"], clone, PYTEST_ADDOPTS=f"--junitxml={junit}")
        ended = time.monotonic()
        files = defaultdict[str, float](float)
        for case in ElementTree.parse(junit).iter("testcase"):
            files[".".join(case.get("classname", "").split(".")[1:3])] += float(case.get("time", 0))
    lines = [before, "", "| what | seconds |", "|---|---|", f"| installation | {installed - began:,.0f} |"]
    lines += [f"| `make test` after it | {ended - installed:,.0f} |"]
    most = sorted(files.items(), key=lambda item: -item[1])
    lines += [f"| of all processes: {name} | {seconds:,.0f} |" for name, seconds in most[:MOST_FILES]]
    lines.append(
        f"| of all processes: {len(most[MOST_FILES:])} more files | {sum(s for _, s in most[MOST_FILES:]):,.0f} |"
    )
    _done("test-times", lines, write)


def _demo(commit: str) -> dict[str, float]:
    """Seconds by part of one `make demo` of a commit, from a clone to the summary."""
    with tempfile.TemporaryDirectory() as directory:
        clone = _clone(commit, Path(directory))
        taken = dict.fromkeys(PARTS, 0.0)
        began = time.monotonic()
        _run(["make", ".venv/with-demo"], clone)
        taken["installation"] = time.monotonic() - began
        part, since = "the rest", time.monotonic()
        with subprocess.Popen(
            ["make", "demo"], cwd=clone, stdout=subprocess.PIPE, text=True, env=_environment()
        ) as run:
            for line in run.stdout or ():
                if stage := re.match(r"Running stage '(\w+)'", line):
                    now = time.monotonic()
                    taken[part] += now - since
                    part, since = stage[1], now
                elif line.startswith("Updating lock file"):
                    now = time.monotonic()
                    taken[part] += now - since
                    part, since = "the rest", now
        ended = time.monotonic()
        if run.returncode:
            raise click.ClickException(f"make demo of {commit} ended with status {run.returncode}")
        taken["the rest"] += ended - since
        starting = time.monotonic()
        _run([".venv/bin/python", "-m", "stages.fit", "--help"], clone)
        taken["start of a process"] = time.monotonic() - starting
        return taken | {"all": ended - began}


def _clone(commit: str, directory: Path) -> Path:
    clone = directory / "clone"
    if SHARED.is_dir():
        (directory / SHARED.name).symlink_to(SHARED)  # beside the clone, where tests look for it
    _run(["git", "clone", "--quiet", str(ROOT), str(clone)], directory)
    _run(["git", "checkout", "--quiet", _short(commit)], clone)
    return clone


def _run(command: list[str], place: Path, **variables: str) -> None:
    done = subprocess.run(
        command, cwd=place, capture_output=True, text=True, env=_environment(**variables), check=False
    )
    if done.returncode:
        raise click.ClickException(f"{' '.join(command)}: {(done.stdout + done.stderr)[-6000:]}")


def _environment(**variables: str) -> dict[str, str]:
    """That of a newcomer's shell, in which no other environment of this project is active."""
    path = os.pathsep.join(
        part for part in os.environ["PATH"].split(os.pathsep) if part != str(Path(sys.executable).parent)
    )
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"PATH": path} | variables


def _short(commit: str) -> str:
    identity = subprocess.run(
        ["git", "rev-parse", "--short", commit], cwd=ROOT, check=True, capture_output=True, text=True
    )
    return identity.stdout.strip()


def _done(name: str, lines: list[str], write: bool) -> None:
    click.echo("\n".join(lines))
    if write:
        write_table(DOCUMENT, name, "\n".join(lines))


if __name__ == "__main__":
    main()
