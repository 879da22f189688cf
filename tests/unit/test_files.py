"""Locks, directories that are written whole or not at all, and what a full disk says."""

import errno
import fcntl
from pathlib import Path

import pytest

from pipeline.base import Kind, check_writable, disk, locked, workspace, written_directory, written_file
from pipeline.base.errors import LeafError

THINGS = Kind("thing", lambda _: None, listed=True)


def test_a_lock_that_its_holder_removes_while_we_wait_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A third process would make the file again and hold its lock at the same time."""
    flock, file = fcntl.flock, tmp_path / "lock"

    def late(handle: int, how: int) -> None:
        file.unlink()
        flock(handle, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with pytest.raises(LeafError, match="the store: another run is under way"), locked(file, "the store"):
        pass


def test_a_workspace_begins_empty_and_removes_what_a_killed_run_left(tmp_path: Path) -> None:
    left = tmp_path / ".tmp-store.new.0123456789abcdef/result"
    left.mkdir(parents=True)
    (left / "of a killed run").touch()
    others = [tmp_path / name for name in (".tmp-store.new.x", ".tmp-store.new.new.0123456789abcdef", ".tmp-store.new")]
    for other in others:
        other.mkdir()
    with workspace(tmp_path / "store", "new") as directory:
        assert not left.exists()
        assert not list(directory.iterdir())
        (directory / "file").touch()
    assert sorted(tmp_path.iterdir()) == sorted(others)


def test_a_written_directory_replaces_the_old_one_only_if_its_block_ends_well(tmp_path: Path) -> None:
    out = tmp_path / "out"
    for content in ("first", "second"):
        with written_directory(out, THINGS) as directory:
            (directory / "file").write_text(content)
    with pytest.raises(ValueError, match="no"), written_directory(out, THINGS) as directory:
        (directory / "file").write_text("third")
        raise ValueError("no")
    assert (out / "file").read_text() == "second"
    assert list(tmp_path.iterdir()) == [out]


def test_a_written_file_replaces_a_linked_read_only_one_and_never_writes_through_the_link(tmp_path: Path) -> None:
    cached, out = tmp_path / "cached", tmp_path / "new/out"
    cached.write_text("old")
    cached.chmod(0o444)
    out.parent.mkdir()
    for link in (out.hardlink_to, out.symlink_to):
        link(cached)
        with pytest.raises(ValueError, match="no"), written_file(out) as file:
            file.write_text("half")
            raise ValueError("no")
        assert out.read_text() == "old"
        with written_file(out) as file:
            file.write_text("new")
        assert (out.read_text(), cached.read_text()) == ("new", "old")
        assert list(out.parent.iterdir()) == [out]
        out.unlink()


def test_outputs_that_cannot_be_written_are_refused_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "directory").mkdir()
    (tmp_path / "broken").symlink_to("nowhere")
    new = dict.fromkeys([tmp_path / "directory", tmp_path / "new"], THINGS)
    check_writable([tmp_path / "file", tmp_path / "new/below/file"], new)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken", "directory", "file"]
    for files, directories, message in [
        ([tmp_path / "directory"], [], "directory: is a directory; remove it"),
        ([], [tmp_path / "file"], "file: is a file and no directory"),
        ([tmp_path / "file/below"], [], "below: cannot be written: .*file: Not a directory"),
        ([], [tmp_path / "broken/below"], "below: cannot be written: .*broken: No such file"),
        ([Path("/proc/leaf/below")], [], "below: cannot be written: .*/proc"),
    ]:
        with pytest.raises(LeafError, match=message):
            check_writable(files, dict.fromkeys(directories, THINGS))


@pytest.mark.parametrize(
    ("code", "what", "message"),
    [
        (errno.ENOSPC, None, r"out: no space left; free some and run again"),
        (errno.EDQUOT, "this shard", r"out: no space left for this shard; free some and run again"),
        (errno.EIO, None, r"out: said the disk \(x\)"),
        (errno.EACCES, None, r"^x: no access: .* belongs to .* and has the mode \d{4}, and this program runs as "),
    ],
)
def test_an_error_of_the_disk_names_the_place_and_the_remedy(code: int, what: str | None, message: str) -> None:
    with pytest.raises(LeafError, match=message), disk(Path("out"), what):
        raise OSError(code, "said the disk", "x")
