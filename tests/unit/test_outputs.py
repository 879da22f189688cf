"""What an output may replace, and that nothing is written through names that others have put there."""

import os
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import polars as pl
import pytest

from pipeline.base import (
    LISTING,
    Kind,
    LeafError,
    check_replaceable,
    locked,
    new_file,
    open_own,
    workspace,
    write_json,
    written_directory,
    written_file,
)
from pipeline.corpus import CORPUS_KIND
from pipeline.model import build
from pipeline.params import StudentParams
from pipeline.serve import INDEX_KIND
from pipeline.store import MODEL_KIND, STORE_KIND, FittedTo, ShardCache, shard_directory
from pipeline.teacher import Journal
from tests.store_helpers import META, publish

THINGS = Kind("thing", lambda _: None, listed=True)


def write_output(out: Path, kind: Kind = THINGS) -> None:
    with written_directory(out, kind) as directory:
        (directory / "below").mkdir()
        (directory / "below/file").write_text("ours")


def corpus_of_an_earlier_version(directory: Path) -> None:
    columns = ("id", "text", "role", "source", "split")
    frame = pl.DataFrame({"key": [b"k" * 16], **{name: ["x"] for name in columns}})
    frame.write_parquet(directory / "part-00000.parquet")


def model_of_an_earlier_version(directory: Path) -> None:
    card = "# A student of x\n\nIt was fitted to the\nteacher's stored vectors by plain regression (LEAF, arXiv)."
    (directory / "README.md").write_text(card)
    (directory / "2_Dense").mkdir()
    for name in ("modules.json", "model.safetensors", "vocab.txt", "2_Dense/model.safetensors"):
        (directory / name).touch()


def index_of_an_earlier_version(directory: Path) -> None:
    write_json(directory / "index.json", {"kind": "faiss", "rows": 1, "dim": 2, "fingerprint": "0"})
    (directory / "vectors.faiss").touch()


def store_of_this_version(directory: Path) -> None:
    made = publish(directory.with_name("elsewhere"), (40,))
    shutil.copytree(made.path, directory, dirs_exist_ok=True)


EARLIER: list[tuple[Kind, Callable[[Path], None]]] = [
    (CORPUS_KIND, corpus_of_an_earlier_version),
    (MODEL_KIND, model_of_an_earlier_version),
    (INDEX_KIND, index_of_an_earlier_version),
    (STORE_KIND, store_of_this_version),
]


@pytest.mark.parametrize("kind", [kind for kind, _ in EARLIER], ids=lambda kind: kind.name)
def test_a_thesis_is_not_replaced_whatever_stray_file_lies_in_it(tmp_path: Path, kind: Kind) -> None:
    out = tmp_path / "out"
    (out / "chapters").mkdir(parents=True)
    (out / "chapters/1.tex").write_text("years of work")
    strays = ("store.json", "index.json", "README.md", "part-00000.parquet", LISTING, "modules.json", "notes.json")
    for stray in strays:
        (out / stray).write_text("{}")
        with pytest.raises(LeafError, match=r"out: holds no \w+ of this program \(.*move that away, or name another"):
            check_replaceable(out, kind)
        with pytest.raises(LeafError, match="holds no"), written_directory(out, kind):
            pass
    assert (out / "chapters/1.tex").read_text() == "years of work"


@pytest.mark.parametrize(("kind", "make"), EARLIER, ids=[kind.name for kind, _ in EARLIER])
def test_what_earlier_versions_wrote_is_replaced_unless_something_else_lies_beside_it(
    tmp_path: Path, kind: Kind, make: Callable[[Path], None]
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    make(out)
    for name in (".DS_Store", "__pycache__/x.pyc"):
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).touch()
    for other, _ in EARLIER:
        if other is not kind:
            with pytest.raises(LeafError, match=f"holds no {other.name} of this program"):
                check_replaceable(out, other)
    (out / "thesis.tex").touch()
    with pytest.raises(LeafError, match=rf"a {kind.name}, and what is not part of it \(thesis.tex\)"):
        check_replaceable(out, kind)
    (out / "thesis.tex").unlink()
    write_output(out, kind)
    assert (out / "below/file").read_text() == "ours"


def test_an_output_is_replaced_by_its_listing_and_keeps_what_was_added_to_it(tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_output(out)
    write_output(out)
    (out / "below/notes").symlink_to(tmp_path)
    with pytest.raises(LeafError, match=r"a thing, and what is not part of it \(below/notes\)"):
        write_output(out)
    with pytest.raises(LeafError, match="holds no model of this program"):
        check_replaceable(out, MODEL_KIND)


def test_what_comes_to_lie_there_during_the_work_is_not_lost(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(LeafError, match="holds no thing of this program"), written_directory(out, THINGS):
        out.mkdir()
        (out / "thesis.tex").touch()
    assert list(tmp_path.rglob("*")) == [out, out / "thesis.tex"]


def test_a_link_in_the_place_of_an_output_is_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    for target in ("elsewhere", "nowhere"):
        (tmp_path / "out").symlink_to(target)
        with pytest.raises(LeafError, match="out: is a link and no directory; move it away"):
            write_output(tmp_path / "out")
        (tmp_path / "out").unlink()


def test_links_of_guessed_names_lead_nothing_to_be_emptied_or_overwritten(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    (victim / "result").mkdir(parents=True)
    (victim / "thesis.tex").write_text("years of work")
    place = tmp_path / "shared"
    place.mkdir()
    guessed = (".tmp-out.new", ".tmp-out.pool", ".tmp-out", ".out.tmp", ".tmp-m.json", ".tmp-out.new.0123456789abcdef")
    for name in guessed:
        (place / name).symlink_to(victim / "thesis.tex" if "m.json" in name or name == ".tmp-out" else victim)
    write_output(place / "out")
    with written_file(place / "m.json") as file:
        file.write_text("{}")
    with workspace(place / "out", "pool"):
        pass
    assert (victim / "thesis.tex").read_text() == "years of work"
    assert (victim / "result").is_dir()
    assert sorted(path.name for path in place.iterdir()) == sorted((*guessed, "out", "m.json"))


@pytest.mark.parametrize("trap", [Path.symlink_to, Path.hardlink_to], ids=["symbolic", "hard"])
def test_a_lock_or_a_journal_that_is_a_link_is_not_written_into(tmp_path: Path, trap: Callable[..., None]) -> None:
    victim = tmp_path / "victim"
    victim.write_text("years of work" * 10)
    opened: dict[str, Callable[[Path], AbstractContextManager[object]]] = {
        "lock": lambda file: locked(file, "it"),
        ".tmp-out.new.lock": lambda _: workspace(tmp_path / "out", "new"),
        "answers.journal": lambda file: Journal(file, 4),
    }
    for name, open_it in opened.items():
        trap(tmp_path / name, victim)
        with pytest.raises(LeafError, match=rf"{name}: is (a link|no regular file)"), open_it(tmp_path / name):
            pass
        (tmp_path / name).unlink()
    assert victim.read_text() == "years of work" * 10


def test_a_pipe_or_a_directory_in_the_place_of_a_lock_is_one_sentence(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "directory").mkdir()
    for name in ("pipe", "directory"):
        with pytest.raises(LeafError, match=f"{name}: is .*; remove it"):
            open_own(tmp_path / name, os.O_RDWR)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files to others")
def test_what_belongs_to_somebody_else_is_neither_written_into_nor_removed(tmp_path: Path) -> None:
    place = tmp_path / "shared"
    place.mkdir()
    lock, left = place / ".tmp-out.new.lock", place / ".tmp-out.new.0123456789abcdef"
    lock.touch()
    os.chown(lock, 12345, 12345)
    with pytest.raises(LeafError, match="lock: belongs to user 12345, and nothing is written into it"):
        write_output(place / "out")
    lock.unlink()
    left.mkdir()
    os.chown(left, 12345, 12345)
    write_output(place / "out")
    assert left.exists()
    os.chown(place / "out" / LISTING, 12345, 12345)
    with pytest.raises(LeafError, match="holds no thing of this program"):
        write_output(place / "out")
    os.chown(place, 12345, 12345)  # whoever owns the directory may do anything there in any case
    os.chown(place / "out", 12345, 12345)
    write_output(place / "out")
    assert not left.exists()


def test_a_shard_cache_behind_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "pool").mkdir()
    shard_directory(tmp_path / "pool", META).symlink_to(tmp_path)
    with pytest.raises(LeafError, match="is a link, and a shard cache is kept in no other place"):
        ShardCache(tmp_path / "pool", META)


@pytest.mark.parametrize("name", ["lock", "job", "pool.json"])
def test_a_link_within_a_shard_cache_leads_to_nothing_that_is_written_into(tmp_path: Path, name: str) -> None:
    (tmp_path / "victim").write_text("years of work")
    cache = shard_directory(tmp_path / "pool", META)
    cache.mkdir(parents=True)
    (cache / name).symlink_to(tmp_path / "victim")
    with pytest.raises(LeafError, match=rf"{name}: "):
        ShardCache(tmp_path / "pool", META)
    assert (tmp_path / "victim").read_text() == "years of work"


def test_an_unfinished_file_of_a_killed_run_is_removed_and_that_of_a_living_one_is_not(tmp_path: Path) -> None:
    left = tmp_path / ".tmp-m.json.0123456789abcdef"
    left.touch()
    with new_file(tmp_path / "m.json") as first, new_file(tmp_path / "m.json") as second:
        assert first.exists()
        assert second.exists()
        assert not left.exists()
    assert not list(tmp_path.iterdir())


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def modes(place: Path) -> set[tuple[bool, str]]:
    return {(path.is_dir(), oct(stat.S_IMODE(path.stat().st_mode))) for path in [place, *place.rglob("*")]}


@pytest.mark.parametrize("mask", [0o077, 0o022, 0o002])
def test_umask_decides_the_modes_of_all_that_is_written(tmp_path: Path, mask: int, tiny_student: Path) -> None:
    expected = {(True, oct(0o777 & ~mask)), (False, oct(0o666 & ~mask))}
    with umask(mask):
        publish(tmp_path / "stores", (40,))
        build(StudentParams(str(tiny_student)), 8, True).save(tmp_path / "models/student", "a card", FittedTo.of(META))
        with written_file(tmp_path / "files/m.json") as file:
            file.write_text("{}")
            file.chmod(0o600)
    for place in ("stores", "models", "files"):
        assert modes(tmp_path / place) == expected, place
