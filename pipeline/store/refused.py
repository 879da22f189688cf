"""Texts that an API will not embed, with its reasons: a file of the pool, so that they are not asked for again."""

import json
import os
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.base.errors import LeafError
from pipeline.base.files import disk
from pipeline.base.keys import KEY_BYTES

MOST = 100_000  # more than that is no exception but another corpus; `store.json` would grow too large


@dataclass(frozen=True)
class Reason:
    """A refused text's id, and what the server said."""

    id: str
    reason: str


class Refused(Mapping[bytes, Reason]):
    """key -> Reason; a JSON line each. A line that a killed writer left torn is passed over."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._found: dict[bytes, Reason] = {}
        self._lock = threading.Lock()
        if file.exists():
            with disk(file):
                lines = file.read_bytes().split(b"\n")
            for line in lines:
                self._parse(line)

    def __getitem__(self, key: bytes) -> Reason:
        return self._found[key]

    def __iter__(self) -> Iterator[bytes]:
        return iter(list(self._found))

    def __len__(self) -> int:
        return len(self._found)

    def add(self, key: bytes, name: str, reason: str) -> None:
        """List a text of id `name`; it is on the disk when this returns. LeafError where there are too many."""
        with self._lock, disk(self.file):
            if len(self._found) >= MOST:
                raise LeafError(f"teacher.api.refused: the server has refused {MOST:,} texts; last reason: {reason}")
            line = json.dumps({"key": key.hex(), "id": name, "reason": reason}, ensure_ascii=False)
            with self.file.open("ab") as out:
                out.write(f"\n{line}\n".encode())  # the first line end closes what may be torn
                out.flush()
                os.fsync(out.fileno())
            self._found[key] = Reason(name, reason)

    def clear(self) -> None:
        """Forget all, so that they are asked for again."""
        self.file.unlink(missing_ok=True)
        self._found.clear()

    def _parse(self, line: bytes) -> None:
        try:
            found = json.loads(line)
            key = bytes.fromhex(found["key"])
            if len(key) == KEY_BYTES:
                self._found[key] = Reason(str(found["id"]), str(found["reason"]))
        except (ValueError, TypeError, KeyError):
            pass
