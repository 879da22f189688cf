"""The commands of docs/sharing.md are run as written there: real git, real DVC, an S3-compatible server."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml

from pipeline.store.store import Store
from tests.conftest import ROOT, sentence
from tests.stages.test_pipeline import Project

boto3 = pytest.importorskip("boto3", reason="needs moto: pip install -e '.[dev]'")

RECORDS = 300
DOCUMENT = ROOT / "docs/sharing.md"


def blocks() -> list[tuple[str, str, str]]:
    """(heading, kind, text) of each code block; kind is `sh` or `yaml TEAM`."""
    parts, heading = [], ""
    for part in re.finditer(r"^## ([^\n]*)$|^```(sh|yaml [\w-]+)\n(.*?)^```$", DOCUMENT.read_text(), re.M | re.S):
        if part[1]:
            heading = part[1]
        else:
            parts.append((heading, part[2], part[3]))
    return parts


class Workspace:
    """The checkouts of two teams, and the output of all commands."""

    def __init__(self, folder: Path, teams: dict[str, Project], environment: dict[str, str]) -> None:
        self.folder, self.teams, self.printed = folder, teams, ""
        binaries = folder / "bin"
        binaries.mkdir()
        (binaries / "leaf").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m stages.leaf "$@"\n')
        (binaries / "leaf").chmod(0o755)
        path = os.pathsep.join([str(binaries), str(Path(sys.executable).parent), os.environ["PATH"]])
        identity = {
            f"GIT_{who}_{what}": "t@example.org" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")
        }
        self.environment = {**os.environ, **environment, **identity, "PATH": path, "PYTHONPATH": str(ROOT)}
        self.environment |= {"HF_HUB_OFFLINE": "1", "DVC_NO_ANALYTICS": "1"}

    def run(self, heading: str, number: int | None = None) -> str:
        """Run all blocks under a heading, or the one with that number; returns their output."""
        chosen = [(kind, text) for title, kind, text in blocks() if title.startswith(heading)]
        assert chosen
        output = ""
        for kind, text in chosen if number is None else [chosen[number]]:
            if kind.startswith("yaml"):
                self.set_params(kind.split()[1], yaml.safe_load(text))
            else:
                output += self.sh(text)
        return output

    def sh(self, script: str) -> str:
        result = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script],
            cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=600, check=False,
        )  # fmt: skip
        self.printed += result.stdout + result.stderr
        assert result.returncode == 0, f"{script}\n{result.stdout}\n{result.stderr}"
        return result.stdout

    def set_params(self, team: str, changes: dict[str, dict[str, Any]]) -> None:
        file = self.folder / team / "params.yaml"
        params = yaml.safe_load(file.read_text())
        for section, keys in changes.items():
            params[section] = {**params[section], **keys}
        file.write_text(yaml.safe_dump(params))


def records(first: int, last: int) -> list[dict[str, str]]:
    return [{"id": f"r{i}", "title": sentence(2 * i), "body": sentence(2 * i + 1)} for i in range(first, last)]


def encoded(checkout: Path) -> int:
    """Texts that the last run of `encode` there had the teacher read."""
    rows: int = json.loads((checkout / "metrics/encode.json").read_text())["rows_encoded"]
    return rows


@contextmanager
def listing(directory: Path) -> Iterator[str]:
    """The address of a plain web server that answers for a directory with a page of links."""
    command = [sys.executable, "-u", "-m", "http.server", "0", "--bind", "127.0.0.1", "--directory", str(directory)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        assert server.stdout is not None
        port = re.search(r" port (\d+) ", server.stdout.readline())
        try:
            assert port
            yield f"http://127.0.0.1:{port[1]}"
        finally:
            server.kill()


def stored_bytes() -> int:
    return sum(entry.size for entry in boto3.resource("s3").Bucket("leaf-sharing").objects.all())


@pytest.fixture(scope="module")
def workspace(
    tmp_path_factory: pytest.TempPathFactory, tiny_teacher: Path, tiny_student: Path, s3_server: dict[str, str]
) -> Any:
    folder = tmp_path_factory.mktemp("sharing")
    source = {"name": "pairs", "kind": "jsonl", "path": "data/sources/*.jsonl", "id_field": "id"}
    params = {
        "corpus": {"sources": [source | {"query_field": "title", "document_field": "body"}], "heldout": 0.2},
        "teacher": {"model": str(tiny_teacher)},
        "encode": {"shard_rows": 128, "token_budget": 512},
        "fit": {"student": {"model": str(tiny_student)}, "max_steps": 10, "batch_size": 8, "learning_rate": 1e-3},
        "evaluate": {"bootstrap": 50},
    }
    teams = {}
    for team in ("team-a", "team-b"):
        (folder / team).mkdir()
        teams[team] = Project(folder / team, params)
        shutil.copy(ROOT / ".gitignore", folder / team)
    pl.DataFrame(records(0, RECORDS)).write_ndjson(folder / "team-a/data/sources/texts.jsonl")
    pl.DataFrame(records(100, RECORDS + 50)).write_ndjson(folder / "team-b/data/sources/texts.jsonl")
    pl.DataFrame(records(RECORDS + 50, RECORDS + 53)).write_ndjson(folder / "more-texts.jsonl")
    pl.DataFrame(records(RECORDS + 53, RECORDS + 57)).write_ndjson(folder / "other-texts.jsonl")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in s3_server.items():
            patch.setenv(name, value)
        boto3.resource("s3").create_bucket(Bucket="leaf-sharing")
        yield Workspace(folder, teams, s3_server)


def test_the_flows_of_the_document_one_after_another(workspace: Workspace) -> None:
    a, b = workspace.folder / "team-a", workspace.folder / "team-b"
    workspace.run("", 0)
    workspace.run("1.")
    first = Store.open(a / "data/embeddings")

    colleague = workspace.folder / "colleague"
    assert "Running stage" not in workspace.run("2.", 0)
    workspace.run("2.", 1)
    guest = workspace.folder / "guest"
    assert not (guest / "data/sources/texts.jsonl").exists()
    assert (guest / "models/student/model.safetensors").exists()
    assert workspace.printed.count("Running stage 'fit'") == 2
    workspace.sh("cd guest && dvc exp run --single-item fit --set-param fit.batch_size=4 && dvc exp show --no-pager")
    assert yaml.safe_load((guest / "params.yaml").read_text())["fit"]["batch_size"] == 4
    assert workspace.printed.count("Running stage 'fit'") == 3
    queued = workspace.sh(
        "cd guest && dvc exp run --queue --name queued --single-item fit --set-param +fit.seed=1 && dvc queue start && "
        "for _ in $(seq 180); do dvc queue status | grep -E 'Success|Failed' && break; sleep 1; done; "
        "dvc queue stop >&2; dvc exp show --no-pager --csv"
    )
    assert "Success" in queued, workspace.sh("cd guest && dvc queue logs queued")
    assert "queued" in queued.partition("Success")[2]

    workspace.run("3.", 0)
    assert encoded(colleague) == 8
    before, names = stored_bytes(), {info.name for info in first.shards}
    workspace.run("3.", 1)
    whole = Store.open(a / "data/embeddings")
    assert encoded(a) == 6 == whole.rows - first.rows
    added = {info.name for info in whole.shards} - names
    assert len(added) == 1
    new = sum(info.bytes for info in whole.shards if info.name in added)
    corpus_bytes = sum(file.stat().st_size for file in a.glob("data/corpus/*"))
    assert stored_bytes() - before < 2 * new + corpus_bytes + 60_000  # twice: DVC's copy and the plain one; manifests

    workspace.sh(
        "cd team-a && git clone --quiet ../team-a.git ../forgetful && cd ../forgetful && dvc pull -q --with-deps encode"
    )
    workspace.run("3.", 2)
    union = Store.open(colleague / "data/embeddings")
    assert encoded(colleague) == 0
    assert union.rows == first.rows + 6 + 8
    forgotten = workspace.sh("cd forgetful && git pull --quiet && ! python -m stages.fit 2>&1")
    assert "is not the one that dvc.lock and metrics/corpus.json describe" in forgotten

    teacher = yaml.safe_load((b / "params.yaml").read_text())["teacher"]
    workspace.set_params("team-b", {"teacher": {"model": "package:not_installed/model"}})
    workspace.run("4.")
    imported = Store.open(b / "data/their-embeddings")
    assert set(imported.keys().tolist()) == set(union.keys().tolist())
    assert "CC-BY-4.0" in (imported.path / "README.md").read_text()
    assert (b / "models/from-theirs/model.safetensors").exists()

    workspace.set_params("team-b", {"teacher": teacher})
    workspace.run("5.")
    figures = json.loads((b / "metrics/encode.json").read_text())
    corpus = pl.read_parquet(b / "data/corpus/*.parquet")
    shared = len(set(corpus["key"]) & set(union.keys().tolist()))
    assert figures["taken_over"] == {"data/their-embeddings": shared}
    assert figures["rows_encoded"] == len(corpus) - shared == 100
    assert figures["tokens_saved"] > 2 * shared

    with listing(a / "data") as address:
        page = workspace.sh(
            f"cd team-b && dvc import-url --quiet {address}/embeddings/ page && ! leaf store info page 2>&1"
        )
    assert "page of HTML" in page
    assert "Traceback" not in page

    workspace.run("6.")
    from_theirs, from_bucket = (
        json.loads((b / f"metrics/from-{name}.json").read_text()) for name in ("theirs", "bucket")
    )
    assert from_theirs["training_rows"] == from_bucket["training_rows"]
    assert from_theirs["validation"]["loss"] == pytest.approx(from_bucket["validation"]["loss"], rel=0.2)

    workspace.run("7.")
    merged = Store.open(workspace.folder / "merged")
    assert set(merged.keys().tolist()) == {*whole.keys().tolist(), *Store.open(b / "data/embeddings").keys().tolist()}
    name = whole.shards[0].name
    file = a / f"data/embeddings/rows/{name}.parquet"
    file.unlink()
    workspace.run("Look")
    Store.open(a / "data/embeddings").verify()
    assert set(Store.open(workspace.folder / "only-a").keys().tolist()) == set(whole.keys().tolist())


def test_no_credential_is_in_any_file_or_output(workspace: Workspace, s3_server: dict[str, str]) -> None:
    """After all flows: stores, dvc.lock, .dvc files, metrics, students, logs, git, caches, and the commands' output."""
    secrets = [s3_server[name] for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")]
    checked = 0
    for file in workspace.folder.rglob("*"):
        if file.is_file() and not file.is_symlink():
            raw = file.read_bytes()
            assert not any(secret.encode() in raw for secret in secrets), file
            checked += file.name in ("store.json", "dvc.lock", "encode.json", "README.md")
    assert checked >= 8
    broken = subprocess.run(
        ["leaf", "store", "info", "s3://leaf-sharing/nothing"],
        cwd=workspace.folder, env=workspace.environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert broken.returncode == 1
    output = workspace.printed + broken.stdout + broken.stderr
    assert "leaf-sharing" in output
    assert not any(secret in output for secret in secrets)
