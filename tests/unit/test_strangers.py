"""What other people's texts, names, parameters and files may not do: to a terminal, to memory, to time."""

import ast
import json
import logging
import re
import subprocess
import sys
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import polars as pl
import pytest
from click.testing import CliRunner
from markdown_it import MarkdownIt

from pipeline.base import (
    LeafError,
    code_span,
    markdown,
    parse_yaml,
    printable,
    quoted,
    shortened,
    string_literal,
)
from pipeline.corpus.readers.source import batches
from pipeline.params import FitParams, SourceParams, load_section
from pipeline.store import Store
from pipeline.store.shard_cache import ShardCache
from stages.common import command, echo
from tests.conftest import ROOT
from tests.store_helpers import META, rows, vectors

ESCAPES = "\x1b]52;c;aGk=\x07 \x1b[2J \x9b31m \u202egnp.exe \ud83d \r over"
MEGABYTE = 10**6


def bomb(levels: int = 9, width: int = 9) -> str:
    """Lists of lists by aliases: width ** levels values in a few hundred characters."""
    lines = ["a0: &a0 [x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * width)}]" for i in range(1, levels)]
    return "\n".join([*lines, "fit:", f"  loss: *a{levels - 1}", "  student: {model: m}"])


def peak_of(work: object) -> int:
    """The most bytes that Python held while `work()` ran."""
    assert callable(work)
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_what_a_terminal_would_obey_is_shown_and_ordinary_writing_stays() -> None:
    assert printable(ESCAPES) == (r"\u001b]52;c;aGk=\u0007 \u001b[2J \u009b31m \u202egnp.exe \ud83d \u000d over")
    ordinary = "Zürich, 東京, می‌خواهم, 👩‍🔬\tand\na new line"
    assert printable(ordinary) == ordinary


def test_json_for_machines_means_the_same_after_escaping() -> None:
    document = {"text": "\x9b2J \u2028 \U000e0041 \x7f", "name": "ü"}
    assert json.loads(printable(json.dumps(document, ensure_ascii=False))) == document


def test_errors_and_logs_of_any_library_show_escapes_instead_of_sending_them(caplog: pytest.LogCaptureFixture) -> None:
    assert str(LeafError(f"{ESCAPES} is missing")) == f"{printable(ESCAPES)} is missing"

    @command
    def stage() -> None:
        logging.getLogger("any.library").warning("the model says %s", ESCAPES)
        echo(ESCAPES)
        raise LeafError(ESCAPES)

    factory = logging.getLogRecordFactory()
    try:
        done = CliRunner().invoke(stage, [])
    finally:
        logging.setLogRecordFactory(factory)
    assert done.output.count(printable(ESCAPES)) == 2
    assert caplog.messages == [printable(f"the model says {ESCAPES}")]
    assert "\x1b" not in done.output + caplog.text


def test_a_message_is_cut_however_long_what_it_quotes() -> None:
    assert len(str(LeafError("x" * 10**6))) < 11_000
    assert len(quoted("x" * 10**6)) == 60
    assert quoted([1 << 10**6]) == "[a number of 1,000,001 bits]"


def test_aliases_that_stand_for_billions_are_refused_in_little_memory(tmp_path: Path) -> None:
    file = tmp_path / "params.yaml"
    file.write_text(bomb())

    def load() -> None:
        with pytest.raises(LeafError, match=f"{file}: its aliases stand for more than 1,000,000 values"):
            load_section(file, "fit", FitParams)

    assert peak_of(load) < 5 * MEGABYTE


def test_aliases_below_the_limit_are_quoted_in_little_memory(tmp_path: Path) -> None:
    file = tmp_path / "params.yaml"
    file.write_text(bomb(levels=6))  # of tens of thousands of values

    def load() -> None:
        with pytest.raises(LeafError, match=r"fit\.loss: .{1,80}\(list\) is impossible"):
            load_section(file, "fit", FitParams)

    assert peak_of(load) < 5 * MEGABYTE


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("&a [*a]", "nested too deeply, or holds itself"),
        ("[" * 5000, "nested too deeply"),
        ("d: 2024-99-99", "is not YAML: month must be in 1..12"),
        ("n: " + "9" * 5000, "is not YAML: Exceeds the limit"),
        ("a: \0", "is not YAML: unacceptable character #x0000"),
        ("a: [1", "is not YAML: expected ',' or ']'"),
        ("a: !!python/object/apply:os.system [id]", "is not YAML: could not determine a constructor"),
        ("<<: &a {<<: [" + ", ".join(["{b: 1}"] * 3) + "]}\nc: *a", None),
    ],
)
def test_yaml_that_cannot_be_read_is_one_sentence(text: str, reason: str | None) -> None:
    if reason is None:
        assert parse_yaml(text) == {"b": 1, "c": {"b": 1}}
        return
    with pytest.raises(LeafError, match=reason):
        parse_yaml(text)


def test_an_expression_for_ids_needs_no_more_time_than_the_ids_are_long(tmp_path: Path) -> None:
    file = tmp_path / "texts.jsonl"
    file.write_text(json.dumps({"id": "a" * 5000 + "!", "text": "a text"}) + "\n")
    source = SourceParams("s", "jsonl", str(file), role="query", id_field="id", id_suffix="(a+)+$")
    script = f"""
from pipeline.corpus.readers.source import batches
from pipeline.params import SourceParams
print(sum(map(len, batches({source!r}))))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "1\n"


@pytest.mark.parametrize(
    ("suffix", "reason"),
    [(r"(a)\1", "backreferences are not supported"), ("(?=a)", "look-around"), ("((a{999}){999}){999}", "size limit")],
)
def test_an_expression_that_could_run_away_is_refused_with_the_reason(suffix: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("a text\n")
    with pytest.raises(LeafError, match=f"`s`: id_suffix .* is no regular expression .*{reason}"):
        list(batches(SourceParams("s", "text", str(tmp_path / "t.txt"), role="query", id_suffix=suffix)))


NAMES = [
    "<img src=x onerror=alert(1)>",
    'm")\nimport os; os.system("id") #',
    "a|b\n\n# Not a heading\n```python\nprint()",
    "[click](https://elsewhere.example) ![x](//elsewhere.example/p.png) https://elsewhere.example me@elsewhere.example",
    "`code` **bold** _slanted_ ~~gone~~ $x^2$ &lt; \\",
    "\x1b]0;title\x07\u202e",
    "n" * 5000,
]
ORDINARY = [
    "lab/small_model-v2.1",
    "Apache-2.0",
    "LicenseRef-not-stated AND CC-BY-4.0",
    "東京/モデル",
    "a (b) 'c' #1 + 50%",
]


def rendered(text: str) -> list[Any]:
    """The tokens of Markdown with HTML, tables and automatic links."""
    return MarkdownIt("commonmark", {"html": True, "linkify": False}).enable(["table", "strikethrough"]).parse(text)


def shown(tokens: list[Any]) -> str:
    return "".join(shown(token.children) if token.children else token.content for token in tokens)


@pytest.mark.parametrize("name", NAMES + ORDINARY)
def test_a_name_in_markdown_is_text_and_nothing_else(name: str) -> None:
    for document in (
        f"# {markdown(name)}",
        f"about **{markdown(name)}** here",
        f"| x | y |\n|---|---|\n| {markdown(name)} | 1 |",
    ):
        tokens = rendered(document)
        kinds = {inner.type for token in tokens for inner in [token, *(token.children or [])]}
        assert kinds <= {
            *("heading_open", "heading_close", "paragraph_open", "paragraph_close", "inline", "text", "text_special"),
            *("strong_open", "strong_close"),
            *(f"{part}_{end}" for part in ("table", "thead", "tbody", "tr", "th", "td") for end in ("open", "close")),
        }
        assert shortened(name) in shown(tokens)
        assert kinds & {"td_open"} == set() or sum(token.type == "td_open" for token in tokens) == 2
    assert name in markdown(name) or name in NAMES  # ordinary names stay as they are
    assert len(markdown(name)) < 1500 and "\n" not in markdown(name) and "\x1b" not in markdown(name)
    assert not re.search(r"(?<!&#58;)//elsewhere|\w@\w|://", markdown(name).replace("(//", ""))  # automatic links


@pytest.mark.parametrize("prompt", [*NAMES, "query: ", "``a` b", ""])
def test_a_prompt_as_code_stays_code(prompt: str) -> None:
    tokens = rendered(f"| x |\n|---|\n| the prompt {code_span(prompt)} |")
    (cell,) = [token for token in tokens if token.type == "inline" and token.content.startswith("the prompt")]
    kinds = [child.type for child in cell.children]
    assert kinds == ["text", "code_inline"]
    assert cell.children[1].content.strip() == shortened(prompt, 500).strip()


@pytest.mark.parametrize("name", NAMES)
def test_a_name_in_python_code_is_a_string(name: str) -> None:
    (statement,) = ast.parse(f"model = SentenceTransformer({string_literal(name)})").body
    assert isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Call)
    (argument,) = statement.value.args
    assert isinstance(argument, ast.Constant) and argument.value == name
    assert "\n" not in string_literal(name) and "\x1b" not in string_literal(name)


def test_the_readme_of_a_store_quotes_what_its_makers_called_things(tmp_path: Path) -> None:
    teacher = {"model": NAMES[0], "license": NAMES[3], "prompts": {"query": "``` <b>"}}
    described = replace(META, teacher=teacher, license=NAMES[2])
    with ShardCache(tmp_path / "pool", described) as cache:
        cache.write(rows(0, 3).with_columns(source=pl.lit(NAMES[4])), vectors(0, 3))
        store = cache.publish(tmp_path / "store", cache.keys())
    tokens = rendered((store.path / "README.md").read_text())
    inner = [child for token in tokens for child in [token, *(token.children or [])]]
    assert not {child.type for child in inner} & {"html_inline", "html_block", "link_open", "image"}
    fences = [token.content for token in tokens if token.type == "fence"]
    assert len(fences) == 2 and all(ast.parse(fence) for fence in fences)


def test_a_figure_shows_a_name_with_dollars_and_control_characters(tmp_path: Path) -> None:
    from pipeline.evaluate import plots
    from pipeline.report import figures

    modes = ("teacher", "standard", "asymmetric")
    result = {mode: {"ndcg@10": 0.5, "interval": {"ndcg@10": None}, "retention": None} for mode in modes}
    retrieval = {"price $x^{ $": result, "\x1b[2J\x00": result, "n" * 3000: result}
    plots._draw_picture(retrieval, [], {}, tmp_path / "plot.svg")
    text = (tmp_path / "plot.svg").read_text()
    ElementTree.fromstring(text)  # is XML
    page = figures.draw("retrieval", "title", "alt", 3.0, figures.bars(retrieval))
    for drawn in (text, page):
        assert "price $x^{ $" in drawn and "n" * 40 not in drawn


def test_every_line_that_a_stage_prints_goes_through_one_function() -> None:
    for file in sorted((ROOT / "stages").glob("*.py")):
        calls = re.findall(r"\b(?:click\.s?echo|print)\(", file.read_text())
        assert len(calls) == (file.name == "common.py"), f"{file.name}: use stages.common.echo"


def test_a_manifest_of_tiny_values_is_refused_before_it_takes_memory(tmp_path: Path) -> None:
    (tmp_path / "store.json").write_bytes(b'{"shards": [' + b"[]," * 5_000_000 + b"[]]}")

    def read() -> None:
        with pytest.raises(LeafError, match="holds more than 4,000,000 values"):
            Store.open(tmp_path)

    assert peak_of(read) < 20 * MEGABYTE


def test_the_reports_page_may_load_send_and_resolve_nothing() -> None:
    page = (ROOT / "pipeline/report/templates/report.html").read_text()
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', page)
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert {rules[name] for name in ("default-src", "base-uri", "form-action")} == {"'none'"}
    assert set(rules) == {"default-src", "style-src", "img-src", "base-uri", "form-action"}
