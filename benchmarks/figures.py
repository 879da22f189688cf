"""The tables of README.md and docs/benchmarks.md that come from runs, written into both from one file of figures.

    python -m benchmarks.figures                                  # the tables anew from benchmarks/figures.json
    python -m benchmarks.figures --project . --name demo          # first take the figures of a run that has ended

A table stands between `<!-- NAME -->` and `<!-- /NAME -->`. A test asks that this command changes nothing, so that no
figure can stand in two places with two values.
"""

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

from benchmarks.common import ROOT, with_table

FIGURES = ROOT / "benchmarks" / "figures.json"
DOCUMENTS = (ROOT / "README.md", ROOT / "docs" / "benchmarks.md")
MODES = ("standard", "asymmetric")
Run = Mapping[str, Any]


@click.command()
@click.option("--project", type=click.Path(exists=True, path_type=Path), help="Directory of a run that has ended.")
@click.option("--name", type=click.Choice(["demo", "mpnet"]), help="What the run is here.")
def main(project: Path | None, name: str | None) -> None:
    """Write the tables, of the project's figures if one is named."""
    runs = json.loads(FIGURES.read_text(encoding="utf-8"))
    if project and name:
        runs[name] = figures_of(project)
        FIGURES.write_text(json.dumps(runs, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    for document in DOCUMENTS:
        document.write_text(with_tables(document.read_text(encoding="utf-8"), runs), encoding="utf-8")


def figures_of(project: Path) -> dict[str, Any]:
    """What the tables need of a project's metrics."""
    evaluated, cost = (json.loads((project / "metrics" / f"{name}.json").read_text()) for name in ("evaluate", "cost"))
    retrieval = {}
    for name, result in evaluated["retrieval"].items():
        kept = {
            mode: {
                "ndcg@10": result[mode]["ndcg@10"],
                "retention": result[mode]["retention"],
                "interval": result[mode]["interval"]["retention"],
            }
            for mode in MODES
        }
        counts = {"queries": result["queries"], "documents": result["documents"]}
        retrieval[name] = counts | {"teacher": result["teacher"]["ndcg@10"]} | kept
    models = {
        name: {"parameters": model["parameters"], "bytes": model["bytes"]} for name, model in cost["models"].items()
    }
    speed = {
        threads: {
            side: {key: rows[side][key]["value"] for key in ("texts_per_s", "latency_p50_ms", "latency_p95_ms")}
            for side in ("teacher", "student")
        }
        for threads, rows in cost["threads"].items()
    }
    return {"date": time.strftime("%Y-%m-%d"), "retrieval": retrieval, "models": models, "speed": speed}


def with_tables(text: str, runs: Mapping[str, Run]) -> str:
    """A document with those tables written anew that it has."""
    for name, table in TABLES.items():
        if f"<!-- {name} -->\n" in text:
            text = with_table(text, name, table(runs))
    return text


def demo_table(runs: Mapping[str, Run]) -> str:
    """The demo's retrieval."""
    (result,) = runs["demo"]["retrieval"].values()
    standard, asymmetric = (result[mode] for mode in MODES)
    return "\n".join(
        [
            "| held-out docstrings, nDCG@10 | teacher | student, standard | student, asymmetric |",
            "|---|---|---|---|",
            f"| {result['queries']} queries, {result['documents']} documents | {result['teacher']:.3f} "
            f"| {standard['ndcg@10']:.3f} | {asymmetric['ndcg@10']:.3f} |",
            f"| share of the teacher's (95 % interval) | | {_share(standard)} | {_share(asymmetric)} |",
        ]
    )


def retrieval_table(runs: Mapping[str, Run]) -> str:
    """Retrieval of the large run, a row for each collection."""
    lines = ["| | queries | teacher | student, standard | student, asymmetric |", "|---|---|---|---|---|"]
    for name, result in runs["mpnet"]["retrieval"].items():
        modes = " | ".join(f"{result[mode]['ndcg@10']:.3f} = {_share(result[mode])}" for mode in MODES)
        lines.append(f"| {name} | {result['queries']} | {result['teacher']:.3f} | {modes} |")
    return "\n".join(lines)


def cost_table(runs: Mapping[str, Run]) -> str:
    """Cost of the large run's models."""
    lines = ["| threads | | texts/s | ms a query, median | 95 % |", "|---|---|---|---|---|"]
    for threads, sides in runs["mpnet"]["speed"].items():
        for side in ("teacher", "student"):
            row = sides[side]
            times = f"{row['latency_p50_ms']:.1f} | {row['latency_p95_ms']:.1f}"
            lines.append(f"| {threads} | {side} | {row['texts_per_s']:.0f} | {times} |")
    return "\n".join(lines)


def gains_table(runs: Mapping[str, Run]) -> str:
    """What one gains, and what it costs: the large run in a few lines."""
    run = runs["mpnet"]
    threads = max(run["speed"])
    teacher, student = (run["speed"][threads][side] for side in ("teacher", "student"))
    large, small = (run["models"][side] for side in ("teacher", "student"))
    own = run["retrieval"]["debian"]
    others = [result for name, result in run["retrieval"].items() if name != "debian"]
    rows = [
        (
            f"quality kept on texts like the corpus ({own['queries']:,} queries)",
            "1",
            *(f"{own[mode]['retention']:.3f}" for mode in MODES),
        ),
        (
            f"quality kept on texts unlike it ({len(others)} collections)",
            "1",
            *(f"{sum(result[mode]['retention'] for result in others) / len(others):.2f}" for mode in MODES),
        ),
        ("a query, median", *_of_both(f"{teacher['latency_p50_ms']:.1f} ms", f"{student['latency_p50_ms']:.1f} ms")),
        ("documents indexed a second", rate := f"{teacher['texts_per_s']:.0f}", f"{student['texts_per_s']:.0f}", rate),
        ("parameters", *_of_both(f"{large['parameters'] / 1e6:.1f} M", f"{small['parameters'] / 1e6:.1f} M")),
        ("size on disk", *_of_both(f"{large['bytes'] / 1e6:.0f} MB", f"{small['bytes'] / 1e6:.0f} MB")),
    ]
    head = ("all-mpnet-base-v2 into all-MiniLM-L6-v2", "teacher", "student on both sides", "student for queries only")
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ("---",) * 4, *rows))


def _of_both(teacher: str, student: str) -> tuple[str, str, str]:
    return teacher, student, student


def _share(mode: Mapping[str, Any]) -> str:
    low, high = mode["interval"]
    return f"{mode['retention']:.3f} ({low:.3f} to {high:.3f})"


TABLES: dict[str, Callable[[Mapping[str, Run]], str]] = {
    "demo": demo_table,
    "gains": gains_table,
    "retrieval": retrieval_table,
    "cost": cost_table,
}

if __name__ == "__main__":
    main()
