"""Reader of a directory in BEIR's layout (arXiv 2104.08663): documents in corpus.jsonl, queries in queries.jsonl."""

from collections.abc import Iterator
from pathlib import Path

from pipeline.base import LeafError
from pipeline.corpus.readers.fields import Frames
from pipeline.corpus.readers.lines import json_objects
from pipeline.corpus.readers.paths import text as as_text
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
            yield from frames_of_texts(_texts(beir_file(directory, name), role))


def beir_file(directory: Path, name: str) -> Path:
    """The file of that name in a BEIR directory, or the compressed one beside it (`corpus.jsonl.gz`).

    Raises:
        LeafError: there is none.
    """
    found = next((file for file in (directory / name, *sorted(directory.glob(f"{name}.*"))) if file.is_file()), None)
    if found is None:
        raise LeafError(f"{directory / name}: no such file; a BEIR directory has {CORPUS} and {QUERIES}")
    return found


def _texts(file: Path, role: str) -> Iterator[tuple[str, Record]]:
    for place, record in json_objects(file, ["_id", "text"]):
        values = (as_text(place, name, record.get(name), may_be_number=True) for name in ("_id", "title", "text"))
        number, title, text = (value or "" for value in values)
        # BEIR numbers queries and documents apart: equal ids would make a pair of query 7 and document 7.
        yield place, (f"query/{number}", text, role) if role == "query" else (number, f"{title} {text}", role)
