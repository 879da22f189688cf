"""Restores a damaged store: takes damaged files from another copy, and has the texts of lost shards encoded again."""

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.base import (
    TEMPORARY,
    LeafError,
    NoAccessError,
    access,
    disk,
    new_file,
    remove,
    sha256,
    sync,
    written_file,
)
from pipeline.store.manifest import GROUP, Manifest
from pipeline.store.operations import progress_bar
from pipeline.store.readme import readme_text
from pipeline.store.shard import ShardInfo
from pipeline.store.shard_files import LocalFiles
from pipeline.store.store import Store

EncodeAgain = Callable[[Store, list[int]], int]
"""Damaged store and its lost shards' numbers -> rows encoded. Publishes the whole store in its place."""
_GROUP_DOCUMENT = '{\n  "attributes": {},\n  "zarr_format": 3,\n  "node_type": "group"\n}'


def repair(
    path: Path, copies: Sequence[Store | Path], encode_again: EncodeAgain | None, fingerprint: str | None = None
) -> dict[str, Any]:
    """Restore every damaged or missing file of the store at `path`.

    `copies` are other copies of the store, or directories of shard caches; a file is taken only if its SHA-256 is the
    one that this store's manifest names. A shard that no copy has is encoded again where `encode_again` is given: its
    vectors may differ in the last bits, and it gets a new digest.

    Where `store.json` itself is damaged, nothing says any more what belongs to the store. It is taken from a copy only
    if `fingerprint` names that copy's.

    Raises:
        LeafError: shards remain damaged, or `store.json` is; names them and what to do.
    """
    store = _open_damaged(path, copies, fingerprint)
    for leftover in path.rglob(f"{TEMPORARY}*"):
        remove(leftover)
    figures = {"files_restored": 0, "shards_damaged": 0, "rows_encoded": 0}
    figures["files_restored"] += _restore_common(store, copies)
    lost: list[int] = []
    for i in progress_bar(store, "repair"):
        damaged = _damaged(store, store.shards[i].files)
        if not damaged:
            continue
        figures["shards_damaged"] += 1
        restored = [_restore(store, store.shards[i], file, copies) for file in damaged]
        figures["files_restored"] += sum(restored)
        if not all(restored):
            lost.append(i)
    if lost and encode_again is None:
        raise LeafError(
            f"{store.name}: shard {shard_names(store, lost)}: damaged, and no copy has it: name another copy (--from "
            "PATH or URL), or the corpus and the parameters to encode its texts again (--corpus, --params)"
        )
    if lost and encode_again is not None:
        figures["rows_encoded"] = encode_again(store, lost)
    Store.open(path).verify()
    return figures


def shard_names(store: Store, numbers: Sequence[int]) -> str:
    """The names of some shards, for a message."""
    return ", ".join(store.shards[i].name for i in numbers)


def _open_damaged(path: Path, copies: Sequence[Store | Path], fingerprint: str | None) -> Store:
    """The store, its files unchecked.

    A damaged manifest is replaced by that of the copy with this fingerprint: what it names would otherwise take the
    place of good vectors that nothing here vouches for any more.
    """
    try:
        return Store(LocalFiles(path, Manifest.read(path / "store.json")))
    except NoAccessError:
        raise
    except LeafError as error:
        others = [copy for copy in copies if isinstance(copy, Store)]
        chosen = next((copy for copy in others if copy.meta.fingerprint == fingerprint), None)
        if chosen is None:
            raise LeafError("; ".join([str(error), *(_offer(path, copy) for copy in others[:1])])) from None
    with disk(path), written_file(path / "store.json") as new:
        new.write_bytes(chosen.manifest.to_bytes())
        sync(new)
        _make_way(path / "store.json")
    return Store(LocalFiles(path, chosen.manifest))


def _offer(path: Path, copy: Store) -> str:
    """What would change at `path` with the manifest of a copy, and how to have it so."""
    listed = {file: digest for info in copy.shards for file, digest in info.files.items()}
    whole = sum(_has_digest(path / file, digest) for file, digest in listed.items())
    others = [file for file in path.glob("rows/*.parquet") if file.relative_to(path).as_posix() not in listed]
    return (
        f"{copy.name} has the fingerprint {copy.meta.fingerprint}, {copy.rows:,} rows in {len(copy.shards):,} shards: "
        f"of their {len(listed):,} files {whole:,} are here, and the others would be written over what is here; "
        f"{len(others):,} shards that are here would belong to no store. If that is right, add --fingerprint "
        f"{copy.meta.fingerprint}"
    )


def _damaged(store: Store, files: Mapping[str, str]) -> list[str]:
    return [file for file, digest in files.items() if not _has_digest(store.path / file, digest)]


def _has_digest(file: Path, digest: str) -> bool:
    try:
        with access(file):
            return file.is_file() and sha256(file) == digest
    except OSError:
        return False


def _restore_common(store: Store, copies: Sequence[Store | Path]) -> int:
    """Restore README.md and the Zarr group's document; written anew where no copy has them. Returns how many."""
    restored = 0
    for file in _damaged(store, store.manifest.files):
        if not _restore(store, None, file, copies):
            _write_common(store, file)
        restored += 1
    return restored


def _write_common(store: Store, file: str) -> None:
    """Write README.md or the Zarr group's document from the manifest; LeafError where other bytes come out."""
    content = _GROUP_DOCUMENT if file == GROUP else readme_text(store.manifest)
    target = store.path / file
    with disk(target), written_file(target) as new:
        new.write_bytes(content.encode())
        _make_way(target)
    if not _has_digest(target, store.manifest.files[file]):
        raise LeafError(f"{target}: damaged, and no copy has it; name one with --from")


def _restore(store: Store, info: ShardInfo | None, file: str, copies: Sequence[Store | Path]) -> bool:
    """Take the file from the first copy that has the right bytes; False if none has."""
    digest = (info.files if info else store.manifest.files)[file]
    for candidate in _candidates(info, file, copies):
        if _has_digest(candidate, digest):
            target = store.path / file
            with disk(store.path):
                target.parent.mkdir(parents=True, exist_ok=True)
                with new_file(target) as new:
                    shutil.copyfile(candidate, new)
                    sync(new)
                    if _has_digest(new, digest):  # else it has changed since it was looked at
                        _make_way(target)
                        new.rename(target)
                        return True
    return False


def _candidates(info: ShardInfo | None, file: str, copies: Sequence[Store | Path]) -> Iterator[Path]:
    """Where the copies may have a file of a shard (None: of no shard)."""
    for copy in copies:
        if isinstance(copy, Path):
            yield copy / (info.name if info else "") / file
        elif info is None:
            yield copy.files.common() / file
        else:
            yield from (copy.files.shard(shard) / file for shard in copy.shards if shard.name == info.name)


def _make_way(file: Path) -> None:
    """Remove what lies at `file` instead of writing into it: other names may be linked to it."""
    if file.exists() or file.is_symlink():
        remove(file)
