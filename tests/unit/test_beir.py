"""Retrieval collections in BEIR's layout: what is read of them, and what is refused."""

import gzip
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
        ("qrels/test.tsv", b"", "judges no document relevant"),
        ("qrels/test.tsv", b"one\ttwo\tthree\nq1\td1\t1\n", "line 1: neither names its columns"),
        ("qrels/test.tsv", b"q1\n", "line 1: neither names its columns"),
        ("qrels/test.tsv", b"query-id\tquery\tcorpus-id\n", "two columns have names of the same meaning"),
        ("qrels/test.tsv", b"query-id\tcorpus-id\tscore\nq1 d1\n", "line 2: must have 3 columns"),
        ("qrels/test.tsv", b"query-id\tcorpus-id\tscore\nq1\td1\tnan\n", "line 2: the score must be a whole number"),
        ("qrels/test.tsv", b"query-id\tcorpus-id\tscore\nq1\td1\t0.5\n", "line 2: the score must be a whole number"),
        ("qrels/test.tsv", b"query-id\tcorpus-id\tscore\nq1\td1\t9999999999\n", "line 2: the score 9999999999 is imp"),
        (
            "qrels/test.tsv",
            b"query-id\tcorpus-id\tscore\nnone\td1\t1\n",
            "1 of 1 judgments .* 'none' and 'd1' in line 2",
        ),
        ("qrels/test.tsv", b"query-id\tcorpus-id\tscore\nq1\tnone\t1\n", "1 queries are not tested"),
        ("qrels/test.tsv", b"query-id\tcorpus-id\tscore\nq1\td1\t1\nq1\td1\t2\n", "line 3: judges the same"),
        ("qrels/test.tsv", b"query-id\tcorpus-id\tscore\nq1\td1\t0\n", "judges no document relevant"),
    ],
)
def test_bad_input_is_refused_with_its_place(directory: Path, file: str, content: bytes, message: str) -> None:
    (directory / file).write_bytes(content)
    with pytest.raises(LeafError, match=message):
        read(directory)


@pytest.mark.parametrize(
    "content",
    [
        "q1\td1\t2\nq1\td2\t0\nq2\td1\t0\nq9\td2\t1\nd1\td2\t1\n",
        "q1 0 d1 2\nq1 0 d2 0\nq9 Q0 d2 1\nd1 0 d2 1\n",
        "q1\t0\td1\t2\r\nq1\t0\td2\t0\r\nq9\t0\td2\t1\r\nd1\t0\td2\t1\r\n",
        "query_id\tdoc_id\trelevance\titeration\nq1\td1\t2\tx\nq1\td2\t0\tx\nq9\td2\t1\tx\nd1\td2\t1\tx\n",
        "\ufeffscore\tcorpus-id\tquery-id\n2.0\td1\tq1\n0.0\td2\tq1\n1.0\td2\tq9\n1\td2\td1\n",
        QRELS.replace("query-id\tcorpus-id", "qid\tpid") + "q1\td1\t2.0\nq9\td2\t1\n",
        QRELS + "q1\td9\t1\nq99\td1\t3\n",
    ],
    ids=["no names", "TREC, spaces", "TREC, tabs", "ir_datasets", "floats, other order", "repeats", "unknown"],
)
def test_judgments_are_read_in_the_forms_in_which_they_are_published(directory: Path, content: str) -> None:
    (directory / "qrels/test.tsv").write_text(content, encoding="utf-8")
    collection = read(directory)
    assert collection.queries["id"].to_list() == ["q1", "q9", "d1"]
    assert collection.judged == [{0: 2, 1: 0}, {1: 1}, {1: 1}]


@pytest.mark.parametrize("names", ["", "query-id\tcorpus-id\n"])
def test_judgments_without_scores_are_relevant_ones(directory: Path, names: str) -> None:
    (directory / "qrels/test.tsv").write_text(f"{names}q1\td1\nq9\td2\n")
    assert read(directory).judged == [{0: 1}, {1: 1}]


def test_judgments_that_are_passed_over_are_counted_and_named(directory: Path) -> None:
    file = directory / "qrels/test.tsv"
    file.write_text(QRELS + "q1\td9\t1\nq2\td9\t1\nq2\td8\t1\nq99\td1\t3\n")
    judgments = read(directory).judgments
    assert judgments.figures() == {
        "file": "qrels/test.tsv", "judgments": 9, "unknown": 4, "queries_without_document": 1
    }  # fmt: skip
    assert "4 of 9 judgments are left out" in judgments.notices()[0] and "'d9' in line 7" in judgments.notices()[0]


def test_a_compressed_collection_is_the_same(directory: Path) -> None:
    whole = read(directory)
    for name in ("corpus.jsonl", "queries.jsonl", "qrels/test.tsv"):
        (directory / f"{name}.gz").write_bytes(gzip.compress((directory / name).read_bytes()))
        (directory / name).unlink()
    assert read(directory).judged == whole.judged
    assert read(directory).documents.equals(whole.documents)


def test_judgments_named_dev_are_read_where_there_are_none_for_a_test(directory: Path) -> None:
    file = directory / "qrels/test.tsv"
    (directory / "qrels/dev.tsv").write_text("q1\td2\t1\n")
    (directory / "qrels/train.tsv").write_text("q1\td2\t1\n")
    assert read(directory).judgments.notices() == []
    file.unlink()
    collection = read(directory)
    assert collection.judged == [{1: 1}]
    assert collection.judgments.notices() == ["measured by qrels/dev.tsv, as there are no judgments named test"]


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared test collections are not beside the checkout")
@pytest.mark.parametrize(("name", "documents", "queries"), [("cran", 1400, 225), ("npl", 11_426, 93)])
def test_the_shared_collections_are_read_whole(name: str, documents: int, queries: int) -> None:
    collection = read(SHARED / name)
    assert (len(collection.documents), len(collection.queries)) == (documents, queries)
    assert (collection.itself == -1).all()
