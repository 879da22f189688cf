"""Layouts of files that people have: compressed, in other encodings, nested, or as other tools write them.

The layouts of docs/sources.md are tested there; here are their siblings.
"""

import bz2
import csv
import gzip
import io
import json
import lzma
import tarfile
import zipfile
from collections.abc import Callable
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest

from pipeline.base.errors import LeafError
from pipeline.corpus.readers import jsonl, lines, parquet, table
from pipeline.corpus.readers.paths import Fields
from pipeline.corpus.readers.source import batches
from pipeline.params.sections import SourceParams

Rows = list[tuple[str, str | None, str]]


def read(path: Path, kind: str = "jsonl", **fields: Any) -> Rows:
    if not any(name in fields for name in ("query_field", "document_field", "role_field")):
        fields = {"role": "document", **fields}
    source = SourceParams(name="s", kind=kind, path=str(path), **fields)  # type: ignore[arg-type]
    return [row for frame in batches(source) for row in frame.select("id", "text", "role").iter_rows()]


def texts(path: Path, kind: str = "jsonl", **fields: Any) -> list[str | None]:
    return [text for _, text, _ in read(path, kind, **fields)]


def complaint(path: Path, kind: str = "jsonl", **fields: Any) -> str:
    with pytest.raises(LeafError) as caught:
        read(path, kind, **fields)
    return str(caught.value)


def zipped(raw: bytes, *others: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("texts.jsonl", *others):
            archive.writestr(name, raw)
    return buffer.getvalue()


def arrow_packed(codec: str) -> Callable[[bytes], bytes]:
    def pack(raw: bytes) -> bytes:
        sink = pa.BufferOutputStream()
        with pa.CompressedOutputStream(sink, codec) as stream:
            stream.write(raw)
        return bytes(sink.getvalue())

    return pack


PACKED: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "gzip in members": lambda raw: gzip.compress(raw[:700]) + gzip.compress(raw[700:]),
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "zstd": arrow_packed("zstd"),
    "zstd in frames": lambda raw: arrow_packed("zstd")(raw[:700]) + arrow_packed("zstd")(raw[700:]),
    "lz4": arrow_packed("lz4"),
    "zip": zipped,
    "zip of a Mac": lambda raw: zipped(raw, "__MACOSX/._texts.jsonl"),
}
EXPECTED = [f"text {number} ☂" for number in range(2000)]
LINES = "".join(json.dumps({"text": text}) + "\n" for text in EXPECTED).encode()


@pytest.mark.parametrize("packing", PACKED)
def test_a_compressed_file_is_read_whatever_its_name(packing: str, tmp_path: Path) -> None:
    file = tmp_path / "texts"
    file.write_bytes(PACKED[packing](LINES))
    assert texts(file) == EXPECTED


@pytest.mark.parametrize("packing", ["gzip", "bzip2", "xz", "zstd", "lz4", "zip"])
def test_a_compressed_file_cut_short_is_refused(packing: str, tmp_path: Path) -> None:
    file = tmp_path / "texts.jsonl"
    raw = PACKED[packing](LINES)
    file.write_bytes(raw[: len(raw) * 2 // 3])
    assert str(file) in complaint(file)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-be", "utf-32", "utf-32-be"])
@pytest.mark.parametrize(("kind", "end"), [("jsonl", "\n"), ("tsv", "\r\n"), ("text", "\r")])
def test_a_byte_order_mark_says_the_encoding(kind: str, end: str, encoding: str, tmp_path: Path) -> None:
    content = {"jsonl": '{"text": "ä ☂"}|{"text": "漢字"}|', "tsv": "text|ä ☂|漢字|", "text": "ä ☂|漢字|"}[kind]
    mark = "\ufeff" if encoding.endswith("-be") else ""  # the other encodings write it themselves
    file = tmp_path / "x"
    file.write_bytes((mark + content.replace("|", end)).encode(encoding))
    assert [(text or "").strip() for text in texts(file, kind)] == ["ä ☂", "漢字"]


@pytest.mark.parametrize(
    ("kind", "content"), [("csv", "text;n\ncafé;1\n"), ("jsonl", '{"text": "café"}'), ("text", "café")]
)
def test_an_encoding_can_be_named(kind: str, content: str, tmp_path: Path) -> None:
    file = tmp_path / "x"
    file.write_bytes(content.encode("cp1252"))
    assert texts(file, kind, encoding="cp1252") == ["café"]
    assert "name its `encoding`" in complaint(file, kind)
    assert "`nonsense` is unknown" in complaint(file, kind, encoding="nonsense")


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32"])
def test_an_encoding_of_two_byte_orders_needs_a_mark_or_the_order(encoding: str, tmp_path: Path) -> None:
    file = tmp_path / "x.txt"
    file.write_bytes("one\ntwo\n".encode(f"{encoding}-le"))
    assert f"name its encoding as `{encoding}-le`" in complaint(file, "text", encoding=encoding)
    assert texts(file, "text", encoding=f"{encoding}-le") == ["one\n", "two\n"]


def test_an_encoding_that_is_none_of_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("one\n")
    assert "in the encoding `idna`" in complaint(tmp_path / "x.txt", "text", encoding="idna")


def test_a_line_that_is_not_in_the_marked_encoding_is_named(tmp_path: Path) -> None:
    file = tmp_path / "x.txt"
    file.write_bytes("\ufeffone\ntwo\n".encode("utf-16-le") + b"\x00\xd8a\x00\n\x00")
    assert f"{file}, line 3: not UTF-16" in complaint(file, "text")


def tarred(raw: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        entry = tarfile.TarInfo("texts.jsonl")
        entry.size = len(raw)
        archive.addfile(entry, io.BytesIO(raw))
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a text\n".encode("utf-16-le") * 9, "no byte-order mark"),
        ("你好世界你好\n".encode("utf-16-le"), "no byte-order mark"),  # bytes of ASCII but for the line's end
        ("你好世界你好\n".encode("utf-16-be"), "no byte-order mark"),
        (zipped(b"x", "other.jsonl"), "zip archive of 2 files"),
        (zipped(b"x", "[Content_Types].xml"), "save it as CSV"),
        (tarred(LINES), "tar archive"),
        (gzip.compress(gzip.compress(LINES)), "packed twice"),
        (b"PAR1....", "kind `parquet`"),
        (b"%PDF-1.7\n", "PDF"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "git lfs pull"),
    ],
)
@pytest.mark.parametrize("kind", ["jsonl", "csv", "text"])
def test_what_is_no_text_is_called_what_it_is(kind: str, content: bytes, message: str, tmp_path: Path) -> None:
    file = tmp_path / "x"
    file.write_bytes(content)
    assert str(file) in complaint(file, kind) and message in complaint(file, kind)


def test_a_compressed_parquet_file_is_called_what_it_is(tmp_path: Path) -> None:
    file = tmp_path / "x.parquet"
    file.write_bytes(gzip.compress(b"PAR1"))
    assert f"{file}: is gzip, not Parquet" in complaint(file, "parquet")


@pytest.mark.parametrize(
    ("kind", "content"),
    [("text", "one\rtwo\r"), ("csv", 'id,text\r1,one\r2,"two"\r'), ("jsonl", '{"text": "one"}\r{"text": "two"}\r')],
)
def test_carriage_returns_alone_end_lines(kind: str, content: str, tmp_path: Path) -> None:
    file = tmp_path / "x"
    file.write_bytes(content.encode())
    assert [(text or "").strip() for text in texts(file, kind)] == ["one", "two"]


def test_a_carriage_return_inside_a_line_ends_none(tmp_path: Path) -> None:
    file = tmp_path / "x.txt"
    file.write_bytes(b"10 %\r20 %\nnext\n")
    assert texts(file, "text") == ["10 %\r20 %\n", "next\n"]


def test_a_directory_gives_the_files_with_the_kinds_ending(tmp_path: Path) -> None:
    for name in ("a.jsonl", "lang=en/b.jsonl.gz", "README.md", "_SUCCESS", ".a.jsonl.crc", "_temporary/c.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(json.dumps({"text": name}) if "jsonl" in name else "no JSON")
    assert texts(tmp_path) == ["a.jsonl", "lang=en/b.jsonl.gz"]


def test_a_directory_of_files_without_an_ending_and_a_glob_pass_over_what_spark_lays_beside_them(
    tmp_path: Path,
) -> None:
    for name in ("part-00000", "part-00001"):
        pl.DataFrame({"text": [name]}).write_parquet(tmp_path / name)
    (tmp_path / "_SUCCESS").touch()
    assert texts(tmp_path, "parquet") == texts(tmp_path / "*", "parquet") == ["part-00000", "part-00001"]


def test_a_glob_of_directories_gives_their_files_and_hidden_directories_are_passed_over(tmp_path: Path) -> None:
    for name in ("2025.json/part-0.JSON", "2026.json/part-0.JSON", "2026.json/_temporary/part-1.JSON"):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_text(json.dumps({"text": name}))
    assert texts(tmp_path / "*.json") == ["2025.json/part-0.JSON", "2026.json/part-0.JSON"]


def test_a_delta_table_is_refused(tmp_path: Path) -> None:
    (tmp_path / "_delta_log").mkdir()
    pl.DataFrame({"text": ["of an older version"]}).write_parquet(tmp_path / "part-0.parquet")
    assert "Delta table" in complaint(tmp_path, "parquet")


DOCUMENTS: dict[str, Any] = {
    "on one line": json.dumps([{"text": "one"}, {"text": "two"}]),
    "over many lines": json.dumps([{"text": "one"}, {"text": "two"}], indent=2),
    "a record a line": '[{"text": "one"},\n{"text": "two"}\n]',
    "objects over many lines, one after the other": "\n".join(
        json.dumps({"text": text}, indent=1) for text in ("one", "two")
    ),
    "strings on one line": json.dumps(["one", "two"]),
    "strings over many lines": json.dumps(["one", "two"], indent=2),
    "strings, one a line": '"one"\n"two"\n',
    "blank lines before": '\n\n[\n{"text": "one"}, {"text": "two"}]',
}


@pytest.mark.parametrize("content", DOCUMENTS.values(), ids=DOCUMENTS)
def test_json_that_is_no_json_lines_is_read(content: str, tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    file.write_text(content)
    assert read(file) == [("0", "one", "document"), ("1", "two", "document")]


@pytest.mark.parametrize("name", ["on one line", "over many lines", "strings on one line"])
def test_json_whose_first_line_does_not_end_is_read(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "HEAD_BYTES", 1)
    file = tmp_path / "x.json"
    file.write_text(DOCUMENTS[name])
    assert read(file) == [("0", "one", "document"), ("1", "two", "document")]


def test_a_document_is_read_record_by_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jsonl, "BLOCK", 16)
    file = tmp_path / "x.json"
    file.write_text(
        '{"data": [\n{"text": "one"}, {"text": "two"}, {"text": "three"}, {"text": "four"}, and here it is damaged'
    )
    source = SourceParams(name="s", kind="jsonl", path=str(file), text_field="data[].text", role="query")
    values = jsonl._values(source, file, Fields(source))
    assert next(values)[1] == {"data": [{"text": "one"}]}
    with pytest.raises(LeafError, match=r"x\.json: not JSON"):
        list(values)


TABLES: dict[str, Any] = {
    "as pandas writes it": {"n": {"0": 1, "1": 2}, "a": {"0": "x", "1": "y"}, "b": {"0": {"c": ["p"]}, "1": None}},
    "lists": {"n": [1, 2], "a": ["x", "y"], "b": [{"c": "p"}, {"c": None}]},
}


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("content", TABLES.values(), ids=TABLES)
def test_one_object_of_columns_is_a_table(content: Any, indent: int | None, tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    file.write_text(json.dumps(content, indent=indent))
    assert read(file, id_field="n", query_field="a", document_field="b.c") == [
        ("1", "x", "query"),
        ("1", "p", "document"),
        ("2", "y", "query"),
        ("2", None, "document"),
    ]


def test_a_list_of_arrays_can_be_read_by_position(tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    file.write_text(json.dumps([{"context": [["T", ["s1", "s2"]], ["U", ["s3"]]]}]))
    assert read(file, text_field="context[].1", title_field="context[].0") == [
        ("0", "T s1", "document"),
        ("0", "T s2", "document"),
        ("1", "U s3", "document"),
    ]


SQUAD = {
    "data": [
        {"title": "A", "paragraphs": [{"context": "c0", "qas": [{"id": "x", "q": "q0"}, {"id": "y", "q": "q1"}]}]},
        {
            "title": "B",
            "paragraphs": [{"context": "c1", "qas": []}, {"context": "c2", "qas": [{"id": "z", "q": "q2"}]}],
        },
    ]
}


@pytest.mark.parametrize("indent", [None, 1])
def test_the_list_that_all_texts_share_holds_the_records(indent: int | None, tmp_path: Path) -> None:
    file = tmp_path / "squad.json"
    file.write_text(json.dumps(SQUAD, indent=indent))
    paragraphs = {"document_field": "data[].paragraphs[].context", "query_field": "data[].paragraphs[].qas[].q"}
    assert read(file, **paragraphs, title_field="data[].title") == [
        ("0", "q0", "query"),
        ("0", "q1", "query"),
        ("0", "A c0", "document"),
        ("1", "B c1", "document"),
        ("2", "q2", "query"),
        ("2", "B c2", "document"),
    ]
    questions = {"text_field": "data[].paragraphs[].qas[].q", "id_field": "data[].paragraphs[].qas[].id"}
    assert read(file, **questions, role="query") == [
        ("x", "q0", "query"),
        ("y", "q1", "query"),
        ("z", "q2", "query"),
    ]
    assert texts(file, text_field="data.paragraphs.context") == ["c0", "c1", "c2"]
    assert {number for number, _, _ in read(file, text_field="data.paragraphs.context")} == {"0"}
    assert "one id" in complaint(file, **paragraphs, id_field="data[].paragraphs[].qas[].id")


NESTED: list[dict[str, Any]] = [
    {"id": 7, "t": {"en": "a cat", "fr": None}, "turns": [{"say": "hello"}, {"say": "bye"}], "a.b": "flat"},
    {"id": 8, "t": None, "turns": [], "a.b": "table"},
    {"id": 9, "t": {"en": "a dog", "fr": "un chien"}, "turns": [{"say": "well"}], "a.b": None},
]


def write_jsonl(directory: Path) -> Path:
    (directory / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in NESTED))
    return directory / "x.jsonl"


def write_parquet(directory: Path) -> Path:
    pq.write_table(pa.Table.from_pylist(NESTED), directory / "x.parquet")
    return directory / "x.parquet"


def write_feather(directory: Path) -> Path:
    feather.write_feather(pa.Table.from_pylist(NESTED), directory / "x.arrow")
    return directory / "x.arrow"


def write_stream(directory: Path) -> Path:
    nested = pa.Table.from_pylist(NESTED)
    with pa.ipc.new_stream(directory / "x.arrow", nested.schema) as stream:
        stream.write_table(nested)
    return directory / "x.arrow"


WRITERS = {"jsonl": write_jsonl, "parquet": write_parquet, "feather": write_feather, "arrow stream": write_stream}


@pytest.mark.parametrize("writer", WRITERS)
def test_paths_and_lists_mean_the_same_in_every_kind(writer: str, tmp_path: Path) -> None:
    file, kind = WRITERS[writer](tmp_path), "jsonl" if writer == "jsonl" else "parquet"
    assert read(file, kind, id_field="id", text_field="t.en") == [
        ("7", "a cat", "document"),
        ("8", None, "document"),
        ("9", "a dog", "document"),
    ]
    assert read(file, kind, query_field="t.en", document_field="turns.say") == [
        ("0", "a cat", "query"),
        ("0", "hello", "document"),
        ("0", "bye", "document"),
        ("1", None, "query"),
        ("2", "a dog", "query"),
        ("2", "well", "document"),
    ]
    each = [(number, text) for number, text, _ in read(file, kind, text_field="turns[].say")]
    assert each == [("0", "hello"), ("1", "bye"), ("2", "well")]
    assert texts(file, kind, text_field="a.b") == ["flat", "table", None]
    assert texts(file, kind, text_field="turns.1.say") == ["bye", None, None]
    assert "`t.en`, `t.fr`" in complaint(file, kind, text_field="t.de")
    for what, described in (("t", "`en`, `fr`"), ("turns", "say")):
        message = complaint(file, kind, text_field=what)
        assert f"`{what}` must hold text" in message and described in message and "docs/sources.md" in message


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        *((kind, value) for kind in ("jsonl", "parquet") for value in (1.5, True, {"a": "b"}, [[1]], [{"a": "b"}])),
        ("jsonl", ["fine", 5]),
    ],
)
def test_what_is_no_text_never_becomes_its_printed_form(kind: str, value: Any, tmp_path: Path) -> None:
    file = tmp_path / "x"
    if kind == "jsonl":
        file.write_text(json.dumps({"text": value}))
    else:
        pq.write_table(pa.table({"text": [value]}), file)
    assert "column `text` must hold text, not " in complaint(file, kind)


@pytest.mark.parametrize("value", [7, datetime(2026, 1, 1), Decimal("1.5"), b"caf\xe9"])
def test_a_typed_column_of_numbers_times_or_other_bytes_is_no_text(value: Any, tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": [value]}), tmp_path / "x.parquet")
    message = complaint(tmp_path / "x.parquet", "parquet")
    assert "column `text`" in message and str(tmp_path / "x.parquet") in message


IDS: dict[str, tuple[Any, list[str]]] = {
    "doubles with gaps": (pa.array([1.0, None, 3.0]), ["1", "#1", "3"]),
    "NaN": (pa.array([1.0, float("nan"), 3.0]), ["1", "#1", "3"]),
    "large whole numbers": (pa.array([2**60, None, 3]), [str(2**60), "#1", "3"]),
    "decimals": (pa.array([Decimal(1), None, Decimal(10**25)]), ["1", "#1", str(10**25)]),
    "UUIDs": (
        pa.ExtensionArray.from_storage(pa.uuid(), pa.array([b"0123456789abcdef", None, b"\0" * 16], pa.binary(16))),
        ["30313233-3435-3637-3839-616263646566", "#1", "00000000-0000-0000-0000-000000000000"],
    ),
    "bytes": (pa.array([b"a", None, b"c"]), ["a", "#1", "c"]),
    "large strings": (pa.array(["a", "b", "c"], pa.large_string()), ["a", "b", "c"]),
    "string views": (pa.array(["a", "b", "c"], pa.string_view()), ["a", "b", "c"]),
    "categories": (pa.array(["a", "b", "a"]).dictionary_encode(), ["a", "b", "a"]),
    "polars' categories": (
        pa.DictionaryArray.from_arrays(pa.array([0, 1, 0]), pa.array(["a", "b"], pa.string_view())),
        ["a", "b", "a"],
    ),
}


@pytest.mark.parametrize(("column", "expected"), IDS.values(), ids=IDS)
def test_ids_are_read_as_other_tools_store_them(column: pa.Array, expected: list[str], tmp_path: Path) -> None:
    file = tmp_path / "x.arrow"
    feather.write_feather(pa.table({"id": column, "text": ["one", "two", "three"]}), file)
    assert [number for number, _, _ in read(file, "arrow", id_field="id")] == expected


@pytest.mark.parametrize("column", IDS)
def test_ids_are_the_same_beside_texts_in_lists(column: str, tmp_path: Path) -> None:
    values, expected = IDS[column]
    feather.write_feather(pa.table({"id": values, "text": [["one"], ["two"], ["three"]]}), tmp_path / "x.arrow")
    assert [number for number, _, _ in read(tmp_path / "x.arrow", "arrow", id_field="id")] == expected


@pytest.mark.parametrize("value", [1.5, 2.0**53, float("inf")])
@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_an_id_that_is_no_exact_whole_number_is_refused(kind: str, value: float, tmp_path: Path) -> None:
    file = tmp_path / "x"
    if kind == "jsonl":
        file.write_text(json.dumps({"id": value, "text": "a"}))
    else:
        pq.write_table(pa.table({"id": [value], "text": ["a"]}), file)
    assert "column `id` must hold text" in complaint(file, kind, id_field="id")


def test_an_empty_id_of_a_table_is_a_missing_one(tmp_path: Path) -> None:
    file = tmp_path / "x.csv"
    file.write_text("id,text\na,one\n,two\n,three\n")
    assert [number for number, _, _ in read(file, "csv", id_field="id")] == ["a", "#1", "#2"]


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_nan_is_a_missing_text_as_pandas_has_it(kind: str, tmp_path: Path) -> None:
    file = tmp_path / "x"
    if kind == "jsonl":
        file.write_text(json.dumps({"text": "a", "title": float("nan")}))
    else:
        pq.write_table(pa.table({"text": ["a"], "title": [float("nan")]}), file)
    assert texts(file, kind, title_field="title") == ["a"]


def test_ids_that_are_all_missing_are_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": pa.nulls(2), "text": ["a", "b"]}), tmp_path / "x.parquet")
    assert "`id` has no value" in complaint(tmp_path / "x.parquet", "parquet", id_field="id")


def test_a_path_leads_into_a_map(tmp_path: Path) -> None:
    file, kind = tmp_path / "x.parquet", pa.map_(pa.string(), pa.string())
    pq.write_table(pa.table({"t": pa.array([[("en", "a cat"), ("fr", "un chat")], None], kind)}), file)
    assert texts(file, "parquet", text_field="t.fr") == ["un chat", None]
    assert "objects with `en`, `fr`" in complaint(file, "parquet", text_field="t")
    pq.write_table(pa.table({"t": pa.array([[("en", "a cat"), ("en", "a dog")]], kind)}), file)
    assert "the same key twice" in complaint(file, "parquet", text_field="t.en")


def test_two_columns_of_one_name_in_parquet_are_refused(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["text", "text"]), tmp_path / "x")
    assert "more than one column text" in complaint(tmp_path / "x", "parquet")


def test_arrow_batches_are_cut_and_numbered_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "BATCH_ROWS", 2)
    feather.write_feather(pa.table({"text": list("abcde")}), tmp_path / "x.feather")
    source = SourceParams(name="s", kind="arrow", path=str(tmp_path), role="query")
    assert [frame["id"].to_list() for frame in batches(source)] == [["0", "1"], ["2", "3"], ["4"]]


def test_a_title_stands_before_its_own_text_and_not_before_a_query(tmp_path: Path) -> None:
    file = tmp_path / "x.jsonl"
    passages = [{"title": "T", "text": "one"}, {"text": "two"}, {"title": "U", "text": None}]
    file.write_text(json.dumps({"q": "why", "title": "W", "passages": passages}))
    assert texts(file, query_field="q", document_field="passages.text", title_field="passages.title") == [
        "why",
        "T one",
        "two",
        "U ",
    ]
    assert texts(file, text_field="passages.text", title_field="title") == ["W one", "W two", "W "]
    assert "as many titles" in complaint(file, text_field="q", title_field="passages.title")


def test_a_field_may_be_missing_at_first_but_not_in_all_of_the_first_records(tmp_path: Path) -> None:
    file = tmp_path / "x.jsonl"
    file.write_text('{"text": "a"}\n' * 5 + '{"text": "b", "note": "n"}\n')
    assert read(file, query_field="note", document_field="text")[-2:] == [("5", "n", "query"), ("5", "b", "document")]
    assert "no column `note`" in complaint(file, query_field="nothing", document_field="text").replace(
        "nothing", "note"
    )


def written(tmp_path: Path, rows: list[list[str]], **how: Any) -> Path:
    with (tmp_path / "x").open("w", newline="") as file:
        csv.writer(file, **how).writerows(rows)
    return tmp_path / "x"


TABLE = [["id", "text"], ["1", 'the "great" book; or, more'], ["2", "two\tparts\nof a text"], ["3", "three"]]


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC])
@pytest.mark.parametrize("kind", ["csv", "tsv"])
def test_a_table_is_read_as_it_was_written(kind: str, quoting: Any, delimiter: str, tmp_path: Path) -> None:
    file = written(tmp_path, TABLE, delimiter=delimiter, quoting=quoting)
    assert read(file, kind, id_field="id") == [(number, text, "document") for number, text in TABLE[1:]]


def test_rows_of_a_spreadsheet_may_end_otherwise_than_lines_within_its_cells(tmp_path: Path) -> None:
    file = written(tmp_path, TABLE, lineterminator="\r", quoting=csv.QUOTE_ALL)
    assert texts(file, "csv") == [text for _, text in TABLE[1:]]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_columns_can_be_named_where_there_is_no_header(delimiter: str, tmp_path: Path) -> None:
    file = written(tmp_path, TABLE[1:], delimiter=delimiter)
    rows = read(file, "csv", columns=("pid", "passage"), id_field="pid", text_field="passage")
    assert rows == [(number, text, "document") for number, text in TABLE[1:]]
    assert "`columns`: has no column `text`" in complaint(file, "csv", columns=("pid", "passage"))


@pytest.mark.parametrize("kind", ["csv", "tsv"])
def test_a_carriage_return_inside_a_field_is_white_space(kind: str, tmp_path: Path) -> None:
    file = tmp_path / "x"
    file.write_bytes(b'id\ttext\r\n1\tone\rline\r\n2\t"two\r""lines"""\r\n')
    assert [" ".join((text or "").split()) for text in texts(file, kind)] == ["one line", 'two "lines"']


def test_a_delimiter_that_does_not_occur_is_no_guess(tmp_path: Path) -> None:
    file = written(tmp_path, [["1", "one"], ["2", "two"]], delimiter="\t")
    assert "2 fields where there are 1 columns" in complaint(file, "tsv", columns=("text",))


def test_a_quote_in_tsv_stays_a_letter_where_the_rows_do_not_say_otherwise(tmp_path: Path) -> None:
    rows = ['"To be" or not', '"androgen receptor"', 'a 5" disk', '"open', "plain"]
    file = tmp_path / "x.tsv"
    file.write_text("text\tid\n" + "".join(f"{row}\t{number}\n" for number, row in enumerate(rows)))
    assert texts(file, "tsv") == rows
    assert "quote" in complaint(file, "tsv", quote='"')


def test_quotes_that_show_late_that_a_tsv_is_quoted_are_refused_until_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table, "SAMPLE_ROWS", 3)
    file = written(tmp_path, [*TABLE[:1], *TABLE[3:] * 5, ["4", 'the "late" one']], delimiter="\t")
    assert f"{file}, line 7: a field in quotes" in complaint(file, "tsv")
    assert texts(file, "tsv", quote='"')[-1] == 'the "late" one'
    assert texts(file, "tsv", quote="")[-1] == '"the ""late"" one"'


def test_backslashes_before_quotes_are_told_and_other_backslashes_kept(tmp_path: Path) -> None:
    file = tmp_path / "x.csv"
    file.write_text('id,text\n1,"say \\"no\\", then"\n2,"C:\\new, D:\\old"\n3,C:\\plain\n')
    assert texts(file, "csv", id_field="id") == ['say "no", then', "C:\\new, D:\\old", "C:\\plain"]
    assert "not CSV" in complaint(file, "csv", quote='"', escape="/")


def test_backslashes_before_quotes_are_told_in_tsv_too(tmp_path: Path) -> None:
    rows = ["plain", '"say \\"no\\" then"', "C:\\new"]
    (tmp_path / "x").write_text("id\ttext\n" + "".join(f"{number}\t{row}\n" for number, row in enumerate(rows)))
    assert texts(tmp_path / "x", "tsv", id_field="id") == ["plain", 'say "no" then', "C:\\new"]


def test_late_quotes_with_backslashes_are_refused_in_tsv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "SAMPLE_ROWS", 3)
    (tmp_path / "x").write_text("text\tn\n" + "plain\t1\n" * 5 + '"say \\"no\\""\t1\n')
    assert "a field in quotes" in complaint(tmp_path / "x", "tsv")


@pytest.mark.parametrize("row", ["1;Hello, world", "1\tHello, world", "1|Hello; world"])
def test_rows_without_a_header_that_fit_with_two_delimiters_are_refused(row: str, tmp_path: Path) -> None:
    (tmp_path / "x").write_text(f"{row}\n{row}\n")
    columns = ("id", "text")
    assert "set `delimiter`" in complaint(tmp_path / "x", "csv", columns=columns)
    found = texts(tmp_path / "x", "csv", columns=columns, delimiter=row[1])
    assert found == [row[2:]] * 2
    if row[1] == "\t":
        assert texts(tmp_path / "x", "tsv", columns=columns) == [row[2:]] * 2


def test_a_space_before_a_quote_does_not_make_it_a_letter(tmp_path: Path) -> None:
    (tmp_path / "x").write_text('id, text\n1, "Hello, world"\n2, "foo"\n')
    assert read(tmp_path / "x", "csv", id_field="id") == [("1", "Hello, world", "document"), ("2", "foo", "document")]


def test_a_column_in_single_quotes_is_refused_until_they_are_named(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("id,text\n1,'it''s'\n2,'foo'\n")
    assert "in single quotes" in complaint(tmp_path / "x", "csv")
    assert texts(tmp_path / "x", "csv", quote="'") == ["it's", "foo"]
    assert texts(tmp_path / "x", "csv", quote='"') == ["'it''s'", "'foo'"]


def test_a_tsv_of_one_row_in_quotes_is_quoted_and_one_of_a_quoted_note_is_not(tmp_path: Path) -> None:
    (tmp_path / "one").write_text('"1"\t"one text"\n')
    assert read(tmp_path / "one", "tsv", columns=("id", "text"), id_field="id") == [("1", "one text", "document")]
    (tmp_path / "two").write_text('text\tnote\n"a saying"\t"seen"\nplain\t\nplain\t\n')
    assert texts(tmp_path / "two", "tsv") == ['"a saying"', "plain", "plain"]


def test_a_header_within_a_table_is_no_record(tmp_path: Path) -> None:
    file = tmp_path / "x.csv"
    file.write_text("id, text\n1,one\nid, text\n2,two\n")
    assert texts(file, "csv", id_field="id") == ["one", "two"]


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "x.csv"
    file.write_text("text,text\na,b\n")
    assert "more than one column text" in complaint(file, "csv")


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl"])
def test_a_message_never_prints_a_long_header(kind: str, tmp_path: Path) -> None:
    names = ["word " * 4000, *(f"column {number}" for number in range(500))]
    file = tmp_path / "x"
    file.write_text(json.dumps(dict.fromkeys(names, "a")) if kind == "jsonl" else "\t,"[kind == "csv"].join(names))
    assert len(complaint(file, kind)) < 800


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"columns": ("a",)}, "`columns` belongs to the kinds csv, tsv"),
        ({"quote": ""}, "`quote` belongs to the kinds csv, tsv"),
        ({"kind": "csv", "quote": "", "escape": "/"}, "leave one out"),
        ({"kind": "text", "title_field": "t"}, "has no fields to name"),
        ({"kind": "text", "id_field": "t"}, "has no fields to name"),
    ],
)
def test_parameters_that_do_not_fit_are_refused(fields: dict[str, Any], message: str, tmp_path: Path) -> None:
    assert message in complaint(tmp_path, **fields)


def test_a_compressed_beir_directory_is_read(tmp_path: Path) -> None:
    (tmp_path / "corpus.jsonl.gz").write_bytes(gzip.compress(b'{"_id": "1", "title": "T", "text": "body"}\n'))
    (tmp_path / "queries.jsonl.gz").write_bytes(gzip.compress(b'{"_id": "1", "text": "q"}\n'))
    source = SourceParams(name="s", kind="beir", path=str(tmp_path))
    rows = [row for frame in batches(source) for row in frame.select("id", "text", "role").iter_rows()]
    assert rows == [("1", "T body", "document"), ("query/1", "q", "query")]


@pytest.mark.parametrize("field", ["t", "score", "turns", "label"])
def test_a_column_of_a_data_set_that_is_no_text_is_refused(
    field: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("datasets", reason="the optional package `datasets` is not installed")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    (tmp_path / "set").mkdir()
    rows = [{**row, "score": 0.25, "label": 3} for row in NESTED]
    (tmp_path / "set" / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert texts(tmp_path / "set", "huggingface", text_field="turns.say") == ["hello", "bye", "well"]
    assert f"column `{field}` must hold text" in complaint(tmp_path / "set", "huggingface", text_field=field)
