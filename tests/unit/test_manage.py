"""`leaf store`: merging, compacting, converting and repairing keep every vector's bits."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import weakref
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from click.testing import CliRunner

from pipeline.base.errors import LeafError
from pipeline.corpus.parts import corpus_keys
from pipeline.encode import comparison
from pipeline.encode.encoding import encode
from pipeline.encode.lost_shards import encode_lost_shards
from pipeline.params.sections import EncodeParams, TeacherParams
from pipeline.store import agreement, formats, joint_license, operations
from pipeline.store.manifest import Manifest
from pipeline.store.repair import repair
from pipeline.store.shard_cache import ShardCache
from pipeline.store.store import Store
from pipeline.teacher.teacher import open_teacher
from stages.leaf import main
from tests.conftest import ROOT
from tests.store_helpers import contents, meta, publish, rows, vectors


def published(directory: Path, first: int, sizes: tuple[int, ...], dtype: str = "float16", **changes: Any) -> Store:
    with ShardCache(directory / "pool", replace(meta(dtype), **changes)) as cache:
        for size in sizes:
            cache.write(rows(first, size), vectors(first, size))
            first += size
        return cache.publish(directory / "store", cache.keys())


def bits(store: Store) -> dict[bytes, bytes]:
    """Key -> the stored bytes of its vector."""
    vectors_by_key: dict[bytes, bytes] = {}
    for i in range(len(store.shards)):
        parts = store.stored(i)
        for row, key in enumerate(store.shard_rows_frame(i)["key"]):
            vectors_by_key[key] = b"".join(part[row].tobytes() for part in parts)
    return vectors_by_key


@pytest.mark.parametrize("dtype", ["float16", "float32", "int8"])
def test_merging_takes_each_key_once_and_changes_no_bit(tmp_path: Path, dtype: str) -> None:
    first, second = published(tmp_path / "a", 0, (60, 40), dtype), published(tmp_path / "b", 80, (50, 30), dtype)
    figures = operations.merge(first, second, tmp_path / "c")
    merged = Store.open(tmp_path / "c")
    merged.verify()
    assert bits(merged) == {**bits(second), **bits(first)}
    assert (figures["rows"], figures["rows_duplicate"]) == (160, 20)
    assert (figures["shards_linked"], figures["shards_rewritten"]) == (3, 1)
    for shard in first.shards:
        for file in shard.files:
            assert (merged.path / file).stat().st_ino == (first.path / file).stat().st_ino
    assert not list(tmp_path.glob(".tmp-*"))


def test_merging_in_either_way_or_twice_gives_a_store_of_the_same_bytes(tmp_path: Path) -> None:
    first, second = published(tmp_path / "a", 0, (60,)), published(tmp_path / "b", 60, (50,))
    operations.merge(first, second, tmp_path / "c")
    operations.merge(second, first, tmp_path / "d")
    operations.merge(Store.open(tmp_path / "c"), first, tmp_path / "c", replace_out=True)
    assert contents(tmp_path / "c") == contents(tmp_path / "d")


@pytest.mark.parametrize("other", ["x-new", "x-new-", "pool-x", "x.pool", "x.new"])
def test_a_merge_leaves_alone_what_is_under_way_beside_it_under_a_similar_name(tmp_path: Path, other: str) -> None:
    first, second = published(tmp_path / "a", 0, (30,)), published(tmp_path / "b", 30, (20,))
    with operations.scratch_cache(tmp_path / other, first.meta) as cache:
        cache.write(rows(0, 30), vectors(0, 30))
        operations.merge(first, second, tmp_path / "x")
        cache.publish(tmp_path / other, cache.keys()).verify()
    assert Store.open(tmp_path / "x").rows == 50
    assert not list(tmp_path.glob(".tmp-*"))


def test_a_second_merge_to_one_place_at_the_same_time_is_refused(tmp_path: Path) -> None:
    first, second = published(tmp_path / "a", 0, (30,)), published(tmp_path / "b", 30, (20,))
    with operations.scratch_cache(tmp_path / "x", first.meta) as cache:
        with pytest.raises(LeafError, match=r"x: another run is under way \(process"):
            operations.merge(first, second, tmp_path / "x")
        cache.write(rows(0, 30), vectors(0, 30))


def test_stores_of_different_teachers_are_not_merged(tmp_path: Path) -> None:
    first, second = published(tmp_path / "a", 0, (5,)), published(tmp_path / "b", 9, (5,), fingerprint="cd" * 32)
    with pytest.raises(LeafError, match=r"cannot be merged .*fingerprint cdcd.* is not abab"):
        operations.merge(first, second, tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_a_damaged_shard_is_not_merged(tmp_path: Path) -> None:
    first, second = published(tmp_path / "a", 0, (60,)), published(tmp_path / "b", 60, (50,))
    flip(second.path / f"vectors.zarr/{second.shards[0].name}/c/0/0")
    with pytest.raises(LeafError, match=f"shard {second.shards[0].name}: SHA-256 differs"):
        operations.merge(first, second, tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_the_licence_of_a_merged_store_is_that_of_both(tmp_path: Path) -> None:
    first, second = (
        published(tmp_path / "a", 0, (5,), license="MIT"),
        published(tmp_path / "b", 9, (5,), license="CC-BY-4.0"),
    )
    operations.merge(first, second, tmp_path / "c")
    assert Store.open(tmp_path / "c").meta.license == "CC-BY-4.0 AND MIT"
    assert "CC-BY-4.0 AND MIT" in (tmp_path / "c/README.md").read_text()


def test_compacting_keeps_the_corpus_and_drops_the_rest(tmp_path: Path) -> None:
    store = published(tmp_path, 0, (30, 30, 30))
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    frame = rows(20, 40).with_columns(text=pl.lit("x"), split=pl.lit("train")).sort("key")
    frame.select("key", "id", "text", "role", "source", "split").write_parquet(corpus / "part-00000.parquet")
    before = bits(store)
    figures = operations.compact(store, corpus_keys(corpus), str(corpus), store.path, drop_most=True)
    kept = Store.open(store.path)
    kept.verify()
    assert bits(kept) == {key: before[key] for key in frame["key"]}
    linked = [figures[f"shards_{what}"] for what in ("linked", "rewritten", "dropped")]
    assert linked == [1, 1, 1]


def test_a_difference_counts_keys_and_compares_the_shared(tmp_path: Path) -> None:
    first, second = published(tmp_path / "a", 0, (60,)), published(tmp_path / "b", 40, (50,), "float32")
    figures = operations.diff(first, second, 0)
    assert [figures[name] for name in ("only_in_first", "only_in_second", "in_both")] == [40, 30, 20]
    assert figures["cosine"]["rows"] == 20
    assert figures["cosine"]["min"] > 0.9999


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_converted_stores_hold_the_same_vectors(tmp_path: Path, dtype: str) -> None:
    store = published(tmp_path, 0, (60, 40), dtype)
    for name in formats.FORMATS:
        formats.convert(store, tmp_path / name, name)
    frame = pl.read_parquet(tmp_path / "npy/rows.parquet")
    expected = store.lookup(frame["key"].to_list())
    assert np.array_equal(np.load(tmp_path / "npy/vectors.npy").astype(np.float32), expected)
    for pattern in ("parquet/*.parquet", "hf/data/*.parquet"):
        frame = pl.read_parquet(tmp_path / pattern)
        assert np.array_equal(frame["vector"].to_numpy(), store.lookup(frame["key"].to_list()))
    with pytest.raises(LeafError, match="exists"):
        formats.convert(store, tmp_path / "npy", "npy")


def test_a_store_is_converted_to_an_array_with_the_rows_of_one_shard_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = published(tmp_path, 0, (30, 30, 30, 30))
    read = Store.shard_rows_frame
    frames: list[weakref.ref[pl.DataFrame]] = []

    def watched(self: Store, i: int) -> pl.DataFrame:
        assert not any(frame() is not None for frame in frames)
        frames.append(weakref.ref(frame := read(self, i)))
        return frame

    monkeypatch.setattr(Store, "shard_rows_frame", watched)
    formats.convert(store, tmp_path / "npy", "npy")
    assert len(frames) == 4


def test_the_datasets_library_reads_a_store_converted_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets", reason="the extra `hub` is not installed")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    store = published(tmp_path, 0, (60, 40))
    formats.convert(store, tmp_path / "hf", "hf")
    dataset = datasets.load_dataset(str(tmp_path / "hf"), split="train", cache_dir=str(tmp_path / "cache"))
    assert dataset.num_rows == 100
    assert np.array_equal(np.array(dataset["vector"][:], dtype=np.float32), store.lookup(dataset["key"][:]))


def test_looking_into_a_store_does_not_wait_for_torch() -> None:
    code = "import sys, stages.leaf; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def flip(file: Path) -> None:
    """Change one bit in a file of its own, so that links to it elsewhere stay whole."""
    raw = bytearray(file.read_bytes())
    raw[len(raw) // 3] ^= 1
    file.unlink()
    file.write_bytes(raw)


def damage(store: Path, number: int) -> list[str]:
    """Damage shard `number` and the README; the files that were touched."""
    name = Store.open(store).shards[number].name
    flip(store / f"vectors.zarr/{name}/c/0/0")
    (store / f"rows/{name}.parquet").unlink()
    flip(store / "README.md")
    return [f"vectors.zarr/{name}/c/0/0", f"rows/{name}.parquet", "README.md"]


def test_repair_fetches_only_the_damaged_files_from_a_copy_or_the_shard_cache(tmp_path: Path) -> None:
    store = publish(tmp_path, (60, 40))
    whole = contents(store.path)
    copy = Path(shutil.copytree(store.path, tmp_path / "copy"))
    cache = next((tmp_path / "pool").iterdir())
    for source in (Store.open(copy), cache):
        damage(store.path, 1)
        figures = repair(store.path, [source], None)
        assert (figures["files_restored"], figures["shards_damaged"]) == (3, 1)
        assert contents(store.path) == whole


def test_a_damaged_manifest_is_taken_from_a_copy_only_by_its_fingerprint(tmp_path: Path) -> None:
    """Its digests would otherwise decide that good vectors are damaged, and replace them."""
    store, theirs = publish(tmp_path, (60, 40)), meta(fingerprint="cd" * 32)
    with ShardCache(tmp_path / "their-pool", theirs) as cache:
        cache.write(rows(0, 60), vectors(7, 60))
        other = cache.publish(tmp_path / "theirs", cache.keys())
    copy = Store.open(shutil.copytree(store.path, tmp_path / "copy"))
    before = contents(store.path) | {"store.json": b"{"}
    (store.path / "store.json").write_bytes(b"{")
    told = (
        rf"theirs has the fingerprint {'cd' * 32}, 60 rows in 1 shards: of their 3 files 2 are here.*1 shards .*--fing"
    )
    for named in (None, "ef" * 32):
        with pytest.raises(LeafError, match=told):
            repair(store.path, [other, copy], None, named)
        assert contents(store.path) == before
    repair(store.path, [other, copy], None, store.meta.fingerprint)
    assert contents(store.path) == contents(copy.path)


def test_repair_without_a_copy_says_what_to_do(tmp_path: Path) -> None:
    store = publish(tmp_path, (60, 40))
    damage(store.path, 0)
    with pytest.raises(LeafError, match=f"shard {store.shards[0].name}: damaged, .*--from .*--corpus"):
        repair(store.path, [], None)


@pytest.mark.parametrize("rows_lost", [False, True])
def test_repair_encodes_the_texts_of_the_lost_shard_alone(
    tmp_path: Path, tiny_corpus: Path, tiny_teacher: Path, rows_lost: bool
) -> None:
    teacher, params = TeacherParams(str(tiny_teacher)), EncodeParams(shard_rows=64, pool=str(tmp_path / "pool"))
    encode(tiny_corpus, open_teacher(teacher, params), params, tmp_path / "store")
    store = Store.open(tmp_path / "store")
    keys = store.keys()
    before = store.lookup(keys)
    name = store.shards[2].name
    flip(store.path / f"vectors.zarr/{name}/c/0/0")
    if rows_lost:
        (store.path / f"rows/{name}.parquet").unlink()
    opened = open_teacher(teacher, params, store)
    encode_again = partial(encode_lost_shards, corpus=tiny_corpus, teacher=opened, shard_rows=params.shard_rows)
    figures = repair(store.path, [], encode_again)
    assert figures["rows_encoded"] == store.shards[2].rows
    repaired = Store.open(store.path)
    assert {shard.name for shard in repaired.shards} == {shard.name for shard in store.shards}
    assert np.abs(repaired.lookup(keys) - before).max() < 1e-2


def test_a_sample_encoded_again_agrees_and_a_forged_vector_does_not(
    tmp_path: Path, tiny_corpus: Path, tiny_teacher: Path
) -> None:
    teacher, params = TeacherParams(str(tiny_teacher)), EncodeParams(shard_rows=512, pool=str(tmp_path / "pool"))
    encode(tiny_corpus, open_teacher(teacher, params), params, tmp_path / "store")
    store = Store.open(tmp_path / "store")
    assert comparison.sample(store, tiny_corpus, open_teacher(teacher, params, store), 10)["cosine_min"] > 0.999
    with ShardCache(tmp_path / "forged-pool", store.meta) as cache:
        cache.write(store.shard_rows_frame(0), store.read(0)[::-1])
        forged = cache.publish(tmp_path / "forged", cache.keys())
    with pytest.raises(LeafError, match="do not trust this store"):
        comparison.sample(forged, tiny_corpus, open_teacher(teacher, params, forged), 10)
    with pytest.raises(LeafError, match="section `teacher` describes"):
        other = TeacherParams(str(tiny_teacher), max_length=9)
        comparison.sample(store, tiny_corpus, open_teacher(other, params, store), 10)


SAMPLE = r"""
import re
from pathlib import Path
from types import SimpleNamespace
from pipeline.encode.comparison import sample
from pipeline.store.store import Store
store = Store.open(Path("store"))
teacher = SimpleNamespace(meta=store.meta, vectors=lambda texts: store.lookup(texts["key"].to_list()))
def peak():
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) // 1024
before = peak()
assert sample(store, Path("corpus"), teacher, 8)["compared"] == 8
print(peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak of memory from Linux")
def test_a_sample_is_found_without_holding_the_corpus(tmp_path: Path) -> None:
    """20,000 texts of 20,000 characters each are 400 MB."""
    base = rows(0, 20_000)
    frame = base.with_columns(split=pl.lit("train")).sort("key")
    (tmp_path / "corpus").mkdir()
    for number, part in enumerate(frame.iter_slices(1000)):
        texts = part.with_columns(text=pl.lit("x" * 20_000) + pl.col("id"))
        texts.write_parquet(tmp_path / f"corpus/part-{number:05d}.parquet")
    with ShardCache(tmp_path / "pool", meta()) as cache:
        cache.write(base, np.tile(vectors(0, 10), (2000, 1)))
        cache.publish(tmp_path / "store", cache.keys())
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "POLARS_MAX_THREADS": "2"}
    command = [sys.executable, "-c", SAMPLE]
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) < 200, run.stdout


def test_the_norms_of_a_normalised_store_are_checked(tmp_path: Path) -> None:
    with ShardCache(tmp_path / "pool", meta()) as cache:
        cache.write(rows(0, 10), vectors(0, 10) * 3)
        store = cache.publish(tmp_path / "store", cache.keys())
    with pytest.raises(LeafError, match=f"shard {store.shards[0].name}: a vector has the norm"):
        operations.verify(store)


@pytest.fixture
def leaf() -> Callable[..., Any]:
    def run(*arguments: object) -> Any:
        result = CliRunner().invoke(main, ["store", *map(str, arguments), "--json"])
        assert result.exit_code == 0, result.stderr
        return json.loads(result.stdout)

    return run


def test_the_console_script_tells_checks_and_compares(tmp_path: Path, leaf: Callable[..., Any]) -> None:
    store = published(tmp_path / "a", 0, (60, 40), license="CC0-1.0").path
    told = leaf("info", store)
    assert (told["rows"], told["dim"], told["license"], told["roles"]) == (
        100, 8, "CC0-1.0", {"document": 50, "query": 50}
    )  # fmt: skip
    assert told["sources"] == {"tests": {"document": 50, "query": 50}}
    assert leaf("verify", store)["rows"] == 100
    other = published(tmp_path / "b", 90, (20,)).path
    differing = CliRunner().invoke(main, ["store", "diff", str(store), str(other), "--json"])
    assert (differing.exit_code, json.loads(differing.stdout)["in_both"]) == (1, 10)
    assert leaf("merge", store, other, "--out", tmp_path / "c")["rows"] == 110
    assert leaf("export", tmp_path / "c", "--to", "npy", "--out", tmp_path / "d")["rows"] == 110
    damage(store, 0)
    plain = CliRunner().invoke(main, ["store", "verify", str(store)])
    assert plain.exit_code == 1
    assert "leaf store repair" in plain.stderr
    assert leaf("repair", store, "--pool", tmp_path / "a/pool")["files_restored"] == 3
    assert CliRunner().invoke(main, ["store", "info", str(store)]).output.startswith("teacher")


@pytest.mark.parametrize("pool", [None, "elsewhere"])
def test_repair_looks_into_the_shard_cache_that_encode_uses(
    tmp_path: Path, leaf: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, pool: str | None
) -> None:
    monkeypatch.chdir(tmp_path)
    store = publish(tmp_path, (60, 40))
    if pool:
        Path("params.yaml").write_text(f"encode: {{pool: {pool}}}\n")
    Path(pool or EncodeParams.pool).parent.mkdir(exist_ok=True)
    Path("pool").rename(pool or EncodeParams.pool)
    damage(store.path, 1)
    assert leaf("repair", store.path)["files_restored"] == 3


def test_the_project_installs_the_console_script() -> None:
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"] == {"leaf": "leaf_pipeline:main"}


def test_a_store_carries_a_readme_whose_code_runs_and_whose_bytes_are_its_contents(tmp_path: Path) -> None:
    for dtype in ("float16", "int8"):
        store = published(
            tmp_path / dtype, 0, (60, 40), dtype, license="CC-BY-4.0", teacher={"model": "m", "license": "MIT"}
        )
        text = (store.path / "README.md").read_text()
        assert "CC-BY-4.0" in text
        assert "| Licence of the teacher | MIT |" in text
        code = "\n".join(block.split("```")[0] for block in text.split("```python\n")[1:])
        exec(compile(code.replace('Path(".")', f"Path({str(store.path)!r})"), "README", "exec"), {})
        before = contents(store.path)
        with ShardCache(tmp_path / dtype / "pool", store.meta) as cache:
            cache.publish(store.path, cache.keys())
        assert contents(store.path) == before


def test_a_store_written_before_readmes_existed_is_read(tmp_path: Path) -> None:
    store = publish(tmp_path, (30,))
    (store.path / "README.md").unlink()
    (store.path / "store.json").write_bytes(Manifest(store.meta, store.shards, store.manifest.group_sha256).to_bytes())
    old = Store.open(store.path)
    old.verify()
    assert operations.info(old)["sources"] == {"tests": {"document": 15, "query": 15}}


def noisy(directory: Path, first: int, count: int, noise: float, **changes: Any) -> Store:
    """A store of the same texts as `published`, whose vectors another machine, or another model, has made."""
    with ShardCache(directory / "pool", replace(meta(), **changes)) as cache:
        cache.write(rows(first, count), vectors(first, count) + np.float32(noise) * vectors(first + 10_000, count))
        return cache.publish(directory / "store", cache.keys())


def test_stores_that_have_other_vectors_for_the_same_texts_are_not_merged(tmp_path: Path) -> None:
    """All shared rows are compared: of sixty, one differs."""
    first = published(tmp_path / "a", 0, (60,))
    exact, wrong = vectors(20, 60), vectors(900, 1)
    exact[39] = wrong[0]
    with ShardCache(tmp_path / "b/pool", meta()) as cache:
        cache.write(rows(20, 60), exact)
        second = cache.publish(tmp_path / "b/store", cache.keys())
    with pytest.raises(LeafError, match=r"for 1 of the 40 texts of both \(lowest cosine .*with the ids `id 59`;"):
        operations.merge(first, second, tmp_path / "c")
    assert not (tmp_path / "c").exists()
    longer = noisy(tmp_path / "d", 0, 60, 0, normalized=False)
    with ShardCache(tmp_path / "e/pool", longer.meta) as cache:
        cache.write(rows(0, 60), 2 * vectors(0, 60))
        with pytest.raises(LeafError, match="for 60 of the 60 texts"):
            operations.merge(longer, cache.publish(tmp_path / "e/store", cache.keys()), tmp_path / "c")
    operations.merge(first, noisy(tmp_path / "f", 40, 30, 0.005), tmp_path / "c")
    assert np.array_equal(Store.open(tmp_path / "c").lookup(first.keys()), first.lookup(first.keys()))


def test_comparing_what_two_stores_share_reads_it_in_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = published(tmp_path / "a", 0, (3000, 100)), published(tmp_path / "b", 0, (2000, 1100))
    monkeypatch.setattr(agreement, "ROWS_AT_ONCE", 1024)
    read: list[int] = []
    original = Store.read

    def watched(self: Store, part: int, start: int = 0, stop: int | None = None) -> Any:
        found = original(self, part, start, stop)
        read.append(len(found))
        return found

    monkeypatch.setattr(Store, "read", watched)
    assert agreement.compare_shared(first, second, np.sort(second.keys())).rows == 3100
    assert max(read) < 3000


def test_a_store_is_replaced_only_where_that_is_told(tmp_path: Path) -> None:
    first, second = published(tmp_path / "a", 0, (30,)), published(tmp_path / "b", 30, (20,))
    other = published(tmp_path / "c", 0, (5,), fingerprint="cd" * 32).path
    before = contents(other)
    arguments = ["store", "merge", str(first.path), str(second.path), "--out"]
    for out in (other, first.path):
        refused = CliRunner().invoke(main, [*arguments, str(out)])
        assert refused.exit_code == 1
        assert f"{out}: holds a store already: name another directory, or add --replace" in refused.output
    assert contents(other) == before
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/a.txt").write_text("x")
    assert CliRunner().invoke(main, [*arguments, str(tmp_path / "notes"), "--replace"]).exit_code == 1
    assert CliRunner().invoke(main, [*arguments, str(other), "--replace"]).exit_code == 0
    assert Store.open(other).rows == 50


def write_corpus(directory: Path, first: int, count: int) -> Path:
    directory.mkdir()
    frame = rows(first, count).with_columns(text=pl.lit("x"), split=pl.lit("train")).sort("key")
    frame.select("key", "id", "text", "role", "source", "split").write_parquet(directory / "part-00000.parquet")
    return directory


def test_compacting_drops_most_of_a_store_only_where_that_is_told(tmp_path: Path) -> None:
    store = published(tmp_path, 0, (30, 30))
    before = contents(store.path)
    corpus = write_corpus(tmp_path / "corpus", 0, 10)
    arguments = ["store", "compact", str(store.path), "--corpus", str(corpus)]
    refused = CliRunner().invoke(main, arguments)
    assert refused.exit_code == 1
    assert "only 10 of its 60 rows have their text in" in refused.output
    assert contents(store.path) == before
    assert CliRunner().invoke(main, [*arguments, "--out", str(tmp_path / "small")]).exit_code == 0
    assert CliRunner().invoke(main, [*arguments, "--out", str(tmp_path / "small")]).exit_code == 1
    assert contents(store.path) == before
    assert CliRunner().invoke(main, [*arguments, "--drop-most"]).exit_code == 0
    assert Store.open(store.path).rows == Store.open(tmp_path / "small").rows == 10


def test_a_difference_is_told_by_the_exit_status(tmp_path: Path) -> None:
    """As diff(1): 0 the same, 1 not, 2 trouble."""
    store = published(tmp_path / "a", 0, (30,)).path
    cases = {
        0: [noisy(tmp_path / "same", 0, 30, 0.005).path],
        1: [
            published(tmp_path / "fewer", 0, (20,)).path,
            noisy(tmp_path / "differing", 0, 30, 0.5).path,
            published(tmp_path / "teacher", 0, (30,), fingerprint="cd" * 32).path,
        ],
        2: [tmp_path / "nothing"],
    }
    for status, others in cases.items():
        for other in others:
            assert CliRunner().invoke(main, ["store", "diff", str(store), str(other)]).exit_code == status, other


def test_merging_keeps_the_licence_of_each_shard_and_states_that_of_both_for_a_shard_of_both(tmp_path: Path) -> None:
    first = published(tmp_path / "a", 0, (30, 20), license="CC-BY-NC-4.0")
    second = published(tmp_path / "b", 30, (20, 10), license="MIT")
    operations.merge(first, second, tmp_path / "c")
    merged = Store.open(tmp_path / "c")
    merged.verify()
    assert {info.rows: info.license for info in merged.shards} == {
        30: "CC-BY-NC-4.0", 20: "CC-BY-NC-4.0 AND MIT", 10: "MIT"
    }  # fmt: skip
    assert json.loads((tmp_path / "c/store.json").read_text())["version"] == 2
    shown = CliRunner().invoke(main, ["store", "info", str(tmp_path / "c")]).output
    assert re.search(r"^licenses:\n  CC-BY-NC-4.0 +rows 30, shards 1\n", shown, re.MULTILINE)
    assert "| CC-BY-NC-4.0 AND MIT | 20 | 1 |" in (tmp_path / "c/README.md").read_text()
    formats.convert(merged, tmp_path / "hf", "hf")
    assert "Licence of the vectors: CC-BY-NC-4.0 AND MIT." in (tmp_path / "hf/README.md").read_text()
    operations.merge(merged, published(tmp_path / "d", 100, (5,)), tmp_path / "e")
    assert Store.open(tmp_path / "e").meta.license == "CC-BY-NC-4.0 AND LicenseRef-not-stated AND MIT"


def test_a_store_under_one_licence_is_written_as_it_was_before_shards_had_their_own(tmp_path: Path) -> None:
    store = published(tmp_path / "a", 0, (30, 20), license="MIT")
    document = json.loads((store.path / "store.json").read_text())
    assert document["version"] == 1
    assert not any("license" in entry for entry in document["shards"])
    assert {info.license for info in store.shards} == {"MIT"}
    assert {info.license for info in published(tmp_path / "b", 0, (5,)).shards} == {"LicenseRef-not-stated"}


@pytest.mark.parametrize(
    ("licenses", "whole"),
    [
        (["MIT", "MIT"], "MIT"),
        ([None, None], None),
        (["MIT OR Apache-2.0"], "MIT OR Apache-2.0"),
        (["MIT OR Apache-2.0", "CC0-1.0"], "(MIT OR Apache-2.0) AND CC0-1.0"),
        (["(MIT OR Apache-2.0) AND CC0-1.0", "CC0-1.0 AND MIT"], "(MIT OR Apache-2.0) AND CC0-1.0 AND MIT"),
    ],
)
def test_the_licence_of_a_whole_is_all_of_those_of_its_parts(licenses: list[str | None], whole: str | None) -> None:
    assert joint_license(licenses) == whole


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"<!DOCTYPE HTML>\n<html><title>Directory listing for /embeddings/</title>", "a page of HTML"),
        (b"\n <html><body>404", "a page of HTML"),
        (b"<?xml version='1.0'?><ListBucketResult>", "a bucket's listing"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00", "a pointer of Git LFS"),
        (b"md5: 0123456789abcdef0123456789abcdef\nouts:\n", "a file of DVC"),
        (b"PK\x03\x04", "an archive"),
        (b"", "an empty file"),
    ],
)
def test_what_lies_in_the_place_of_a_store_is_named(tmp_path: Path, content: bytes, named: str) -> None:
    """The file itself, as `dvc import-url` of a listing leaves it, or `store.json` in a directory."""
    (tmp_path / "listing").write_bytes(content)
    (tmp_path / "directory").mkdir()
    (tmp_path / "directory/store.json").write_bytes(content)
    for place in ("listing", "directory"):
        told = CliRunner().invoke(main, ["store", "info", str(tmp_path / place)])
        assert told.exit_code == 1
        assert f"is {named}" in told.output and "and no embedding store" in told.output
        assert "dvc checkout" not in told.output


def test_a_store_that_is_not_pulled_or_lies_elsewhere_is_pointed_to(tmp_path: Path) -> None:
    (tmp_path / "theirs.dvc").write_text("outs:\n")
    publish(tmp_path, (30,))
    for place, said in (
        ("theirs", "`dvc pull .*theirs.dvc`"),
        (".", "there is one in .*store"),
        ("pool", "there is one in|shard cache"),
    ):
        with pytest.raises(LeafError, match=said):
            Store.open(next((tmp_path / "pool").iterdir()) if place == "pool" else tmp_path / place)
