"""What files hold is guessed from their names and their first records."""

import gzip
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest

from pipeline.base import LeafError
from pipeline.corpus import Fields, guess_sources, preview, unread_files
from pipeline.corpus.language import language
from pipeline.corpus.readers.source import batches
from pipeline.params import CorpusParams, SourceParams

QUESTIONS = [f"How do I do thing number {n}?" for n in range(30)]
ANSWERS = [f"You do thing number {n} by turning the handle until it clicks." for n in range(30)]


def csv(path: Path, columns: dict[str, list[str]], separator: str = ",", encoding: str = "utf-8") -> Path:
    text = pl.DataFrame(columns).write_csv(separator=separator)
    path.write_bytes(text.encode(encoding))
    return path


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("question", "answer"), ("question", "answer")),
        (("Frage", "Antwort"), ("Frage", "Antwort")),
        (("user_query", "document_text"), ("user_query", "document_text")),
        (("a", "b"), ("a", "b")),  # by the question marks
    ],
)
def test_pairs_are_told_by_names_or_by_question_marks(
    names: tuple[str, str], expected: tuple[str, str], tmp_path: Path
) -> None:
    columns = {"id": [f"r{n}" for n in range(30)], names[1]: ANSWERS, names[0]: QUESTIONS, "topic": ["things"] * 30}
    (source,) = guess_sources(str(csv(tmp_path / "faq.csv", columns)))
    assert (source.query_field, source.document_field, source.id_field) == (*expected, "id")
    seen = preview(source, CorpusParams((source,), 0.1))
    assert seen.texts == {"document": 30, "query": 30} and seen.records == 30 and seen.whole
    assert set(seen.examples["role"]) == {"query", "document"} and len(seen.examples) == 5
    assert seen.language == "English"


def test_a_table_without_a_header_is_given_one_and_every_delimiter_and_encoding_is_found(tmp_path: Path) -> None:
    plain = csv(tmp_path / "plain.csv", {"Frage": QUESTIONS, "Antwort": [f"Süß, {a}" for a in ANSWERS]}, ";", "cp1252")
    (source,) = guess_sources(str(plain))
    assert (source.query_field, source.encoding) == ("Frage", "cp1252")
    assert preview(source, CorpusParams((source,), 0.1)).texts["query"] == 30
    (tmp_path / "bare.tsv").write_text("".join(f"{q}\t{a}\n" for q, a in zip(QUESTIONS, ANSWERS, strict=True)))
    (source,) = guess_sources(str(tmp_path / "bare.tsv"))
    assert (source.columns, source.query_field, source.document_field) == (("column1", "column2"), "column1", "column2")
    assert preview(source, CorpusParams((source,), 0.1)).texts == {"document": 30, "query": 30}


def parquet(path: Path, frame: pl.DataFrame) -> None:
    frame.write_parquet(path)


def arrow(path: Path, frame: pl.DataFrame) -> None:
    frame.write_ipc(path)


def lines(path: Path, frame: pl.DataFrame) -> None:
    path.write_bytes(gzip.compress(frame.write_ndjson().encode()))


def array(path: Path, frame: pl.DataFrame) -> None:
    path.write_text(json.dumps(frame.to_dicts(), indent=1))


@pytest.mark.parametrize(
    ("name", "write", "kind"),
    [
        ("t.parquet", parquet, "parquet"),
        ("t.feather", arrow, "arrow"),
        ("t.jsonl.gz", lines, "jsonl"),
        ("t.json", array, "jsonl"),
    ],
)
def test_titles_and_numbers_are_told_from_texts_in_every_kind_of_file(
    name: str, write: Callable[[Path, pl.DataFrame], None], kind: str, tmp_path: Path
) -> None:
    titles = [f"Chapter of thing {n}" for n in range(30)]
    frame = pl.DataFrame({"url": [f"u{n}" for n in range(30)], "title": titles, "body": ANSWERS, "length": range(30)})
    write(tmp_path / name, frame)
    (source,) = guess_sources(str(tmp_path / name))
    fields = (source.kind, source.role, source.id_field, source.text_field, source.title_field)
    assert fields == (kind, "document", "url", "body", "title")
    assert preview(source, CorpusParams((source,), 0.1)).examples["text"][0].startswith("Chapter of thing")


def test_a_folder_is_a_source_for_each_kind_of_file_in_it(tmp_path: Path) -> None:
    (tmp_path / "docs" / "deep").mkdir(parents=True)
    for place in ("docs/one.md", "docs/deep/two.md"):
        (tmp_path / place).write_text("# Title\n\n" + "\n\n".join(ANSWERS[:5]))
    csv(tmp_path / "docs" / "faq.csv", {"question": QUESTIONS, "answer": ANSWERS})
    notes, faq = guess_sources(str(tmp_path / "docs"))
    assert (notes.kind, notes.role, notes.name) == ("markdown", "document", "docs")
    assert (faq.kind, faq.name, faq.query_field) == ("csv", "docs-2", "question")
    seen = preview(notes, CorpusParams((notes,), 0.1))
    assert seen.texts == {"document": 2}
    assert seen.examples["id"].to_list() == ["deep/two.md#title", "one.md#title"]
    assert seen.examples["text"][0].startswith(f"Title {ANSWERS[0]} {ANSWERS[1]}")


def test_what_is_repeated_is_no_text_to_encode_or_fit_to(tmp_path: Path) -> None:
    columns = {"text": [*ANSWERS, *ANSWERS[:10]], "role": ["document"] * 30 + ["query"] * 5 + ["document"] * 5}
    source = SourceParams("s", "csv", str(csv(tmp_path / "t.csv", columns)), text_field="text", role_field="role")
    seen = preview(source, CorpusParams((source,), 0.1))
    assert (seen.duplicates, seen.distinct) == (5, 35)
    columns = {name: values[:35] for name, values in columns.items()}
    assert (
        seen.tokens
        == preview(replace(source, path=str(csv(tmp_path / "once.csv", columns))), CorpusParams((source,), 0.1)).tokens
    )


def test_what_is_given_is_not_guessed(tmp_path: Path) -> None:
    path = csv(tmp_path / "faq.csv", {"question": QUESTIONS, "answer": ANSWERS})
    (source,) = guess_sources(str(path), Fields(text="answer", role="query"))
    assert (source.query_field, source.text_field, source.role) == (None, "answer", "query")


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("numbers.csv", "a,b\n1,2\n3,4\n", "no field looks like texts (fields: a, b)"),
        ("empty.jsonl", "", "is empty"),
        ("cut.parquet", "PAR1", "cannot be read as parquet"),
    ],
)
def test_what_holds_no_texts_is_refused_with_a_sentence(name: str, content: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(LeafError) as error:
        guess_sources(str(tmp_path / name))
    assert reason in str(error.value) and name in str(error.value)


def test_a_directory_of_other_files_and_a_missing_file_are_refused(tmp_path: Path) -> None:
    (tmp_path / "image.png").write_bytes(b"\x89PNG")
    with pytest.raises(LeafError, match="holds no files of a kind that can be read"):
        guess_sources(str(tmp_path))
    with pytest.raises(LeafError, match="no such file or directory"):
        guess_sources(str(tmp_path / "nothing.csv"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Wie kann ich das Fahrrad zurückgeben, und was kostet es, wenn die Station voll ist?", "German"),
        ("Comment est-ce que je peux rendre le vélo dans une station qui est pleine ?", "French"),
        ("駅で自転車を返すにはどうすればいいですか", "Japanese"),
        ("如何在车站归还自行车", "Chinese"),
        ("Как мне вернуть велосипед на станцию", "Russian or a neighbour"),
        ("x = [1, 2, 3]", None),
        ("", None),
    ],
)
def test_the_language_is_told_by_script_and_frequent_words(text: str, expected: str | None) -> None:
    assert language([text]) == expected


def test_the_language_of_real_texts(shared: Path) -> None:
    names = {"de": "German", "es": "Spanish", "vi": "Vietnamese", "th": "Thai", "zh": "Chinese"}
    for code, name in names.items():
        texts = pl.read_parquet(shared / "text" / "multilingual" / f"{code}.parquet")["text"].head(300)
        assert language(texts.to_list()) == name


def test_what_a_folder_holds_that_is_no_texts_is_left_out_with_a_word(tmp_path: Path) -> None:
    (tmp_path / "one.md").write_text("# Title\n\ntext")
    (tmp_path / "settings.json").write_text('{"a": 1}')
    (tmp_path / "names.csv").write_text("question,answer\n")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG")
    said: list[str] = []
    (source,) = guess_sources(str(tmp_path), tell=said.append)
    assert source.kind == "markdown"
    assert [name for name in ("picture.png", "settings.json", "names.csv") if f"/{name}" not in "\n".join(said)] == []
    with pytest.raises(LeafError, match=r"names\.csv: has no records, only a first line that names its columns"):
        guess_sources(str(tmp_path / "names.csv"))


def test_files_of_a_source_s_directory_that_no_source_reads_are_named(tmp_path: Path) -> None:
    for name in ("one.md", "faq.csv", "table.tab", ".hidden", "_SUCCESS", "one.md.dvc"):
        (tmp_path / name).write_text("text")
    notes = SourceParams("notes", "markdown", str(tmp_path), role="document")
    assert preview(notes, CorpusParams((notes,), 0.1)).texts == {"document": 1}
    assert unread_files([notes]) == [
        f"{tmp_path}: holds files that no source reads: {tmp_path}/faq.csv, {tmp_path}/table.tab"
    ]
    others = [replace(notes, name=kind, kind="tsv", path=f"{tmp_path}/*.{kind}") for kind in ("csv", "tab")]
    assert unread_files([notes, *others]) == []


def test_a_glob_is_a_source_of_one_kind(tmp_path: Path) -> None:
    for name in ("notes/one.md", "notes/deep/two.md", "notes/three.csv"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("# Title\n\ntext")
    (source,) = guess_sources(f"{tmp_path}/notes/**/*.md")
    assert (source.name, source.kind, source.path) == ("notes", "markdown", f"{tmp_path}/notes/**/*.md")
    assert preview(source, CorpusParams((source,), 0.1)).texts == {"document": 2}
    with pytest.raises(LeafError, match=r"several kinds \(.*one.md.*; end it as the names of one kind end"):
        guess_sources(f"{tmp_path}/notes/*.*")
    with pytest.raises(LeafError, match="no file matches"):
        guess_sources(f"{tmp_path}/notes/*.txt")


def test_an_encoding_that_is_given_is_not_guessed(tmp_path: Path) -> None:
    path = csv(tmp_path / "faq.csv", {"Вопрос": QUESTIONS, "Ответ": [f"{a} да" for a in ANSWERS]}, encoding="cp1251")
    (source,) = guess_sources(str(path), Fields(encoding="cp1251"))
    assert (source.encoding, source.query_field, source.document_field) == ("cp1251", "Вопрос", "Ответ")


FAQ = ["Nr;Frage;Antwort", *(f"{n};How do I get refund {n}?;You ask for it, and wait {n} days." for n in range(40))]


@pytest.mark.parametrize(
    ("line", "place", "why"),
    [
        ("9002;Only two", "line 42", "2 fields where there are 3 columns, in the row that begins '9002'"),
        ('9005;"bad" stuff;an answer', "line 42", "not CSV"),
        ("9006;a question?;an answer;", "line 42", "4 fields where there are 3 columns"),
    ],
)
def test_one_broken_row_does_not_change_what_a_table_is_taken_for(
    tmp_path: Path, line: str, place: str, why: str
) -> None:
    file = tmp_path / "faq.csv"
    file.write_text("\n".join([*FAQ, line]) + "\n")
    (source,) = guess_sources(str(file))
    assert (source.query_field, source.document_field, source.id_field) == ("Frage", "Antwort", "Nr")
    with pytest.raises(LeafError, match=f"{place}: {why}"):
        list(batches(source))


def test_a_table_without_rows_or_with_a_name_twice_is_refused(tmp_path: Path) -> None:
    empty, twice, unquoted = (tmp_path / f"{name}.csv" for name in ("empty", "twice", "unquoted"))
    empty.write_text("\n")
    twice.write_text("Nr;Frage;Frage;Antwort\n1;what is it?;why is it?;it is so\n")
    unquoted.write_text("Nr,Frage,Antwort\n" + "".join(f"{n},why, or how?,so, {n}, it is\n" for n in range(9)))
    for file, why in ((empty, "is empty"), (twice, "more than one column 'Frage'"), (unquoted, "different numbers")):
        with pytest.raises(LeafError, match=why):
            guess_sources(str(file))


def test_a_misspelt_column_is_answered_with_the_nearest(tmp_path: Path) -> None:
    file = tmp_path / "faq.csv"
    file.write_text("\n".join(FAQ) + "\n")
    source = SourceParams("faq", "csv", str(file), query_field="Fragen", document_field="Antwort")
    with pytest.raises(LeafError, match=r"no column `Fragen` \(did you mean `Frage`\?\); columns there: `Nr`, `Frage`"):
        list(batches(source))
