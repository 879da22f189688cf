"""Files of other owners, and modes that keep people out: messages say so, and never that something is damaged."""

import ctypes
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT, corpus_frame
from tests.store_helpers import publish

OTHER = 65534  # the owner of files of others, where the tests run as root
DROP_CAPABILITY, OVERRIDES = 24, (1, 2, 3)  # prctl(2): PR_CAPBSET_DROP; capabilities(7): what lets root read all files
RUN = """
import importlib, json, sys
from click.testing import CliRunner
results = [
    CliRunner().invoke(importlib.import_module(f"stages.{name}").main, arguments)
    for name, *arguments in json.loads(sys.stdin.read())
]
print(json.dumps([[result.exit_code, result.output] for result in results]))
"""
Leaf = Callable[..., list[tuple[int, str]]]


@pytest.fixture
def shared_folder(tmp_path: Path) -> Iterator[Path]:
    """A directory whose content may get any mode."""
    yield tmp_path
    for folder, _, files in os.walk(tmp_path):
        Path(folder).chmod(0o700)
        for file in files:
            (Path(folder) / file).chmod(0o600)


def without_privileges() -> None:
    """Have root read and write as everybody does: by owner and mode."""
    if os.geteuid() == 0:
        for capability in OVERRIDES:
            ctypes.CDLL(None).prctl(DROP_CAPABILITY, capability, 0, 0, 0)


@pytest.fixture
def as_another(shared_folder: Path) -> Leaf:
    """Runs commands, each a module of `stages` and its arguments, in one process, in which owners and modes count."""

    def run(*commands: list[str]) -> list[tuple[int, str]]:
        result = subprocess.run(
            [sys.executable, "-c", RUN], input=json.dumps(commands), cwd=shared_folder, capture_output=True, text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False, preexec_fn=without_privileges,
        )  # fmt: skip
        assert result.returncode == 0, result.stderr
        return [(code, output) for code, output in json.loads(result.stdout)]

    return run


def refused(result: tuple[int, str], mode: str) -> str:
    """The message of a refusal, which must name owner and mode and no repair."""
    code, output = result
    message = output.strip().splitlines()[-1]
    assert code == 1
    assert re.search(rf"no access:.* belongs to \S+ and has the mode {mode}", message), message
    assert not re.search("restore|repair|damaged|dvc checkout|copy it again|Traceback", message), message
    return message


def test_every_file_that_may_not_be_read_is_named_with_owner_and_mode(shared_folder: Path, as_another: Leaf) -> None:
    store = publish(shared_folder, (30,))
    shutil.rmtree(shared_folder / "pool")
    commands, copies = [], []
    for number, file in enumerate(sorted(path for path in store.path.rglob("*") if path.is_file())):
        copy = Path(shutil.copytree(store.path, shared_folder / f"copy-{number}"))
        closed = copy / file.relative_to(store.path)
        closed.unlink()  # its bytes are linked to no other file
        shutil.copyfile(file, closed)
        closed.chmod(0o200)
        if os.geteuid() == 0:
            os.chown(closed, OTHER, OTHER)
        copies.append(closed)
        commands += [["store", "verify", str(copy)], ["store", "repair", str(copy), "--pool", "none"]]
    results = as_another(*commands)
    for number, file in enumerate(copies):
        for result in results[2 * number : 2 * number + 2]:
            assert f"Error: {file}: no access" in refused(result, "0200")


def test_a_directory_that_keeps_people_out_is_named(shared_folder: Path, as_another: Leaf) -> None:
    before = os.umask(0o077)
    try:
        store = publish(shared_folder / "private", (30,))
    finally:
        os.umask(before)
    mode = "0700"  # as that umask leaves it
    if os.geteuid() == 0:
        os.chown(store.path, OTHER, OTHER)
    else:
        store.path.chmod(0o000)
        mode = "0000"
    for result in as_another(["store", "info", str(store.path)], ["store", "list", str(store.path)]):
        assert str(store.path) in refused(result, mode)


def test_a_corpus_that_may_not_be_read_is_not_said_to_be_missing(shared_folder: Path, as_another: Leaf) -> None:
    store = publish(shared_folder, (30,))
    closed = shared_folder / "closed"
    closed.mkdir()
    corpus_frame(8).write_parquet(closed / "part-00000.parquet")
    part = Path(shutil.copytree(closed, shared_folder / "part"))
    (part / "part-00000.parquet").chmod(0o000)
    closed.chmod(0o000)
    results = as_another(
        *(["store", "compact", str(store.path), "--corpus", str(c), "--out", "o"] for c in (closed, part))
    )
    for result in results:
        assert "run the stage" not in refused(result, "0000")


def test_a_store_that_is_only_readable_can_be_read_and_says_why_it_cannot_be_written(
    shared_folder: Path, as_another: Leaf
) -> None:
    store = publish(shared_folder, (30,))
    for path in [*store.path.rglob("*"), store.path]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    shared_folder.chmod(0o555)
    verified, merged, exported = as_another(
        ["store", "verify", str(store.path)],
        ["store", "merge", str(store.path), str(store.path), "--out", str(shared_folder / "merged")],
        ["store", "export", str(store.path), "--to", "npy", "--out", str(shared_folder / "npy")],
    )
    assert verified[0] == 0, verified[1]
    for result in (merged, exported):
        assert str(shared_folder) in refused(result, "0555")


def test_a_folder_that_keeps_people_out_hides_no_other_store_of_a_place(shared_folder: Path, as_another: Leaf) -> None:
    place = shared_folder / "place"
    store = shutil.copytree(publish(shared_folder, (30,)).path, place / "ours")
    for closed in (shutil.copytree(store, place / "theirs"), place / "team/private"):
        closed.mkdir(parents=True, exist_ok=True)
        closed.chmod(0o000)
    ((code, output),) = as_another(["store", "list", str(place), "--json"])
    assert code == 0, output
    entries = {entry["store"].removeprefix(f"{place}/"): entry for entry in json.loads(output)}
    assert set(entries) == {"ours", "theirs", "team/private"}
    assert entries["ours"]["rows"] == 30
    for name in ("theirs", "team/private"):
        assert re.search(r"no access:.* belongs to \S+ and has the mode 0000", entries[name]["why"])


def test_texts_vectors_and_parameters_that_may_not_be_read_are_named(shared_folder: Path, as_another: Leaf) -> None:
    """Not as cut short, nor as an output that cannot be written."""
    closed = ["a.jsonl", "a.parquet", "b.parquet", "v.npy", "saved/state.json", "p.yaml"]
    for name in closed:
        (shared_folder / name).parent.mkdir(exist_ok=True)
        (shared_folder / name).touch()
        (shared_folder / name).chmod(0o000)
    (shared_folder / "t.csv").write_text("text\n")
    commands = []
    for name in closed[:2]:
        kind = name.split(".")[1]
        source = f"{{name: s, kind: {kind}, path: {name}, role: document}}"
        (shared_folder / f"{kind}.yaml").write_text(f"corpus: {{sources: [{source}], heldout: 0.1}}\n")
        commands.append(["corpus", "--params", f"{kind}.yaml", "--out", f"corpus-{kind}"])
    rest = ["--out", "out", "--teacher", "none", "--unverified"]
    files = ["b.parquet"], ["v.npy", "--texts", "t.csv"], ["saved"]
    commands += [["store", "import", *arguments, *rest] for arguments in files] + [["corpus", "--params", "p.yaml"]]
    for file, result in zip(closed, as_another(*commands), strict=True):
        assert f"{file}: no access" in refused(result, "0000")


WRITE = """
from pathlib import Path
from pipeline.base import Kind, LeafError, check_writable
anything = Kind("thing", lambda directory: None)
for arguments in (([Path("closed/new/m.json")],), ([], {Path("closed/out"): anything})):
    try:
        check_writable(*arguments)
    except LeafError as error:
        print(error)
"""


def test_an_output_that_may_not_be_written_is_refused_with_owner_and_mode(shared_folder: Path) -> None:
    (shared_folder / "closed").mkdir(mode=0o555)
    result = subprocess.run(
        [sys.executable, "-c", WRITE], cwd=shared_folder, capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)}, preexec_fn=without_privileges,
    )  # fmt: skip
    lines = result.stdout.splitlines()
    assert [line.split(": cannot be written: no access: ")[0] for line in lines] == ["closed/new/m.json", "closed/out"]
    assert all(re.search(r"closed belongs to \S+ and has the mode 0555", line) for line in lines)
