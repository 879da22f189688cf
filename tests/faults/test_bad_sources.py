"""Bad sources: each is refused with a message that names the place."""

from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.base.errors import LeafError
from pipeline.corpus.build import build
from pipeline.corpus.readers.source import batches
from pipeline.params.sections import CorpusParams, SourceParams


def complaint(**fields: Any) -> str:
    """The message of the error that reading a source with these parameters ends in."""
    named: dict[str, Any] = {key: str(v) if isinstance(v, Path) else v for key, v in fields.items()}
    source = SourceParams(name="a source", **named)
    with pytest.raises(LeafError) as caught:
        list(batches(source))
    return str(caught.value)


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "csv", "tsv", "text", "beir"])
def test_a_missing_file_is_named(kind: str, tmp_path: Path) -> None:
    message = complaint(kind=kind, path=tmp_path / "gone", role="query")
    assert "a source" in message and str(tmp_path / "gone") in message


@pytest.mark.parametrize(
    ("kind", "head"), [("jsonl", b'{"text": "a"}\n'), ("csv", b"text\n"), ("tsv", b"text\n"), ("text", b"a\n")]
)
def test_a_line_that_is_not_utf8_is_named(kind: str, head: bytes, tmp_path: Path) -> None:
    file = tmp_path / "latin"
    file.write_bytes(head + b"caf\xe9\n")
    message = complaint(kind=kind, path=file, role="query")
    assert f"{file}, line 2" in message and "UTF-8" in message


def test_a_parquet_row_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    file = tmp_path / "latin.parquet"
    raw = pa.array([b"fine", None, b"caf\xe9"])
    pq.write_table(pa.table({"text": pa.Array.from_buffers(pa.string(), 3, raw.buffers())}), file)
    message = complaint(kind="parquet", path=file, role="query")
    assert f"{file}, row 2" in message and "UTF-8" in message


@pytest.mark.parametrize(
    ("kind", "content"), [("jsonl", '{"body": "a", "n": 1}\n'), ("csv", "body,n\na,1\n"), ("tsv", "body\tn\na\t1\n")]
)
def test_a_missing_column_lists_those_there(kind: str, content: str, tmp_path: Path) -> None:
    file = tmp_path / "x"
    file.write_text(content)
    message = complaint(kind=kind, path=file, role="query")
    assert "no column `text`" in message and "columns there: `body`, `n`" in message


def test_a_missing_parquet_column_lists_those_there(tmp_path: Path) -> None:
    file = tmp_path / "x.parquet"
    pl.DataFrame({"body": ["a"], "n": [1]}).write_parquet(file)
    assert "columns there: `body`, `n`" in complaint(kind="parquet", path=file, role="query")


@pytest.mark.parametrize("kind", ["jsonl", "csv", "tsv", "text"])
def test_an_empty_file_is_refused(kind: str, tmp_path: Path) -> None:
    file = tmp_path / "x"
    file.touch()
    message = complaint(kind=kind, path=file, role="query")
    assert str(file) in message


def test_a_parquet_file_without_rows_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "x.parquet"
    pl.DataFrame({"text": []}, schema={"text": pl.String}).write_parquet(file)
    assert "has no texts" in complaint(kind="parquet", path=file, role="query")


@pytest.mark.parametrize("left", [0, 3, 0.5, 0.99])
def test_a_parquet_file_cut_short_is_refused(left: float, tmp_path: Path) -> None:
    file = tmp_path / "x.parquet"
    pl.DataFrame({"text": [f"text {i}" for i in range(5000)]}).write_parquet(file)
    raw = file.read_bytes()
    file.write_bytes(raw[: int(left * len(raw) if left < 1 else left)])
    message = complaint(kind="parquet", path=file, role="query")
    assert str(file) in message and "Parquet" in message


def test_a_parquet_file_with_a_damaged_page_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "x.parquet"
    pl.DataFrame({"text": [f"text {i}" for i in range(5000)]}).write_parquet(file)
    raw = bytearray(file.read_bytes())
    raw[4:400] = bytes(396)
    file.write_bytes(raw)
    assert str(file) in complaint(kind="parquet", path=file, role="query")


def test_a_column_of_another_type_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "x.parquet"
    pl.DataFrame({"text": [[1.0]]}).write_parquet(file)
    assert "column `text` must hold text" in complaint(kind="parquet", path=file, role="query")


@pytest.mark.parametrize("line", ["{", "[1]", '{"text": 1.5}', '{"text": "\\ud800"}'])
def test_a_bad_json_line_is_named(line: str, tmp_path: Path) -> None:
    file = tmp_path / "x.jsonl"
    file.write_text('{"text": "fine"}\n' + line + "\n")
    assert f"{file}, line 2" in complaint(kind="jsonl", path=file, role="query")


def test_half_a_surrogate_pair_in_a_beir_directory_is_named(tmp_path: Path) -> None:
    (tmp_path / "corpus.jsonl").write_text('{"_id": "1", "text": "fine"}\n{"_id": "2", "text": "\\ud800"}\n')
    message = complaint(kind="beir", path=tmp_path, role="document")
    assert f"{tmp_path / 'corpus.jsonl'}, line 2: half a surrogate pair" in message


@pytest.mark.parametrize("row", ["a,b,c", '"never closed', '"a" b,c'])
def test_a_bad_csv_row_is_named(row: str, tmp_path: Path) -> None:
    file = tmp_path / "x.csv"
    file.write_text(f"text,id\nfine,1\n{row}\n")
    assert f"{file}, line 3" in complaint(kind="csv", path=file, role="query")


def test_a_role_that_is_neither_is_named(tmp_path: Path) -> None:
    file = tmp_path / "x.csv"
    file.write_text("text,role\na,query\nb,answer\n")
    message = complaint(kind="csv", path=file, role_field="role")
    assert f"{file}, line 3" in message and "answer" in message


def test_a_regular_expression_that_does_not_compile_is_shown(tmp_path: Path) -> None:
    message = complaint(kind="text", path=tmp_path, role="query", id_suffix="(")
    assert "id_suffix '('" in message


@pytest.mark.parametrize(
    "fields",
    [
        {"kind": "jsonl", "path": "x"},
        {"kind": "jsonl", "path": "x", "role": "query", "role_field": "role"},
        {"kind": "jsonl", "path": "x", "role": "query", "query_field": "q"},
        {"kind": "jsonl", "path": "x", "query_field": "q", "text_field": "t"},
        {"kind": "jsonl", "role": "query"},
        {"kind": "text", "path": "x", "role": "query", "text_field": "t"},
        {"kind": "docstrings"},
    ],
)
def test_fields_that_do_not_fit_the_kind_are_refused_by_the_sources_name(fields: dict[str, Any]) -> None:
    assert "`a source`" in complaint(**fields)


@pytest.mark.parametrize("package", ["no_such_package_here", "", "math", "json.nothing_there"])
def test_a_package_without_source_files_is_named(package: str) -> None:
    assert f"package {package}" in complaint(kind="docstrings", packages=(package,))


def test_a_data_set_that_cannot_be_reached_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("datasets", reason="the optional package `datasets` is not installed")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    assert str(tmp_path / "gone") in complaint(kind="huggingface", path=tmp_path / "gone", role="query")


def test_a_failing_source_leaves_the_corpus_as_it_was_and_nothing_beside_it(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.txt", tmp_path / "bad.txt"
    good.write_text("a text\n")
    bad.write_bytes(b"caf\xe9\n")
    fine = SourceParams(name="good", kind="text", path=str(good), role="query")
    wrong = SourceParams(name="bad", kind="text", path=str(bad), role="query")
    out = tmp_path / "data" / "corpus"
    build(CorpusParams(sources=(fine,), heldout=0), out)
    before = (out / "part-00000.parquet").read_bytes()
    with pytest.raises(LeafError, match=r"bad\.txt, line 1"):
        build(CorpusParams(sources=(fine, wrong), heldout=0), out)
    assert (out / "part-00000.parquet").read_bytes() == before
    assert list(out.parent.iterdir()) == [out]
