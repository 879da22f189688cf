"""Stores behind s3:// URLs: downloaded by shards, checked on arrival, cached within a bound."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from pipeline.base.errors import LeafError
from pipeline.encode.encoding import encode
from pipeline.params.sections import EncodeParams, TeacherParams
from pipeline.store import operations
from pipeline.store.bucket import Bucket
from pipeline.store.remote import RemoteFiles
from pipeline.store.repair import repair
from pipeline.store.shard_cache import ShardCache
from pipeline.store.store import Store
from pipeline.store.upload import push
from pipeline.teacher.teacher import open_teacher
from tests.store_helpers import DIM, META, contents, meta, publish, rows, vectors


def url(bucket: Any) -> str:
    return f"s3://{bucket.name}/team/embeddings"


def cached(path: Path) -> int:
    return sum(file.stat().st_size for file in path.glob("*/vectors.zarr/*/c/0/0"))


@pytest.mark.parametrize("dtype", ["float16", "float32", "int8"])
def test_a_store_behind_a_url_reads_like_the_local_one(tmp_path: Path, bucket: Any, dtype: str) -> None:
    local = publish(tmp_path, (1500, 40), dtype)
    push(local, url(bucket))
    remote = Store.open(url(bucket))
    assert isinstance(remote.files, RemoteFiles)
    assert operations.info(remote) == operations.info(local)
    assert not list((tmp_path / "remote-cache").rglob("*.parquet"))
    assert np.array_equal(remote.keys(), local.keys())
    assert cached(tmp_path / "remote-cache") == 0
    for i in range(2):
        assert np.array_equal(remote.read(i, 3, 1300), local.read(i, 3, 1300))
    assert operations.verify(remote) == operations.verify(local)
    assert np.array_equal(Store.open(Path(url(bucket))).lookup(local.keys()), local.lookup(local.keys()))


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_the_cache_stays_within_its_bound_and_dropped_shards_read_the_same(
    tmp_path: Path, bucket: Any, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    local = publish(tmp_path, (1500, 1400, 1300, 1200), dtype)
    push(local, url(bucket))
    bound = int(2.5 * max(file.stat().st_size for file in local.path.glob("vectors.zarr/*/c/0/0")))
    monkeypatch.setenv("LEAF_CACHE_GB", str(bound / 1e9))
    remote = Store.open(url(bucket))
    remote.verify()
    cache = tmp_path / "remote-cache"
    assert 0 < cached(cache) <= bound
    for i in (0, 3, 1, 2):
        for low, high in ((0, 1200), (1000, 1100), (1024, 1200), (5, 5)):
            assert np.array_equal(remote.read(i, low, high), local.read(i, low, high))
        assert cached(cache) <= bound
    assert len(list(cache.glob("*/vectors.zarr/*/c/0/0"))) < 4


def flip(bucket: Any, key: str, position: int = 40) -> None:
    raw = bytearray(bucket.Object(key).get()["Body"].read())
    raw[position] ^= 1
    bucket.Object(key).put(Body=bytes(raw))


def test_a_damaged_missing_or_cut_file_is_refused_on_arrival_with_shard_and_repair(tmp_path: Path, bucket: Any) -> None:
    local = publish(tmp_path, (60, 40))
    name = local.shards[1].name
    for file in local.shards[1].files:
        push(local, url(bucket))
        flip(bucket, f"team/embeddings/{file}")
        with pytest.raises(LeafError, match=f"{url(bucket)}/{file}: SHA-256 differs.*shard {name}.*leaf store repair"):
            Store.open(url(bucket)).verify()
        cut = local.path / file
        bucket.Object(f"team/embeddings/{file}").put(Body=cut.read_bytes()[:-1])
        with pytest.raises(LeafError, match=f"shard {name}"):
            Store.open(url(bucket)).verify()
        bucket.Object(f"team/embeddings/{file}").delete()
        with pytest.raises(LeafError, match=f"shard {name}: file is missing"):
            Store.open(url(bucket)).verify()
        bucket.upload_file(str(cut), f"team/embeddings/{file}")
    Store.open(url(bucket)).verify()
    flip(bucket, "team/embeddings/store.json")
    with pytest.raises(LeafError, match=f"{url(bucket)}/store.json"):
        Store.open(url(bucket))


def test_what_changes_after_the_check_is_refused_chunk_by_chunk(
    tmp_path: Path, bucket: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    local = publish(tmp_path, (1500, 1400))
    push(local, url(bucket))
    monkeypatch.setenv("LEAF_CACHE_GB", "1e-9")
    remote = Store.open(url(bucket))
    remote.verify()
    dropped = next(i for i in range(2) if not (remote.path / f"vectors.zarr/{remote.shards[i].name}/c/0/0").exists())
    name = remote.shards[dropped].name
    flip(bucket, f"team/embeddings/vectors.zarr/{name}/c/0/0", 1024 * 16 + 4 + 9)
    assert len(remote.read(dropped, 0, 1024)) == 1024
    with pytest.raises(LeafError, match=f"shard {name}: changed since it was checked"):
        remote.read(dropped, 1024, 1300)


def test_a_copy_that_rots_in_the_cache_is_fetched_again(tmp_path: Path, bucket: Any) -> None:
    push(publish(tmp_path, (60, 40)), url(bucket))
    remote = Store.open(url(bucket))
    remote.verify()
    for file in [*remote.path.glob("rows/*"), *remote.path.glob("vectors.zarr/*/c/0/0")]:
        raw = bytearray(file.read_bytes())
        raw[9] ^= 1
        file.write_bytes(raw)
    Store.open(url(bucket)).verify()


def test_a_download_that_ended_goes_on_where_it_was(
    tmp_path: Path, bucket: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    local, read = publish(tmp_path, (1500,)), Bucket.read
    push(local, url(bucket))
    file = f"vectors.zarr/{local.shards[0].name}/c/0/0"
    size, starts = (local.path / file).stat().st_size, list[int]()

    def interrupted(self: Bucket, name: str, start: int, stop: int) -> bytes:
        if name == file:
            starts.append(start)
            if len(starts) == 4:
                raise KeyboardInterrupt
        return read(self, name, start, stop)

    monkeypatch.setattr("pipeline.store.bucket.BLOCK_BYTES", size // 6)
    monkeypatch.setattr(Bucket, "read", interrupted)
    with pytest.raises(KeyboardInterrupt):
        Store.open(url(bucket)).files.shard(local.shards[0])
    Store.open(url(bucket)).verify()
    assert starts == [0, *(size // 6 * turn for turn in (1, 2, 3, 3, 4, 5)), *([size // 6 * 6] if size % 6 else [])]


def test_a_store_published_anew_replaces_what_the_cache_holds(tmp_path: Path, bucket: Any) -> None:
    push(publish(tmp_path, (60,)), url(bucket))
    Store.open(url(bucket)).verify()
    with ShardCache(tmp_path / "other", META) as cache:
        cache.write(rows(0, 60), vectors(500, 60))
        other = cache.publish(tmp_path / "other-store", cache.keys())
    bucket.objects.all().delete()
    push(other, url(bucket))
    assert np.array_equal(Store.open(url(bucket)).read(0), other.read(0))


def test_a_store_published_anew_while_it_is_checked_is_said_to_be_so(tmp_path: Path, bucket: Any) -> None:
    push(publish(tmp_path / "old", (60,)), url(bucket))
    remote = Store.open(url(bucket))
    bucket.objects.all().delete()
    push(publish(tmp_path / "new", (40, 30)), url(bucket))
    with pytest.raises(LeafError, match=f"{url(bucket)}: was published anew while it was checked"):
        remote.verify()


def test_scales_of_a_dropped_shard_are_read_without_fetching_its_vectors(
    tmp_path: Path, bucket: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    local = publish(tmp_path, (1500, 1400), "int8")
    push(local, url(bucket))
    monkeypatch.setenv("LEAF_CACHE_GB", "1e-9")
    remote = Store.open(url(bucket))
    remote.verify()
    dropped = next(i for i in range(2) if not (remote.path / f"vectors.zarr/{remote.shards[i].name}/c/0/0").exists())
    assert np.array_equal(remote.read(dropped, 1000, 1100), local.read(dropped, 1000, 1100))
    assert not (remote.path / f"vectors.zarr/{remote.shards[dropped].name}/c/0/0").exists()


@pytest.mark.parametrize(
    ("what", "changes"),
    [
        (r"fingerprint cdcd\w+ is not abab", {"fingerprint": "cd" * 32}),
        ("dtype float32 is not float16", {"dtype": "float32"}),
        (f"dim 4 is not {DIM}", {"dim": 4}),
        (r"for 60 of the 60 texts of both .* with the ids `id 0`, `id 1`,", {}),
    ],
)
def test_a_store_of_other_vectors_is_not_overwritten(
    tmp_path: Path, bucket: Any, what: str, changes: dict[str, Any]
) -> None:
    """The same texts, so that all shards have the same names."""
    push(publish(tmp_path, (60,)), url(bucket))
    before = {entry.key: entry.e_tag for entry in bucket.objects.all()}
    other = meta(**changes)
    with ShardCache(tmp_path / "other", other) as cache:
        cache.write(rows(0, 60), vectors(500, 60, other.dim))
        store = cache.publish(tmp_path / "other-store", cache.keys())
    with pytest.raises(LeafError, match=rf"{url(bucket)}.* {what}.*nothing was sent: push to another URL, or"):
        push(store, url(bucket))
    assert {entry.key: entry.e_tag for entry in bucket.objects.all()} == before
    push(store, f"{url(bucket)}-2")
    Store.open(f"{url(bucket)}-2").verify()


def test_a_grown_store_sends_only_its_new_shard(tmp_path: Path, bucket: Any) -> None:
    store = publish(tmp_path, (60, 40))
    assert push(store, url(bucket))["files_sent"] == 9
    assert push(store, url(bucket))["files_sent"] == 0
    with ShardCache(tmp_path / "pool", META) as cache:
        cache.write(rows(100, 5), vectors(100, 5))
        grown = cache.publish(store.path, cache.keys())
    assert push(grown, url(bucket))["files_sent"] == 5
    Store.open(url(bucket)).verify()


def test_stores_behind_urls_are_merged_and_repair_fetches_from_one(tmp_path: Path, bucket: Any) -> None:
    local = publish(tmp_path, (60, 40))
    push(local, url(bucket))
    operations.merge(Store.open(url(bucket)), local, tmp_path / "merged")
    assert contents(tmp_path / "merged") == contents(local.path)
    whole = contents(local.path)
    for file in local.shards[0].files:
        (local.path / file).unlink()
    assert repair(local.path, [Store.open(url(bucket))], None)["files_restored"] == 3
    assert contents(local.path) == whole


def test_reuse_takes_shared_vectors_from_a_url_and_fetches_no_shard_that_it_does_not_need(
    tmp_path: Path, bucket: Any, tiny_corpus: Path, tiny_teacher: Path
) -> None:
    teacher, frame = TeacherParams(str(tiny_teacher)), pl.read_parquet(tiny_corpus)
    first = EncodeParams(shard_rows=64, pool=str(tmp_path / "first-pool"))
    encode(tiny_corpus, open_teacher(teacher, first), first, tmp_path / "first")
    push(Store.open(tmp_path / "first"), url(bucket))
    frame.head(100).write_parquet(tiny_corpus / "part-00000.parquet")
    second = EncodeParams(pool=str(tmp_path / "second-pool"), reuse=(url(bucket),))
    figures = encode(tiny_corpus, open_teacher(teacher, second), second, tmp_path / "second")
    assert figures["taken_over"] == {url(bucket): 100}
    assert figures["rows_encoded"] == 0
    assert figures["tokens_saved"] > 100  # type: ignore[operator]
    assert len(list((tmp_path / "remote-cache").glob("*/vectors.zarr/*/c/0/0"))) == 2


def test_urls_with_credentials_and_failures_tell_no_secret(bucket: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for hostile in ("s3://KEYID:SECRETKEY@bucket/x", f"{url(bucket)}?X-Amz-Signature=SECRETKEY"):
        with pytest.raises(LeafError, match="without credentials") as caught:
            Store.open(hostile)
        assert "SECRETKEY" not in str(caught.value)
    with pytest.raises(LeafError, match=r"store\.json: file is missing"):
        Store.open(url(bucket))
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(LeafError, match="cannot be reached") as caught:
        Store.open(url(bucket))
    assert "leak-probe" not in str(caught.value)


def test_a_senseless_bound_of_the_cache_is_refused(
    tmp_path: Path, bucket: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    push(publish(tmp_path, (6,)), url(bucket))
    monkeypatch.setenv("LEAF_CACHE_GB", "none")
    with pytest.raises(LeafError, match="LEAF_CACHE_GB"):
        Store.open(url(bucket))
