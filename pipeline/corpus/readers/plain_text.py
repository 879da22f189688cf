"""Reader of plain text files, one record per line or per paragraph."""

from collections.abc import Iterator
from pathlib import Path

from pipeline.corpus.readers.fields import Frames, source_files
from pipeline.corpus.readers.lines import TextForm, lines, text_form
from pipeline.corpus.readers.records import frames_of_records
from pipeline.params import SourceParams

SUFFIXES = ("txt", "text", "md")


def read(source: SourceParams) -> Frames:
    """Frames of the source's files, split as its `unit` says."""
    split, files = lines if source.unit == "line" else paragraphs, source_files(source, SUFFIXES)
    texts = ((file, text) for file in files for text in split(file, text_form(file, source.encoding)))
    return frames_of_records(source, ((str(file), (text,)) for file, text in texts))


def paragraphs(file: Path, form: TextForm) -> Iterator[str]:
    """Paragraphs of a text file: runs of lines between blank lines, with their line ends."""
    block: list[str] = []
    for line in lines(file, form):
        if line.strip():
            block.append(line)
        elif block:
            yield "".join(block)
            block = []
    if block:
        yield "".join(block)
