"""Views: further texts that are made of a source's documents (`corpus.sources[].views`), drawn by their content.

More distinct texts for the same sources: pieces of documents, as in Jasper (arXiv 2412.19048), first sentences, titles.
"""

import re
from collections.abc import Iterator
from hashlib import blake2b

import polars as pl

from pipeline.params import SourceParams, ViewParams

MOST_SENTENCES = 10  # of a crop, as in Jasper
SCHEMA = {"id": pl.String, "text": pl.String, "role": pl.String, "page": pl.String}
# A full stop before a small letter belongs to an abbreviation ("e.g. this"). Some scripts have no space after it.
_SENTENCE = re.compile(r"\S.*?(?:[.!?…][\"'”’)\]]*(?=\s+[^a-z\s])|[。！？।]|$)", re.DOTALL)


def views_source(source: SourceParams) -> str:
    """The name under which the views of a source stand in the corpus: apart from its own texts and their pairs."""
    return f"{source.name}/views"


def views_of(rows: pl.DataFrame, params: ViewParams, seed: int) -> pl.DataFrame:
    """The views of cleaned texts (frame `id, text, role, page`, and `title` where titles are wanted), after SCHEMA.

    Each has an id of its own (`ID#crop1`, `ID#first`, `ID#title`), and the page of its document. The same document
    gives the same views in any corpus.
    """
    documents = rows.filter(pl.col("role") == "document")
    columns = ("id", "text", "page", *(["title"] if params.title else []))
    made = [
        (f"{number}#{name}", view, role, page)
        for number, text, page, *title in documents.select(columns).iter_rows()
        if _draw(seed, "share", text) < params.share * 2**64
        for name, view, role in _views(text, title[0] if title else None, params, seed)
    ]
    return pl.DataFrame(made, schema=SCHEMA, orient="row")


def _views(text: str, title: str | None, params: ViewParams, seed: int) -> Iterator[tuple[str, str, str]]:
    """Name, text and role of each view of a document."""
    if title:
        yield "title", title, "query"
    if not params.crops and not params.first_sentence:
        return
    sentences = [match.span() for match in _SENTENCE.finditer(text)]
    if len(sentences) < 2:
        return  # it would be the document itself
    if params.first_sentence:
        yield "first", text[: sentences[0][1]], "document"
    for crop in range(1, params.crops + 1):
        drawn = _draw(seed, f"crop{crop}", text)
        first, drawn = drawn % len(sentences), drawn // len(sentences)
        length = 1 + drawn % min(MOST_SENTENCES, len(sentences) - first, len(sentences) - 1)
        yield f"crop{crop}", text[sentences[first][0] : sentences[first + length - 1][1]], "document"


def _draw(seed: int, purpose: str, text: str) -> int:
    """A number in [0, 2^64) that the text decides."""
    return int.from_bytes(blake2b(f"{seed}\0{purpose}\0{text}".encode(), digest_size=8).digest())
