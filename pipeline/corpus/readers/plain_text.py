"""Reader of plain text files, one record per line or per paragraph."""

from collections.abc import Iterator
from pathlib import Path

from pipeline.corpus.readers.fields import Frames, is_one_file, name_in_source, source_files
from pipeline.corpus.readers.lines import TextForm, lines, text_form
from pipeline.corpus.readers.records import Record, frames_of_texts
from pipeline.params import SourceParams

SUFFIXES = ("txt", "text")


def read(source: SourceParams) -> Frames:
    """Frames of the source's files, split as its `unit` says.

    Ids are numbers; those of several files have the file's name before them, so that no file changes another's.
    """
    return frames_of_texts(_texts(source))


def _texts(source: SourceParams) -> Iterator[tuple[str, Record]]:
    """Id, text and role of each text, with its file."""
    split = lines if source.unit == "line" else paragraphs
    for file in source_files(source, SUFFIXES):
        before = "" if is_one_file(source) else f"{name_in_source(source, file)}#"
        for number, text in enumerate(split(file, text_form(file, source.encoding))):
            yield str(file), (f"{before}{number}", text, source.role)


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
