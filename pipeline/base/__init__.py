"""Ground floor: what knows nothing of this project.

Errors meant for people, files and locks, directories that are written whole and replaced only where they are ours, keys
of texts, arrays, reading ahead, memory kept by malloc, optional packages, token ids of long texts, how fast
work goes and what is under way. Every other room may use it.
"""

from pipeline.base import files, outputs
from pipeline.base.arrays import Array, Similarity, cosines, mapped_file, similarities
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
    near,
    on_one_line,
    panics_as_errors,
    printable,
    quoted,
)
from pipeline.base.files import (
    TEMPORARY,
    access,
    apply_umask,
    disk,
    glob_root,
    link,
    locked,
    new_file,
    open_own,
    read_json,
    regular_size,
    remove,
    sha256,
    sync,
    temporary,
    workspace,
    write_json,
    written_file,
)
from pipeline.base.keys import KEY_BYTES, KEY_DTYPE, ROLES, contains, key_array, keys, merge_sorted
from pipeline.base.markdown import LONGEST_LABEL, LONGEST_NAME, code_span, markdown, shortened, string_literal
from pipeline.base.memory import keep_pages, release_pages
from pipeline.base.optional import import_optional
from pipeline.base.outputs import (
    LISTING,
    IsOurs,
    Kind,
    check_replaceable,
    check_writable,
    made_once,
    read_listing,
    written_directory,
)
from pipeline.base.prefetch import prefetch
from pipeline.base.prefixes import Prefixes, TokenIds, portions
from pipeline.base.progress import under_way
from pipeline.base.rate import SettledRate

__all__ = [
    "KEY_BYTES",
    "KEY_DTYPE",
    "LISTING",
    "LONGEST_LABEL",
    "LONGEST_NAME",
    "ROLES",
    "TEMPORARY",
    "Array",
    "DigestError",
    "FileMissingError",
    "IsOurs",
    "Kind",
    "LeafError",
    "NoAccessError",
    "Prefixes",
    "SettledRate",
    "Similarity",
    "TokenIds",
    "access",
    "apply_umask",
    "bytes_kept",
    "check_replaceable",
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
    "glob_root",
    "import_optional",
    "is_panic",
    "keep_pages",
    "key_array",
    "keys",
    "link",
    "locked",
    "made_once",
    "mapped_file",
    "markdown",
    "merge_sorted",
    "near",
    "new_file",
    "on_one_line",
    "open_own",
    "outputs",
    "panics_as_errors",
    "parse_yaml",
    "portions",
    "prefetch",
    "printable",
    "quoted",
    "read_json",
    "read_listing",
    "regular_size",
    "release_pages",
    "remember_sha256",
    "remove",
    "sha256",
    "shortened",
    "similarities",
    "string_literal",
    "sync",
    "temporary",
    "under_way",
    "workspace",
    "write_json",
    "written_directory",
    "written_file",
]
