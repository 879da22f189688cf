"""Ground floor: what knows nothing of this project.

Errors meant for people, files and locks, directories that are written whole, keys of texts, arrays, reading ahead,
memory kept by malloc, optional packages, token ids of long texts. Every other room may use it.
"""

from pipeline.base import files
from pipeline.base.arrays import Array, Similarity, cosines, similarities
from pipeline.base.digests import (
    DigestError,
    bytes_kept,
    check_sha256,
    checked_file,
    file_sha256,
    remember_sha256,
)
from pipeline.base.documents import parse_yaml
from pipeline.base.errors import (
    FileMissingError,
    LeafError,
    NoAccessError,
    first_line,
    is_panic,
    on_one_line,
    panics_as_errors,
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
from pipeline.base.markdown import LONGEST_LABEL, LONGEST_NAME, code_span, markdown, shortened, string_literal
from pipeline.base.memory import keep_pages, release_pages
from pipeline.base.optional import import_optional
from pipeline.base.prefetch import prefetch
from pipeline.base.prefixes import Prefixes, TokenIds, portions

__all__ = [
    "KEY_BYTES",
    "KEY_DTYPE",
    "LONGEST_LABEL",
    "LONGEST_NAME",
    "ROLES",
    "TEMPORARY",
    "Array",
    "DigestError",
    "FileMissingError",
    "LeafError",
    "NoAccessError",
    "Prefixes",
    "Similarity",
    "TokenIds",
    "access",
    "bytes_kept",
    "check_sha256",
    "check_writable",
    "checked_file",
    "code_span",
    "contains",
    "cosines",
    "disk",
    "file_sha256",
    "files",
    "first_line",
    "import_optional",
    "is_panic",
    "keep_pages",
    "key_array",
    "keys",
    "link",
    "locked",
    "markdown",
    "merge_sorted",
    "on_one_line",
    "panics_as_errors",
    "parse_yaml",
    "portions",
    "prefetch",
    "printable",
    "quoted",
    "read_json",
    "regular_size",
    "release_pages",
    "remember_sha256",
    "remove",
    "replace_directory",
    "sha256",
    "shortened",
    "similarities",
    "string_literal",
    "sync",
    "temporary",
    "workspace",
    "write_json",
    "written_directory",
    "written_file",
]
