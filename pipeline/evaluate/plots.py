"""The evaluation as tables for `dvc plots` and as a static picture."""

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.base import LONGEST_LABEL, shortened, written_file
from pipeline.evaluate.evaluation import Evaluation
from pipeline.serve import MODES, START

BIN_WIDTH = 0.02  # width of a histogram bin of cosines
# Okabe and Ito's palette can be told apart with any colour vision; the hatches tell bars apart in print.
MODE_STYLES = {
    "teacher": ("#666666", ""),
    "standard": ("#0072B2", "//"),
    "asymmetric": ("#E69F00", ".."),
    START: ("#CC79A7", "xx"),
}
ROLE_STYLES = {"query": ("#D55E00", "-"), "document": ("#009E73", "--")}
BAR_SHARE = 0.8  # share of a group's width

SHARE_COLUMNS = ("share", "low", "high", "n")
TABLES = {
    "retention": ("dataset", "mode", "retention", "low", "high"),
    "alignment": ("role", "cosine", "share"),
    "truncation": ("dataset", "mode", "dims", "ndcg@10", *SHARE_COLUMNS),
    "quantisation": ("dataset", "mode", "variant", "ndcg@10", *SHARE_COLUMNS),
    "map": ("text", "role", "model", "x", "y"),
}


def files(directory: Path) -> list[Path]:
    """What `write` writes."""
    return [*(directory / f"{name}.csv" for name in TABLES), directory / "moved.json", directory / "evaluation.svg"]


def write(result: Evaluation, directory: Path) -> list[Path]:
    """Write the TABLES as CSV, moved.json and evaluation.svg into `directory`; returns their paths.

    Equal figures give equal bytes with the same matplotlib.
    """
    figures, bins = result.figures, histogram(result.cosines)
    rows: dict[str, Sequence[Sequence[Any]]] = {
        "retention": retention_rows(figures["retrieval"]),
        "alignment": bins,
        "truncation": variant_rows(figures.get("truncation", {}), "dims"),
        "quantisation": variant_rows(figures.get("quantisation", {}), "variants"),
        "map": result.map_points,
    }
    for name, header in TABLES.items():
        _write_table(directory / f"{name}.csv", header, rows[name])
    with written_file(directory / "moved.json") as file:
        file.write_text(json.dumps(result.moved, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    with written_file(directory / "evaluation.svg") as file:
        _draw_picture(figures["retrieval"], bins, figures["alignment"], file)
    return files(directory)


def variant_rows(results: Mapping[str, Any], key: str) -> list[tuple[Any, ...]]:
    """Rows `dataset, mode, variant, ndcg@10, share, low, high, n`; a missing figure is an empty cell."""
    rows = []
    for dataset, result in results.items():
        for mode in MODES:
            for name, modes in result[key].items():
                entry = modes[mode]
                share = "" if entry["share"] is None else entry["share"]
                rows.append(
                    (dataset, mode, name, entry["ndcg@10"], share, *(entry["share_interval"] or ("", "")), entry["n"])
                )
    return rows


def retention_rows(retrieval: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    """Rows `dataset, mode, retention, low, high`; a missing figure is an empty cell."""
    rows = []
    for name, result in retrieval.items():
        for mode in (mode for mode in (*MODES[1:], START) if mode in result):
            low, high = result[mode]["interval"]["retention"] or ("", "")
            value = result[mode]["retention"]
            rows.append((name, mode, "" if value is None else value, low, high))
    return rows


def histogram(cosines: Mapping[str, np.ndarray]) -> list[tuple[str, float, float]]:
    """Rows `role, cosine, share`: middle of a bin, and the share of the role's texts in it.

    `cosines` are arrays `[n]` by role. Bins below the lowest text are left out.
    """
    if not cosines:
        return []
    edges = np.round(np.arange(-1, 1 + BIN_WIDTH / 2, BIN_WIDTH), 2)
    # Rounding may carry a cosine of 1 just beyond the last edge.
    shares = {role: np.histogram(np.clip(c, -1, 1), edges)[0] / len(c) for role, c in cosines.items()}
    first = min(int(np.flatnonzero(share)[0]) for share in shares.values())
    middles = np.round(edges[:-1] + BIN_WIDTH / 2, 2).tolist()
    return [
        (role, middles[i], round(float(share[i]), 6))
        for role, share in shares.items()
        for i in range(first, len(share))
    ]


def _write_table(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    with written_file(path) as new, new.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def _draw_picture(
    retrieval: Mapping[str, Any], bins: list[tuple[str, float, float]], alignment: Mapping[str, Any], path: Path
) -> None:
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    # Ids in an SVG are random and its date is today unless told otherwise.
    with mpl.rc_context(
        {**mpl.rcParamsDefault, "svg.hashsalt": "leaf", "font.size": 10, "backend": "agg", "text.parse_math": False}
    ):
        width = 3 + 1.6 * max(len(retrieval), 1)
        figure = Figure(figsize=(width + 5, 4), layout="constrained")
        FigureCanvasSVG(figure)
        left, right = figure.subplots(1, 2, width_ratios=[width, 5])
        _draw_bars(left, retrieval)
        _draw_histograms(right, bins, alignment)
        figure.savefig(path, format="svg", metadata={"Date": None, "Creator": None}, facecolor="white")


def _draw_bars(axes: Any, retrieval: Mapping[str, Any]) -> None:
    axes.set_title("Retrieval, and % of the teacher")
    axes.set_ylabel("nDCG@10, 95 % intervals")
    axes.spines[["top", "right"]].set_visible(False)
    if not retrieval:
        axes.text(0.5, 0.5, "no queries with known documents", ha="center", transform=axes.transAxes)
        return
    everywhere = set.intersection(*map(set, retrieval.values()))
    styles = {mode: style for mode, style in MODE_STYLES.items() if mode in everywhere}
    places, step = np.arange(len(retrieval)), BAR_SHARE / len(styles)
    for m, (mode, (colour, hatch)) in enumerate(styles.items()):
        results = [result[mode] for result in retrieval.values()]
        values = np.array([result["ndcg@10"] for result in results])
        ends = np.array([result["interval"]["ndcg@10"] or [v, v] for result, v in zip(results, values, strict=True)])
        middle = places + (m - (len(styles) - 1) / 2) * step
        axes.bar(middle, values, step * 0.92, color=colour, hatch=hatch, edgecolor="white", label=mode)
        axes.errorbar(middle, values, np.abs(ends.T - values), fmt="none", ecolor="black", elinewidth=1, capsize=3)
        for place, value, top, result in zip(middle, values, ends[:, 1], results, strict=True):
            kept = result.get("retention")
            label = f"{value:.3f}" if kept is None else f"{value:.3f}\n{kept:.1%}"
            axes.annotate(label, (place, top), (0, 4), textcoords="offset points", ha="center", fontsize=7)
    axes.set_xticks(places, [shortened(name, LONGEST_LABEL) for name in retrieval])
    axes.set_ylim(0, max(1.0, axes.get_ylim()[1]) * 1.12)
    axes.set_yticks(np.linspace(0, 1, 6))
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=len(styles), frameon=False)


def _draw_histograms(axes: Any, bins: list[tuple[str, float, float]], alignment: Mapping[str, Any]) -> None:
    axes.set_title("Alignment on held-out texts")
    axes.set_xlabel("cosine of the student's vector to the teacher's")
    axes.set_ylabel(f"share of texts, per bin of {BIN_WIDTH}")
    axes.spines[["top", "right"]].set_visible(False)
    if not bins:
        axes.text(0.5, 0.5, "no held-out texts", ha="center", transform=axes.transAxes)
        return
    for role, (colour, style) in ROLE_STYLES.items():
        rows = [(cosine, share) for of_role, cosine, share in bins if of_role == role]
        if rows:
            label = f"{role} (mean {alignment[role]['cosine']['mean']:.3f})"
            axes.step(*zip(*rows, strict=True), where="mid", color=colour, linestyle=style, linewidth=1.8, label=label)
    axes.set_ylim(0, None)
    axes.legend(loc="upper center", bbox_to_anchor=(0.45, -0.18), ncols=len(ROLE_STYLES), frameon=False)
