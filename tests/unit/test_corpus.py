"""The corpus: what is kept, how it is split and ordered, and what is counted."""

import contextlib
import json
import random
import re
import signal
import subprocess
import sys
import unicodedata
from collections import Counter
from hashlib import blake2b
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.base import outputs
from pipeline.base.errors import LeafError
from pipeline.base.files import workspace
from pipeline.base.keys import key
from pipeline.corpus import external_sort, shared_texts
from pipeline.corpus.build import build
from pipeline.corpus.further_records import further_records
from pipeline.corpus.near_duplicates import NearDuplicates, shingles
from pipeline.corpus.parts import scan
from pipeline.corpus.preview import preview
from pipeline.corpus.readers import records
from pipeline.corpus.shared_texts import SharedTexts
from pipeline.corpus.text import clean
from pipeline.evaluate.datasets import heldout_pairs
from pipeline.params.sections import CorpusParams, SourceParams, ViewParams
from tests.store_helpers import contents

ROOT = Path(__file__).parents[2]


def source(directory: Path, texts: list[tuple[str, str, str]], name: str = "s", **fields: Any) -> SourceParams:
    """A source with these (id, text, role)."""
    file = directory / f"{name}.jsonl"
    lines = (json.dumps({"id": number, "text": text, "role": role}) for number, text, role in texts)
    file.write_text("\n".join(lines) + "\n")
    return SourceParams(name=name, kind="jsonl", path=str(file), id_field="id", role_field="role", **fields)


def built(directory: Path, *sources: SourceParams, **fields: Any) -> tuple[pl.DataFrame, dict[str, Any]]:
    """The corpus of these sources, and its metrics."""
    metrics = build(CorpusParams(sources=sources, **{"heldout": 0.0, **fields}), directory / "corpus")
    return scan(directory / "corpus").collect(), metrics


def many(number: int, role: str = "query") -> list[tuple[str, str, str]]:
    return [(str(i), f"text number {i}", role) for i in range(number)]


def test_a_text_is_normalised_and_its_white_space_folded(tmp_path: Path) -> None:
    rows, _ = built(tmp_path, source(tmp_path, [("a", "  cafe\u0301\u00a0\n\tau  lait\u2028", "query")]))
    assert rows.row(0, named=True) == {
        "key": key("query", "caf\u00e9 au lait"),
        "id": "a",
        "text": "caf\u00e9 au lait",
        "role": "query",
        "source": "s",
        "split": "train",
    }


@given(st.text())
def test_cleaning_twice_changes_nothing_more(text: str) -> None:
    once = pl.select(clean(pl.lit(text))).item()
    assert pl.select(clean(pl.lit(once))).item() == once
    assert unicodedata.is_normalized("NFC", once)


def test_empty_and_short_texts_are_dropped_and_counted(tmp_path: Path) -> None:
    texts = [("a", " \n", "query"), ("b", "", "query"), ("c", "xy", "query"), ("d", "xyz", "query")]
    rows, metrics = built(tmp_path, source(tmp_path, texts), min_characters=3)
    assert rows["id"].to_list() == ["d"]
    assert metrics["read"] == {"s": 4}
    dropped = metrics["dropped"]["s"]
    assert (dropped["empty"], dropped["too_short"]) == (2, 1)


def test_a_character_of_a_script_without_spaces_counts_as_two(tmp_path: Path) -> None:
    kept = {"a": "手机", "b": "ไฟ", "c": "すし", "d": "abc", "e": "水a"}
    dropped = {"f": "水", "g": "ab", "h": "дом"[:2], "i": "ㄱ", "j": "é"}
    texts = [(number, text, "query") for number, text in (kept | dropped).items()]
    rows, metrics = built(tmp_path, source(tmp_path, texts), min_characters=3)
    assert sorted(rows["id"]) == list(kept)
    assert metrics["dropped"]["s"]["too_short"] == len(dropped)


def test_the_first_of_equal_texts_stays_and_the_later_are_counted_against_their_source(tmp_path: Path) -> None:
    first = source(tmp_path, [("a", "same text", "query"), ("b", "same  text", "query")], "first")
    second = source(tmp_path, [("c", "same text", "query"), ("d", "same text", "document")], "second")
    rows, metrics = built(tmp_path, first, second)
    assert sorted(rows["id"]) == ["a", "d"]
    assert [metrics["dropped"][name]["duplicate"] for name in ("first", "second")] == [1, 1]


def test_parts_hold_exactly_shard_rows_and_are_sorted_by_key_throughout(tmp_path: Path) -> None:
    rows, metrics = built(tmp_path, source(tmp_path, many(1000)), shard_rows=300)
    parts = sorted((tmp_path / "corpus").iterdir())
    assert [part.name for part in parts] == [f"part-{i:05d}.parquet" for i in range(4)]
    assert [len(pl.read_parquet(part)) for part in parts] == [300, 300, 300, 100]
    assert rows["key"].to_list() == sorted({key("query", f"text number {i}") for i in range(1000)})
    assert rows.schema == pl.Schema({"key": pl.Binary} | dict.fromkeys(rows.columns[1:], pl.String))
    assert metrics["total"] == 1000


def mixed(directory: Path, sizes: dict[str, int], **fields: Any) -> SourceParams:
    """Pages of some origins: each a document `x`, its questions `x/q` and `x/q2`, and a further passage `x.2`."""
    rows = [
        {"id": f"{origin}-{page}{suffix}", "role": role, "origin": origin, "text": f"{origin} {page} {suffix} text"}
        for origin, pages in sizes.items()
        for page in range(pages)
        for suffix, role in (("", "document"), ("/q", "query"), ("/q2", "query"), (".2", "document"), (".2/q", "query"))
    ]
    pl.DataFrame(rows).sort("id").write_parquet(directory / "mixed.parquet")
    named: dict[str, Any] = {"id_field": "id", "role_field": "role", "source_field": "origin"}
    suffixes: dict[str, Any] = {"id_suffix": "/q[0-9]*$", "page_suffix": r"\.[0-9]+$"}
    return SourceParams(name="s", kind="parquet", path=str(directory / "mixed.parquet"), **named, **suffixes, **fields)


def pages_of(rows: pl.DataFrame) -> dict[str, Counter[str]]:
    """By origin, how many texts of each page are there."""
    counts: dict[str, Counter[str]] = {}
    for number in rows["id"].to_list():
        page = number.partition(".")[0]
        counts.setdefault(page.partition("-")[0], Counter())[page] += 1
    return counts


def test_a_cap_draws_so_many_whole_pages_of_each_origin_and_not_the_first_ones(tmp_path: Path) -> None:
    rows, metrics = built(tmp_path, mixed(tmp_path, {"news": 200, "law": 50, "faq": 5}, cap=20), heldout=0.2)
    pages = pages_of(rows)
    assert {origin: len(counts) for origin, counts in pages.items()} == {"news": 20, "law": 20, "faq": 5}
    assert all(set(counts.values()) == {5} for counts in pages.values())
    drawn = sorted(int(page.partition("-")[2]) for page in pages["news"])
    assert drawn[-1] > 100 and drawn != list(range(20))
    assert metrics["origins"] == {
        "s": {
            "faq": {"records": 5, "drawn": 5},
            "law": {"records": 50, "drawn": 20},
            "news": {"records": 200, "drawn": 20},
        }
    }
    assert metrics["dropped"]["s"]["sampled_out"] == 5 * (255 - 45)
    sides = (
        rows.with_columns(page=pl.col("id").str.replace(r"\..*$", "")).group_by("page").agg(pl.col("split").n_unique())
    )
    assert sides["split"].to_list() == [1] * 45


def test_a_larger_cap_draws_the_same_pages_and_more_and_another_seed_draws_others(tmp_path: Path) -> None:
    few, more, other = (
        set(pages_of(built(tmp_path, mixed(tmp_path, {"news": 200}, cap=cap), seed=seed)[0])["news"])
        for cap, seed in ((20, 0), (40, 0), (20, 1))
    )
    assert few < more
    assert other != few


def test_square_root_balance_takes_of_each_origin_in_proportion_to_the_root_of_its_records(tmp_path: Path) -> None:
    balanced = mixed(tmp_path, {"news": 400, "law": 100, "faq": 4}, cap=60, balance="square_root")
    rows, _ = built(tmp_path, balanced)
    # 60 of 400; sqrt(100 / 400) of 60; sqrt(4 / 400) of 60 would be 6, and 4 are there.
    assert {origin: len(counts) for origin, counts in pages_of(rows).items()} == {"news": 60, "law": 30, "faq": 4}


def test_a_cap_counts_within_the_sample_and_before_the_limit(tmp_path: Path) -> None:
    sampled = pages_of(built(tmp_path, mixed(tmp_path, {"news": 200}, sample=0.5))[0])["news"]
    capped = pages_of(built(tmp_path, mixed(tmp_path, {"news": 200}, sample=0.5, cap=30))[0])["news"]
    limited = pages_of(built(tmp_path, mixed(tmp_path, {"news": 200}, sample=0.5, cap=30, limit=10))[0])["news"]
    assert set(limited) < set(capped) < set(sampled)
    assert (len(capped), len(limited)) == (30, 10)


def test_a_cap_without_origins_is_one_of_the_whole_source(tmp_path: Path) -> None:
    rows, metrics = built(tmp_path, source(tmp_path, many(300), cap=25))
    assert len(rows) == 25 and max(map(int, rows["id"])) > 100
    assert metrics["origins"] == {"s": {"": {"records": 300, "drawn": 25}}}


def test_questions_of_a_page_belong_to_their_own_passage(tmp_path: Path) -> None:
    rows, _ = built(tmp_path, mixed(tmp_path, {"news": 30}), heldout=0.5)
    pairs = next(heldout_pairs(rows.filter(pl.col("split") == "heldout"), further_records(tmp_path / "corpus")))
    assert all(len(grades) == 1 for grades in pairs.judged)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"balance": "square_root", "cap": 3}, "needs `source_field` and `cap`"),
        ({"balance": "square_root", "source_field": "role"}, "needs `source_field` and `cap`"),
        ({"page_suffix": "["}, "page_suffix '\\[' is no regular expression"),
        ({"source_field": "missing"}, "has no column `missing`"),
    ],
)
def test_caps_that_cannot_be_are_refused(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(LeafError, match=message):
        built(tmp_path, source(tmp_path, many(10), **fields))


def essay(number: int, sentences: int) -> str:
    return " ".join(f"Sentence {place} of essay {number} is here, e.g. as this." for place in range(sentences))


def titled(directory: Path, records: list[dict[str, str]], **fields: Any) -> SourceParams:
    pl.DataFrame(records).write_ndjson(directory / "titled.jsonl")
    named: dict[str, Any] = {"id_field": "id", "title_field": "title", "query_field": "q", "document_field": "text"}
    return SourceParams(name="s", kind="jsonl", path=str(directory / "titled.jsonl"), **named, **fields)


def test_views_are_texts_of_their_own_on_the_side_of_their_document_and_in_no_pairs(tmp_path: Path) -> None:
    records = [{"id": str(i), "title": f"Title {i}", "q": f"question {i}", "text": essay(i, 14)} for i in range(60)]
    plain, _ = built(tmp_path, titled(tmp_path, records), heldout=0.3)
    views = ViewParams(crops=2, first_sentence=True, title=True)
    rows, metrics = built(tmp_path, titled(tmp_path, records, views=views), heldout=0.3)
    assert rows.filter(pl.col("source") == "s").equals(plain)
    made = rows.filter(pl.col("source") == "s/views").with_columns(pl.col("id").str.split("#")).to_dicts()
    documents = plain.filter(pl.col("role") == "document")
    split_of, text_of = (dict(documents.select("id", name).iter_rows()) for name in ("split", "text"))
    kinds = Counter(row["id"][1] for row in made)
    assert kinds["title"] == kinds["first"] == 60 and kinds["crop1"] + kinds["crop2"] >= 110
    for row in made:
        record, kind = row["id"]
        assert row["split"] == split_of[record]
        assert row["key"] == key(row["role"], row["text"])
        if kind == "title":
            assert (row["text"], row["role"]) == (f"Title {record}", "query")
            continue
        assert row["role"] == "document" and row["text"] in text_of[record] and row["text"] != text_of[record]
        ends = row["text"].endswith("as this.") and row["text"].count("as this.") <= 10
        assert ends and re.match(r"(Title \d+ )?Sentence", row["text"])
        assert kind != "first" or row["text"].count("Sentence") == 1
    assert metrics["read"] == {"s": 120, "s/views": 240}
    assert metrics["rows"]["s/views"]["query"]["heldout"] == sum(split == "heldout" for split in split_of.values())
    pairs = list(heldout_pairs(rows.filter(pl.col("split") == "heldout"), further_records(tmp_path / "corpus")))
    assert [one.source for one in pairs] == ["s"]


def test_a_text_that_is_also_a_view_stands_by_itself_and_their_records_are_held_out_together(tmp_path: Path) -> None:
    first = "The first sentence is a text of its own."
    records = [{"id": "a", "title": "", "q": "one", "text": f"{first} Another sentence."}] + [
        {"id": f"b{i}", "title": "", "q": f"two {i}", "text": f"Filler {i}."} for i in range(40)
    ]
    late = {"id": "late", "title": "", "q": "three", "text": first}
    views = ViewParams(first_sentence=True)
    for share in (0.2, 0.5, 0.8):
        rows, _ = built(tmp_path, titled(tmp_path, [*records, late], views=views), heldout=share)
        own = rows.filter(pl.col("text") == first).to_dicts()
        assert [(row["id"], row["source"]) for row in own] == [("late", "s")]
        assert own[0]["split"] == rows.filter(pl.col("id") == "a")["split"][0]


def test_a_near_duplicate_that_is_dropped_has_no_views(tmp_path: Path) -> None:
    page = essay(1, 12)
    records = [{"id": f"{i}", "title": "", "q": "", "text": text} for i, text in enumerate([page, f"{page} One more."])]
    rows, metrics = built(tmp_path, titled(tmp_path, records, views=ViewParams(crops=1)), near_duplicates=0.8)
    assert metrics["dropped"]["s"]["near_duplicate"] == 1
    assert rows["id"].to_list() in (["0", "0#crop1"], ["0#crop1", "0"])


def test_a_share_of_the_documents_has_views_and_single_sentences_have_none(tmp_path: Path) -> None:
    records = [{"id": str(i), "title": "", "q": "", "text": essay(i, 1 + i % 2)} for i in range(200)]
    rows, _ = built(tmp_path, titled(tmp_path, records, views=ViewParams(first_sentence=True, share=0.4)))
    chosen = set(rows.filter(pl.col("source") == "s/views")["id"])
    assert 25 < len(chosen) < 55 and all(int(name.partition("#")[0]) % 2 for name in chosen)
    again, _ = built(tmp_path, titled(tmp_path, records, views=ViewParams(first_sentence=True, share=0.6)))
    assert chosen < set(again.filter(pl.col("source") == "s/views")["id"])


def test_views_of_titles_without_titles_are_refused(tmp_path: Path) -> None:
    with pytest.raises(LeafError, match=r"views\.title needs `title_field`"):
        built(tmp_path, source(tmp_path, many(5), views=ViewParams(title=True)))


def test_the_same_sources_give_the_same_bytes_however_they_are_batched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = source(tmp_path, [*many(500), *many(500, "document")])
    built(tmp_path, texts, heldout=0.1, shard_rows=400)
    before = {file.name: file.read_bytes() for file in (tmp_path / "corpus").iterdir()}
    monkeypatch.setattr(records, "BATCH_ROWS", 64)
    monkeypatch.setattr(external_sort, "SPILL_BYTES", 5_000)
    built(tmp_path, texts, heldout=0.1, shard_rows=400)
    assert {file.name: file.read_bytes() for file in (tmp_path / "corpus").iterdir()} == before


def test_a_record_is_held_out_whole_and_stays_so_as_the_corpus_grows(tmp_path: Path) -> None:
    texts = [*many(2000), *((i, f"about {text}", "document") for i, text, _ in many(2000))]
    rows, metrics = built(tmp_path, source(tmp_path, texts), heldout=0.1)
    assert rows.group_by("id").agg(pl.col("split").n_unique())["split"].max() == 1
    assert 300 < metrics["splits"]["heldout"] < 500
    fewer, _ = built(tmp_path, source(tmp_path, texts[:700]), heldout=0.1)
    joined = fewer.join(rows, on="key")
    assert len(joined) == 700 and (joined["split"] == joined["split_right"]).all()


def test_nothing_that_is_held_out_is_trained_on_whatever_texts_records_share(tmp_path: Path) -> None:
    """Records of three sources share texts at random, as queries and as documents, some of them through others."""
    draw = random.Random(0)
    sources = [
        source(
            tmp_path,
            [
                (str(number), f"text {draw.randrange(2000)}", role)
                for number in range(300)
                for role in ("query", "document")[: draw.randint(1, 2)]
            ],
            name,
        )
        for name in "abc"
    ]
    rows, metrics = built(tmp_path, *sources, heldout=0.2)
    assert rows.group_by("text").agg(pl.col("split").n_unique())["split"].max() == 1
    splits = dict(rows.select("text", "split").iter_rows())
    records: dict[tuple[str, str], set[str]] = {}
    for origin in sources:
        for line in Path(str(origin.path)).read_text().splitlines():
            record = json.loads(line)
            records.setdefault((origin.name, record["id"]), set()).add(splits[record["text"]])
    assert {len(sides) for sides in records.values()} == {1}
    assert 0.1 < metrics["splits"]["heldout"] / metrics["total"] < 0.3
    assert metrics["shared_texts"]["records"] > 300 and metrics["shared_texts"]["largest_group"] > 3


def test_records_that_share_no_text_are_held_out_by_their_own_hash_alone(tmp_path: Path) -> None:
    texts = many(300)
    alone, metrics = built(tmp_path, source(tmp_path, texts), heldout=0.2)
    assert metrics["shared_texts"] == {"records": 0, "groups": 0, "largest_group": 0}
    assert [file.name for file in (tmp_path / "corpus").iterdir()] == ["part-00000.parquet"]
    expected = [int.from_bytes(blake2b(b"s\0" + i.encode(), digest_size=8).digest()) < 0.2 * 2**64 for i in alone["id"]]
    assert (alone["split"] == "heldout").to_list() == expected
    joined, _ = built(tmp_path, source(tmp_path, [*texts, ("7", "text number 8", "query")]), heldout=0.2)
    assert joined.filter(pl.col("id").is_in(["7", "8"]))["split"].n_unique() == 1
    apart = ~pl.col("id").is_in(["7", "8"])
    assert joined.filter(apart).equals(alone.filter(apart))


def test_every_held_out_question_of_a_shared_document_is_tested(tmp_path: Path) -> None:
    texts = [
        row for i in range(500) for row in ((f"r{i}", f"que {i}", "query"), (f"r{i}", f"doc {i // 5}", "document"))
    ]
    rows, metrics = built(tmp_path, source(tmp_path, texts), heldout=0.2)
    held = rows.filter(split="heldout").sort("role", "key")
    (pairs,) = heldout_pairs(held, further_records(tmp_path / "corpus"))
    assert len(pairs.queries) == held.filter(role="query").height == metrics["rows"]["s"]["query"]["heldout"] > 50
    assert pairs.untested == 0 and pairs.notices() == []
    for query, judged in zip(pairs.queries, pairs.judged, strict=True):
        wanted = f"doc {int(held['text'][int(query)].split()[1]) // 5}"
        assert [held["text"][int(pairs.documents[position])] for position in judged] == [wanted]


def test_questions_of_near_duplicates_are_tested_with_the_document_that_stays(tmp_path: Path) -> None:
    pytest.importorskip("rensa", reason="the optional package `rensa` is not installed")
    words = [f"w{number}" for number in range(400)]
    pages = [" ".join(random.Random(page).sample(words, 40)) for page in range(60)]
    texts = [
        row
        for number in range(180)
        for row in (
            (f"r{number}", f"what is {number} and why {number * 7}", "query"),
            (f"r{number}", f"{pages[number // 3]} more{number}", "document"),
        )
    ]
    rows, metrics = built(tmp_path, source(tmp_path, texts), heldout=0.3, near_duplicates=0.7)
    assert metrics["rows"]["s"]["document"]["heldout"] + metrics["rows"]["s"]["document"]["train"] == 60
    assert metrics["dropped"]["s"]["near_duplicate"] == 120 and metrics["dropped"]["s"]["duplicate"] == 0
    held = rows.filter(split="heldout").sort("role", "key")
    (pairs,) = heldout_pairs(held, further_records(tmp_path / "corpus"))
    assert pairs.untested == 0 and len(pairs.queries) == metrics["rows"]["s"]["query"]["heldout"] > 20
    for query, judged in zip(pairs.queries, pairs.judged, strict=True):
        page = pages[int(held["text"][int(query)].split()[2]) // 3]
        assert [held["text"][int(pairs.documents[row])].rpartition(" ")[0] for row in judged] == [page]


def test_a_text_that_too_many_records_have_does_not_hold_out_half_of_them(tmp_path: Path) -> None:
    hub = [(f"h{i}", text, role) for i in range(100) for text, role in ((f"que {i}", "query"), ("n/a", "document"))]
    rest = [(f"r{i}", f"other {i}", "query") for i in range(100)]
    for prefix in "abcdefghijkl":
        texts = [(prefix + number, text, role) for number, text, role in hub + rest]
        rows, metrics = built(tmp_path, source(tmp_path, texts), heldout=0.2)
        assert rows.filter(pl.col("id").str.starts_with(f"{prefix}h"))["split"].unique().to_list() == ["train"]
        assert metrics["shared_texts"]["largest_group"] == 100
        assert any("1 of 1 groups" in notice for notice in metrics["notices"])


def test_a_source_that_is_held_out_whole_takes_what_shares_its_texts_with_it(tmp_path: Path) -> None:
    training = source(tmp_path, many(100, "document"), "training")
    test = source(tmp_path, [(f"t{i}", f"text number {i}", "query") for i in range(20)], "test", heldout=1.0)
    rows, _ = built(tmp_path, training, test, heldout=0.0)
    held = rows.filter(split="heldout")
    assert set(held["text"]) == {f"text number {i}" for i in range(20)} and len(held) == 40


def test_a_corpus_of_which_nothing_is_held_out_says_so_at_once(tmp_path: Path) -> None:
    texts = source(tmp_path, many(10))
    notices = [built(tmp_path, texts, heldout=share)[1]["notices"] for share in (0.0, 1e-9, 1.0)]
    assert notices[0][0].startswith("none of 10 texts is held out: raise corpus.heldout from 0 to 0.5")
    assert notices[1][0].startswith("none of 10 texts is held out, which is chance: raise corpus.heldout")
    assert notices[2] == ["all of 10 texts are held out, and nothing is left to train on; lower corpus.heldout"]


@pytest.mark.parametrize(
    ("sample", "share", "remedy"),
    [
        (
            1.0,
            0.02,
            "queries held out are too few to measure with: raise corpus.heldout from 0.02 to 0.08, for about 3",
        ),
        (0.1, 0.3, "queries held out are too few to measure with: raise corpus.heldout from 0.3 to 0.5, for about "),
        (1.0, 0.1, ""),
    ],
)
def test_a_corpus_with_few_held_out_queries_says_so_at_once_as_its_preview_does(
    sample: float, share: float, remedy: str, tmp_path: Path
) -> None:
    texts = source(tmp_path, many(400), sample=sample)
    _, metrics = built(tmp_path, texts, heldout=share)
    heldout = metrics["rows"]["s"]["query"]["heldout"]
    assert [f"{heldout} of " in notice and remedy in notice for notice in metrics["notices"]] == [True] * bool(remedy)
    if sample == 1:
        assert preview(texts, CorpusParams((texts,), share)).heldout(share) == {"query": heldout}


def test_ids_that_begin_anew_in_the_next_file_are_said_to_be_one_record(tmp_path: Path) -> None:
    for part in "ab":
        rows = [{"id": n, "q": f"question {part} {n}", "d": [f"page {part} {n}", f"leaf {part} {n}"]} for n in range(9)]
        rows += [{"id": n, "q": f"further question {part} {n}", "d": []} for n in (8, 8)]  # beside the first: no word
        (tmp_path / f"{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    fields: dict[str, Any] = {"kind": "jsonl", "query_field": "q", "document_field": "d"}
    for path, id_field, number in (("*", "id", 9), ("a", "id", 0), ("*", None, 0)):
        pairs = SourceParams(name="p", path=f"{tmp_path}/{path}.jsonl", id_field=id_field, **fields)
        notices = build(CorpusParams((pairs,), heldout=0.0), tmp_path / "out")["notices"][1:]
        begin = f"source `p`: {number} records have the id of an earlier one elsewhere in it."
        assert [notice.startswith(begin) for notice in notices] == [True] * (number > 0)


def test_groups_are_found_as_the_whole_graph_has_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against a search of the graph in plain Python, whatever is held in memory at a time."""
    draw = random.Random(1)
    entries = [(draw.randrange(150), record, draw.randrange(3)) for record in range(120) for _ in range(2)]
    entries.sort(key=lambda entry: entry[2])
    monkeypatch.setattr(shared_texts, "HELD_ENTRIES", 7)
    shared = SharedTexts(tmp_path)
    for text, record, number in entries:
        # spread over the partitions, and so that the record's number is its hash
        shared.add(np.array([text << 55], dtype=np.uint64), np.array([record << 50], dtype=np.uint64), number)
    found = shared.regrouped([0.0, 0.0, 0.0])
    group = {record: {record} for record in range(120)}
    for (text, record, _), (other_text, other, _) in combinations(entries, 2):
        if text == other_text and group[record] is not group[other]:
            group[record] |= group[other]
            group.update(dict.fromkeys(group[record], group[record]))
    sizes = [len(members) for members in {id(members): members for members in group.values()}.values()]
    assert found.sharing == sum(size for size in sizes if size > 1)
    assert found.groups == sum(size > 1 for size in sizes)
    assert found.largest == max(sizes)
    assert not len(found.records) and not list(tmp_path.iterdir())


def test_the_share_held_out_can_be_a_sources_own(tmp_path: Path) -> None:
    queries = source(tmp_path, many(50), "one", heldout=1.0)
    documents = source(tmp_path, [(i, f"about {text}", "document") for i, text, _ in many(50)], "two")
    _, metrics = built(tmp_path, queries, documents, heldout=0.0)
    assert metrics["rows"] == {
        "one": {"query": {"heldout": 50, "train": 0}},
        "two": {"document": {"heldout": 0, "train": 50}},
    }


def test_a_sample_is_chosen_by_id_and_seed(tmp_path: Path) -> None:
    texts = [row for i in range(1000) for row in ((str(i), f"q {i}", "query"), (str(i), f"d {i}", "document"))]
    rows, metrics = built(tmp_path, source(tmp_path, texts, sample=0.3))
    assert 450 < len(rows) < 750
    assert metrics["dropped"]["s"]["sampled_out"] == 2000 - len(rows)
    assert rows["id"].value_counts()["count"].unique().to_list() == [2]
    more, _ = built(tmp_path, source(tmp_path, texts, sample=0.5))
    assert set(rows["key"]) < set(more["key"])
    other, _ = built(tmp_path, source(tmp_path, texts, sample=0.3), seed=1)
    assert set(other["key"]) != set(rows["key"])


@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_a_limit_counts_records_not_texts_whatever_the_batches(
    size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records, "BATCH_ROWS", size)
    texts = [row for i in range(9) for row in ((str(i), f"que {i}", "query"), (str(i), f"doc {i}", "document"))]
    rows, metrics = built(tmp_path, source(tmp_path, texts, limit=4))
    assert Counter(rows["id"]) == dict.fromkeys("0123", 2)
    assert metrics["read"] == {"s": 8}


def test_lengths_are_counted_in_characters_per_role(tmp_path: Path) -> None:
    texts = [(str(i), "é" * (i + 1), "query") for i in range(100)] + [("d", "x" * 7, "document")]
    _, metrics = built(tmp_path, source(tmp_path, texts), min_characters=1)
    query = metrics["characters"]["query"]
    assert (query["min"], query["p1"], query["p50"], query["p99"], query["max"]) == (1, 1, 50, 99, 100)
    assert query["mean"] == 50.5
    assert metrics["characters"]["document"]["p50"] == 7


def test_near_duplicates_are_removed_per_role_and_counted_apart_from_exact_ones(tmp_path: Path) -> None:
    pytest.importorskip("rensa", reason="the optional package `rensa` is not installed")
    words = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
    text = " ".join(words)
    texts = [
        ("a", text, "query"),
        ("b", text.upper() + "!", "query"),
        ("c", text, "query"),
        ("d", text + ".", "document"),
        ("e", " ".join(reversed(words)), "query"),
    ]
    rows, metrics = built(tmp_path, source(tmp_path, texts), near_duplicates=0.8)
    assert sorted(rows["id"]) == ["a", "d", "e"]
    dropped = metrics["dropped"]["s"]
    assert (dropped["duplicate"], dropped["near_duplicate"]) == (1, 1)
    kept, _ = built(tmp_path, source(tmp_path, texts))
    assert sorted(kept["id"]) == ["a", "b", "d", "e"]


@pytest.mark.parametrize(
    ("first", "near", "other"),
    [
        (
            "今天的天气非常好我们决定一起去公园散步然后回家吃晚饭",
            20,
            "这家餐厅的菜品种类很多而且价格也比较便宜值得推荐给大家",
        ),
        ("วันนี้อากาศดีมากเราจึงตัดสินใจไปเดินเล่นที่สวนสาธารณะด้วยกัน", 50, "ร้านอาหารนี้มีเมนูหลากหลายและราคาไม่แพงจึงขอแนะนำให้ทุกคนลอง"),
        (
            "東京でラーメンを食べてから友達と映画を見に行きました",
            22,
            "この本はとても面白いので皆さんに読んでほしいと思います",
        ),
        (
            "安装 Python 之后请先运行 setup 命令再打开编辑器修改配置文件",
            30,
            "使用 Docker 的时候请注意 volume 的权限以及网络端口的设置",
        ),
    ],
    ids=["Chinese", "Thai", "Japanese", "mixed"],
)
def test_texts_without_spaces_are_compared_by_their_characters(first: str, near: int, other: str) -> None:
    changed = first[:near] + "x" + first[near + 1 :]

    def similarity(text: str) -> float:
        ours, theirs = set(shingles(first)), set(shingles(text))
        return len(ours & theirs) / len(ours | theirs)

    assert similarity(changed) >= 0.7
    assert similarity(other) < 0.1


@given(st.text(alphabet=st.characters(max_codepoint=0x2FF)))
def test_texts_with_spaces_are_compared_by_pairs_of_words(text: str) -> None:
    words = re.findall(r"\w+", text.casefold())
    assert shingles(text) == ([f"{a} {b}" for a, b in pairwise(words)] or words or [text])


def test_near_duplicates_without_the_optional_package_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rensa", None)
    with pytest.raises(LeafError, match=r"pip install 'leaf-pipeline\[dedup\]'"):
        NearDuplicates(0.8, seed=0)


def test_a_source_of_which_nothing_is_left_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LeafError, match=r"`s`: no text is left \(1 too_short\)"):
        built(tmp_path, source(tmp_path, [("a", "xy", "query")]))


def test_two_sources_of_one_name_are_refused(tmp_path: Path) -> None:
    texts = source(tmp_path, many(1))
    with pytest.raises(LeafError, match="'s' is given twice"):
        built(tmp_path, texts, texts)


def test_no_sources_are_refused(tmp_path: Path) -> None:
    with pytest.raises(LeafError, match=r"corpus\.sources"):
        built(tmp_path)


def test_scanning_names_what_is_missing_or_damaged(tmp_path: Path) -> None:
    with pytest.raises(LeafError, match="no corpus there"):
        scan(tmp_path / "corpus")
    built(tmp_path, source(tmp_path, many(5)))
    part = tmp_path / "corpus" / "part-00000.parquet"
    part.write_bytes(part.read_bytes()[:-20])
    with pytest.raises(LeafError, match=r"part-00000\.parquet: damaged"):
        scan(tmp_path / "corpus")
    pl.DataFrame({"text": ["a"]}).write_parquet(part)
    with pytest.raises(LeafError, match="columns there: `text`"):
        scan(tmp_path / "corpus")


def test_a_killed_run_leaves_the_corpus_as_it_was_and_the_next_removes_what_it_left(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    texts = source(tmp_path, many(100))
    built(data, texts)
    before = (data / "corpus" / "part-00000.parquet").read_bytes()
    script = (
        "import os, signal, sys; from pathlib import Path; "
        "from pipeline.corpus.build import build; from pipeline.corpus.external_sort import Parts; "
        "from pipeline.params.sections import CorpusParams, SourceParams; "
        "Parts.finish = lambda self: os.kill(os.getpid(), signal.SIGKILL); "
        "source = SourceParams(name='s', kind='jsonl', path=sys.argv[1], role='document'); "
        "build(CorpusParams(sources=(source,), heldout=0), Path(sys.argv[2]))"
    )
    command = [sys.executable, "-c", script, str(texts.path), str(data / "corpus")]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, check=False)
    assert run.returncode == -signal.SIGKILL, run.stderr
    assert (data / "corpus" / "part-00000.parquet").read_bytes() == before
    left = sorted(path.name for path in data.iterdir())
    assert [re.sub(r"[0-9a-f]{16}", "CHANCE", name) for name in left] == [
        ".tmp-corpus.new.CHANCE",
        ".tmp-corpus.new.lock",
        "corpus",
    ]
    built(data, texts)
    assert list(data.iterdir()) == [data / "corpus"]


@pytest.mark.parametrize("swaps", [True, False])
def test_a_run_ended_in_the_middle_of_the_swap_leaves_the_old_corpus_or_the_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, swaps: bool
) -> None:
    """SIGTERM raises SystemExit wherever the run is; `swaps`: whether the system can exchange two names at once."""
    built(tmp_path, source(tmp_path, many(5)))
    old = contents(tmp_path / "corpus")
    rename, renames = Path.rename, 0

    def ended(self: Path, target: Path) -> Path:
        nonlocal renames
        moved = rename(self, target)
        renames += 1
        if renames == 1:
            raise SystemExit(143)
        return moved

    if not swaps:
        monkeypatch.setattr(outputs, "_exchange", lambda first, second: False)
    monkeypatch.setattr(Path, "rename", ended)
    with contextlib.suppress(SystemExit):
        built(tmp_path, source(tmp_path, many(9)))
    monkeypatch.undo()
    left = contents(tmp_path / "corpus")
    built(tmp_path, source(tmp_path, many(9)))
    assert left in (old, contents(tmp_path / "corpus"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus", "s.jsonl"]


def test_a_second_run_at_the_same_time_is_refused_and_disturbs_nothing(tmp_path: Path) -> None:
    with workspace(tmp_path / "corpus", "new") as directory:
        (directory / "result").mkdir()
        with pytest.raises(LeafError, match="another run"):
            built(tmp_path, source(tmp_path, many(3)))
        assert (directory / "result").is_dir()
    built(tmp_path, source(tmp_path, many(3)))


def test_a_full_disk_ends_in_a_message_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(external_sort.Parts, "add", full)
    out = tmp_path / "data"
    with pytest.raises(LeafError, match=r"cannot be written: .*No space left"):
        built(out, source(tmp_path, many(3)))
    assert list(out.iterdir()) == []
