"""Every section of docs/sources.md gives the texts that it shows, in the real corpus stage."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml
from click.testing import CliRunner

from stages.corpus import main

DOCUMENT = Path(__file__).parents[2] / "docs/sources.md"
SHAPES = [
    "Pairs",
    "Triplets",
    "Sets",
    "A query with positives",
    "MS MARCO",
    "Tevatron",
    "SQuAD",
    "Natural",
    "FineWeb",
    "C4",
]


@dataclass(frozen=True)
class Example:
    """A section: its files, the program that makes others, the entries of `corpus.sources`, and the texts."""

    title: str
    files: dict[str, str]
    program: str
    entries: list[dict[str, Any]]
    texts: list[str]


def examples() -> list[Example]:
    found = []
    for section in re.split(r"^## ", DOCUMENT.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]:
        blocks = re.findall(r"^```(\w+) ?(.*?)\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
        by_language = {language: content for language, name, content in blocks if not name}
        found.append(
            Example(
                title=section.partition("\n")[0],
                files={name: content for _, name, content in blocks if name},
                program=by_language.get("python", ""),
                entries=yaml.safe_load(by_language["yaml"]),
                texts=by_language["text"].splitlines(),
            )
        )
    return found


def test_the_public_record_shapes_all_have_an_example() -> None:
    titles = [example.title for example in examples()]
    assert [shape for shape in SHAPES if not any(title.startswith(shape) for title in titles)] == []


@pytest.mark.parametrize("example", examples(), ids=lambda example: example.title)
def test_an_example_of_the_document_gives_the_texts_it_shows(
    example: Example, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if any("passages" in entry for entry in example.entries):
        pytest.importorskip("semantic_text_splitter", reason="`semantic-text-splitter` (extra `passages`) is missing")
    monkeypatch.chdir(tmp_path)
    sources = Path("data/sources")
    sources.mkdir(parents=True)
    for name, content in example.files.items():
        (sources / name).write_text(content, encoding="utf-8")
    exec(compile(example.program, example.title, "exec"), {})
    section = {"sources": example.entries, "heldout": 0.0, "min_characters": 1}
    Path("params.yaml").write_text(yaml.safe_dump({"corpus": section}), encoding="utf-8")
    result = CliRunner().invoke(main, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    rows = pl.read_parquet("data/corpus/*.parquet").select("id", "role", "text").iter_rows()
    assert sorted(" ".join(row) for row in rows) == sorted(example.texts)
