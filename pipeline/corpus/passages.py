"""Cut long documents into passages at the ends of sentences, by the library `semantic-text-splitter`.

Passages end at paragraphs where they can, else at sentences as Unicode has them (UAX #29, which knows the full stops of
every script), else at words. They keep the id of their document: a page's passages are of one record, so that they are
held out together and all belong to the record's queries.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl

from pipeline.base import LeafError, first_line, import_optional, panics_as_errors
from pipeline.params import PassageParams

FindModel = Callable[[str], Path]
"""The directory of a model by its name; LeafError if there is none."""
_LINE_END = r"[^\S\n]*\n[^\S\n]*"


class Passages:
    """Cuts the documents of one source."""

    def __init__(self, params: PassageParams, place: str, find_model: FindModel) -> None:
        """`place` begins error messages.

        Raises:
            LeafError: the package is missing, or there is no such tokenizer.
        """
        self._place = place
        library = import_optional("semantic_text_splitter", "passages", f"{place}: passages")
        if params.tokens is not None:
            tokenizer = _tokenizer(params.tokenizer or "", place, find_model)
            self._size = params.tokens
            self._splitter: Any = library.TextSplitter.from_huggingface_tokenizer(tokenizer, self._size, params.overlap)
        else:
            self._size = params.characters or 0
            self._splitter = library.TextSplitter(self._size, params.overlap)

    def cut(self, frame: pl.DataFrame) -> pl.DataFrame:
        """A frame `id, text, role` with passages in place of its long documents; queries stay whole."""
        # A text has no more tokens than bytes, and no more characters.
        long = ((pl.col("role") == "document") & (pl.col("text").str.len_bytes() > self._size)).fill_null(False)
        mask = frame.select(long).to_series()
        if not mask.any():
            return frame
        documents = frame.filter(mask).select(_folded(pl.col("text"))).to_series().to_list()
        rows = frame.with_row_index("row").with_columns(text=pl.concat_list("text"))
        cut = rows.filter(mask).with_columns(text=pl.Series(self._passages(documents), dtype=pl.List(pl.String)))
        together = pl.concat([rows.filter(~mask), cut]).sort("row", maintain_order=True)
        return together.explode("text").drop("row")

    def _passages(self, documents: list[str]) -> list[list[str]]:
        try:
            with panics_as_errors():
                passages: list[list[str]] = self._splitter.chunk_all(documents)
                return passages
        except Exception as error:  # of the tokenizer, which may be anybody's
            raise LeafError(f"{self._place}: passages: cannot be cut ({first_line(error):.160})") from None


def _folded(texts: pl.Expr) -> pl.Expr:
    """Texts whose single line ends are spaces: only an empty line ends a paragraph, wherever lines were wrapped."""
    lines = texts.str.replace_all("\r\n?", "\n").str.replace_all(rf"(?:{_LINE_END}){{2,}}", "\u2029")
    return lines.str.replace_all(r"\s*\n\s*", " ").str.replace_all("\u2029", "\n\n")


def _tokenizer(model: str, place: str, find_model: FindModel) -> Any:
    """The tokenizer of a model, without truncation."""
    from tokenizers import Tokenizer

    file = find_model(model) / "tokenizer.json"
    if not file.is_file():
        raise LeafError(f"{place}: passages.tokenizer: `{model}` has no tokenizer.json; count characters instead")
    try:
        with panics_as_errors():
            tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises bare exceptions
        raise LeafError(f"{place}: passages.tokenizer: {file} cannot be read ({first_line(error):.160})") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer
