"""Readers of sources: the texts that each kind makes of its files."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

import polars as pl
import pytest

from pipeline.base.errors import LeafError
from pipeline.corpus.build import build
from pipeline.corpus.parts import scan
from pipeline.corpus.readers import docstrings, parquet, records
from pipeline.corpus.readers.markdown import sections
from pipeline.corpus.readers.source import READERS, batches
from pipeline.params.sections import CorpusParams, PassageParams, SourceParams, ViewParams

Rows = list[tuple[str, str | None, str]]


def read(**fields: Any) -> Rows:
    named: dict[str, Any] = {key: str(v) if isinstance(v, Path) else v for key, v in fields.items()}
    source = SourceParams(name="s", **named)
    return [row for frame in batches(source) for row in frame.select("id", "text", "role").iter_rows()]


def test_every_kind_of_source_has_a_reader() -> None:
    assert set(READERS) == set(get_args(get_type_hints(SourceParams)["kind"]))


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    file = tmp_path / "pairs.parquet"
    pl.DataFrame({"n": [7, 8], "q": ["what", "why"], "d": ["this", None]}).write_parquet(file)
    return file


def test_a_record_with_two_fields_gives_a_query_and_a_document_of_one_id(pairs: Path) -> None:
    rows = read(kind="parquet", path=pairs, id_field="n", query_field="q", document_field="d")
    assert rows == [
        ("7", "what", "query"),
        ("7", "this", "document"),
        ("8", "why", "query"),
        ("8", None, "document"),
    ]


def test_one_of_the_two_fields_may_stand_alone(pairs: Path) -> None:
    assert read(kind="parquet", path=pairs, document_field="d") == [("0", "this", "document"), ("1", None, "document")]


def test_without_an_id_field_ids_are_row_numbers_that_run_on_over_files_and_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet, "BATCH_ROWS", 2)
    for name in "ba":
        pl.DataFrame({"text": [name] * 3}).write_parquet(tmp_path / f"{name}.parquet")
    rows = read(kind="parquet", path=tmp_path / "*.parquet", role="query")
    assert [(number, text) for number, text, _ in rows] == list(zip("012345", "aaabbb", strict=True))


def test_a_suffix_is_removed_from_ids_so_that_a_query_meets_its_document(tmp_path: Path) -> None:
    file = tmp_path / "x.parquet"
    pl.DataFrame({"id": ["a", "a/q"], "text": ["long", "short"], "role": ["document", "query"]}).write_parquet(file)
    rows = read(kind="parquet", path=file, id_field="id", role_field="role", id_suffix="/q$")
    assert rows == [("a", "long", "document"), ("a", "short", "query")]


def test_labels_stored_as_categories_are_read(tmp_path: Path) -> None:
    file = tmp_path / "x.parquet"
    frame = pl.DataFrame({"text": ["one", "two"], "role": ["query", "document"]})
    frame.with_columns(pl.col("role").cast(pl.Categorical)).write_parquet(file)
    assert [role for _, _, role in read(kind="parquet", path=file, role_field="role")] == ["query", "document"]


def test_jsonl_takes_numbers_as_ids_and_skips_blank_lines(tmp_path: Path) -> None:
    file = tmp_path / "x.jsonl"
    file.write_text('{"id": 5, "text": "é"}\n\n{"id": "b", "text": null}\n')
    assert read(kind="jsonl", path=file, role="query", id_field="id") == [("5", "é", "query"), ("b", None, "query")]


def test_csv_fields_in_quotes_may_hold_commas_and_line_ends(tmp_path: Path) -> None:
    file = tmp_path / "x.csv"
    file.write_bytes(b'\xef\xbb\xbftext,id\r\n"a, ""b""\nc",1\r\n\r\nd,2\r\n')
    rows = read(kind="csv", path=file, role="query", id_field="id")
    assert rows == [("1", 'a, "b"\nc', "query"), ("2", "d", "query")]


def test_a_quote_in_tsv_is_a_letter(tmp_path: Path) -> None:
    file = tmp_path / "x.tsv"
    file.write_text('id\ttext\n1\t"open\n2\tclose"\n')
    assert [text for _, text, _ in read(kind="tsv", path=file, role="query")] == ['"open', 'close"']


def test_plain_text_is_read_by_line_or_by_paragraph(tmp_path: Path) -> None:
    file = tmp_path / "x.txt"
    file.write_text("one\ntwo\n\n \nthree")
    lines = read(kind="text", path=file, role="document")
    assert [(number, (text or "").strip()) for number, text, _ in lines] == [
        ("0", "one"),
        ("1", "two"),
        ("2", ""),
        ("3", ""),
        ("4", "three"),
    ]
    paragraphs = read(kind="text", path=file, role="document", unit="paragraph")
    assert paragraphs == [("0", "one\ntwo\n", "document"), ("1", "three", "document")]


def ids(path: Path, kind: str) -> list[str]:
    return [str(identifier) for identifier, _, _ in read(kind=kind, path=path, role="document")]


@pytest.mark.parametrize(("kind", "end"), [("markdown", "md"), ("text", "txt")])
def test_a_file_that_is_added_leaves_the_ids_of_the_others_alone(kind: str, end: str, tmp_path: Path) -> None:
    (tmp_path / "notes/deep").mkdir(parents=True)
    for name in ("b", "deep/c"):
        (tmp_path / f"notes/{name}.{end}").write_text("# One\n\ntext one\n\n# Two\n\ntext two\n")
    before = ids(tmp_path / "notes", kind)
    assert {name.partition("#")[0] for name in before} == {f"b.{end}", f"deep/c.{end}"}
    assert len(set(before)) == len(before)
    (tmp_path / f"notes/a.{end}").write_text("# Zero\n\ntext\n")
    assert set(before) < set(ids(tmp_path / "notes", kind))
    assert sorted(ids(tmp_path / f"*/**/*.{end}", kind)) == sorted(
        f"notes/{name}" for name in ids(tmp_path / "notes", kind)
    )


def markdown(text: str) -> dict[str, str]:
    """Title and text of each section, by its anchor."""
    return {section.anchor: f"{section.title}|{section.text}" for section in sections(text.splitlines(keepends=True))}


def test_headings_of_markdown_are_the_titles_of_what_stands_beneath_them() -> None:
    assert markdown("# A #\n## B\n\none\n\n### C [l](u) `x`\ntwo\n## D {#own .note}\nthree\n# E\n\n## B\nfour\n") == {
        "b": "A > B|one",
        "c-l-x": "A > B > C l x|two",
        "own": "A > D|three",
        "b-1": "E > B|four",
    }
    assert markdown("Old\r\n===\r\none\r\n\r\nstyle\r\n---\r\ntwo") == {"old": "Old|one", "style": "Old > style|two"}
    assert markdown("one\n\n---\n\n- item\n---\n#tag\n") == {"": "|one\n\n---\n\n- item\n---\n#tag"}


@pytest.mark.parametrize(
    ("opening", "other", "closing"),
    [
        ("```sh", "~~~", "```"),
        ("~~~~", "~~~", "~~~~~"),
        ("  ```", "```sh", "  ```"),
        ("- ```", "``", "  ```"),
    ],
)
def test_fenced_code_stays_within_its_section(opening: str, other: str, closing: str) -> None:
    code = f"{opening}\n# no heading\n\nNor this\n====\n{other}\n{closing}"
    assert markdown(f"# A\n{code}\n# B\nafter") == {"a": f"A|{code}", "b": "B|after"}


def test_headings_that_are_repeated_have_anchors_of_their_own() -> None:
    text = "# A\none\n# A\ntwo\n# A-1\nthree\n# A\nfour\n# ...\nfive\n"
    assert list(markdown(text)) == ["a", "a-1", "a-1-1", "a-2", "section"]
    assert len(markdown("# A\nx\n" * 20_000)) == 20_000
    assert len(markdown(f"{'`' * 200_000} `\n# {'[' * 200_000}\n#{' #' * 200_000}\n{' ' * 200_000}x")) == 2


def test_front_matter_is_dropped_but_for_its_title() -> None:
    assert markdown('---\ntitle: "A: b"\ndate: 2024-01-01\n---\n\ntext\n## C\nmore') == {
        "": "A: b|text",
        "c": "A: b > C|more",
    }
    assert markdown("---\ntitle: A\n...\n# a\ntext") == {"a": "a|text"}
    assert markdown("---\ntitle: {{ of a template }}\n---\ntext") == {"": "|text"}
    assert markdown("---\nProse between rules.\n---\ntext") == {"": "|---\nProse between rules.\n---\ntext"}
    assert markdown("---\nkey: never closed\n") == {"": "|---\nkey: never closed"}


def test_the_sections_of_a_note_are_held_out_together_but_those_of_a_single_file_are_not(tmp_path: Path) -> None:
    for number in range(30):
        (tmp_path / f"{number}.md").write_text("\n".join(f"# S{n}\ntext {number} of {n}" for n in range(8)))
    whole = SourceParams("notes", "markdown", str(tmp_path), role="document")
    build(CorpusParams((whole,), 0.5), tmp_path / "corpus")
    splits = scan(tmp_path / "corpus").select(pl.col("id").str.replace("#.*", ""), "split").unique().collect()
    assert len(splits) == 30 and splits["split"].n_unique() == 2
    for source in (replace(whole, path=str(tmp_path / "0.md")), replace(whole, page_suffix="^$")):
        assert (frame := next(batches(source)))["page"].to_list() == frame["id"].to_list()


def test_headings_can_be_queries_and_long_sections_passages(tmp_path: Path) -> None:
    pytest.importorskip("semantic_text_splitter", reason="the optional package `semantic-text-splitter` is not there")
    (tmp_path / "a.md").write_text("# Leaves\n\n## Colour\n\nThey are green. They turn red.\n")
    cut, views = PassageParams(characters=40), ViewParams(title=True)
    source = SourceParams("notes", "markdown", str(tmp_path), role="document", passages=cut, views=views)
    build(CorpusParams((source,), 0.0), tmp_path / "corpus")
    assert sorted(scan(tmp_path / "corpus").select("role", "id", "text").collect().iter_rows()) == [
        ("document", "a.md#colour", "Leaves > Colour They are green."),
        ("document", "a.md#colour", "They turn red."),
        ("query", "a.md#colour#title", "Leaves > Colour"),
    ]


@pytest.fixture
def beir(tmp_path: Path) -> Path:
    (tmp_path / "corpus.jsonl").write_text(json.dumps({"_id": "1", "title": "T", "text": "body"}) + "\n")
    (tmp_path / "queries.jsonl").write_text(json.dumps({"_id": "1", "text": "q"}) + "\n")
    return tmp_path


def test_beir_query_and_document_of_one_number_are_not_a_pair(beir: Path) -> None:
    assert read(kind="beir", path=beir) == [("1", "T body", "document"), ("query/1", "q", "query")]


def test_a_role_picks_one_half_of_a_beir_directory(beir: Path) -> None:
    assert read(kind="beir", path=beir, role="query") == [("query/1", "q", "query")]


PACKAGE = '''
"""Top sentence, e.g. this one. And the rest.

More."""
raise SystemExit("a source file is never executed")
class A:
    """Only a sentence."""
    if True:
        def f(self):
            """Gets a
            value

            Long part."""
    def f(self):
        """Sets it."""
'''


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    directory = tmp_path / "made_up_package"
    (directory / "sub" / "tests").mkdir(parents=True)
    (directory / "__init__.py").write_text(PACKAGE)
    (directory / "broken.py").write_text("print 'for another Python'")
    (directory / "sub" / "mod.py").write_text('"""In a module."""')
    (directory / "sub" / "tests" / "t.py").write_text('"""In a test."""')
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    return directory.name


def test_the_first_sentence_of_a_documentation_string_is_the_query_and_the_rest_the_document(package: str) -> None:
    assert read(kind="docstrings", packages=(package,)) == [
        (package, "Top sentence, e.g. this one.", "query"),
        (package, "And the rest.\n\nMore.", "document"),
        (f"{package}.A", "Only a sentence.", "query"),
        (f"{package}.A.f", "Gets a\nvalue", "query"),
        (f"{package}.A.f", "Long part.", "document"),
        (f"{package}.A.f#2", "Sets it.", "query"),
        (f"{package}.sub.mod", "In a module.", "query"),
    ]


def test_a_subpackage_can_be_named(package: str) -> None:
    rows = read(kind="docstrings", packages=(f"{package}.sub",))
    assert rows == [(f"{package}.sub.mod", "In a module.", "query")]


def test_the_standard_library_gives_about_eleven_thousand_texts_without_its_tests() -> None:
    rows = list(docstrings.texts(["stdlib"]))
    assert 9_000 < len(rows) < 14_000
    assert ("json.dumps", "Serialize ``obj`` to a JSON formatted ``str``.", "query") in rows
    assert not any(name.split(".")[0] in ("test", "idlelib", "pip") for name, _, _ in rows)


def test_batches_are_bounded_in_rows_and_characters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "x.txt"
    file.write_text("abcd\n" * 10)
    source = SourceParams(name="s", kind="text", path=str(file), role="query")
    monkeypatch.setattr(records, "BATCH_ROWS", 4)
    assert [len(frame) for frame in batches(source)] == [4, 4, 2]
    monkeypatch.setattr(records, "BATCH_CHARACTERS", 22)  # ids and roles count too
    assert [len(frame) for frame in batches(source)] == [2] * 5


def test_a_local_directory_is_read_as_a_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("datasets", reason="the optional package `datasets` is not installed")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "train.jsonl").write_text('{"t": "one"}\n{"t": "two"}\n')
    rows = read(kind="huggingface", path=tmp_path / "set", role="query", text_field="t")
    assert rows == [("0", "one", "query"), ("1", "two", "query")]


def test_a_data_set_without_the_optional_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(LeafError, match=r"pip install 'leaf-pipeline\[hub\]'"):
        read(kind="huggingface", path="some/set", role="query")


def test_package_descriptions_pair_by_id(shared: Path) -> None:
    rows = read(
        kind="parquet",
        path=shared / "text" / "debian.parquet",
        id_field="id",
        role_field="role",
        id_suffix="/q$",
    )
    roles: dict[str, set[str]] = {}
    for name, _, role in rows:
        roles.setdefault(name, set()).add(role)
    assert sum(len(names) == 2 for names in roles.values()) > 40_000
