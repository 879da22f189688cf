"""Stores on a plain web server: another process, which breaks connections, knows no ranges, redirects, and damages."""

import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from click.testing import CliRunner

from pipeline.base.errors import LeafError
from pipeline.encode.encoding import encode
from pipeline.params.sections import EncodeParams, TeacherParams
from pipeline.serve.search import read_vectors
from pipeline.store import http, operations
from pipeline.store.formats import convert
from pipeline.store.repair import repair
from pipeline.store.store import Store
from pipeline.store.transport import remote_url
from pipeline.teacher.teacher import open_teacher
from stages.leaf import main
from tests.conftest import ROOT
from tests.http_server import Server, serving
from tests.store_helpers import publish


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LEAF_CACHE", str(tmp_path / "remote-cache"))
    monkeypatch.setattr(http, "FIRST_WAIT", 0.001)
    return tmp_path / "remote-cache"


@pytest.fixture
def local(tmp_path: Path) -> Store:
    return publish(tmp_path, (1500, 40))


@pytest.fixture
def server(tmp_path: Path, local: Store) -> Iterator[Server]:
    with serving(tmp_path, tmp_path / "log") as running:
        yield running


def test_addresses_survive_pathlib() -> None:
    assert remote_url(Path("https://example.org/stores/a/")) == "https://example.org/stores/a"
    assert remote_url("http://127.0.0.1:80/x") == "http://127.0.0.1:80/x"
    assert remote_url("https/x") is None
    assert remote_url("ftp://host/x") is None


def test_a_store_on_a_web_server_reads_like_the_local_one(tmp_path: Path, local: Store, server: Server) -> None:
    remote = Store.open(Path(f"{server.url}/store"))
    assert operations.info(remote) == operations.info(local)
    assert server.requests() == ["/store/store.json bytes=0-67108864"]
    assert np.array_equal(remote.lookup(local.keys()[-3:]), local.lookup(local.keys()[-3:]))
    assert not any(f"vectors.zarr/{local.shards[0].name}/c" in path for path in server.requests()[1:])
    assert operations.verify(remote) == operations.verify(local)
    assert np.array_equal(read_vectors(remote).vectors, read_vectors(local).vectors)
    convert(remote, tmp_path / "npy", "npy")
    assert np.array_equal(np.load(tmp_path / "npy/vectors.npy"), np.concatenate([local.read(0), local.read(1)]))
    (local.path / f"rows/{local.shards[0].name}.parquet").unlink()
    damaged = local.path.rename(tmp_path / "damaged")
    publish(tmp_path / "again", (1500, 40)).path.rename(tmp_path / "store")
    assert repair(damaged, [Store.open(f"{server.url}/store")], None)["files_restored"] == 1


@pytest.mark.parametrize("ranges", ["yes", "no"])
def test_broken_connections_are_resumed_where_they_broke(tmp_path: Path, local: Store, ranges: str) -> None:
    """With ranges each answer brings 5,000 bytes and breaks; without, only files that fit into an answer arrive."""
    with serving(tmp_path, tmp_path / "log", break_after="5000", ranges=ranges) as server:
        remote = Store.open(f"{server.url}/store")
        if ranges == "no":
            with pytest.raises(LeafError, match=rf"^{server.url}/store/\S+: cannot be reached .*6 times"):
                remote.verify()
            return
        remote.verify()
        name = local.shards[0].name
        size = (local.path / f"vectors.zarr/{name}/c/0/0").stat().st_size
        asked = [line.split()[1] for line in server.requests() if f"/{name}/c/0/0 " in line]
        assert [int(part.removeprefix("bytes=").split("-")[0]) for part in asked] == list(range(0, size, 5000))


DOWNLOAD = """
import sys
from pipeline.store import http
from pipeline.store.store import Store
http.BLOCK_BYTES = 1000
store = Store.open(sys.argv[1])
store.files.shard(max(store.shards, key=lambda shard: shard.rows))
"""


def part_of(cache: Path, name: str) -> Path | None:
    """What has arrived of a shard's vectors."""
    return next(cache.glob(f"*/vectors.zarr/{name}/c/0/.tmp-*-0"), None)


def test_a_killed_download_goes_on_where_it_was_in_another_process(tmp_path: Path, local: Store, cache: Path) -> None:
    shard = max(local.shards, key=lambda shard: shard.rows)
    size = (local.path / f"vectors.zarr/{shard.name}/c/0/0").stat().st_size
    (tmp_path / "log.stalled").touch()
    with serving(tmp_path, tmp_path / "log", stall_after="20500") as server:
        command = [sys.executable, "-c", DOWNLOAD, f"{server.url}/store"]
        process = subprocess.Popen(command, cwd=ROOT)
        try:
            for _ in range(6000):
                if (
                    part := part_of(cache, shard.name)
                ) and part.stat().st_size >= 16_000:  # the rest waits in its buffer
                    break
                time.sleep(0.02)
            assert part is not None
        finally:
            process.kill()
            process.wait()
        arrived = part.stat().st_size
        assert 16_000 <= arrived <= 20_500 < size
        (tmp_path / "log.stalled").unlink()
        server.requests()
        remote = Store.open(f"{server.url}/store")
        remote.files.shard(shard)
        (asked,) = [line.split()[1] for line in server.requests() if f"/{shard.name}/c/0/0 " in line]
        assert asked == f"bytes={arrived}-{size - 1}"
        assert part_of(cache, shard.name) is None
        remote.verify()


def test_what_a_killed_download_left_is_checked_bounded_and_dropped_with_its_store(
    tmp_path: Path, local: Store, server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, (first, second) = f"{server.url}/store", local.shards
    remote = Store.open(url)
    file = remote.path / f"vectors.zarr/{first.name}/c/0/0"
    remote.files.shard(first)
    digest = first.files[f"vectors.zarr/{first.name}/c/0/0"]
    part = file.with_name(f".tmp-{digest[:16]}-0")
    file.unlink()
    part.write_bytes(b"not what the server has")
    remote.files.shard(first)  # begins anew instead of calling the server's bytes damaged
    assert not part.exists()

    bound = (local.path / f"vectors.zarr/{first.name}/c/0/0").stat().st_size + 100
    monkeypatch.setenv("LEAF_CACHE_GB", str(bound / 1e9))
    file.rename(part)
    other = Store.open(url)
    other.files.shard(second)
    assert not part.exists()  # it counted, and was the least recently used

    part.write_bytes(b"of a store that is no longer there")
    shutil.rmtree(local.path)
    shutil.rmtree(tmp_path / "pool")
    publish(tmp_path, (30,))
    Store.open(url)
    assert not part.exists()


def test_a_server_without_ranges_serves_chunks_of_dropped_shards(
    tmp_path: Path, local: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LEAF_CACHE_GB", "1e-9")
    with serving(tmp_path, tmp_path / "log", ranges="no") as server:
        remote = Store.open(f"{server.url}/store")
        remote.verify()
        for part in (0, 1):
            assert np.array_equal(remote.read(part, 20, 1300), local.read(part, 20, 1300))


def test_redirects_are_followed_on_the_same_host_alone(tmp_path: Path, local: Store, server: Server) -> None:
    with (
        serving(tmp_path, tmp_path / "log2", redirect=server.url) as elsewhere,
        pytest.raises(LeafError, match=r"/store/store.json: is redirected to http://127.0.0.1, another host"),
    ):
        Store.open(f"{elsewhere.url}/store")
    assert server.requests() == []
    with (
        serving(tmp_path, tmp_path / "log2", redirect="/again") as circle,
        pytest.raises(LeafError, match="is redirected more than 5 times"),
    ):
        Store.open(f"{circle.url}/store")


def test_damage_names_the_address_and_never_the_local_copy(tmp_path: Path, local: Store, server: Server) -> None:
    for file in local.shards[1].files:
        whole = (local.path / file).read_bytes()
        for broken in (bytes([whole[0] ^ 1]) + whole[1:], whole[:-1], None):
            (local.path / file).unlink()
            if broken is not None:
                (local.path / file).write_bytes(broken)
            with pytest.raises(LeafError, match=rf"^{server.url}/store/{file}: ") as caught:
                Store.open(f"{server.url}/store").verify()
            assert "remote-cache" not in str(caught.value)
        (local.path / file).write_bytes(whole)
    (local.path / "store.json").write_text("<!doctype html><p>Index of /store")
    with pytest.raises(LeafError, match=rf"^{server.url}/store/store.json: is a page of HTML"):
        Store.open(f"{server.url}/store")
    (local.path / "store.json").unlink()
    with pytest.raises(LeafError, match=rf"^{server.url}/store/store.json: file is missing"):
        Store.open(f"{server.url}/store")


def test_a_copy_that_rots_in_the_cache_is_said_by_address(local: Store, server: Server) -> None:
    remote = Store.open(f"{server.url}/store")
    remote.verify()
    file = f"rows/{local.shards[0].name}.parquet"
    (remote.path / file).write_bytes(b"rotten")
    with pytest.raises(LeafError, match=rf"^{server.url}/store/{file}: ") as caught:
        remote.keys()
    assert "remote-cache" not in str(caught.value)


@pytest.mark.parametrize("hostile", ["http://user:SECRET@host/x", "https://host/x?sig=SECRET", "https://host/x#SECRET"])
def test_addresses_with_secrets_are_refused_without_repeating_them(hostile: str) -> None:
    with pytest.raises(LeafError, match=r"without credentials.*netrc") as caught:
        Store.open(hostile)
    assert "SECRET" not in str(caught.value)


def test_a_server_that_is_not_there_is_named_and_pushes_to_one_are_refused(local: Store) -> None:
    with pytest.raises(LeafError, match=r"^http://127.0.0.1:9/x/store.json: cannot be reached"):
        Store.open("http://127.0.0.1:9/x")
    refused = CliRunner().invoke(main, ["store", "push", str(local.path), "http://127.0.0.1:9/x"])
    assert refused.exit_code == 1
    assert "must be s3://" in refused.output


def test_reuse_fetches_only_shards_that_hold_a_shared_text(
    tmp_path: Path, tiny_corpus: Path, tiny_teacher: Path, cache: Path
) -> None:
    teacher, frame = TeacherParams(str(tiny_teacher)), pl.read_parquet(tiny_corpus)
    first = EncodeParams(shard_rows=64, pool=str(tmp_path / "first-pool"))
    encode(tiny_corpus, open_teacher(teacher, first), first, tmp_path / "first")
    frame.head(100).write_parquet(tiny_corpus / "part-00000.parquet")
    with serving(tmp_path, tmp_path / "log") as server:
        url = f"{server.url}/first"
        second = EncodeParams(pool=str(tmp_path / "second-pool"), reuse=(url,))
        figures = encode(tiny_corpus, open_teacher(teacher, second), second, tmp_path / "second")
    assert figures["taken_over"] == {url: 100}
    assert figures["rows_encoded"] == 0
    assert len(list(cache.glob("*/vectors.zarr/*/c/0/0"))) == 2
