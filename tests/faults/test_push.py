"""`leaf store push` adds to what is there: whoever pushes at the same time, and whenever a push is killed."""

import os
import random
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from click.testing import CliRunner, Result

from pipeline.base.errors import LeafError
from pipeline.store import operations
from pipeline.store.bucket import Bucket
from pipeline.store.manifest import Manifest
from pipeline.store.shard_cache import ShardCache
from pipeline.store.store import Store
from pipeline.store.upload import push
from stages.leaf import main
from tests.conftest import ROOT
from tests.store_helpers import META, rows, vectors

moto = pytest.importorskip("moto.s3.responses", reason="needs moto: pip install -e '.[dev]'")

REQUESTS = ("read", "size", "files", "version", "put", "create", "write")
KILLS = 100


def store_of(directory: Path, *shards: tuple[int, int], noise: float = 0.0, **changes: Any) -> Store:
    """A store of shards with these first rows and sizes; `noise` changes the vectors as another machine would."""
    with ShardCache(directory / "pool", replace(META, **changes)) as cache:
        for first, size in shards:
            exact = vectors(first, size)
            other = exact + noise * vectors(first + 10_000, size)
            cache.write(rows(first, size), (other / np.linalg.norm(other, axis=1, keepdims=True)).astype(np.float32))
        return cache.publish(directory / "store", cache.keys())


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Store, Store]:
    """Two teams' stores: a shard of the same texts encoded on other machines, and one that overlaps in part."""
    first = store_of(tmp_path / "a", (0, 30), (30, 20))
    return first, store_of(tmp_path / "b", (0, 30), (40, 25), noise=0.01)


def url(bucket: Any, name: str = "embeddings") -> str:
    return f"s3://{bucket.name}/team/{name}"


def keys(*stores: Store) -> set[bytes]:
    return {key for store in stores for key in store.keys().tolist()}


def leaf(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["store", *map(str, arguments)])


def check_union(place: str, first: Store, second: Store) -> Store:
    """The store at a URL is whole and has the texts of both, each with a vector that one of the two has for it."""
    union = Store.open(place)
    union.verify()
    assert keys(union) == keys(first, second)
    for store in (first, second):
        cosines = (union.lookup(store.keys()) * store.lookup(store.keys())).sum(1)
        assert cosines.min() > 0.999
    return union


@contextmanager
def at_request(number: int, action: Callable[[], object], *, after: bool = False) -> Iterator[list[str]]:
    """Calls `action` once, at the `number`-th request of this process to a bucket; yields the names of all requests."""
    made: list[str] = []

    def watched(name: str) -> Callable[..., Any]:
        request = getattr(Bucket, name)

        def watching(self: Bucket, *arguments: Any) -> Any:
            made.append(name)
            if len(made) == number and not after:
                action()
            answer = request(self, *arguments)
            if len(made) == number and after:
                action()
            return answer

        return watching

    with pytest.MonkeyPatch.context() as patch:
        for name in REQUESTS:
            patch.setattr(Bucket, name, watched(name))
        yield made


class KilledError(BaseException):
    """Stands for SIGKILL: nothing in the program catches it."""


def pushed_until(store: Store, place: str, die_at: int, *, after: bool) -> bool:
    """Push, dying at that request; returns whether the push came to its end."""

    def die() -> None:
        raise KilledError

    try:
        with at_request(die_at, die, after=after):
            push(store, place)
    except KilledError:
        return False
    return True


@pytest.mark.long
def test_two_pushers_killed_a_hundred_times_in_turns_never_lose_a_row(pair: tuple[Store, Store], bucket: Any) -> None:
    """The place is whole after each kill; what a push that came to its end has added stays there."""
    generator, kills, round_ = random.Random(0), 0, 0
    while kills < KILLS:
        place, safe, turn = url(bucket, f"round-{round_}"), set[bytes](), 0
        while turn < 8 or safe != keys(*pair):
            store = pair[turn % 2]
            if pushed_until(store, place, generator.randrange(1, 26), after=generator.random() < 0.5):
                safe |= keys(store)
            else:
                kills += 1
                if Bucket(place).version("store.json"):
                    remote = Store.open(place)
                    remote.verify()
                    assert safe <= keys(remote)
            turn += 1
        check_union(place, *pair)
        round_ += 1


@pytest.mark.parametrize("empty", [True, False])
def test_a_push_that_happens_at_any_request_of_another_loses_nothing(
    pair: tuple[Store, Store], bucket: Any, tmp_path: Path, empty: bool
) -> None:
    with at_request(0, lambda: None) as requests:
        push(pair[0], url(bucket, "counted"))
    base = store_of(tmp_path / "base", (500, 5))
    for number in range(2, len(requests) + 1, 4):
        place = url(bucket, f"{number}")
        if not empty:
            push(base, place)
        with at_request(number, partial(push, pair[1], place)):
            push(pair[0], place)
        if empty:
            union = check_union(place, *pair)
            assert Bucket(place).read("README.md", 0, 100).split()[4] == str(union.rows).encode()
        else:
            Store.open(place).verify()
            assert keys(Store.open(place)) == keys(base, *pair)


@pytest.fixture
def serial_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """Moto's server looks at a condition and writes in two steps; here no other request comes in between."""
    lock, put = threading.Lock(), moto.S3Response.put_object

    def put_alone(self: Any) -> Any:
        with lock:
            return put(self)

    monkeypatch.setattr(moto.S3Response, "put_object", put_alone)


def test_processes_that_push_at_once_and_are_killed_lose_nothing(
    pair: tuple[Store, Store], bucket: Any, serial_server: None
) -> None:
    """Real processes, real kills at the n-th request over the network; the last two run to their ends at once."""
    arguments: list[str] = []
    for kills in ((5, 9), (12, 14), (16, 18), (10, 0), (0, 0)):
        for store, die_at in zip(pair, kills, strict=True):
            arguments += [str(store.path), str(die_at)]
    command = [sys.executable, "-m", "tests.faults.pushers_killed", url(bucket), *arguments]
    run = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("killed") >= 4
    check_union(url(bucket), *pair)
    verified = leaf("verify", url(bucket))
    assert verified.exit_code == 0, verified.output


def test_a_smaller_store_adds_nothing_and_drops_nothing(pair: tuple[Store, Store], bucket: Any, tmp_path: Path) -> None:
    push(pair[0], url(bucket))
    smaller = store_of(tmp_path / "c", (30, 20))
    figures = push(smaller, url(bucket))
    assert (figures["rows_added"], figures["rows_there_before"], figures["rows"]) == (0, 20, 50)
    assert figures["files_sent"] == 0
    assert keys(Store.open(url(bucket))) == keys(pair[0])


def test_only_a_replacing_push_drops_shards_and_it_says_which(
    pair: tuple[Store, Store], bucket: Any, tmp_path: Path
) -> None:
    push(pair[0], url(bucket))
    names = {info.name: info.rows for info in pair[0].shards}
    smaller = store_of(tmp_path / "c", (30, 20))
    figures = push(smaller, url(bucket), replace_there=True)
    assert [names[name] for name in figures["shards_removed"]] == [30]
    assert keys(Store.open(url(bucket))) == keys(smaller)
    other = store_of(tmp_path / "d", (30, 20), fingerprint="cd" * 32, noise=2)
    result = leaf("push", other.path, url(bucket), "--replace")
    assert result.exit_code == 0, result.output
    replaced = Store.open(url(bucket))
    replaced.verify()
    assert replaced.meta.fingerprint == "cd" * 32
    assert np.array_equal(replaced.lookup(other.keys()), other.lookup(other.keys()))


def test_a_store_is_whole_at_every_request_of_a_push_that_replaces_it(
    pair: tuple[Store, Store], bucket: Any, tmp_path: Path
) -> None:
    """By another teacher's, of the same texts: shards of the same names, and other bytes."""
    stores = [store_of(tmp_path / "c", (0, 30), (30, 20), fingerprint="cd" * 32, noise=2), pair[0]]
    push(pair[0], url(bucket))
    with at_request(0, lambda: None) as requests:
        push(stores[0], url(bucket), replace_there=True)
    stores.reverse()
    for number in range(len(requests), 0, -4):
        with at_request(number, lambda: Store.open(url(bucket)).verify(), after=True):
            push(stores[0], url(bucket), replace_there=True)
        replaced = Store.open(url(bucket))
        replaced.verify()
        assert (replaced.meta.fingerprint, keys(replaced)) == (stores[0].meta.fingerprint, keys(stores[0]))
        stores.reverse()


def test_rows_that_are_there_stay_and_only_the_others_of_a_shard_are_sent(
    pair: tuple[Store, Store], bucket: Any
) -> None:
    push(pair[0], url(bucket))
    figures = push(pair[1], url(bucket))
    assert (figures["rows_added"], figures["rows_there_before"]) == (15, 40)
    union = check_union(url(bucket), *pair)
    first_keys = pair[0].keys()
    assert np.array_equal(union.lookup(first_keys), pair[0].lookup(first_keys))
    assert operations.info(union)["roles"] == {"document": 33, "query": 32}
    assert push(pair[1], url(bucket))["files_sent"] == 0


def test_other_vectors_of_the_same_texts_are_not_mixed_in(bucket: Any, tmp_path: Path) -> None:
    push(store_of(tmp_path / "a", (0, 30)), url(bucket))
    other = store_of(tmp_path / "b", (20, 30), noise=0.6)
    with pytest.raises(LeafError, match=r"for 10 of the 10 texts of both .*`id 20`, `id 21`.*nothing was sent"):
        push(other, url(bucket))
    assert Store.open(url(bucket)).rows == 30


@pytest.mark.parametrize("file", ["README.md", "vectors.zarr/zarr.json"])
def test_what_a_link_in_a_store_leads_to_is_not_sent(bucket: Any, tmp_path: Path, file: str) -> None:
    store, secret = store_of(tmp_path / "a", (0, 30)), tmp_path / "credentials"
    secret.write_text("aws_secret_access_key = LEAKPROBE")
    (store.path / file).unlink()
    (store.path / file).symlink_to(secret)
    if file == "README.md":  # the README there is made of store.json
        push(store, url(bucket))
        assert Bucket(url(bucket)).read(file, 0, 10**6).startswith(b"# Embeddings of")
    else:
        with pytest.raises(LeafError, match=r"zarr\.json: SHA-256 differs: .*; nothing was sent"):
            push(store, url(bucket))
        assert not Bucket(url(bucket)).files()
    sent = b"".join(Bucket(url(bucket)).read(name, 0, 10**6) for name in Bucket(url(bucket)).files())
    assert b"LEAKPROBE" not in sent


def test_the_readme_of_a_place_tells_of_the_union_and_of_each_licence(bucket: Any, tmp_path: Path) -> None:
    push(store_of(tmp_path / "a", (0, 30), license="CC-BY-NC-4.0"), url(bucket))
    figures = push(store_of(tmp_path / "b", (30, 20), license="MIT"), url(bucket))
    assert figures["license"] == "CC-BY-NC-4.0 AND MIT"
    union = Store.open(url(bucket))
    assert operations.info(union)["licenses"] == {
        "CC-BY-NC-4.0": {"rows": 30, "shards": 1},
        "MIT": {"rows": 20, "shards": 1},
    }
    readme = Bucket(url(bucket)).read("README.md", 0, 10_000).decode()
    assert "50 vectors" in readme
    assert "| Licence of these vectors | CC-BY-NC-4.0 AND MIT |" in readme
    assert "| CC-BY-NC-4.0 | 30 | 1 |" in readme


def test_a_push_does_not_change_the_licence_of_a_shard_that_is_there(bucket: Any, tmp_path: Path) -> None:
    store = store_of(tmp_path / "a", (0, 30), license="CC-BY-NC-4.0")
    push(store, url(bucket))
    manifest = Manifest.of(
        replace(store.meta, license="MIT"),
        [replace(info, license="MIT") for info in store.shards],
        store.manifest.group_sha256,
        sources=store.manifest.sources,
    )
    (store.path / "store.json").write_bytes(manifest.to_bytes())
    refused = leaf("push", store.path, url(bucket))
    assert refused.exit_code == 1
    assert "is there under the licence 'CC-BY-NC-4.0', and here under 'MIT'" in refused.output
    assert Store.open(url(bucket)).meta.license == "CC-BY-NC-4.0"
    assert leaf("push", store.path, url(bucket), "--replace").exit_code == 0
    assert Store.open(url(bucket)).meta.license == "MIT"


@pytest.mark.parametrize("answer", ["ignored", "not implemented"])
def test_a_server_without_conditional_writes_is_named_and_nothing_is_sent(
    pair: tuple[Store, Store], bucket: Any, monkeypatch: pytest.MonkeyPatch, answer: str
) -> None:
    put = moto.S3Response.put_object

    def put_without(self: Any) -> Any:
        conditions = [name for name in ("If-None-Match", "If-Match") if self.headers.get(name)]
        if conditions and answer == "not implemented":
            return 501, {}, "<Error><Code>NotImplemented</Code><Message>If-None-Match</Message></Error>"
        self.headers = {name: value for name, value in self.headers.items() if name not in conditions}
        return put(self)

    monkeypatch.setattr(moto.S3Response, "put_object", put_without)
    with pytest.raises(LeafError, match="this server knows no conditional writes"):
        push(pair[0], url(bucket))
    assert not any(entry.key.endswith(("store.json", ".parquet")) for entry in bucket.objects.all())


def test_what_a_killed_push_left_is_completed_and_not_sent_again(pair: tuple[Store, Store], bucket: Any) -> None:
    with at_request(0, lambda: None) as requests:
        push(pair[0], url(bucket, "counted"))
    assert not pushed_until(pair[0], url(bucket), len(requests) - 6, after=False)
    assert push(pair[0], url(bucket))["files_sent"] < 5
    check_union(url(bucket), pair[0], pair[0])


def test_texts_refused_by_a_teacher_are_listed_unless_the_other_store_has_their_vectors(
    bucket: Any, tmp_path: Path
) -> None:
    frame = pl.concat([rows(5, 1), rows(900, 1)])
    refused = {key.hex(): "too long" for key in sorted(frame["key"])}
    push(store_of(tmp_path / "a", (0, 30)), url(bucket))
    push(store_of(tmp_path / "b", (30, 20), refused=refused), url(bucket))
    assert set(Store.open(url(bucket)).meta.refused or {}) == {rows(900, 1)["key"][0].hex()}
