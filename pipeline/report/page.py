"""The report, `reports/report.html`: a self-contained page made of the files of the other stages. Loads no model."""

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from pipeline.base import LeafError, access, parse_yaml
from pipeline.params import public_name, public_params
from pipeline.report import figures
from pipeline.report.content import Section, sections

PARAMS = ("corpus", "teacher", "encode", "fit", "evaluate")
"""The sections of params.yaml that the report shows."""

TABLES = ("alignment", "truncation", "quantisation", "map")


@dataclass(frozen=True)
class Sources:
    """The files of a run that the report reads."""

    params: Path
    store: Path
    metrics: Path
    """Directory of corpus.json, fit.json, evaluate.json, cost.json."""
    plots: Path
    """Directory of fit_loss.csv and the files of `evaluate.plots.write`."""


def render(sources: Sources) -> str:
    """The page, in HTML. Equal inputs give equal bytes with the same matplotlib.

    Raises:
        LeafError: a file is missing or cannot be read; says which stage makes it.
    """
    metrics = {name: _read_json(sources.metrics / f"{name}.json") for name in ("corpus", "fit", "evaluate", "cost")}
    tables = {name: _read_csv(sources.plots / f"{name}.csv") for name in (*TABLES, "fit_loss")}
    store, moved = _read_json(sources.store), _read_json(sources.plots / "moved.json")
    params = _sections(sources.params)
    try:
        student = public_name(params["fit"]["student"]["model"])
        drawn = [_draw(section) for section in sections(metrics, tables)]
        run, corpus = _run_facts(store, metrics, student), _corpus_table(metrics["corpus"])
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise LeafError(
            f"the results in {sources.metrics} and {sources.plots} do not fit together ({type(error).__name__}: "
            f"{error}): run `dvc repro -f evaluate`"
        ) from error
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(
        files("pipeline.report").joinpath("templates/report.html").read_text(encoding="utf-8")
    )
    return template.render(
        teacher=public_name(str(store["teacher"].get("model", "an unnamed teacher")))
        + (" (unverified vectors)" if store["teacher"].get("unverified") else ""),
        student=f"A student from {student}",
        sections=drawn,
        moved=moved,
        run=run,
        corpus=corpus,
        params=yaml.safe_dump(public_params(params), sort_keys=False, allow_unicode=True, width=100).strip(),
    )


def _draw(section: Section) -> dict[str, Any]:
    """The section's fields, its figures as SVG."""
    drawn = [
        {
            "name": plot.name,
            "caption": plot.caption,
            "svg": Markup(figures.draw(plot.name, plot.caption, plot.alt, plot.height, plot.plot)),
        }
        for plot in section.figures
    ]
    return {**vars(section), "figures": drawn}


def _run_facts(store: Mapping[str, Any], metrics: Mapping[str, Any], student: str) -> list[tuple[str, str]]:
    fit, teacher = metrics["fit"], store["teacher"]
    prompts = {role: prompt for role, prompt in sorted(teacher.get("prompts", {}).items()) if prompt}
    return [
        ("Teacher", f"{public_name(str(teacher.get('model')))}, {store['dim']} dimensions"),
        ("Prompts", json.dumps(prompts, ensure_ascii=False) if prompts else "none"),
        ("Fingerprint", store["fingerprint"]),
        ("Store", f"{store['rows']:,} vectors, {store['dtype']}, {store['bytes'] / 1e6:,.1f} MB"),
        ("Student", f"from {student}, {fit['parameters']:,} parameters"),
        ("Fit", f"{fit['presentations']:,} texts in {fit['steps']:,} steps, loss {fit['loss']}"),
        ("Corpus", f"{metrics['corpus']['total']:,} texts, {metrics['corpus']['splits'].get('heldout', 0):,} held out"),
    ]


def _corpus_table(corpus: Mapping[str, Any]) -> dict[str, Any]:
    rows = [
        (source, role, f"{splits.get('train', 0):,}", f"{splits.get('heldout', 0):,}")
        for source, roles in sorted(corpus["rows"].items())
        for role, splits in sorted(roles.items())
    ]
    return {
        "caption": "Texts of the corpus",
        "header": ("source", "role", "train", "held out"),
        "rows": rows,
        "numeric": False,
    }


def _sections(path: Path) -> dict[str, Any]:
    """The sections that made the run, which are those that the stage depends on in dvc.yaml."""
    try:
        document = parse_yaml(_read_text(path))
    except LeafError as error:
        raise LeafError(f"{path}: {error}") from None
    if not isinstance(document, dict):
        raise LeafError(f"{path}: has no sections")
    return {name: document[name] for name in PARAMS if name in document}


def _read_text(path: Path) -> str:
    try:
        with access():
            return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise LeafError(f"{path}: cannot be read ({error}); run `dvc repro`, which makes it") from None


def _read_json(path: Path) -> Any:
    try:
        return json.loads(_read_text(path))
    except ValueError as error:
        raise LeafError(f"{path}: not JSON ({error}); run `dvc repro -f` for the stage that makes it") from None


def _read_csv(path: Path) -> Sequence[Mapping[str, str]]:
    lines: Iterable[str] = _read_text(path).splitlines()
    return list(csv.DictReader(lines))
