"""Places of many stores: a directory, a bucket's prefix, or an address on a web server that has a list of them.

The list is `stores.json` (docs/format.md). A web server has no other that programs could rely on; directories and
buckets are looked through, and need none.
"""

import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.base import FileMissingError, LeafError, written_file
from pipeline.store.bucket import Bucket
from pipeline.store.store import Store
from pipeline.store.transport import Transport, open_transport, remote_url

LIST = "stores.json"
LIST_FORMAT = "leaf-store-list"
LIST_VERSION = 1
DEPTH = 4  # folders below a place in which stores are looked for
MAX_STORES = 10_000
MAX_LIST_BYTES = 4 * 2**20
OPENED_AT_ONCE = 8
_PART = re.compile(r"[^/\\?#%:\x00-\x1f]{1,255}")


@dataclass(frozen=True)
class Listed:
    """A store of a place, or why it cannot be opened."""

    name: str
    """Path or URL."""
    store: Store | None
    problem: str | None = None


def find_stores(place: Path | str) -> list[str]:
    """Paths or URLs of the stores at a place, sorted: the place itself where it is a store, else those below it.

    Raises:
        LeafError: there is none, `stores.json` is no list, or the place cannot be reached.
    """
    url = remote_url(place)
    below = _below_url(open_transport(url)) if url else _below_directory(Path(place))
    here = url or str(place)
    names = [f"{here}/{name}" if name else here for name in sorted(below)]
    if not names:
        raise LeafError(f"{here}: is no store, and none lies up to {DEPTH} folders below")
    return names


def open_stores(names: list[str]) -> list[Listed]:
    """The stores of these names, in their order, opened (`Store.open`); a damaged one hides no other."""
    with ThreadPoolExecutor(OPENED_AT_ONCE, "open") as threads:
        return list(threads.map(_open, names))


def write_list(place: Path | str) -> str:
    """Write `stores.json`, the list of the stores below a directory or a bucket's prefix; returns its path or URL.

    Raises:
        LeafError: there is no store below the place, or it is a store itself, or it cannot be written to.
    """
    url = remote_url(place)
    if url and not url.startswith("s3:"):
        raise LeafError(f"{url}: cannot be written to: write the list where the files lie")
    here = url or str(place)
    names = [name.removeprefix(f"{here}/") for name in find_stores(place)]
    if names == [here]:
        raise LeafError(f"{here}: is a store, and no place of several: it needs no list")
    for name in names:
        _check_name(name, f"{here}/{LIST}")
    document = {"format": LIST_FORMAT, "version": LIST_VERSION, "stores": names}
    content = (json.dumps(document, indent=1, ensure_ascii=False) + "\n").encode()
    if url:
        bucket = Bucket(url)
        bucket.write(content, LIST, bucket.version(LIST))
    else:
        with written_file(Path(place) / LIST) as new:
            new.write_bytes(content)
    return f"{here}/{LIST}"


def _open(name: str) -> Listed:
    try:
        return Listed(name, Store.open(name))
    except LeafError as error:
        return Listed(name, None, str(error))


def _below_directory(place: Path, depth: int = DEPTH) -> Iterator[str]:
    """Paths of stores relative to the place; `""` for the place itself. Hidden directories are passed over.

    A directory that may not be read may be a store, and is named as one: opening it says whose it is.
    """
    if (place / "store.json").exists():
        yield ""
    elif depth and place.is_dir():
        for folder in place.iterdir():
            if folder.is_dir() and not folder.name.startswith("."):
                try:
                    below = list(_below_directory(folder, depth - 1))
                except PermissionError:
                    below = [""]
                yield from (f"{folder.name}/{name}".rstrip("/") for name in below)


def _below_url(transport: Transport) -> Iterator[str]:
    try:
        transport.read("store.json", 0, 1)
    except FileMissingError:
        yield from _below_bucket(transport) if isinstance(transport, Bucket) else _read_list(transport)
    else:
        yield ""


def _below_bucket(bucket: Bucket, folder: str = "", depth: int = DEPTH) -> Iterator[str]:
    """As `_below_directory`; what lies in a store is not listed."""
    files, folders = bucket.children(folder)
    if "store.json" in files:
        yield folder
    elif depth:
        for name in folders:
            yield from _below_bucket(bucket, f"{folder}/{name}".lstrip("/"), depth - 1)


def _read_list(transport: Transport) -> list[str]:
    place = f"{transport.url}/{LIST}"
    try:
        raw = transport.read(LIST, 0, MAX_LIST_BYTES + 1)
    except FileMissingError:
        raise LeafError(
            f"{transport.url}: has neither store.json nor {LIST}, the list of a place of many stores; whoever runs the "
            "server writes it with `leaf store list DIRECTORY --write`"
        ) from None
    document = _json(raw) if len(raw) <= MAX_LIST_BYTES else None
    if not isinstance(document, dict) or document.get("format") != LIST_FORMAT:
        raise LeafError(f"{place}: is no list of stores (docs/format.md)")
    if document.get("version") != LIST_VERSION:
        raise LeafError(f"{place}: version {document.get('version')!r:.40}, but this program reads {LIST_VERSION}")
    names = document.get("stores")
    if not isinstance(names, list) or len(names) > MAX_STORES:
        raise LeafError(f"{place}: `stores` is no list of at most {MAX_STORES:,} paths")
    for name in names:
        _check_name(name, place)
    return names


def _check_name(name: Any, place: str) -> None:
    """Refuse a path that leads out of the place, or that no URL can hold as it is."""
    parts = name.split("/") if isinstance(name, str) else [""]
    if not all(_PART.fullmatch(part) and part not in (".", "..") for part in parts):
        raise LeafError(f"{place}: {name!r:.100} is no path of a store below the place")


def _json(raw: bytes) -> Any:
    try:
        return json.loads(raw)
    except (ValueError, RecursionError):
        return None
