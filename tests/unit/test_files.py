"""Locks and swaps of directories."""

import fcntl
from pathlib import Path

import pytest

from pipeline.base.errors import LeafError
from pipeline.base.files import locked, workspace


def test_a_lock_that_its_holder_removes_while_we_wait_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever comes third makes the file anew and would hold it at the same time."""
    flock, file = fcntl.flock, tmp_path / "lock"

    def late(handle: int, how: int) -> None:
        file.unlink()
        flock(handle, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with pytest.raises(LeafError, match="the store: another run is under way"), locked(file, "the store"):
        pass


def test_a_workspace_begins_empty_and_leaves_nothing(tmp_path: Path) -> None:
    left = tmp_path / ".tmp-store.new/result"
    left.mkdir(parents=True)
    (left / "of a killed run").touch()
    with workspace(tmp_path / "store", "new") as directory:
        assert left.parent == directory
        assert not left.exists()
        left.mkdir()
    assert not list(tmp_path.iterdir())
