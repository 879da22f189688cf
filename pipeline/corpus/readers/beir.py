"""Reader of a directory in BEIR's layout (arXiv 2104.08663): documents in corpus.jsonl, queries in queries.jsonl."""

from collections.abc import Iterator
from pathlib import Path

from pipeline.base import LeafError
from pipeline.corpus.readers.fields import Frames
from pipeline.corpus.readers.lines import json_objects, optional_text
from pipeline.corpus.readers.records import Record, frames_of_texts
from pipeline.params import SourceParams

CORPUS, QUERIES = "corpus.jsonl", "queries.jsonl"


def read(source: SourceParams) -> Frames:
    """Frames of the documents, then of the queries; `role` selects one of the two. A title goes before its text."""
    directory = Path(source.path or "").expanduser()
    if not directory.is_dir():
        raise LeafError(f"corpus.sources `{source.name}`: {directory}: no such directory")
    for role, name in (("document", CORPUS), ("query", QUERIES)):
        if source.role in (None, role):
            yield from frames_of_texts(_texts(directory / name, role))


def _texts(file: Path, role: str) -> Iterator[tuple[str, Record]]:
    if not file.is_file():
        raise LeafError(f"{file}: no such file; a BEIR directory has {CORPUS} and {QUERIES}")
    for place, record in json_objects(file, ["_id", "text"]):
        number, title, text = (optional_text(place, name, record.get(name)) or "" for name in ("_id", "title", "text"))
        # BEIR numbers queries and documents apart: equal ids would make a pair of query 7 and document 7.
        yield place, (f"query/{number}", text, role) if role == "query" else (number, f"{title} {text}", role)
