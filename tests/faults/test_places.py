"""A place of many stores, in a directory, a bucket, or on a web server: what fits is used, the rest says why not."""

import json
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from click.testing import CliRunner

from pipeline.base.errors import LeafError
from pipeline.encode.encoding import encode
from pipeline.params.sections import EncodeParams, TeacherParams
from pipeline.store import http
from pipeline.store.places import find_stores, open_stores, write_list
from pipeline.store.shard_cache import ShardCache
from pipeline.store.store import Store
from pipeline.teacher.teacher import open_teacher
from stages.leaf import main
from tests.conftest import corpus_frame
from tests.http_server import serving
from tests.store_helpers import publish

KINDS = ["directory", "http", "s3"]


@dataclass(frozen=True)
class Organisation:
    """A directory of stores by several teams, which share a teacher or not."""

    root: Path
    teacher: TeacherParams
    corpus: Path
    """Of 300 texts: a has the first 128, b the next 128 and 40 of a's, and nobody the rest."""


def encoded(root: Path, frame: pl.DataFrame, teacher: TeacherParams, out: Path, license_: str | None = None) -> Store:
    corpus = root / f"texts-{out.name}"
    corpus.mkdir()
    frame.sort("key").write_parquet(corpus / "part-00000.parquet")
    params = EncodeParams(shard_rows=64, pool=str(root / f"pool-{out.name}"), token_budget=512, license=license_)
    encode(corpus, open_teacher(teacher, params), params, out)
    return Store.open(out)


@pytest.fixture(scope="module")
def organisation(tmp_path_factory: pytest.TempPathFactory, tiny_teacher: Path) -> Organisation:
    root, frame = tmp_path_factory.mktemp("organisation"), corpus_frame(320).head(300)
    teacher, place = TeacherParams(str(tiny_teacher)), root / "place"
    (place / "team-b/2026").mkdir(parents=True)
    whole = encoded(root, frame.head(128), teacher, place / "a", "MIT")
    encoded(root, frame[88:256], teacher, place / "team-b/2026/b", "CC-BY-4.0")
    encoded(root, frame.head(20), replace(teacher, max_length=8), place / "short")
    other = ShardCache(root / "forged-pool", whole.meta)
    with other as cache:
        rows = Store.open(place / "team-b/2026/b").shard_rows_frame(0)
        cache.write(rows, Store.open(place / "team-b/2026/b").read(0)[:, ::-1].copy())
        cache.publish(place / "forged", cache.keys())
    shutil.copytree(place / "a", place / "damaged")
    (place / "damaged/store.json").write_text("{}")
    (place / ".hidden").mkdir()
    shutil.copytree(place / "a", place / ".hidden/a")
    (root / "corpus").mkdir()
    frame.write_parquet(root / "corpus/part-00000.parquet")
    return Organisation(root, teacher, root / "corpus")


@pytest.fixture
def served(organisation: Organisation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., str]]:
    """The address of the place by its kind."""
    monkeypatch.setenv("LEAF_CACHE", str(tmp_path / "remote-cache"))
    monkeypatch.setattr(http, "FIRST_WAIT", 0.001)
    copy = Path(shutil.copytree(organisation.root / "place", tmp_path / "place"))
    with serving(copy, tmp_path / "log") as server:

        def address(kind: str, bucket: Any) -> str:
            if kind == "http":
                write_list(copy)
                return server.url
            if kind == "s3":
                for file in (file for file in copy.rglob("*") if file.is_file() and ".hidden" not in file.parts):
                    bucket.upload_file(str(file), f"cache/{file.relative_to(copy).as_posix()}")
                return f"s3://{bucket.name}/cache"
            return str(copy)

        yield address


@pytest.mark.parametrize("kind", KINDS)
def test_what_fits_is_taken_from_all_stores_and_the_rest_says_why(
    organisation: Organisation, served: Callable[..., str], kind: str, bucket: Any, tmp_path: Path
) -> None:
    place = served(kind, bucket)
    params = EncodeParams(pool=str(tmp_path / "pool"), token_budget=512, reuse=(place,), license="Apache-2.0")
    figures = encode(organisation.corpus, open_teacher(organisation.teacher, params), params, tmp_path / "out")
    assert figures["rows_encoded"] == 300 - 256
    assert figures["taken_over"] == {f"{place}/team-b/2026/b": 168, f"{place}/a": 88, f"{place}/forged": 0} or (
        figures["taken_over"] == {f"{place}/team-b/2026/b": 168, f"{place}/a": 88}
    )
    passed: Any = figures["passed_over"]
    assert passed[f"{place}/short"] == "was made with another teacher.max_length"
    assert f"{place}/damaged/store.json" in passed[f"{place}/damaged"]
    assert Store.open(tmp_path / "out").meta.license == "Apache-2.0 AND CC-BY-4.0 AND MIT"
    if kind != "directory":
        fetched = {path.parents[2].name for path in (tmp_path / "remote-cache").glob("*/vectors.zarr/*/c/0/0")}
        wanted = {info.name for name in ("a", "team-b/2026/b") for info in Store.open(f"{place}/{name}").shards}
        assert fetched <= wanted


def test_a_store_with_other_vectors_is_passed_over_and_hides_no_other(
    organisation: Organisation, tmp_path: Path
) -> None:
    place = Path(shutil.copytree(organisation.root / "place/forged", tmp_path / "place/forged")).parent
    params = EncodeParams(pool=str(tmp_path / "pool"), token_budget=512, reuse=(str(place), str(place)))
    figures = encode(organisation.corpus, open_teacher(organisation.teacher, params), params, tmp_path / "out")
    # A place of one store is a place: it does not end the run, as naming the store itself would.
    assert figures["rows_encoded"] == 300
    passed: Any = figures["passed_over"]
    assert "do not trust this store" in passed[f"{place}/forged"]
    named = replace(params, reuse=(f"{place}/forged",), pool=str(tmp_path / "pool-2"))
    with pytest.raises(LeafError, match="do not trust this store"):
        encode(organisation.corpus, open_teacher(organisation.teacher, named), named, tmp_path / "out-2")


@pytest.mark.parametrize("kind", KINDS)
def test_the_list_names_teacher_rows_licence_and_why_not(
    organisation: Organisation, served: Callable[..., str], kind: str, bucket: Any, tmp_path: Path
) -> None:
    place = served(kind, bucket)
    file = tmp_path / "params.yaml"
    file.write_text(f"teacher: {{model: {organisation.teacher.model}}}\nencode: {{}}\n")
    result = CliRunner().invoke(main, ["store", "list", place, "--params", str(file), "--json"])
    assert result.exit_code == 0, result.output
    entries = {entry["store"].removeprefix(f"{place}/"): entry for entry in json.loads(result.stdout)}
    assert set(entries) == {"a", "damaged", "forged", "short", "team-b/2026/b"}
    assert (entries["a"]["rows"], entries["a"]["license"], entries["a"]["fits"]) == (128, "MIT", True)
    assert entries["a"]["teacher"] == "teacher"
    assert entries["short"]["why"] == "was made with another teacher.max_length"
    assert not entries["damaged"]["fits"]
    shown = CliRunner().invoke(main, ["store", "list", place, "--params", str(file)]).stdout
    assert re.search(r"/a\n +teacher, 128 vectors of 32 float16, licence MIT\n +fits", shown)


def test_a_bucket_gets_a_list_too_so_that_it_can_be_served(
    organisation: Organisation, served: Callable[..., str], bucket: Any
) -> None:
    place = served("s3", bucket)
    assert write_list(place) == f"{place}/stores.json"
    written = json.loads(bucket.Object("cache/stores.json").get()["Body"].read())
    assert written["stores"] == ["a", "damaged", "forged", "short", "team-b/2026/b"]


def test_a_web_server_without_a_list_says_who_can_write_it(tmp_path: Path, served: Callable[..., str]) -> None:
    place = served("http", None)
    (tmp_path / "place/stores.json").unlink()
    with pytest.raises(LeafError, match=rf"^{place}: has neither store.json nor stores.json.*leaf store list.*--write"):
        find_stores(place)


@pytest.mark.parametrize(
    "content",
    [
        "<html>",
        "[]",
        '{"format": "leaf-store-list", "version": 2, "stores": []}',
        *(
            json.dumps({"format": "leaf-store-list", "version": 1, "stores": [name]})
            for name in ("../a", "/etc", "http://other/a", "a?x", "a//b", "", 1, "a/./b", "a#b", "%2e%2e/a")
        ),
    ],
)
def test_a_list_that_leads_elsewhere_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "stores.json").write_text(content)
    with serving(tmp_path, tmp_path / "log") as server, pytest.raises(LeafError, match=r"/stores.json: "):
        find_stores(server.url)


def test_a_store_is_a_place_of_itself_and_an_empty_directory_is_none(tmp_path: Path) -> None:
    store = publish(tmp_path, (6,))
    assert find_stores(store.path) == [str(store.path)]
    with pytest.raises(LeafError, match="needs no list"):
        write_list(store.path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(LeafError, match=r"empty: is no store, and none lies up to 4 folders below"):
        find_stores(tmp_path / "empty")
    assert open_stores([str(tmp_path / "empty")])[0].problem
