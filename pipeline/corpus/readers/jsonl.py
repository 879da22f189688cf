"""Reader of JSON Lines: files of JSON objects, one record per line."""

from pipeline.corpus.readers.fields import Frames, column_names, source_files
from pipeline.corpus.readers.lines import json_objects, optional_text
from pipeline.corpus.readers.records import frames_of_records
from pipeline.params import SourceParams


def read(source: SourceParams) -> Frames:
    """Frames of the source's files. Whole numbers are taken as text; a field that an object lacks is null."""
    names = column_names(source)
    objects = (entry for file in source_files(source) for entry in json_objects(file, names))
    return frames_of_records(
        source,
        ((place, tuple(optional_text(place, name, record.get(name)) for name in names)) for place, record in objects),
    )
