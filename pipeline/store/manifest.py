"""`store.json`, the manifest of a store: written in one canonical form, and validated in full when it is read."""

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.base import LeafError, access, regular_size
from pipeline.store.content import INSTEAD, describe_content, describe_place
from pipeline.store.licenses import NOT_STATED, joint_license
from pipeline.store.shard import DTYPES, MAX_DIM, ShardInfo, StoreMeta, file_sizes

FORMAT = "leaf-embedding-store"
VERSION = 1
VERSION_OF_SEVERAL_LICENSES = 2
"""Of a store whose shards are not all under one licence: they state their own, which readers of version 1 refuse."""
GROUP = "vectors.zarr/zarr.json"
README = "README.md"
MAX_SOURCES = 100_000
MAX_REFUSED = 1_000_000
MAX_DOCUMENT_BYTES = 64 * 2**20
MAX_VALUES = 4_000_000  # of a document; each takes some 60 bytes of memory, and as little as one in the file
MAX_ROWS = 2**40
MAX_LICENSE = 10_000  # characters
MAX_JOINT_LICENSE = 10 * MAX_LICENSE  # of a store whose shards are under several
REPAIR = (
    "restore the store (`dvc checkout`, or copy it again), or fetch or encode that shard alone with `leaf store repair`"
)
_HEX64 = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(r"[0-9a-f]{16}")
_KEY = re.compile(r"[0-9a-f]{32}")


Sources = dict[str, dict[str, int]]
"""Rows by source and role."""


@dataclass(frozen=True)
class Manifest:
    """What `store.json` says. A README and `sources` are absent from stores written before they existed."""

    meta: StoreMeta
    shards: tuple[ShardInfo, ...]
    group_sha256: str
    """Of the Zarr group's document."""
    readme_sha256: str | None = None
    """Of README.md."""
    sources: Sources | None = None

    @classmethod
    def of(
        cls,
        meta: StoreMeta,
        shards: Iterable[ShardInfo],
        group_sha256: str,
        readme_sha256: str | None = None,
        sources: Sources | None = None,
    ) -> "Manifest":
        """The manifest of these shards. One that states no licence is under `meta.license`; the store is under all."""
        stated = tuple(replace(info, license=info.license or meta.license or NOT_STATED) for info in shards)
        whole = joint_license(info.license for info in stated) if stated else meta.license
        return cls(replace(meta, license=whole), stated, group_sha256, readme_sha256, sources)

    @property
    def licenses(self) -> dict[str, tuple[ShardInfo, ...]]:
        """The shards by licence, sorted."""
        stated = sorted({info.license or NOT_STATED for info in self.shards})
        return {name: tuple(info for info in self.shards if (info.license or NOT_STATED) == name) for name in stated}

    @property
    def files(self) -> dict[str, str]:
        """SHA-256 of the files that belong to no shard."""
        return {GROUP: self.group_sha256} | ({} if self.readme_sha256 is None else {README: self.readme_sha256})

    @classmethod
    def read(cls, file: Path) -> "Manifest":
        """Parse and validate.

        Raises:
            LeafError: not a store, edited or damaged, impossible, or of a later version.
        """
        with access(file):
            raw, document = _load(file)
        _require(document.get("format") == FORMAT, f"{file}: not an embedding store")
        version = document.get("version")
        _require(
            type(version) is int and version in (VERSION, VERSION_OF_SEVERAL_LICENSES),
            f"{file}: format version {version!r:.40}, but this program reads versions {VERSION} and "
            f"{VERSION_OF_SEVERAL_LICENSES}: use a later program",
        )
        try:
            manifest = _parse(document)
            canonical = manifest.to_bytes()
        except (LeafError, KeyError, TypeError, ValueError, RecursionError) as error:
            raise LeafError(f"{file}: invalid: {error!s:.200}; {REPAIR}") from None
        # The document holds its own digest and has one layout only, so that no byte of it can change unnoticed.
        _require(raw == canonical, f"{file}: edited or damaged (its digest or layout differs); {REPAIR}")
        return manifest

    def to_bytes(self) -> bytes:
        """The bytes of `store.json`: sorted keys, no timestamps, and a digest over all the rest."""
        meta, several = self.meta, len(self.licenses) > 1
        entries = [info if several else replace(info, license=None) for info in self.shards]
        body: dict[str, Any] = {
            "format": FORMAT,
            "version": VERSION_OF_SEVERAL_LICENSES if several else VERSION,
            "fingerprint": meta.fingerprint,
            "teacher": meta.teacher,
            "dim": meta.dim,
            "dtype": meta.dtype,
            "normalized": meta.normalized,
            "files": self.files,
            "shards": [info.to_json() for info in entries],
            "rows": sum(info.rows for info in self.shards),
            "bytes": sum(info.bytes for info in self.shards),
        }
        optional = {"license": meta.license, "refused": meta.refused, "sources": self.sources}
        body |= {name: value for name, value in optional.items() if value is not None}
        digest = hashlib.sha256(_dump(body)).hexdigest()
        return _dump(body | {"digest": digest})


def _dump(body: dict[str, Any]) -> bytes:
    return (json.dumps(body, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _load(file: Path) -> tuple[bytes, dict[str, Any]]:
    if not file.exists() and (other := describe_place(file.parent)):
        raise LeafError(f"{file.parent}: {other}")
    if regular_size(file, "no embedding store here") > MAX_DOCUMENT_BYTES:
        raise LeafError(f"{file}: larger than {MAX_DOCUMENT_BYTES} bytes: not an embedding store")
    try:
        with access():
            raw = file.read_bytes()
    except OSError as error:
        raise LeafError(f"{file}: cannot be read: {error.strerror}; {REPAIR}") from None
    if raw.count(b",") + raw.count(b"[") + raw.count(b"{") > MAX_VALUES:
        raise LeafError(f"{file}: holds more than {MAX_VALUES:,} values: not an embedding store")
    try:
        document = json.loads(raw)
    except (ValueError, RecursionError) as error:
        if other := describe_content(raw):
            raise LeafError(f"{file}: is {other}, and no embedding store; {INSTEAD}") from None
        raise LeafError(f"{file}: cannot be read as JSON: {error!s:.100}; {REPAIR}") from None
    _require(isinstance(document, dict), f"{file}: not an embedding store")
    return raw, document


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise LeafError(message)


def _parse(document: dict[str, Any]) -> Manifest:
    fields = {name: document[name] for name in ("fingerprint", "teacher", "dim", "dtype", "normalized")}
    meta = StoreMeta(**fields, license=document.get("license"), refused=document.get("refused"))
    check_meta(meta)
    entries = tuple(parse_shard(entry, meta) for entry in document["shards"])
    _require(len({info.name for info in entries}) == len(entries), "a shard is listed twice")
    group, readme = document["files"][GROUP], document["files"].get(README)
    for digest in (group, readme):
        valid = digest is None or (isinstance(digest, str) and _HEX64.fullmatch(digest))
        _require(bool(valid), "a SHA-256 under `files` is not one")
    sources = _parse_sources(document.get("sources"), sum(info.rows for info in entries))
    return replace(Manifest.of(meta, entries, group, readme, sources), meta=meta)


def _parse_sources(sources: Any, rows: int) -> Sources | None:
    if sources is None:
        return None
    _require(isinstance(sources, dict) and len(sources) <= MAX_SOURCES, "sources: not a mapping")
    total = 0
    for roles in sources.values():
        _require(isinstance(roles, dict), "sources: not a mapping of mappings")
        for count in roles.values():
            _require(type(count) is int and count > 0, f"sources: {count!r:.40} is no number of rows")
            total += count
    _require(total == rows, "sources: their rows do not add up to the store's")
    return dict(sources)


def check_meta(meta: StoreMeta) -> None:
    """Raise LeafError where a field of `meta` is of the wrong type or impossible."""
    fingerprint = meta.fingerprint
    _require(isinstance(fingerprint, str) and bool(_HEX64.fullmatch(fingerprint)), "fingerprint: not 64 hex digits")
    _require(isinstance(meta.teacher, dict), "teacher: not a mapping")
    _require(type(meta.dim) is int and 1 <= meta.dim <= MAX_DIM, f"dim: {meta.dim!r:.40} is impossible")
    _require(meta.dtype in DTYPES, f"dtype: {meta.dtype!r:.40} is none of {', '.join(DTYPES)}")
    _require(isinstance(meta.normalized, bool), "normalized: neither true nor false")
    for license_, longest in ((meta.license, MAX_JOINT_LICENSE), (meta.teacher.get("license"), MAX_LICENSE)):
        valid = license_ is None or (isinstance(license_, str) and len(license_) <= longest)
        _require(valid, f"license: not a text of at most {longest} characters")
    if meta.refused is not None:
        _require(isinstance(meta.refused, dict) and 0 < len(meta.refused) <= MAX_REFUSED, "refused: not a mapping")
        for key, reason in meta.refused.items():
            valid = bool(_KEY.fullmatch(key)) and isinstance(reason, str)
            _require(valid, f"refused: {key!r:.40} is no key and reason")


def parse_shard(entry: Any, meta: StoreMeta) -> ShardInfo:
    """A ShardInfo from JSON; raises LeafError unless its name, sizes and file names are what the format derives."""
    known = isinstance(entry, dict) and set(entry) - {"license"} == {"name", "rows", "bytes", "files"}
    _require(known, "a shard has other fields")
    info = ShardInfo(**entry)
    named = isinstance(info.name, str) and bool(_NAME.fullmatch(info.name))
    _require(named, f"shard name {info.name!r:.60} is impossible")
    for field, value in (("rows", info.rows), ("bytes", info.bytes)):
        possible = type(value) is int and 1 <= value <= MAX_ROWS * MAX_DIM
        _require(possible, f"shard {info.name}: {field} {value!r:.40} is impossible")
    stated = "license" not in entry or (isinstance(info.license, str) and 0 < len(info.license) <= MAX_LICENSE)
    _require(stated, f"shard {info.name}: license: not a text of 1 to {MAX_LICENSE} characters")
    _require(info.rows <= MAX_ROWS, f"shard {info.name}: {info.rows} rows are impossible")
    _require(isinstance(info.files, dict), f"shard {info.name}: files is not a mapping")
    expected = set(file_sizes(info.name, info.rows, meta))
    _require(set(info.files) == expected, f"shard {info.name}: lists other files than its own")
    digests = all(isinstance(digest, str) and _HEX64.fullmatch(digest) for digest in info.files.values())
    _require(digests, f"shard {info.name}: a SHA-256 is not one")
    return info
