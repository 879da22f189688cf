"""Sending a store to an object store (`leaf store push`): what is there stays, and what is new is added.

Nothing that a reader may be reading is written over. A shard's files are created where nothing lies, and `store.json`,
which alone says what the store is, replaces the very one that the union was computed from, or nothing. So readers find
a whole store whoever pushes at the same time and whenever a push is killed. What a killed push leaves are files that no
`store.json` names; its next run takes them up again.
"""

import hashlib
import json
import random
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from tqdm import tqdm

from pipeline.base import Array, LeafError, access, contains, key_array, regular_size
from pipeline.store.agreement import check_agreement, check_same_space
from pipeline.store.bucket import Bucket, ChangedMeanwhileError
from pipeline.store.licenses import joint_teacher
from pipeline.store.manifest import GROUP, MAX_DOCUMENT_BYTES, README, REPAIR, Manifest, Sources
from pipeline.store.operations import copy_rows, shared_keys
from pipeline.store.readme import readme_text
from pipeline.store.shard import ShardInfo, StoreMeta
from pipeline.store.shard_cache import ShardCache
from pipeline.store.store import Store, count_by_source, total_by_source

ATTEMPTS = 20  # to replace a store.json that others keep replacing
WAIT_SECONDS = 0.2  # at most, before the second attempt; before the n-th, n - 1 times as long
NAMES_TRIED = 8  # orders of a shard's rows, each of which has a name of its own


def push(store: Store, url: str, replace_there: bool = False) -> dict[str, Any]:
    """Add a local store to the one at an s3:// URL, or put it in the place of that (`replace_there`).

    Texts that the store there has keep the vectors that they have there: of a shard that shares some of its texts, only
    the other rows are sent. README.md follows `store.json`, which does not vouch for it in a bucket.

    Returns:
        Files and bytes sent; rows added; rows of this store that were there before; rows, shards and licence of the
        store that is there now; names of the shards that it has no longer.

    Raises:
        LeafError: the store there has another fingerprint, dtype or dimension, other vectors for texts of both, or
            another licence for a shard of both; a shard is damaged; the server knows no conditional writes, or cannot
            be reached. The store there is as it was.
    """
    bucket, sent = Bucket(url), Counter[str]()
    conditional = False
    for attempt in range(ATTEMPTS):
        time.sleep(random.uniform(0, WAIT_SECONDS * attempt))
        place = Place.look(bucket, damage_allowed=replace_there)
        sender = Sender(store, place, sent, alone=replace_there or place.store is None)
        try:
            sender.check()
            conditional = conditional or sender.check_server()
            return sender.send()
        except ChangedMeanwhileError as error:
            if replace_there:
                raise LeafError(f"{error}; look at the store there, and push again") from None
    raise LeafError(f"{url}: others changed store.json {ATTEMPTS} times while this push was under way; run it again")


@dataclass(frozen=True)
class Place:
    """What lies at the URL before an attempt."""

    bucket: Bucket
    version: str | None
    """Of `store.json`, read before the store: if that is a newer one, the conditional write will fail."""
    store: Store | None
    sizes: Mapping[str, int]
    """Bytes of every file, whether `store.json` names it or not."""

    @classmethod
    def look(cls, bucket: Bucket, damage_allowed: bool) -> "Place":
        """Read it; LeafError where `store.json` is damaged, unless that is allowed."""
        version = bucket.version("store.json")
        try:
            store = None if version is None else Store.open(bucket.url)
        except LeafError:
            if not damage_allowed:
                raise
            store = None
        return cls(bucket, version, store, bucket.files())

    @property
    def files(self) -> dict[str, dict[str, str]]:
        """Of each shard of the store there, by name: path -> SHA-256."""
        return {} if self.store is None else {info.name: info.files for info in self.store.shards}


class Sender:
    """One attempt to send a store to a place."""

    def __init__(self, store: Store, place: Place, sent: Counter[str], alone: bool) -> None:
        """`sent` counts files and bytes over all attempts. `alone`: the place shall hold this store and no other."""
        self.store, self.place, self.bucket, self.sent = store, place, place.bucket, sent
        self.remote = None if alone else place.store
        there = place.files
        self.held = [i for i, info in enumerate(store.shards) if there.get(info.name) == info.files]
        self.new = [i for i, info in enumerate(store.shards) if there.get(info.name) != info.files]
        self.taken = key_array([])
        """Keys, sorted, that the store there has; known once `check` has looked at them."""

    def check(self) -> None:
        """LeafError where the two stores do not belong together, or a shard to be sent is damaged."""
        if self.remote is not None:
            try:
                check_same_space(self.remote, self.store, "cannot be added to")
                self._check_licenses(self.remote)
                if self.new:  # else all that is here is there, and no list of rows need be fetched
                    self.taken = np.sort(self.remote.keys())
                check_agreement(self.remote, self.store, shared_keys(self.taken, self.store))
            except LeafError as error:
                raise LeafError(
                    f"{error}; nothing was sent: push to another URL, or with --replace in the place of the store there"
                ) from None
        for i in self.new:
            self.store.verify_shard(i)

    def _check_licenses(self, remote: Store) -> None:
        stated = {info.name: info.license for info in remote.shards}
        for info in (self.store.shards[i] for i in self.held):
            if stated[info.name] != info.license:
                raise LeafError(
                    f"{self.bucket.url}: shard {info.name} is there under the licence {stated[info.name]!r:.100}, and "
                    f"here under {info.license!r:.100}: adding to a store changes nobody's terms"
                )

    def check_server(self) -> bool:
        """True, or LeafError where the server writes over files that it was told to leave alone.

        It is tried out on the document of the Zarr group, which is the same in every store.
        """
        local = self._group()
        if GROUP not in self.place.sizes:
            with suppress(ChangedMeanwhileError):  # another push has created it: it is compared below
                self._write(local, GROUP, None)
        there = self.bucket.read(GROUP, 0, MAX_DOCUMENT_BYTES)
        if _json(there) != _json(local):
            raise LeafError(
                f"{self.bucket.url}/{GROUP}: nothing was sent: this is no group of vectors; delete the file"
            )
        self.bucket.check_conditional_writes(GROUP, there)
        return True

    def _group(self) -> bytes:
        """The document of the Zarr group; LeafError unless it is the one that this store's manifest names."""
        file = self.store.path / GROUP
        if regular_size(file, "group of vectors") > MAX_DOCUMENT_BYTES:
            raise LeafError(f"{file}: too large for the document of a group; nothing was sent; {REPAIR}")
        with access(file):
            content = file.read_bytes()
        if hashlib.sha256(content).hexdigest() != self.store.manifest.group_sha256:
            raise LeafError(f"{file}: SHA-256 differs: damaged or swapped; nothing was sent; {REPAIR}")
        return content

    def send(self) -> dict[str, Any]:
        """Send what is new, then `store.json` and README.md.

        Raises:
            ChangedMeanwhileError: another push has replaced `store.json`; nothing that it names was touched.
            LeafError: the name of a shard is taken for good; the bucket cannot be reached.
        """
        for i in self.held:
            self._mend(i)
        counts, added = [], []
        for i in tqdm(self.new, desc="push", unit="shard", disable=len(self.new) < 2):
            frame = self.store.shard_rows_frame(i)
            rows = np.flatnonzero(~contains(self.taken, key_array(frame["key"])))
            if len(rows):
                counts.append(count_by_source(frame[rows]))
                added.append(self._send_shard(i, rows))
        manifest = self._manifest(added, total_by_source(counts))
        version = self.place.version
        if self.place.store is None or self.place.store.manifest.to_bytes() != manifest.to_bytes():
            version = self._write(manifest.to_bytes(), "store.json", version)
        self._write_readme(manifest, version)
        return self._figures(manifest, sum(info.rows for info in added))

    def _mend(self, i: int) -> None:
        """Send files again that the store there has lost, or that were cut."""
        info = self.store.shards[i]
        sizes = {file: (self.store.path / file).stat().st_size for file in info.files}
        lost = [file for file, size in sizes.items() if self.place.sizes.get(file) != size]
        if lost:
            self.store.verify_shard(i)
        for file in lost:
            self.bucket.put(self.store.path / file, file)
            self._count(sizes[file])

    def _send_shard(self, i: int, rows: Array) -> ShardInfo:
        """Send these rows of shard `i`, under a name that is free: another order of the rows gives another name.

        Not all rows are wanted, or files of other vectors of the same texts lie there: of the store that is to be
        replaced, or of another push that is under way or was killed.
        """
        info = self.store.shards[i]
        whole = len(rows) == info.rows
        if whole and self._send_files(self.store.path, info):
            return info
        for turn in range(int(whole), min(NAMES_TRIED, len(rows))):
            with TemporaryDirectory(prefix="leaf-push-") as folder, ShardCache(Path(folder), self.store.meta) as cache:
                rewritten = copy_rows(self.store, i, np.roll(rows, turn), cache)
                if self._send_files(cache.path / rewritten.name, rewritten):
                    return rewritten
        raise LeafError(
            f"{self.bucket.url}: files of shard {info.name}, encoded another time, lie there and are of no store: wait "
            "for the push that is sending them; if there is none, delete them (`aws s3 rm --recursive URL --exclude "
            f"'*' --include '*{info.name}*'`)"
        )

    def _send_files(self, root: Path, info: ShardInfo) -> bool:
        """Create the files of a shard. False where a file of other content lies there; it is left alone."""
        return all(
            (file not in self.place.sizes and self._created(root / file, file)) or self.bucket.sha256(file) == digest
            for file, digest in info.files.items()
        )

    def _created(self, source: Path, file: str) -> bool:
        try:
            self.bucket.create(source, file)
        except ChangedMeanwhileError:
            return False
        self._count(source.stat().st_size)
        return True

    def _write(self, content: bytes, file: str, version: str | None) -> str:
        version = self.bucket.write(content, file, version)
        self._count(len(content))
        return version

    def _count(self, size: int) -> None:
        self.sent["files_sent"] += 1
        self.sent["bytes_sent"] += size

    def _manifest(self, added: list[ShardInfo], sources: Sources) -> Manifest:
        """Of the store that shall be there: this one, or the union with the one there."""
        group = self.bucket.sha256(GROUP)
        if self.remote is None:
            shards = [*(self.store.shards[i] for i in self.held), *added]
            sources = self.store.manifest.sources or self.store.count_sources()
            return Manifest.of(self.store.meta, sorted(shards, key=_name), group, sources=sources)
        there = self.remote.manifest.sources or self.remote.count_sources()
        return Manifest.of(
            _joint_meta(self.remote, self.store),
            sorted([*self.remote.shards, *added], key=_name),
            group,
            sources=total_by_source([_counts(there), _counts(sources)]),
        )

    def _write_readme(self, manifest: Manifest, version: str | None) -> None:
        """Bring README.md up to date with `store.json`, of which another push may be writing the next version."""
        for _ in range(ATTEMPTS):
            text, readme = readme_text(manifest).encode(), self.bucket.version(README)
            if readme is None or self.bucket.read(README, 0, MAX_DOCUMENT_BYTES) != text:
                with suppress(ChangedMeanwhileError):  # what came in between is looked at below
                    self._write(text, README, readme)
            newest = self.bucket.version("store.json")
            if newest == version and self.bucket.read(README, 0, MAX_DOCUMENT_BYTES) == text:
                return
            version, manifest = newest, Store.open(self.bucket.url).manifest

    def _figures(self, manifest: Manifest, rows_added: int) -> dict[str, Any]:
        names = {info.name for info in manifest.shards}
        before = () if self.place.store is None else self.place.store.shards
        return {
            "files_sent": self.sent["files_sent"],
            "bytes_sent": self.sent["bytes_sent"],
            "rows_added": rows_added,
            "rows_there_before": self.store.rows - rows_added,
            "rows": sum(info.rows for info in manifest.shards),
            "shards": len(names),
            "license": manifest.meta.license,
            "shards_removed": sorted(info.name for info in before if info.name not in names),
        }


def _joint_meta(remote: Store, store: Store) -> StoreMeta:
    """What the shards of the union share. Of the refused texts, it lists those that have no vector in either store."""
    teacher = joint_teacher(remote.meta.teacher, store.meta.teacher)
    refused = {**(remote.meta.refused or {}), **(store.meta.refused or {})}
    if not refused:
        return replace(remote.meta, teacher=teacher)
    keys = key_array([bytes.fromhex(key) for key in refused])
    without = (remote.locate(keys) < 0) & (store.locate(keys) < 0)
    listed = {key: reason for (key, reason), absent in zip(refused.items(), without.tolist(), strict=True) if absent}
    return replace(remote.meta, teacher=teacher, refused=dict(sorted(listed.items())) or None)


def _counts(sources: Sources) -> Counter[tuple[str, str]]:
    return Counter({(source, role): rows for source, roles in sources.items() for role, rows in roles.items()})


def _name(info: ShardInfo) -> str:
    return info.name


def _json(raw: bytes) -> Any:
    try:
        return json.loads(raw)
    except ValueError:
        return None
