"""Ground floor: what knows nothing of this project.

Errors meant for people, files and locks, directories that are written whole, keys of texts, arrays, reading ahead,
memory kept by malloc, optional packages, token ids of long texts. Every other room may use it.
"""

from pipeline.base import files
from pipeline.base.arrays import Array, Similarity, cosines, similarities
from pipeline.base.documents import parse_yaml
from pipeline.base.errors import (
    FileMissingError,
    LeafError,
    NoAccessError,
    first_line,
    on_one_line,
    printable,
    quoted,
)
from pipeline.base.files import (
    TEMPORARY,
    access,
    check_writable,
    disk,
    link,
    locked,
    read_json,
    regular_size,
    remove,
    replace_directory,
    sha256,
    sync,
    temporary,
    workspace,
    write_json,
    written_directory,
    written_file,
)
from pipeline.base.keys import KEY_BYTES, KEY_DTYPE, ROLES, contains, key_array, keys, merge_sorted
from pipeline.base.memory import keep_pages, release_pages
from pipeline.base.optional import import_optional
from pipeline.base.prefetch import prefetch
from pipeline.base.prefixes import Prefixes, TokenIds, portions

__all__ = [
    "KEY_BYTES",
    "KEY_DTYPE",
    "ROLES",
    "TEMPORARY",
    "Array",
    "FileMissingError",
    "LeafError",
    "NoAccessError",
    "Prefixes",
    "Similarity",
    "TokenIds",
    "access",
    "check_writable",
    "contains",
    "cosines",
    "disk",
    "files",
    "first_line",
    "import_optional",
    "keep_pages",
    "key_array",
    "keys",
    "link",
    "locked",
    "merge_sorted",
    "on_one_line",
    "parse_yaml",
    "portions",
    "prefetch",
    "printable",
    "quoted",
    "read_json",
    "regular_size",
    "release_pages",
    "remove",
    "replace_directory",
    "sha256",
    "similarities",
    "sync",
    "temporary",
    "workspace",
    "write_json",
    "written_directory",
    "written_file",
]
