"""TODO."""

from typing import Any

from pipeline.base.errors import LeafError
from pipeline.store.bucket import Bucket
from pipeline.store.formats import _bar
from pipeline.store.store import Store


def push(store: Store, url: str) -> dict[str, Any]:
    """Send a store to an s3:// URL: shards that are not there yet, then README.md, and `store.json` at the very end.

    Whoever reads the URL meanwhile sees the old store. Files of shards that the store no longer has stay there.

    Raises:
        LeafError: a store lies there whose vectors differ in teacher, dtype or dimension, or that has other vectors in
            a shard of this one; a shard is damaged; the bucket cannot be reached.
    """
    bucket = Bucket(url)
    there = bucket.files()
    held = _held(store, url) if "store.json" in there else {}
    figures = {"files_sent": 0, "bytes_sent": 0}
    files = {file: digest for shard in store.shards for file, digest in shard.files.items()}
    for i in _bar(store):
        store.verify_shard(i)
    for file, digest in [*files.items(), *sorted(store.manifest.files.items(), reverse=True), ("store.json", "")]:
        path = store.path / file
        if file in held and held[file] == digest and there.get(file) == path.stat().st_size:
            continue
        bucket.put(path, file)
        figures["files_sent"] += 1
        figures["bytes_sent"] += path.stat().st_size
    return figures


def _held(store: Store, url: str) -> dict[str, str]:
    """SHA-256 of the files of the store at `url`, which `store` may grow but not change.

    Shards are named by their keys alone: another teacher's have the same names where the corpus is the same.
    """
    found = Store.open(url)
    instead = f"nothing was sent; push to another URL, or first remove the store there (`aws s3 rm --recursive {url}`)"
    for name in ("fingerprint", "dtype", "dim"):
        mine, theirs = getattr(store.meta, name), getattr(found.meta, name)
        if mine != theirs:
            raise LeafError(f"{url}: holds another store: {name} {theirs!s:.16}, not {mine!s:.16}; {instead}")
    ours = {shard.name: shard.files for shard in store.shards}
    for shard in found.shards:
        if shard.files != ours.get(shard.name, shard.files):
            raise LeafError(f"{url}: shard {shard.name}: holds the same texts, encoded another time; {instead}")
    return found.manifest.files | {file: digest for shard in found.shards for file, digest in shard.files.items()}
