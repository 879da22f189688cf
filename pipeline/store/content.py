"""Says what lies in the place of a store that is none: a page of HTML, a pointer of DVC or Git LFS, an archive."""

import re
from pathlib import Path

HEAD_BYTES = 512
_FIRST_BYTES = (
    (rb"\s*<(!doctype\s+html|html|head|body)\b", "a page of HTML (the listing of a web server, or its error)"),
    (rb"\s*(<\?xml[^>]*>\s*)?<ListBucketResult\b", "a bucket's listing in XML"),
    (rb"\s*(<\?xml[^>]*>\s*)?<Error\b", "an object store's error in XML"),
    (rb"version https://git-lfs\.github\.com/", "a pointer of Git LFS (`git lfs pull` fetches its content)"),
    (rb"(md5: [0-9a-f]{32}|frozen: true|wdir: [^\n]*|deps:|outs:)\n", "a file of DVC (`dvc pull` fetches its content)"),
    (rb"PK\x03\x04|\x1f\x8b|\xfd7zXZ|BZh|\x28\xb5\x2f\xfd|.{257}ustar", "an archive (unpack it first)"),
    (rb"PAR1", "a Parquet file"),
    (rb"\x93NUMPY", "a NumPy array"),
)
INSTEAD = (
    "a store is a directory: `dvc import` takes it from a git repository, `dvc import-url` and `aws s3 sync` from "
    "s3://BUCKET/PREFIX, and the commands here read it at s3:// and http(s):// URLs (docs/sharing.md)"
)


def describe_content(raw: bytes) -> str | None:
    """What a file that begins with these bytes is, where it is something that is often found instead of a store."""
    if not raw.strip():
        return "an empty file"
    return next((what for pattern, what in _FIRST_BYTES if re.match(pattern, raw, re.IGNORECASE | re.DOTALL)), None)


def describe_place(path: Path) -> str | None:
    """What `path` is, and what to do, where it is no directory with a `store.json`; None if nothing is known of it."""
    if path.is_file():
        with path.open("rb") as file:
            what = describe_content(file.read(HEAD_BYTES)) or "a file"
        return f"is {what}, and no embedding store; {INSTEAD}"
    if not path.exists():
        pointer = path.with_name(f"{path.name}.dvc")
        return f"is not there; `dvc pull {pointer}` fetches it" if pointer.is_file() else None
    if (path / "pool.json").is_file():
        return "is a shard cache, and no embedding store; `leaf encode` publishes a store from it"
    below = sorted(file.parent for file in path.glob("*/store.json"))
    return f"is no embedding store; there is one in {below[0]}" if below else None
