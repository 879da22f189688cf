"""The report's figures: SVG by matplotlib, adapted to stand inside an HTML page.

Colours are CSS variables of the page, so that they follow its dark or light scheme; text stays text, and ids are
unique in the page. Equal data give equal bytes with the same matplotlib.

Each of the functions below `draw` returns a function that draws into a matplotlib figure.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from xml.sax.saxutils import escape

import numpy as np

from pipeline.base import LONGEST_LABEL, shortened

Rows = Sequence[Mapping[str, str]]
WIDTH = 4.6  # inches; narrow, so that the text can be read on a telephone too
# Placeholder colours, each replaced by a variable of the page's style sheet; no other colour is used.
INK, GRID = "#010203", "#040506"
PLACEHOLDERS = {INK: "currentColor", GRID: "var(--grid)"}
MODE_STYLES = {
    "teacher": ("#0a0b01", "o", "-"),
    "standard": ("#0a0b02", "s", "--"),
    "asymmetric": ("#0a0b03", "^", "-."),
}
START_STYLES = {"start": ("#0a0b06", "x", ":")}  # the untouched checkpoint, a mode of retrieval alone
ROLE_STYLES = {"query": ("#0a0b04", "-"), "document": ("#0a0b05", "--")}
_STYLES = {**MODE_STYLES, **START_STYLES, **ROLE_STYLES}
PLACEHOLDERS |= {colour: f"var(--{name})" for name, (colour, *_) in _STYLES.items()}
MODEL_COLOURS = {"teacher": MODE_STYLES["teacher"][0], "student": MODE_STYLES["standard"][0]}


def draw(name: str, title: str, alt: str, height: float, plot: Callable[[Any], None]) -> str:
    """An `<svg>` element of `WIDTH x height` inches, drawn by `plot(figure)`.

    Screen readers read `title` and `alt`. `name` makes the ids unique in the page.
    """
    import io

    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with _style(name):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        FigureCanvasSVG(figure)
        plot(figure)
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None}, transparent=True)
    text = file.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    for colour, variable in PLACEHOLDERS.items():
        text = text.replace(colour, variable)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'(url\(#|href="#)', rf"\g<1>{name}-", text)
    text = re.sub(r"'DejaVu Sans'[^;\"]*", "system-ui, sans-serif", text)
    box = re.search(r'viewBox="[^"]*"', text)
    opening = (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" {box[0] if box else ""} '
        f'role="img" aria-labelledby="{name}-title {name}-alt"><title id="{name}-title">{escape(title)}</title>'
        f'<desc id="{name}-alt">{escape(alt)}</desc>'
    )
    return opening + text[text.index(">") + 1 :].strip()


@contextmanager
def _style(name: str) -> Iterator[None]:
    import matplotlib as mpl

    with mpl.rc_context(
        {
            **mpl.rcParamsDefault,
            "text.color": INK,
            "xtick.color": INK,
            "ytick.color": INK,
            "backend": "agg",
            "svg.fonttype": "none",
            "text.parse_math": False,
            "svg.hashsalt": name,
            "font.size": 11,
            "axes.titlesize": 11,
            "axes.edgecolor": INK,
            "axes.labelcolor": INK,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "grid.color": GRID,
            "axes.grid": True,
            "axes.axisbelow": True,
            "legend.frameon": False,
            "legend.fontsize": 10,
        }
    ):
        yield


def loss(rows: Rows) -> Callable[[Any], None]:
    """Loss against step, by split; rows `step, split, loss`."""

    def plot(figure: Any) -> None:
        axes = figure.subplots()
        splits = sorted({row["split"] for row in rows})
        for split, (colour, style) in zip(splits, [(c, s) for c, _, s in MODE_STYLES.values()] * 2, strict=False):
            points = [(int(row["step"]), float(row["loss"])) for row in rows if row["split"] == split]
            marker = "" if len(points) > 30 else "o"
            axes.plot(*zip(*points, strict=True), style, color=colour, marker=marker, markersize=4, label=split)
        axes.set_xlabel("step")
        axes.set_ylabel("loss")
        axes.set_ylim(0, None)
        axes.legend()

    return plot


def bars(results: Mapping[str, Any]) -> Callable[[Any], None]:
    """nDCG@10 of the modes, by data set, with intervals."""

    def plot(figure: Any) -> None:
        axes = figure.subplots()
        with_start = all("start" in result for result in results.values())
        styles = MODE_STYLES | (START_STYLES if with_start else {})
        step = 0.78 / len(styles)
        for m, (mode, (colour, _, _)) in enumerate(styles.items()):
            values = np.array([result[mode]["ndcg@10"] for result in results.values()])
            spans = [result[mode]["interval"]["ndcg@10"] for result in results.values()]
            middle = np.arange(len(results)) + (m - (len(styles) - 1) / 2) * step
            axes.bar(middle, values, step * 0.9, color=colour, label=mode)
            _draw_intervals(axes, middle, values, spans)
        axes.set_xticks(range(len(results)), [shortened(name, LONGEST_LABEL) for name in results])
        axes.set_ylabel("nDCG@10")
        axes.set_ylim(0, 1.02)
        axes.grid(visible=False, axis="x")
        figure.legend(loc="outside lower center", ncols=len(styles))

    return plot


def _draw_intervals(axes: Any, places: Any, values: Any, spans: Sequence[Sequence[float] | None]) -> None:
    ends = np.array([span or (value, value) for span, value in zip(spans, values, strict=True)])
    errors = np.maximum(np.abs(ends.T - values), 0)
    axes.errorbar(places, values, errors, fmt="none", ecolor=INK, elinewidth=1, capsize=3)


def truncation(rows: Rows) -> Callable[[Any], None]:
    """Share of the full width's nDCG@10 against dimensions, by mode; rows as in truncation.csv, of one data set."""

    def plot(figure: Any) -> None:
        axes = figure.subplots()
        for mode, (colour, marker, style) in MODE_STYLES.items():
            own_rows = [row for row in rows if row["mode"] == mode and row["share"]]
            dims, shares = [int(row["dims"]) for row in own_rows], [float(row["share"]) for row in own_rows]
            axes.plot(dims, shares, style, color=colour, marker=marker, markersize=5, label=mode)
            low, high = ([float(row[end] or row["share"]) for row in own_rows] for end in ("low", "high"))
            axes.fill_between(dims, low, high, color=colour, alpha=0.15, linewidth=0)
        ticks = sorted({int(row["dims"]) for row in rows})
        axes.set_xscale("log", base=2)
        axes.set_xticks(ticks, [str(dim) for dim in ticks])
        axes.minorticks_off()
        axes.set_xlabel("dimensions kept")
        axes.set_ylabel("share of the full width")
        figure.legend(loc="outside lower center", ncols=3)

    return plot


def quantisation(rows: Rows) -> Callable[[Any], None]:
    """Share of float32's nDCG@10 by variant and mode; rows as in quantisation.csv, of one data set."""

    def plot(figure: Any) -> None:
        axes = figure.subplots()
        names = list(dict.fromkeys(row["variant"] for row in rows))
        for m, (mode, (colour, marker, _)) in enumerate(MODE_STYLES.items()):
            own_rows = [row for row in rows if row["mode"] == mode and row["share"]]
            places = np.array([len(names) - names.index(row["variant"]) + (1 - m) * 0.22 for row in own_rows])
            shares = np.array([float(row["share"]) for row in own_rows])
            ends = np.array([[float(row[end] or row["share"]) for end in ("low", "high")] for row in own_rows])
            errors = np.maximum(np.abs(ends.T - shares), 0) if own_rows else None
            axes.errorbar(
                shares, places, xerr=errors, fmt=marker, color=colour, markersize=5, elinewidth=1.2, label=mode
            )
        axes.set_yticks([len(names) - i for i in range(len(names))], names)
        axes.set_xlabel("share of float32")
        figure.legend(loc="outside lower center", ncols=3)

    return plot


def cost(costs: Mapping[str, Any]) -> Callable[[Any], None]:
    """Throughput and latency by number of threads, and size, of teacher and student."""

    def plot(figure: Any) -> None:
        panels = figure.subplots(3, 1)
        threads = list(costs["threads"])
        for axes, key, title in (
            (panels[0], "texts_per_s", "texts a second (more is better)"),
            (panels[1], "latency_p50_ms", "latency of one query, p50 to p95, ms"),
        ):
            for m, name in enumerate(costs["models"]):
                colour = MODEL_COLOURS[name]
                entries = [costs["threads"][n][name] for n in threads]
                values = np.array([entry[key]["value"] for entry in entries])
                places = np.arange(len(threads)) + (m - 0.5) * 0.36
                axes.barh(places, values, 0.33, color=colour, label=name)
                if key == "texts_per_s":
                    spans = np.array(
                        [entry[key]["interval"] or [v, v] for entry, v in zip(entries, values, strict=True)]
                    )
                else:
                    spans = np.array([[v, e["latency_p95_ms"]["value"]] for e, v in zip(entries, values, strict=True)])
                axes.errorbar(values, places, xerr=np.abs(spans.T - values), fmt="none", ecolor=INK, capsize=3)
            axes.set_yticks(range(len(threads)), [f"{n} thread{'s' * (n != '1')}" for n in threads])
            axes.set_title(title, loc="left")
            axes.grid(visible=False, axis="y")
            axes.invert_yaxis()
        _draw_sizes(panels[2], costs["models"])
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)

    return plot


def _draw_sizes(axes: Any, models: Mapping[str, Any]) -> None:
    kinds: dict[str, Callable[[Any], float]] = {
        "million parameters": lambda model: model["parameters"] / 1e6,
        "MB on disk": lambda model: model["bytes"] / 1e6,
        "MiB in memory": lambda model: model["resident_mib"],
    }
    for m, name in enumerate(models):
        colour = MODEL_COLOURS[name]
        places = np.arange(len(kinds)) + (m - 0.5) * 0.36
        axes.barh(places, [measure(models[name]) for measure in kinds.values()], 0.33, color=colour)
    axes.set_yticks(range(len(kinds)), list(kinds))
    axes.set_title("size (less is better)", loc="left")
    axes.grid(visible=False, axis="y")
    axes.invert_yaxis()


def alignment(rows: Rows, role: str) -> Callable[[Any], None]:
    """Histogram of cosines of one role; rows as in alignment.csv."""

    def plot(figure: Any) -> None:
        axes = figure.subplots()
        bins = [(float(row["cosine"]), float(row["share"])) for row in rows if row["role"] == role]
        places, shares = zip(*bins, strict=True)
        axes.bar(places, shares, 0.018, color=ROLE_STYLES[role][0])
        axes.set_xlabel("cosine of student to teacher")
        axes.set_ylabel("share of texts")
        axes.grid(visible=False, axis="x")

    return plot


def embedding(rows: Rows) -> Callable[[Any], None]:
    """The points of teacher and student, a line between the two of each text; rows as in map.csv."""

    def plot(figure: Any) -> None:
        from matplotlib.collections import LineCollection

        axes = figure.subplots()
        places = {
            model: {row["text"]: (float(row["x"]), float(row["y"])) for row in rows if row["model"] == model}
            for model in MODEL_COLOURS
        }
        joined = [[place, places["student"][text]] for text, place in places["teacher"].items()]
        axes.add_collection(LineCollection(joined, colors=INK, linewidths=0.5, alpha=0.4))
        for (model, colour), marker in zip(MODEL_COLOURS.items(), ("o", "x"), strict=True):
            points = list(zip(*places[model].values(), strict=True))
            axes.scatter(*points, s=14, marker=marker, c=colour, linewidths=1, label=model)
        axes.set_xlabel("first principal component")
        axes.set_ylabel("second")
        axes.set_aspect("equal", adjustable="datalim")
        figure.legend(loc="outside lower center", ncols=2)

    return plot
