"""The report, also in a real browser if one is installed."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from pipeline.base.errors import LeafError
from pipeline.evaluate import plots
from pipeline.evaluate.evaluation import evaluate
from pipeline.evaluate.moved_queries import overlap
from pipeline.params.sections import EvaluateParams
from pipeline.report.page import Sources, render
from tests.conftest import corpus_frame
from tests.unit.test_evaluate import DIM, bag_of_words, blurred, teacher_vectors, write_store
from tests.unit.test_tasks import labelled, pairs

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()
FIGURES = {
    "retrieval",
    "truncation-0",
    "quantisation-0",
    "cost",
    "alignment-query",
    "alignment-document",
    "map",
    "loss",
}

PARAMS = """
# a comment about SECRET-PLACE
corpus:
  sources:
    - {name: faq, kind: jsonl, path: /home/SECRET-PLACE/faq.jsonl}
    - {name: web, kind: huggingface, path: lab/texts, passages: {tokens: 99, tokenizer: ~/SECRET-PLACE/counter}}
    - {name: notes, kind: text, path: "data/sources/*.txt"}
teacher:
  model: ../SECRET-PLACE/large-model
  prompts: {query: "/search: "}
  api: {base_url: "https://SECRET-PLACE.example/v1", key_env: MY_API_KEY}
encode: {reuse: ["s3://SECRET-PLACE/embeddings", data/../../SECRET-PLACE/store], pool: /mnt/SECRET-PLACE/pool}
fit:
  student: {model: tiny-student}
  note: '<i>&'
evaluate: {beir: [/srv/SECRET-PLACE/fiqa], sts: [~/SECRET-PLACE/sts.csv], classification: [./SECRET-PLACE/c.csv]}
of_somebody_else: SECRET-PLACE
"""


def speed(scale: float) -> dict[str, Any]:
    def figure(value: float) -> dict[str, Any]:
        return {"value": value, "n": 3, "interval": [value * 0.9, value * 1.1]}

    rates = {
        "latency_p50_ms": figure(5 / scale),
        "latency_p95_ms": figure(8 / scale),
        "texts_per_s": figure(90 * scale),
    }
    return {"teacher": rates, "student": rates, "ratio": figure(1.0)}


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Sources:
    """The results of a run, measured by the project's own code on a tiny corpus."""
    root = tmp_path_factory.mktemp("run")
    (root / "corpus").mkdir()
    frame = corpus_frame(400)
    hostile = "<script>alert(1)</script> & <b>read</b> file"
    texts = frame["text"].to_list()
    texts[frame["split"].to_list().index("heldout")] = hostile
    frame = frame.with_columns(pl.Series("text", texts))
    frame.write_parquet(root / "corpus" / "part-00000.parquet")
    store = write_store(frame, root)
    files: dict[str, Any] = {
        "sts": (str(pairs(root / "pairs.csv")),),
        "classification": (str(labelled(root / "kinds.csv", split=True)),),
        "clustering": (str(root / "kinds.csv"),),
    }
    result = evaluate(
        root / "corpus",
        store,
        blurred,
        teacher_vectors,
        EvaluateParams(bootstrap=50, dims=(8, 4), **files),
        start=bag_of_words,
    )
    (root / "metrics").mkdir()
    plots.write(result, root / "plots")
    curve = [f"{step},train,{1 / step}\n" for step in range(1, 60)] + ["20,validation,0.5\n", "59,validation,0.3\n"]
    (root / "plots" / "fit_loss.csv").write_text("step,split,loss\n" + "".join(curve))
    size = {"parameters": 1000, "bytes": 4000, "resident_mib": 500.0, "libraries_mib": 300.0}
    costs = {
        "texts": 8,
        "queries": 4,
        "rounds": 3,
        "threads": {"1": speed(1), "2": speed(2)},
        "models": {"teacher": size, "student": size},
    }
    fit = {
        "loss": "l2",
        "parameters": 1000,
        "presentations": 5000,
        "steps": 59,
        "validation": {"loss": 0.3},
        "validation_at_start": {"loss": 0.9},
    }
    corpus = {"total": 400, "splits": {"heldout": 40}, "rows": {"tiny": {"query": {"train": 180, "heldout": 20}}}}
    for name, figures in {"evaluate": result.figures, "cost": costs, "fit": fit, "corpus": corpus}.items():
        (root / "metrics" / f"{name}.json").write_text(json.dumps(figures, sort_keys=True))
    (root / "params.yaml").write_text(PARAMS)
    return Sources(root / "params.yaml", store.path / "store.json", root / "metrics", root / "plots")


@pytest.fixture(scope="module")
def page(sources: Sources) -> str:
    return render(sources)


def test_the_page_holds_every_figure_table_and_the_run(page: str) -> None:
    assert set(re.findall(r'<figure id="figure-([^"]+)"', page)) == FIGURES
    assert "tiny, start" in page and "The untouched checkpoint keeps" in page
    for words in ("Retention", "Spearman", "accuracy", "v_measure", "tiny-student", "ab" * 32, "Moved rankings"):
        assert words.lower() in page.lower(), words
    assert re.search(r"student keeps [\d.]+% \[[\d.]+%,\s[\d.]+%\] of the teacher", page)
    places = [page.index(f"{dims}, teacher") for dims in (DIM, 8, 4)]
    assert places == sorted(places)  # by number: JSON has them as text
    assert page.count('<article class="moved">') == 20
    assert page.count('role="img" aria-labelledby') == len(FIGURES)
    assert "unresolved" in page


def test_speeds_stand_under_their_own_heads(page: str) -> None:
    heads = page[page.index("texts a second</th>") :]
    assert heads.index("texts a second") < heads.index("latency p50") < heads.index("latency p95")
    row = re.search(r"teacher, 1 thread</th>(.*?)</tr>", page)
    assert row is not None
    assert re.findall(r'<td class="n">([\d.]+)', row[1]) == ["90.0", "5.0", "8.0"]


def test_nothing_is_fetched_and_texts_are_not_markup(page: str) -> None:
    assert not re.findall(r'(?:src|href)="(?!#|data:)[^"]*"', page)
    assert "<script" not in page and "@import" not in page and "<i>&" not in page
    assert "default-src 'none'" in page


def test_parameters_are_shown_without_places_of_this_machine_and_of_buckets(page: str) -> None:
    assert "SECRET-PLACE" not in page
    shown = page[page.index("<summary>Parameters") :]
    for kept in ("faq.jsonl", "lab/texts", "data/sources/*.txt", "large-model", "/search: ", "https://...", "s3://..."):
        assert kept in shown, kept
    for kept in ("MY_API_KEY", "store", "pool", "fiqa", "sts.csv", "c.csv", "tokens: 99", "counter"):
        assert kept in shown, kept


def test_the_same_results_give_the_same_bytes(page: str, sources: Sources) -> None:
    assert render(sources) == page


def test_ids_are_unique_and_every_reference_resolves(page: str) -> None:
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    named = re.findall(r'(?:url\(#|href="#|labelledby=")([^")]+)', page)
    assert {name for names in named for name in names.split()} <= set(ids)


def test_a_missing_result_is_named(sources: Sources, tmp_path: Path) -> None:
    with pytest.raises(LeafError, match=r"cost\.json: cannot be read .* run `dvc repro`"):
        render(Sources(sources.params, sources.store, _copy_without(sources.metrics, tmp_path, "cost"), sources.plots))


def _copy_without(directory: Path, to: Path, name: str) -> Path:
    shutil.copytree(directory, to / "metrics")
    (to / "metrics" / f"{name}.json").unlink()
    return to / "metrics"


def test_without_costs_retrieval_and_curves_there_is_a_page_all_the_same(sources: Sources, tmp_path: Path) -> None:
    (tmp_path / "plots").mkdir()
    for file in sources.plots.glob("*.csv"):
        (tmp_path / "plots" / file.name).write_text(file.read_text().splitlines()[0] + "\n")
    (tmp_path / "plots" / "moved.json").write_text("[]")
    metrics = _copy_without(sources.metrics, tmp_path, "cost")
    (metrics / "cost.json").write_text("{}")
    (metrics / "evaluate.json").write_text(json.dumps({"alignment": {}, "neighbours": {}, "retrieval": {}}))
    page = render(Sources(sources.params, sources.store, metrics, tmp_path / "plots"))
    assert "<figure" not in page and "no held-out queries" in page


def test_average_overlap_counts_the_top_most() -> None:
    import numpy as np

    first = np.array([[1, 2, 3, 4]])
    assert overlap(first, first)[0] == 1
    assert overlap(first, first + 10)[0] == 0
    top, bottom = (overlap(first, np.array([other]))[0] for other in ([9, 2, 3, 4], [1, 2, 3, 9]))
    assert top < bottom < 1


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    if CHROMIUM is None:
        pytest.skip("needs Chromium (apt-get install chromium)")
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield started
        started.close()


@pytest.mark.long
@pytest.mark.parametrize("width", [360, 1200])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_browser_shows_every_figure_without_errors_or_sideways_scrolling(
    browser: Any, page: str, tmp_path: Path, width: int, scheme: str
) -> None:
    file = tmp_path / "report.html"
    file.write_text(page, encoding="utf-8")
    tab = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
    messages: list[str] = []
    requests: list[str] = []
    tab.on("console", lambda message: messages.append(message.text))
    tab.on("pageerror", lambda error: messages.append(str(error)))
    tab.on("request", lambda request: requests.append(request.url))
    tab.goto(file.as_uri())
    for details in tab.query_selector_all("details"):
        details.evaluate("element => element.open = true")
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    assert messages == [] and requests == [file.as_uri()]
    drawn = {figure.get_attribute("id"): figure.query_selector("svg") for figure in tab.query_selector_all("figure")}
    assert set(drawn) == {f"figure-{name}" for name in FIGURES}
    for name, svg in drawn.items():
        box = svg.bounding_box()
        assert box["width"] > 0.7 * min(width, 400) and box["height"] > 100, name
        assert _colours(svg.screenshot()) > 8, name
    paper, ink = (tab.evaluate(f"getComputedStyle(document.body).{name}") for name in ("backgroundColor", "color"))
    assert _contrast(paper, ink) > 7
    for variable in ("teacher", "standard", "asymmetric", "query", "document", "soft", "link"):
        colour = tab.evaluate(
            "name => { const mark = document.createElement('i'); mark.style.color = `var(--${name})`;"
            "document.body.append(mark); const colour = getComputedStyle(mark).color; mark.remove(); return colour }",
            variable,
        )
        assert _contrast(paper, colour) > 4.5, variable
    tab.close()


@pytest.mark.long
def test_on_paper_the_page_is_light_and_whole(browser: Any, page: str, tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    file.write_text(page, encoding="utf-8")
    tab = browser.new_page(color_scheme="dark")
    tab.goto(file.as_uri())
    assert len(tab.pdf()) > 20_000
    tab.emulate_media(media="print", color_scheme="dark")
    assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert not tab.is_visible("nav")
    tab.close()


def _colours(png: bytes) -> int:
    """The number of colours in a picture; 1 if it is empty."""
    import io

    from PIL import Image

    return len(Image.open(io.BytesIO(png)).convert("RGB").getcolors(1 << 24) or [])


def _contrast(first: str, second: str) -> float:
    """WCAG's contrast ratio of two `rgb(...)` colours."""

    def luminance(colour: str) -> float:
        parts = [int(value) / 255 for value in re.findall(r"\d+", colour)[:3]]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)
