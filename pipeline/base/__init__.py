"""Ground floor: what knows nothing of this project.

Errors meant for people, files and locks, directories that are written whole and replaced only where they are ours, keys
of texts, arrays, reading ahead, memory kept by malloc, optional packages, token ids of long texts. Every other room may
use it.
"""

from pipeline.base import files, outputs
from pipeline.base.arrays import Array, Similarity, cosines, similarities
from pipeline.base.errors import FileMissingError, LeafError, NoAccessError, first_line
from pipeline.base.files import (
    TEMPORARY,
    access,
    apply_umask,
    disk,
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
from pipeline.base.memory import keep_pages, release_pages
from pipeline.base.optional import import_optional
from pipeline.base.outputs import (
    LISTING,
    IsOurs,
    Kind,
    check_replaceable,
    check_writable,
    read_listing,
    written_directory,
)
from pipeline.base.prefetch import prefetch
from pipeline.base.prefixes import Prefixes, TokenIds, portions

__all__ = [
    "KEY_BYTES",
    "KEY_DTYPE",
    "LISTING",
    "ROLES",
    "TEMPORARY",
    "Array",
    "FileMissingError",
    "IsOurs",
    "Kind",
    "LeafError",
    "NoAccessError",
    "Prefixes",
    "Similarity",
    "TokenIds",
    "access",
    "apply_umask",
    "check_replaceable",
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
    "new_file",
    "open_own",
    "outputs",
    "portions",
    "prefetch",
    "read_json",
    "read_listing",
    "regular_size",
    "release_pages",
    "remove",
    "sha256",
    "similarities",
    "sync",
    "temporary",
    "workspace",
    "write_json",
    "written_directory",
    "written_file",
]
