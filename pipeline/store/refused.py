"""Texts that a teacher behind an API refused to embed: a file in the shard cache, so that they are not sent again."""

import json
import os
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.base import KEY_BYTES, LeafError, disk, open_own

MOST = 100_000  # more are no exceptions but another kind of corpus, and `store.json` would grow too large


@dataclass(frozen=True)
class RefusedText:
    """A refused text's id, and the server's reason."""

    id: str
    reason: str


class RefusedTexts(Mapping[bytes, RefusedText]):
    """Key -> RefusedText, kept in a file of one JSON object per line.

    A line that a killed writer left incomplete is ignored.
    """

    def __init__(self, file: Path) -> None:
        """Reads the file if it exists."""
        self.file = file
        self._texts: dict[bytes, RefusedText] = {}
        self._lock = threading.Lock()
        if file.exists():
            with disk(file):
                lines = file.read_bytes().split(b"\n")
            for line in lines:
                self._parse(line)

    def __getitem__(self, key: bytes) -> RefusedText:
        return self._texts[key]

    def __iter__(self) -> Iterator[bytes]:
        return iter(list(self._texts))

    def __len__(self) -> int:
        return len(self._texts)

    def add(self, key: bytes, name: str, reason: str) -> None:
        """List the text whose id is `name`; it is on the disk when this returns. LeafError where there are too many."""
        with self._lock, disk(self.file):
            if len(self._texts) >= MOST:
                raise LeafError(f"teacher.api.refused: the server has refused {MOST:,} texts; last reason: {reason}")
            line = json.dumps({"key": key.hex(), "id": name, "reason": reason}, ensure_ascii=False)
            with os.fdopen(open_own(self.file, os.O_RDWR | os.O_APPEND), "ab") as out:
                out.write(f"\n{line}\n".encode())  # the first newline ends a line that may be incomplete
                out.flush()
                os.fsync(out.fileno())
            self._texts[key] = RefusedText(name, reason)

    def clear(self) -> None:
        """Forget all, so that they are sent to the server again."""
        self.file.unlink(missing_ok=True)
        self._texts.clear()

    def _parse(self, line: bytes) -> None:
        try:
            entry = json.loads(line)
            key = bytes.fromhex(entry["key"])
            if len(key) == KEY_BYTES:
                self._texts[key] = RefusedText(str(entry["id"]), str(entry["reason"]))
        except (ValueError, TypeError, KeyError):
            pass
