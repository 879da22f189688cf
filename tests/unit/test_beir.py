"""Retrieval collections in BEIR's layout: what is read of them, and what is refused."""

import json
from pathlib import Path

import pytest

from pipeline.base.errors import LeafError
from pipeline.base.keys import key
from pipeline.evaluate.collection import read

SHARED = Path(__file__).parents[3] / "shared" / "ir"
CORPUS = [
    {"_id": "d1", "title": "Wings", "text": "lift  and\ndrag"},
    {"_id": "d2", "text": "cafe\u0301 heat"},
    {"_id": "q9", "title": "An argument", "text": "is also a query"},
]
QUERIES = [
    {"_id": "q1", "text": "what is lift"},
    {"_id": "q2", "text": "unjudged"},
    {"_id": "q9", "text": "is also a query"},
    {"_id": "d1", "text": "another text under a document's id"},
]
QRELS = "query-id\tcorpus-id\tscore\nq1\td1\t2\nq1\td2\t0\nq2\td1\t0\nq9\td2\t1\nd1\td2\t1\n"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    root = tmp_path / "tiny"
    (root / "qrels").mkdir(parents=True)
    write(root / "corpus.jsonl", CORPUS)
    write(root / "queries.jsonl", QUERIES)
    (root / "qrels/test.tsv").write_text(QRELS, encoding="utf-8")
    return root


def write(file: Path, records: list[dict[str, str]]) -> None:
    file.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def test_titles_join_texts_and_both_are_cleaned_as_in_the_corpus(directory: Path) -> None:
    collection = read(directory)
    assert collection.name == "tiny"
    assert collection.documents["text"].to_list() == ["Wings lift and drag", "café heat", "An argument is also a query"]
    assert collection.documents["key"][0] == key("document", "Wings lift and drag")
    assert collection.documents["source"].unique().to_list() == ["tiny"]
    assert collection.queries["role"].unique().to_list() == ["query"]


def test_only_queries_with_a_relevant_document_are_kept_with_their_grades(directory: Path) -> None:
    collection = read(directory)
    assert collection.queries["id"].to_list() == ["q1", "q9", "d1"]
    assert collection.judged == [{0: 2, 1: 0}, {1: 1}, {1: 1}]


def test_a_document_is_the_query_only_if_id_and_text_are_the_same(directory: Path) -> None:
    assert read(directory).itself.tolist() == [-1, 2, -1]


def test_a_trailing_slash_and_blank_lines_change_nothing(directory: Path) -> None:
    for name in ("corpus.jsonl", "qrels/test.tsv"):
        (directory / name).write_text((directory / name).read_text() + "\n\n")
    assert read(Path(f"{directory}/")).judged == read(directory).judged


@pytest.mark.parametrize("file", ["corpus.jsonl", "queries.jsonl", "qrels/test.tsv"])
def test_a_missing_file_is_named(directory: Path, file: str) -> None:
    (directory / file).unlink()
    with pytest.raises(LeafError, match=f"{file}: no such file"):
        read(directory)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("corpus.jsonl", b"", "corpus.jsonl: holds no texts"),
        ("corpus.jsonl", b'{"_id": "1", "text": "a"}\n{"_id": "2", "te', "corpus.jsonl, line 2: not JSON"),
        ("corpus.jsonl", b'["1", "a"]\n', "line 1: must be a JSON object"),
        ("corpus.jsonl", b'{"id": "1", "text": "a"}\n', "line 1: `_id` must be text, not None; fields there: id, text"),
        ("corpus.jsonl", b'{"_id": "1", "text": null}\n', "line 1: `text` must be text"),
        ("corpus.jsonl", b'{"_id": "1", "text": "a", "title": 3}\n', "line 1: `title` must be text"),
        ("corpus.jsonl", b'{"_id": "1", "text": "a"}\n' * 2, "line 2: the `_id` '1' occurs a second time"),
        ("queries.jsonl", b'{"_id": "1", "text": "\xff"}\n', "queries.jsonl, line 1: not UTF-8"),
        ("qrels/test.tsv", b"", "line 1: the columns must be query-id, corpus-id, score"),
        ("qrels/test.tsv", b"q1\td1\t1\n", "line 1: the columns must be"),
        ("qrels/test.tsv", b"query-id\tcorpus-id\tscore\nq1 d1 1\n", "line 2: must have 3 columns"),
        ("qrels/test.tsv", b"query-id\tcorpus-id\tscore\nq1\td1\t0.5\n", "line 2: the score must be a whole number"),
        ("qrels/test.tsv", b"query-id\tcorpus-id\tscore\nq1\td1\t9999999999\n", "line 2: the score 9999999999 is imp"),
        ("qrels/test.tsv", b"query-id\tcorpus-id\tscore\nnone\td1\t1\n", "line 2: query 'none' is not in"),
        ("qrels/test.tsv", b"query-id\tcorpus-id\tscore\nq1\tnone\t1\n", "line 2: document 'none' is not in"),
        ("qrels/test.tsv", b"query-id\tcorpus-id\tscore\nq1\td1\t1\nq1\td1\t2\n", "line 3: judges the same"),
        ("qrels/test.tsv", b"query-id\tcorpus-id\tscore\nq1\td1\t0\n", "judges no document relevant"),
    ],
)
def test_bad_input_is_refused_with_its_place(directory: Path, file: str, content: bytes, message: str) -> None:
    (directory / file).write_bytes(content)
    with pytest.raises(LeafError, match=message):
        read(directory)


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared test collections are not beside the checkout")
@pytest.mark.parametrize(("name", "documents", "queries"), [("cran", 1400, 225), ("npl", 11_426, 93)])
def test_the_shared_collections_are_read_whole(name: str, documents: int, queries: int) -> None:
    collection = read(SHARED / name)
    assert (len(collection.documents), len(collection.queries)) == (documents, queries)
    assert (collection.itself == -1).all()
