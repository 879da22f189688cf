"""Long texts are cut before a tokenizer reads them, where it is certain that it keeps the same tokens.

A tokenizer of the library `tokenizers` reads a text whole, at some fifty times its size in memory, and drops what is
beyond the maximum length at the end. A text of which a model reads the first page need not be read further than that.

Why the tokens are the same: a text goes through a normaliser and is split into words (pre-tokens), and each word is
tokenised alone. The kinds of normalisers and splitters that are listed here work from left to right, and look ahead no
further than into the next word. So the words of a prefix are those of the whole text, but for the last few. If the last
token that is kept is followed by FURTHER_WORDS words in the prefix, it is the same in the whole text. Where a tokenizer
has another kind, or makes no words of a text (one without spaces, say), the text is read whole.
"""

import json
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

from tokenizers import Tokenizer

from pipeline.base.errors import LeafError, first_line, panics_as_errors

FURTHER_WORDS = 8
CHARACTERS_PER_TOKEN = 8  # of the prefix that is tried first; twice as much in languages with spaces
GROWTH = 4  # of the prefix, where it was too short
LEAST = 1024  # characters; shorter texts are not worth it
AT_ONCE = 1 << 23  # characters tokenised at once

MODELS = {"WordPiece", "BPE", "Unigram", "WordLevel"}
NORMALIZERS = {
    *("BertNormalizer", "ByteLevel", "Lowercase", "NFC", "NFD", "NFKC", "NFKD", "Nmt", "Precompiled", "Prepend"),
    *("Replace", "Sequence", "Strip", "StripAccents"),
}
SPLITTERS = {
    *("BertPreTokenizer", "ByteLevel", "CharDelimiterSplit", "Digits", "Metaspace", "Punctuation", "Sequence"),
    *("Split", "UnicodeScripts", "Whitespace", "WhitespaceSplit"),
}
_END = r"|\s*[\r\n]+|\s+(?!\S)|\s+"
_ENDINGS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
EXPRESSIONS = {
    *(" {2,}", r"\s+", r"\s{2,}|[\n\r\t]", r"[\n\r\t]", r"\n"),
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+",
    rf"{_ENDINGS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*{_END}",
    rf"{_ENDINGS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*{_END}",
    rf"{_ENDINGS}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*{_END}",
}
"""Regular expressions that look no further than into the next word: of white space, and the splits of GPT-2, CLIP,
Qwen 2, Llama 3 (cl100k) and Qwen 3.5. Others might, so that texts are read whole."""


class Prefixes:
    """Cuts texts for one tokenizer, which keeps the first `limit` tokens of a text."""

    def __init__(self, tokenizer: Tokenizer | None, limit: int, *, from_right: bool = True) -> None:
        """`from_right`: whether it drops a text's last tokens. If not, or without a tokenizer, nothing is cut."""
        self._tokenizer, self._limit = tokenizer, limit
        self._first = max(LEAST, CHARACTERS_PER_TOKEN * limit)
        self._cuts = from_right and tokenizer is not None

    def cut(self, text: str) -> str:
        """The text, or a prefix of it of which the tokenizer keeps the same tokens, and drops at least one."""
        length = self._first
        while self._cuts and 2 * length <= len(text) and self._plain is not None:
            if self._enough(prefix := text[:length]):
                return prefix
            length *= GROWTH
        return text

    @cached_property
    def _plain(self) -> Tokenizer | None:
        """A copy of the tokenizer that drops nothing; None if it might look far ahead."""
        described = json.loads(self._tokenizer.to_str()) if self._tokenizer is not None else {}
        if not _is_local(described):
            self._cuts = False
            return None
        copy = Tokenizer.from_str(json.dumps(described | {"truncation": None, "padding": None}))
        copy.encode_special_tokens = self._tokenizer.encode_special_tokens if self._tokenizer is not None else False
        return copy

    @cached_property
    def _longest_added(self) -> int:
        """Characters of the longest token that is found in a text before it is split into words."""
        added = {} if self._plain is None else self._plain.get_added_tokens_decoder()
        return max((len(token.content) for token in added.values()), default=0)

    def _enough(self, prefix: str) -> bool:
        """Whether words enough follow the last of the prefix's tokens that is kept."""
        assert self._plain is not None
        encoding = self._plain.encode(prefix, add_special_tokens=False)
        words: list[int | None] = encoding.word_ids
        if len(words) <= self._limit:
            return False
        end = encoding.offsets[self._limit - 1][1]
        return (
            len(set(words[self._limit :]) - {words[self._limit - 1]}) > FURTHER_WORDS
            and len(prefix) - end > self._longest_added
        )


def _is_local(described: dict[str, Any]) -> bool:
    """Whether a tokenizer, described as in tokenizer.json, looks no further ahead than into the next word."""
    normalizers, splitters = list(_parts(described.get("normalizer"))), list(_parts(described.get("pre_tokenizer")))
    patterns = [part["pattern"] for part in normalizers + splitters if "pattern" in part]
    return (
        described.get("model", {}).get("type") in MODELS
        and not described["model"].get("dropout")
        and {part["type"] for part in normalizers} <= NORMALIZERS
        and {part["type"] for part in splitters} <= SPLITTERS
        and {pattern["Regex"] for pattern in patterns if "Regex" in pattern} <= EXPRESSIONS
    )


def _parts(described: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
    """A normaliser or splitter, and those that it is a sequence of."""
    if described:
        yield described
        for part in described.get("normalizers", described.get("pretokenizers", ())):
            yield from _parts(part)


class TokenIds:
    """Token ids of texts by a tokenizer that cuts at its maximum length; long texts are not read whole."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        cut: dict[str, Any] | None = tokenizer.truncation
        from_right = cut is not None and cut.get("direction", "right").lower() == "right"
        self._prefixes = Prefixes(tokenizer, cut["max_length"] if cut else 1, from_right=from_right)

    def __call__(self, texts: Sequence[str]) -> list[list[int]]:
        """`[texts]` lists of ids, special tokens included; LeafError where the tokenizer breaks off."""
        ids: list[list[int]] = []
        try:
            with panics_as_errors():
                for part in portions([self._prefixes.cut(text) for text in texts]):
                    ids += [encoding.ids for encoding in self._tokenizer.encode_batch_fast(part)]
        except Exception as error:  # the library raises bare exceptions
            raise LeafError(f"the model's tokenizer breaks off ({first_line(error):.160}); do not trust it") from None
        return ids


def portions(texts: Sequence[str]) -> Iterator[list[str]]:
    """The texts in order, at most AT_ONCE characters (or one text) at a time."""
    part: list[str] = []
    characters = 0
    for text in texts:
        if part and characters + len(text) > AT_ONCE:
            yield part
            part, characters = [], 0
        part.append(text)
        characters += len(text)
    if part:
        yield part
