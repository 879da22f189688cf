"""The corpus: texts from sources of many kinds, cleaned, keyed, split and sorted into Parquet files.

`readers/` has one file for each kind of source.
"""

from pipeline.corpus import external_sort
from pipeline.corpus.build import build
from pipeline.corpus.counts import FEW_HELDOUT, notices_of_split
from pipeline.corpus.further_records import NAME as FURTHER_RECORDS
from pipeline.corpus.further_records import further_records
from pipeline.corpus.guess import TEXT_KINDS, Fields, field_names, guess_sources, left_out, unread_files
from pipeline.corpus.output import CORPUS_KIND
from pipeline.corpus.parts import (
    check_rows,
    corpus_digest,
    corpus_keys,
    numbered_column,
    part_files,
    read_blocks,
    read_keys,
    rows_within,
    scan,
)
from pipeline.corpus.preview import Preview, preview
from pipeline.corpus.readers.beir import CORPUS, QUERIES, beir_file
from pipeline.corpus.readers.docstrings import texts
from pipeline.corpus.readers.lines import json_objects, lines
from pipeline.corpus.readers.source import has_fields
from pipeline.corpus.readers.table import read_table
from pipeline.corpus.text import clean

__all__ = [
    "CORPUS",
    "CORPUS_KIND",
    "FEW_HELDOUT",
    "FURTHER_RECORDS",
    "QUERIES",
    "TEXT_KINDS",
    "Fields",
    "Preview",
    "beir_file",
    "build",
    "check_rows",
    "clean",
    "corpus_digest",
    "corpus_keys",
    "external_sort",
    "field_names",
    "further_records",
    "guess_sources",
    "has_fields",
    "json_objects",
    "left_out",
    "lines",
    "notices_of_split",
    "numbered_column",
    "part_files",
    "preview",
    "read_blocks",
    "read_keys",
    "read_table",
    "rows_within",
    "scan",
    "texts",
    "unread_files",
]
