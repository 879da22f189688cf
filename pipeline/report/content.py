"""The report's sections as data: which figures, tables and sentences they hold. `figures` draws, `page` lays out."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.report import figures
from pipeline.report.wording import change, number, percent
from pipeline.serve import MODES, START

Rows = Sequence[Mapping[str, str]]
SPEED_FIGURES = {
    "texts_per_s": "texts a second",
    "latency_p50_ms": "latency p50, ms",
    "latency_p95_ms": "latency p95, ms",
}
TASKS = (
    ("sts", "spearman", "Similarity"),
    ("classification", "accuracy", "Classification"),
    ("clustering", "v_measure", "Clustering"),
)
PROFILE_NOTE = (
    "A profile is the share of its own full nDCG@10 that a mode keeps. Of its differences to the teacher's the largest "
    "is named, with the interval at that place, which makes no allowance for its having been picked."
)
START_NOTE = (
    "Start: the checkpoint that the student was made from, on both sides, untouched and without a head. It cannot "
    "search the teacher's vectors; where standard mode is below it, fitting has cost more than it has gained there."
)


@dataclass(frozen=True)
class Plot:
    """A figure."""

    name: str
    caption: str
    alt: str
    """What it shows, in words."""
    height: float
    """Inches."""
    plot: Callable[[Any], None]
    """Draws into a matplotlib figure."""


@dataclass(frozen=True)
class Table:
    """A table of text cells."""

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    """The first cell of a row is its header."""
    folded: bool = False
    """Hidden until it is opened."""
    numeric: bool = True
    """Cells are aligned to the right."""


@dataclass(frozen=True)
class Section:
    """A part of the page; `id` is its anchor."""

    id: str
    title: str
    text: str = ""
    figures: Sequence[Plot] = ()
    tables: Sequence[Table] = ()
    sentences: Sequence[str] = ()


def sections(metrics: Mapping[str, Any], tables: Mapping[str, Rows]) -> list[Section]:
    """The sections in order, without those that hold nothing.

    Args:
        metrics: the metrics files by name (`fit`, `evaluate`, `cost`).
        tables: rows of the plots' CSV files by name.
    """
    evaluated = metrics["evaluate"]
    every = [
        Section("answers", "In short", PROFILE_NOTE, sentences=list(_answers(evaluated))),
        _retrieval(evaluated["retrieval"], evaluated.get("indexes", {})),
        _truncation(evaluated.get("truncation", {}), tables["truncation"]),
        _quantisation(evaluated.get("quantisation", {}), tables["quantisation"]),
        _cost(metrics["cost"]),
        _tasks(evaluated),
        _alignment(evaluated, tables["alignment"]),
        _map(tables["map"]),
        _loss(metrics["fit"], tables["fit_loss"]),
    ]
    return [section for section in every if section.figures or section.tables or section.sentences]


def _answers(evaluated: Mapping[str, Any]) -> Iterator[str]:
    """Sentences that answer the usual questions about each data set."""
    if note := evaluated.get("similarity_note"):
        yield f"{note[0].upper()}{note[1:]}."
    elif evaluated.get("similarity") == "dot":
        yield "Vectors keep their lengths and are compared by the dot product, which the teacher is made for."
    for name, result in evaluated["retrieval"].items():
        standard, asymmetric = (result[mode] for mode in MODES[1:])
        n = result["queries"]
        yield (
            f"{name} ({n:,} queries): the student keeps {_kept(standard)} of the teacher's nDCG@10 in "
            f"standard mode and {_kept(asymmetric)} in asymmetric mode; asymmetric adds "
            f"{change(asymmetric['gain'])} to standard."
        )
        if START in result:
            yield (
                f"{name}, what has fitting changed? The untouched checkpoint keeps "
                f"{_kept(result[START])}; standard mode has {change(standard['since_start'])} to it."
            )
        if truncated := evaluated.get("truncation", {}).get(name):
            answer = _largest_differences(truncated["largest"], " dimensions")
            yield f"{name}, does truncation follow the teacher? {answer}"
        if quantised := evaluated.get("quantisation", {}).get(name):
            for precision, largest in quantised["largest"].items():
                answer = _largest_differences(largest, "")
                yield f"{name}, does {precision} quantisation follow the teacher? {answer}"


def _kept(result: Mapping[str, Any]) -> str:
    """The share of the teacher's nDCG@10 that a mode keeps, with its interval."""
    return percent(result["retention"], result["interval"]["retention"])


def _largest_differences(largest: Mapping[str, Any], unit: str) -> str:
    parts = [f"{mode} {change(entry)} at {entry['at']}{unit}" for mode, entry in largest.items() if entry is not None]
    return f"Largest difference between its profile and the teacher's: {'; '.join(parts) or 'none known'}."


def _retrieval(results: Mapping[str, Any], indexes: Mapping[str, Any]) -> Section:
    """Collections with texts, and indexes of vectors alone, which are in the table only."""
    header = ("data set, mode", "n", "nDCG@10", "recall@100", "MRR@10", "retention", "nDCG@10 less teacher's")
    rows = []
    for name, result in {**results, **indexes}.items():
        for mode in _modes_of(result):
            entry, spans = result[mode], result[mode]["interval"]
            measured = [number(entry[key], spans[key]) for key in ("ndcg@10", "recall@100", "mrr@10")]
            kept = number(entry.get("retention"), spans.get("retention"))
            rows.append((f"{name}, {mode}", f"{entry['n']:,}", *measured, kept, change(entry.get("difference"))))
    tables = [Table("Retention", header, rows)] if rows else []
    if not results:
        return Section("retrieval", "Retrieval", tables=tables)
    alt = "Bars of nDCG@10. " + " ".join(
        f"{name}: " + ", ".join(f"{mode} {result[mode]['ndcg@10']:.3f}" for mode in _modes_of(result)) + "."
        for name, result in results.items()
    )
    plot = Plot("retrieval", "nDCG@10 of the modes, with intervals.", alt, 3.0, figures.bars(results))
    text = START_NOTE if any(START in result for result in results.values()) else ""
    return Section("retrieval", "Retrieval", text, [plot], tables)


def _modes_of(result: Mapping[str, Any]) -> list[str]:
    """The modes that a data set's retrieval was measured in."""
    return [mode for mode in (*MODES, START) if mode in result]


def _profile_tables(key: str, results: Mapping[str, Any], variants: str) -> list[Table]:
    """A table for each data set; `variants` is the key of its dimensions or kinds of vectors."""
    tables = []
    for name, result in results.items():
        rows = []
        for variant, modes in sorted(result[variants].items(), key=_widest_first):
            size = f" ({modes['bytes']['query']}, {modes['bytes']['document']})" if "bytes" in modes else ""
            for mode in MODES:
                entry = modes[mode]
                rows.append(
                    (
                        f"{variant}{size}, {mode}",
                        f"{entry['n']:,}",
                        number(entry["ndcg@10"], entry["interval"]),
                        number(entry["share"], entry["share_interval"]),
                        change(entry.get("profile")),
                    )
                )
        header = (key, "n", "nDCG@10", "share of its own full", "share less teacher's")
        tables.append(Table(f"Figures of {name}", header, rows, folded=True))
    return tables


def _widest_first(variant: tuple[str, Any]) -> int:
    """Sorts dimensions, which are text in JSON, by number; kinds of vectors stay as they are."""
    return -int(variant[0]) if variant[0].isdigit() else 0


def _profile_plots(
    title: str, rows: Rows, variant: str, height: float, draw: Callable[[Rows], Callable[[Any], None]]
) -> list[Plot]:
    """A plot for each data set; `variant` is the column of dimensions or kinds of vectors."""
    plots = []
    for place, name in enumerate(dict.fromkeys(row["dataset"] for row in rows)):
        own_rows = [row for row in rows if row["dataset"] == name]
        shares = {mode: [row for row in own_rows if row["mode"] == mode and row["share"]] for mode in MODES}
        words = "; ".join(
            f"{mode} " + ", ".join(f"{row[variant]}: {float(row['share']):.3f}" for row in shares[mode])
            for mode in MODES
        )
        plots.append(Plot(f"{draw.__name__}-{place}", f"{name}: {title}", f"{title} {words}.", height, draw(own_rows)))
    return plots


def _truncation(results: Mapping[str, Any], rows: Rows) -> Section:
    text = (
        "Vectors cut to their first dimensions and, where compared by cosine, normalised again; each mode as a share "
        "of its own full width. Where the lines lie together, the student has inherited the teacher's profile. Bands "
        "are 95 % intervals."
    )
    plots = _profile_plots("share of nDCG@10 kept by dimensions.", rows, "dims", 3.2, figures.truncation)
    return Section("truncation", "Truncation", text, plots, _profile_tables("dimensions, mode", results, "dims"))


def _quantisation(results: Mapping[str, Any], rows: Rows) -> Section:
    text = (
        "Vectors of one byte (int8, ranges from training texts) or one bit (binary) a dimension, on the document side, "
        "the query side or both; rescored: the four times ten nearest by Hamming distance, ranked again with the "
        "float32 query. Each mode as a share of its own float32."
    )
    title = "share of nDCG@10 kept by kind of vector."
    plots = _profile_plots(title, rows, "variant", 4.6, figures.quantisation)
    key = "vectors (bytes of query, of document), mode"
    return Section("quantisation", "Quantisation", text, plots, _profile_tables(key, results, "variants"))


def _cost(costs: Mapping[str, Any]) -> Section:
    if not costs:
        return Section("cost", "Cost")
    rows = []
    for threads, turn in costs["threads"].items():
        for name in costs["models"]:
            measured = [number(turn[name][key]["value"], turn[name][key]["interval"], 1) for key in SPEED_FIGURES]
            rows.append((f"{name}, {threads} thread{'s' * (threads != '1')}", *measured))
        if "ratio" in turn:
            ratio = number(turn["ratio"]["value"], turn["ratio"]["interval"], 2)
            rows.append((f"student to teacher, {threads} thread{'s' * (threads != '1')}", ratio, "", ""))
    keys = ("model", *SPEED_FIGURES.values())
    sizes = [
        (
            name,
            f"{model['parameters']:,}",
            f"{model['bytes'] / 1e6:,.1f}",
            f"{model['resident_mib']:,.0f}",
            f"{model['libraries_mib']:,.0f}",
        )
        for name, model in costs["models"].items()
    ]
    alt = "; ".join(": ".join((row[0], row[1] + " texts a second")) for row in rows if row[2])
    alt += ". " + "; ".join(
        f"{row[0]}: {row[1]} parameters, {row[2]} MB on disk, {row[3]} MiB in memory" for row in sizes
    )
    caption = "Speed, latency and size of teacher and student on the machine of this run."
    text = (
        f"{costs['rounds']} turns of {costs['texts']:,} documents each, the models alternating, and "
        f"{costs['queries']:,} queries asked one at a time, tokenisation included."
    )
    if "left_out" in costs:
        text += f" Left out: {costs['left_out']}."
    return Section(
        "cost",
        "Cost",
        text,
        [Plot("cost", caption, alt + ".", 6.2, figures.cost(costs))],
        [
            Table("Speed", keys, rows),
            Table("Size", ("model", "parameters", "MB on disk", "MiB resident", "of it before loading"), sizes),
        ],
    )


def _tasks(evaluated: Mapping[str, Any]) -> Section:
    tables = []
    for kind, name, title in TASKS:
        rows = [
            (
                f"{task}, {mode}",
                f"{result[mode]['n']:,}",
                number(result[mode][name], result[mode]["interval"]),
                change(result[mode].get("difference")),
            )
            for task, result in evaluated.get(kind, {}).items()
            for mode in MODES
        ]
        if rows:
            tables.append(Table(title, ("task, mode", "n", name, "less teacher's"), rows))
    return Section("tasks", "Similarity, classification, clustering", tables=tables)


def _alignment(evaluated: Mapping[str, Any], rows: Rows) -> Section:
    plots, lines = [], []
    for role, entry in evaluated["alignment"].items():
        cosine, n = entry["cosine"], f"{entry['n']:,}"
        words = f"mean {cosine['mean']:.3f}, middle half {cosine['p25']:.3f} to {cosine['p75']:.3f}, n {n}"
        caption = f"Cosine of student to teacher, held-out {role} texts: {words}."
        plots.append(Plot(f"alignment-{role}", caption, f"Histogram: {words}.", 2.8, figures.alignment(rows, role)))
        quantiles = [number(cosine[key]) for key in ("p05", "p50", "p95")]
        lines.append((role, n, number(cosine["mean"], entry["interval"]), *quantiles, number(entry["l2"]["mean"])))
    tables = [Table("Alignment", ("role", "n", "mean cosine", "p05", "p50", "p95", "mean L2"), lines)] if lines else []
    if near := evaluated["neighbours"]:
        shares = [(mode, f"{near['queries']:,}", number(near[mode], near["interval"][mode])) for mode in MODES[1:]]
        caption = f"Share of the teacher's {near['k']} nearest documents found, of {near['documents']:,}"
        tables.append(Table(caption, ("mode", "n", "share"), shares))
    return Section("alignment", "Alignment", "", plots, tables)


def _map(rows: Rows) -> Section:
    if not rows:
        return Section("map", "Map")
    texts = len({row["text"] for row in rows})
    caption = "Teacher's and student's vectors on the teacher's first two principal components."
    alt = f"{texts} held-out texts, each a point of the teacher and one of the student, joined by a line."
    text = f"{texts} held-out texts. The shorter the lines, the closer the student."
    return Section("map", "Map", text, [Plot("map", caption, alt, 4.4, figures.embedding(rows))])


def _loss(fit: Mapping[str, Any], rows: Rows) -> Section:
    if not rows:
        return Section("loss", "Fit")
    ends = {
        split: float([row for row in rows if row["split"] == split][-1]["loss"])
        for split in sorted({r["split"] for r in rows})
    }
    words = ", ".join(f"{split} ends at {value:.4f}" for split, value in ends.items())
    plot = Plot(
        "loss",
        f"Loss by step: {words}.",
        f"Falling curves over {fit['steps']:,} steps: {words}.",
        3.0,
        figures.loss(rows),
    )
    heldout = [
        (name, number(fit["validation_at_start"].get(name), digits=4), number(value, digits=4))
        for name, value in fit["validation"].items()
    ]
    tables = [Table("Held-out texts", ("measure", "at the start", "at the end"), heldout)] if heldout else []
    curve = [(row["step"], row["split"], row["loss"]) for row in rows if row["split"] != "train"]
    if curve:
        tables.append(Table("Validation curve", ("step", "split", "loss"), curve, folded=True))
    return Section("loss", "Fit", "", [plot], tables)
