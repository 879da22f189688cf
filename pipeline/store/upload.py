"""Sending a store to an object store (`leaf store push`)."""

from typing import Any

from pipeline.base import LeafError
from pipeline.store.bucket import Bucket
from pipeline.store.operations import progress_bar
from pipeline.store.store import Store


def push(store: Store, url: str) -> dict[str, Any]:
    """Send a store to an s3:// URL: shards that are not there yet, then README.md, and `store.json` at the very end.

    Readers of the URL see the old store until then. Files of shards that the store no longer has stay there.

    Raises:
        LeafError: a store lies there whose vectors differ in teacher, dtype or dimension, or that has other vectors in
            a shard of this one; a shard is damaged; the bucket cannot be reached.
    """
    bucket = Bucket(url)
    listing = bucket.files()
    uploaded = _uploaded(store, url) if "store.json" in listing else {}
    figures = {"files_sent": 0, "bytes_sent": 0}
    files = {file: digest for shard in store.shards for file, digest in shard.files.items()}
    for i in progress_bar(store):
        store.verify_shard(i)
    for file, digest in [*files.items(), *sorted(store.manifest.files.items(), reverse=True), ("store.json", "")]:
        path = store.path / file
        if file in uploaded and uploaded[file] == digest and listing.get(file) == path.stat().st_size:
            continue
        bucket.put(path, file)
        figures["files_sent"] += 1
        figures["bytes_sent"] += path.stat().st_size
    return figures


def _uploaded(store: Store, url: str) -> dict[str, str]:
    """SHA-256 of the files of the store at `url`; LeafError where `store` would change that and not only grow it.

    Shards are named by their keys alone: another teacher's have the same names where the corpus is the same.
    """
    remote = Store.open(url)
    instead = f"nothing was sent; push to another URL, or first remove the store there (`aws s3 rm --recursive {url}`)"
    for name in ("fingerprint", "dtype", "dim"):
        ours, there = getattr(store.meta, name), getattr(remote.meta, name)
        if ours != there:
            raise LeafError(f"{url}: holds another store: {name} {there!s:.16}, not {ours!s:.16}; {instead}")
    local_files = {shard.name: shard.files for shard in store.shards}
    for shard in remote.shards:
        if shard.files != local_files.get(shard.name, shard.files):
            raise LeafError(f"{url}: shard {shard.name}: holds the same texts, encoded another time; {instead}")
    return remote.manifest.files | {file: digest for shard in remote.shards for file, digest in shard.files.items()}
