"""The beginning of a source that nobody has described yet: its encoding, unit and columns, and some records whole."""

import json
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import ijson
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.base import LeafError, first_line, import_optional
from pipeline.corpus.readers import table
from pipeline.corpus.readers.contents import HEAD, unpacked
from pipeline.corpus.readers.lines import HEAD_BYTES, text_form
from pipeline.params import SourceParams

Records = list[dict[str, Any]]
"""Records at the beginning of a file; nested fields go by their paths."""

SAMPLE = 200  # records at the beginning of a file
_FALLBACK_ENCODING = "cp1252"  # which every byte but five is a character of: what Excel writes in Western Europe


def encoding_of(file: Path) -> str | None:
    """None if the file is UTF-8 or has a byte-order mark, as far as its beginning tells."""
    with unpacked(file) as stream:
        raw = stream.read(HEAD_BYTES)
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError as error:
        is_cut = error.start > len(raw) - 4 and len(raw) == HEAD_BYTES
        if not is_cut and not raw.startswith((b"\xff\xfe", b"\xfe\xff")):
            return _FALLBACK_ENCODING
    return None


def unit_of(file: Path, encoding: str | None) -> Literal["line", "paragraph"]:
    """Paragraphs where blank lines stand between them."""
    lines = text_form(file, encoding).head.splitlines()
    blank = sum(not line.strip() for line in lines)
    return "paragraph" if blank > len(lines) / 50 and blank < len(lines) else "line"


def missing_header(source: SourceParams, file: Path) -> tuple[str, ...]:
    """Names for the columns of a table whose first line is a record; empty if it names them itself."""
    header = [name.strip() for name in table.first_rows(source, file)[0]]
    are_names = all(0 < len(name) <= 60 and len(name.split()) < 6 and name[-1] not in "?!." for name in header)
    if are_names and len(set(header)) == len(header):
        return ()
    return tuple(f"column{number}" for number in range(1, len(header) + 1))


def records(source: SourceParams, file: Path | None) -> Records:
    """Records at the beginning of a file; None is a data set of the hub.

    Raises:
        LeafError: it cannot be read.
    """
    if file is None:
        return _hub_records(source)
    if source.kind in ("csv", "tsv"):
        rows = table.first_rows(source, file)
        header = list(source.columns) or [name.strip() for name in rows[0]]
        return [dict(zip(header, row, strict=True)) for row in rows[not source.columns :][:SAMPLE]]
    try:
        values = _json_values(source, file) if source.kind == "jsonl" else _arrow_values(file)
        return [record for value in islice(values, SAMPLE) if (record := dict(_flat(value)))]
    except (pa.ArrowException, OSError, ijson.JSONError, ValueError) as error:
        raise LeafError(f"{file}: cannot be read as {source.kind}: {first_line(error)}") from None


def _hub_records(source: SourceParams) -> Records:
    datasets = import_optional("datasets", "hub", f"{source.path}: a data set of the hub")
    try:
        stream = datasets.load_dataset(source.path, source.config, split=source.split, streaming=True)
        return [dict(_flat(record)) for record in stream.take(SAMPLE)]
    except Exception as error:  # the library's errors have no common base
        raise LeafError(f"data set {source.path}: cannot be read: {type(error).__name__}: {error!s:.300}") from None


def _arrow_values(file: Path) -> Iterator[Any]:
    with file.open("rb") as raw:
        head = raw.read(HEAD)
    if head.startswith(b"PAR1"):
        with pq.ParquetFile(file) as opened:
            for batch in opened.iter_batches(SAMPLE):
                yield from batch.to_pylist()
        return
    with pa.memory_map(str(file)) as mapped:
        if head.startswith(b"ARROW1"):
            batches: Iterable[Any] = (opened := pa.ipc.open_file(mapped)) and map(
                opened.get_batch, range(opened.num_record_batches)
            )
        else:
            batches = pa.ipc.open_stream(mapped)
        for batch in batches:
            yield from batch.slice(0, SAMPLE).to_pylist()


def _json_values(source: SourceParams, file: Path) -> Iterator[Any]:
    """Values of JSON Lines, of an array, or of the first list of objects in a document, under its path."""
    head = text_form(file, source.encoding).head.lstrip()
    if not head:
        raise LeafError(f"{file}: is empty")
    first, _, rest = head.partition("\n")
    try:
        if isinstance(json.loads(first), dict) and rest.strip():
            yield from map(json.loads, filter(str.strip, head.rpartition("\n")[0].splitlines()))
            return
    except ValueError:
        pass
    prefix = "" if head.startswith("[") else _list_in(file)
    with unpacked(file) as stream:
        for value in ijson.items(stream, f"{prefix}.item" if prefix else "item", use_float=True):
            yield {f"{prefix}[].{key}": content for key, content in value.items()} if prefix else value


def _list_in(file: Path) -> str:
    """The path of the first list of objects in a document."""
    with unpacked(file) as stream:
        before = ("", "")
        for prefix, event, _ in ijson.parse(stream):
            if event == "start_map" and before[1] == "start_array":
                return str(before[0])
            before = (prefix, event)
    raise LeafError(f"{file}: holds no list of records")


def _flat(value: Any, path: str = "", depth: int = 3) -> Iterator[tuple[str, Any]]:
    """The fields of a record with their paths; a bare value is the field `text`."""
    if not isinstance(value, Mapping):
        yield path or "text", value
        return
    for key, content in value.items():
        name = f"{path}.{key}" if path else str(key)
        if isinstance(content, Mapping) and depth:
            yield from _flat(content, name, depth - 1)
        else:
            yield name, content
