"""Where the files of a store are: the seam between a store and the place it is read from.

A store asks for the local directory that holds a shard's files. `LocalFiles` answers at once; `RemoteFiles`
(`remote.py`) downloads them first.
"""

from abc import ABC, abstractmethod
from collections.abc import Generator, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Protocol, Self

from pipeline.base import Array, LeafError, NoAccessError, regular_size
from pipeline.store.chunks import Chunks
from pipeline.store.manifest import GROUP, README, REPAIR, Manifest
from pipeline.store.shard import ShardInfo, arrays, check_sizes, open_array


class ArrayReader(Protocol):
    """One Zarr array of a shard."""

    def read(self, low: int, high: int) -> Array:
        """Rows `[high - low, *row]`; LeafError where they are damaged or cannot be reached."""


class ShardFiles(ABC):
    """The files of one store. Methods that give a directory have the files in it when they return.

    Every method raises LeafError where a file is missing, damaged or cannot be reached.
    """

    manifest: Manifest
    """The store's `store.json`."""
    path: Path
    """The local directory of the files, laid out as in the store; of a remote store, those downloaded so far."""
    repair: str
    """What a person can do about a damaged shard, for messages."""

    @property
    @abstractmethod
    def name(self) -> str:
        """What messages call the store: a path or a URL."""

    @contextmanager
    def errors(self, place: str = "") -> Iterator[None]:
        """Put `place` before the LeafErrors of the block, and the repair after them; they name the store, no copy."""
        with self.named_errors(), naming_repair(self.repair, place):
            yield

    @contextmanager
    def named_errors(self) -> Iterator[None]:
        """Have the LeafErrors of the block name the store where they would name a local copy of it."""
        yield

    @abstractmethod
    def common(self) -> Path:
        """The directory that holds the files that belong to no shard."""

    @abstractmethod
    def rows(self, info: ShardInfo) -> Path:
        """The directory that holds the shard's rows file; its vectors may be absent."""

    @abstractmethod
    def shard(self, info: ShardInfo) -> Path:
        """The directory that holds all files of the shard."""

    @abstractmethod
    def arrays(self, info: ShardInfo) -> Sequence[ArrayReader]:
        """The shard's Zarr arrays: the vectors, and for int8 the scales."""

    @abstractmethod
    def check_listing(self) -> None:
        """Compare the list of files with the manifest, before a check reads them."""

    @abstractmethod
    def arrivals(self) -> Generator[int, None, None]:
        """The numbers of all shards in order, each once its files have arrived. Close it when done."""

    @abstractmethod
    def held_for_check(self, info: ShardInfo) -> AbstractContextManager[Path]:
        """`shard` for the length of a check: the files stay in the directory until the block ends."""

    @abstractmethod
    def current_manifest(self) -> Manifest:
        """`store.json` read again: it differs from `manifest` where the store has been published anew."""


class LocalFiles(ShardFiles):
    """A store in a directory."""

    repair = REPAIR

    def __init__(self, path: Path, manifest: Manifest) -> None:
        """Reads nothing; `open` does."""
        self.path, self.manifest = path, manifest
        self._arrays: dict[str, list[Chunks]] = {}

    @classmethod
    def open(cls, path: Path) -> Self:
        """Read `store.json` and check that every file is there with the right size."""
        files = cls(path, Manifest.read(path / "store.json"))
        regular_size(path / GROUP, "group of vectors")
        for info in files.manifest.shards:
            with naming_repair(cls.repair):
                check_sizes(path, info, files.manifest.meta)
        return files

    @property
    def name(self) -> str:
        """See `ShardFiles.name`."""
        return str(self.path)

    def common(self) -> Path:
        """See `ShardFiles.common`."""
        return self.path

    def rows(self, info: ShardInfo) -> Path:
        """See `ShardFiles.rows`."""
        return self.path

    def shard(self, info: ShardInfo) -> Path:
        """See `ShardFiles.shard`."""
        return self.path

    def arrays(self, info: ShardInfo) -> Sequence[ArrayReader]:
        """See `ShardFiles.arrays`. Opened and checked once: that takes as long as reading a chunk."""
        if info.name not in self._arrays:
            meta = self.manifest.meta
            self._arrays[info.name] = [open_array(self.path, info, meta, name) for name in arrays(info.name, meta)]
        return self._arrays[info.name]

    def check_listing(self) -> None:
        """Refuse files that the manifest does not list."""
        known = {"store.json", README, GROUP}.union(*(info.files for info in self.manifest.shards))
        for file in sorted(self.path.rglob("*")):
            name = file.relative_to(self.path).as_posix()
            if not file.is_dir() and name not in known:
                raise LeafError(f"{file}: not listed in store.json: it belongs to no shard of this store; delete it")

    def arrivals(self) -> Generator[int, None, None]:
        """See `ShardFiles.arrivals`."""
        yield from range(len(self.manifest.shards))

    @contextmanager
    def held_for_check(self, info: ShardInfo) -> Iterator[Path]:
        """See `ShardFiles.held_for_check`."""
        yield self.path

    def current_manifest(self) -> Manifest:
        """See `ShardFiles.current_manifest`."""
        return Manifest.read(self.path / "store.json")


@contextmanager
def naming_repair(repair: str, place: str = "") -> Iterator[None]:
    """Put `place` before and `repair` after the message of a LeafError that does not name the repair yet."""
    try:
        yield
    except NoAccessError:
        raise
    except LeafError as error:
        if repair in str(error):
            raise
        raise LeafError(f"{place}{error}; {repair}") from None
