"""Bring a damaged store back: fetch damaged files from another copy, else encode the texts of those shards again."""

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from pipeline.base.errors import LeafError
from pipeline.base.files import TEMPORARY, disk, remove, sha256, sync
from pipeline.corpus.files import part_files, scan
from pipeline.params.sections import EncodeParams, TeacherParams
from pipeline.store import manifest
from pipeline.store.manifest import GROUP
from pipeline.store.operations import scratch
from pipeline.store.readme import text
from pipeline.store.remote import RemoteStore
from pipeline.store.shard import ShardInfo, read_rows
from pipeline.store.shard_cache import ShardCache
from pipeline.store.store import Store

if TYPE_CHECKING:
    from pipeline.teacher.teacher import Teacher


def repair(path: Path, sources: Sequence[Store | Path], encoding: "Encoding | None") -> dict[str, Any]:
    """Restore every damaged or missing file of the store at `path`.

    `sources` are other copies of the store, or pools' directories of shards; a file is taken only if its SHA-256 is the
    one that this store's manifest names. What none of them has is encoded again where `encoding` is given: such a
    shard may differ in the last bits, and gets a new digest.

    Raises:
        LeafError: shards remain damaged; names them and what to do.
    """
    store = _opened(path, sources)
    for left in path.rglob(f"{TEMPORARY}*"):
        remove(left)
    figures = {"files_restored": 0, "shards_damaged": 0, "rows_encoded": 0}
    figures["files_restored"] += _restore_common(store, sources)
    lost: list[int] = []
    for i in tqdm(range(len(store.shards)), desc="repair", unit="shard", disable=len(store.shards) < 2):
        bad = _damaged(store, store.shards[i].files)
        if not bad:
            continue
        figures["shards_damaged"] += 1
        restored = [_restore(store, store.shards[i], file, sources) for file in bad]
        figures["files_restored"] += sum(restored)
        if not all(restored):
            lost.append(i)
    if lost:
        figures["rows_encoded"] = _encode_again(store, lost, encoding)
    Store.open(path).verify()
    return figures


class Encoding:
    """What it takes to encode again: a corpus with the texts, and the teacher."""

    def __init__(self, corpus: Path, teacher: TeacherParams, params: EncodeParams) -> None:
        self.corpus, self.teacher, self.params = corpus, teacher, params


def _opened(path: Path, sources: Sequence[Store | Path]) -> Store:
    """The store without a look at its files; its manifest comes from the first other copy if it is damaged."""
    try:
        return Store(path, manifest.read(path / "store.json"))
    except LeafError:
        for source in sources:
            if isinstance(source, Store):
                path.mkdir(parents=True, exist_ok=True)
                found = source.manifest
                (path / "store.json").unlink(missing_ok=True)
                (path / "store.json").write_bytes(manifest.document(*vars(found).values()))
                return Store(path, found)
        raise


def _damaged(store: Store, files: dict[str, str]) -> list[str]:
    return [file for file, digest in files.items() if not _is(store.path / file, digest)]


def _is(file: Path, digest: str) -> bool:
    try:
        return file.is_file() and sha256(file) == digest
    except OSError:
        return False


def _restore_common(store: Store, sources: Sequence[Store | Path]) -> int:
    """README.md and the Zarr group's document, made anew where the copies do not have them."""
    restored = 0
    for file in _damaged(store, store.manifest.files):
        if _restore(store, None, file, sources):
            restored += 1
            continue
        made = text(store.meta, store.shards, store.manifest.sources or {}).encode()
        if file == GROUP:
            made = _GROUP_DOCUMENT.encode()
        _put(store.path / file, made)
        if not _is(store.path / file, store.manifest.files[file]):
            raise LeafError(f"{store.path / file}: damaged, and no copy has it; name one with --from")
        restored += 1
    return restored


_GROUP_DOCUMENT = '{\n  "attributes": {},\n  "zarr_format": 3,\n  "node_type": "group"\n}'


def _restore(store: Store, info: ShardInfo | None, file: str, sources: Sequence[Store | Path]) -> bool:
    """Take the file from the first source whose bytes are the right ones."""
    digest = (info.files if info else store.manifest.files)[file]
    for candidate in _candidates(info, file, sources):
        if _is(candidate, digest):
            target = store.path / file
            part = target.with_name(f"{TEMPORARY}{target.name}")
            with disk(store.path):
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(candidate, part)
                sync(part)
                _clear(target)
                part.rename(target)
            return True
    return False


def _candidates(info: ShardInfo | None, file: str, sources: Sequence[Store | Path]) -> Iterator[Path]:
    for source in sources:
        if isinstance(source, Path):
            yield source / (info.name if info else "") / file
            continue
        names = [shard.name for shard in source.shards]
        if info is not None and info.name not in names:
            continue
        if isinstance(source, RemoteStore):
            source.fetch(None if info is None else names.index(info.name))
        yield source.path / file


def _put(file: Path, content: bytes) -> None:
    with disk(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        _clear(file)
        file.write_bytes(content)


def _clear(file: Path) -> None:
    """Make way for a file; never write into one that others may be linked to."""
    if file.exists() or file.is_symlink():
        remove(file)


def _encode_again(store: Store, lost: list[int], encoding: Encoding | None) -> int:
    names = ", ".join(store.shards[i].name for i in lost)
    if encoding is None:
        raise LeafError(
            f"{store.path}: shard {names}: damaged, and no copy has it: name another copy (--from PATH or URL), or the "
            "corpus and the parameters to encode its texts again (--corpus, --params)"
        )
    from pipeline.teacher.teacher import open_teacher  # here, so that what needs no model does not wait for torch

    teacher = open_teacher(encoding.teacher, encoding.params, store)
    if teacher.meta.fingerprint != store.meta.fingerprint:
        raise LeafError(f"{store.path}: shard {names}: the parameters describe another teacher than the store's")
    with scratch(store.path, store.meta) as pool:
        for i in range(len(store.shards)):
            if i not in lost:
                pool.adopt(store.path, store.shards[i])
        intact = len(pool.keys())
        _fill_lost(store, lost, pool, encoding, teacher)
        encoded = len(pool.keys()) - intact
        pool.publish(store.path, pool.keys())
    return encoded


def _fill_lost(store: Store, lost: list[int], pool: ShardCache, encoding: Encoding, teacher: "Teacher") -> None:
    """Encode the rows of the lost shards; where a list of rows is lost too, the texts of the corpus that nobody has."""
    from pipeline.encode.encoding import engine_for, fill
    from pipeline.encode.on_demand import fill_frame

    corpus, unknown = scan(encoding.corpus), False
    shard_rows = encoding.params.shard_rows
    for i in lost:
        try:
            keys = read_rows(store.path, store.shards[i]).select("key")
        except LeafError:
            unknown = True
            continue
        before = len(pool.keys())
        texts = keys.lazy().join(corpus, on="key", how="inner", maintain_order="left").collect()
        fill_frame(texts, pool, shard_rows, teacher)
        if len(pool.keys()) - before != len(keys):
            raise LeafError(
                f"{encoding.corpus}: lacks texts of shard {store.shards[i].name}: name the corpus it is from"
            )
    if unknown:
        fill(part_files(encoding.corpus), pool, shard_rows, engine_for(teacher))
