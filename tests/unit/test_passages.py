"""Documents that are cut into passages at the ends of sentences."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from tokenizers import Tokenizer

from pipeline.base.errors import LeafError
from pipeline.corpus.build import build
from pipeline.corpus.further_records import further_records
from pipeline.corpus.parts import scan
from pipeline.evaluate.datasets import heldout_pairs
from pipeline.params.parsing import parse
from pipeline.params.sections import CorpusParams, PassageParams, SourceParams
from tests.conftest import WORDS, make_model

SENTENCES = {
    "English": "The {} is old. ",
    "Chinese": "这条{}很旧。",
    "Arabic": "هذا {} قديم؟ ",
    "Hindi": "यह {} पुराना है। ",
}


@pytest.fixture(autouse=True)
def _library() -> None:
    pytest.importorskip("semantic_text_splitter", reason="the optional package `semantic-text-splitter` is not there")


def built(directory: Path, records: list[dict[str, str]], **fields: Any) -> tuple[pl.DataFrame, dict[str, Any]]:
    """The corpus of pairs `q`, `d` with passages, and its metrics."""
    file = directory / "records.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    heldout = fields.pop("heldout", 0.0)
    source = SourceParams(
        "s", "jsonl", str(file), id_field="id", **{"query_field": "q", "document_field": "d"} | fields
    )
    metrics = build(CorpusParams((source,), heldout), directory / "corpus")
    return scan(directory / "corpus").collect(), metrics


@pytest.mark.parametrize("language", SENTENCES)
def test_documents_are_cut_at_the_ends_of_sentences_and_nothing_is_lost(language: str, tmp_path: Path) -> None:
    sentences = [SENTENCES[language].format(number) for number in range(60)]
    question = "x" * 100
    rows, metrics = built(
        tmp_path, [{"id": "a", "q": question, "d": "".join(sentences)}], passages=PassageParams(characters=64)
    )
    passages = rows.filter(role="document")["text"].to_list()
    assert len(passages) > 5 and max(map(len, passages)) <= 64
    ends = {sentence.strip()[-1] for sentence in sentences}
    assert {passage[-1] for passage in passages} == ends
    assert sum(len(passage.replace(" ", "")) for passage in passages) == len("".join(sentences).replace(" ", ""))
    assert rows.filter(role="query")["text"].to_list() == [question]
    assert rows["id"].unique().to_list() == ["a"]
    assert metrics["passages_more"] == {"s": len(passages) - 1}


def test_lines_may_be_wrapped_anywhere_and_paragraphs_end_passages(tmp_path: Path) -> None:
    paragraph = "It was the best of times,\r\nit was the worst\nof times. It was spring.\n"
    text = f"{paragraph} \n\n{paragraph}"
    rows, _ = built(tmp_path, [{"id": "a", "q": "que", "d": text}], passages=PassageParams(characters=80))
    expected = "It was the best of times, it was the worst of times. It was spring."
    assert rows.filter(role="document")["text"].to_list() == [expected]


def test_passages_overlap_by_whole_sentences(tmp_path: Path) -> None:
    text = "".join(SENTENCES["English"].format(number) for number in range(9))
    rows, _ = built(tmp_path, [{"id": "a", "q": "que", "d": text}], passages=PassageParams(characters=50, overlap=20))
    passages = sorted(rows.filter(role="document")["text"])
    assert len(passages) > 3
    for before, after in pairwise(passages):
        assert after.startswith(before.rsplit("The", 1)[1].join(["The", ""]).strip())


def test_tokens_are_those_of_the_model_that_is_named(tmp_path: Path) -> None:
    model = make_model(tmp_path / "teacher")
    text = " ".join([*WORDS[:9], "."] * 20)
    passages = PassageParams(tokens=25, tokenizer=str(model))
    rows, _ = built(tmp_path, [{"id": "a", "q": "que", "d": text}], passages=passages)
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    tokenizer.no_truncation()
    counts = [
        len(tokenizer.encode(passage, add_special_tokens=False).ids) for passage in rows.filter(role="document")["text"]
    ]
    assert max(counts) <= 25 and sorted(counts)[-1] > 12


def test_a_pages_passages_are_held_out_together_and_all_are_relevant(tmp_path: Path) -> None:
    records = [
        {"id": f"r{i}", "q": f"que {i}", "d": "".join(f"Page {i // 2}, line {n}. " for n in range(9))}
        for i in range(200)
    ]
    rows, _ = built(tmp_path, records, passages=PassageParams(characters=40), heldout=0.2)
    pages = rows.filter(role="document").select("split", page=pl.col("text").str.extract(r"Page (\d+)"))
    assert pages.group_by("page").agg(pl.col("split").n_unique())["split"].max() == 1
    held = rows.filter(split="heldout").sort("role", "key")
    (pairs,) = heldout_pairs(held, further_records(tmp_path / "corpus"))
    assert len(pairs.queries) == held.filter(role="query").height > 10
    for query, judged in zip(pairs.queries, pairs.judged, strict=True):
        page = int(held["text"][int(query)].split()[1]) // 2
        texts = [held["text"][int(pairs.documents[position])] for position in judged]
        assert len(texts) > 2 and all(text.startswith(f"Page {page},") for text in texts)


def test_short_documents_and_missing_ones_are_left_as_they_are(tmp_path: Path) -> None:
    records = [{"id": "a", "q": "que a", "d": "short"}, {"id": "b", "q": "que b"}, {"id": "c", "d": "long. " * 20}]
    rows, metrics = built(tmp_path, records, passages=PassageParams(characters=50))
    assert set(rows.filter(pl.col("id") != "c")["text"]) == {"que a", "short", "que b"}
    assert metrics["passages_more"] == {"s": 2}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "needs one of `tokens` and `characters`"),
        ({"tokens": 100, "characters": 100, "tokenizer": "x"}, "needs one of `tokens` and `characters`"),
        ({"tokens": 100}, "`tokens` needs `tokenizer`"),
        ({"characters": 100, "tokenizer": "x"}, "`characters` none"),
        ({"characters": 100, "overlap": 100}, "overlap: 100 is impossible; it must be less than a passage, 100"),
        ({"characters": 0}, "passages.characters: 0 .* greater than 0"),
    ],
)
def test_impossible_passages_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(LeafError, match=message):
        parse(PassageParams, "corpus.sources[0].passages", given)


def test_a_model_without_a_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(LeafError, match=r"`s`: passages\.tokenizer: `.*` has no tokenizer\.json"):
        built(tmp_path, [{"id": "a", "d": "x"}], passages=PassageParams(tokens=9, tokenizer=str(tmp_path)))
