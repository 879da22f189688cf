"""What `leaf plan` says is what then happens."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from click.testing import CliRunner, Result

from pipeline.base.rate import ROUND, SettledRate
from pipeline.fit.estimate import evenly
from pipeline.store.store import Store
from stages.leaf import main as leaf
from tests.conftest import corpus_frame
from tests.embeddings_server import KEY, running

Write = Callable[..., Path]
WITHIN = 0.02


def plan(params: Path, corpus: Path, *options: str) -> Result:
    result = CliRunner().invoke(leaf, ["plan", "--params", str(params), "--corpus", str(corpus), *options])
    assert result.exit_code == 0, result.output
    return result


def planned(params: Path, corpus: Path, *options: str) -> Any:
    return json.loads(plan(params, corpus, "--json", *options).stdout)


def bytes_below(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """3,000 texts in two parts."""
    directory = tmp_path / "corpus"
    directory.mkdir()
    for number, rows in enumerate(corpus_frame(3000).iter_slices(2000)):
        rows.write_parquet(directory / f"part-{number:05d}.parquet")
    return directory


def test_texts_tokens_bytes_and_steps_are_those_of_the_run(
    corpus: Path, write_params: Write, stage: Callable[..., Any], tmp_path: Path
) -> None:
    sections: dict[str, Any] = {
        "encode": {"shard_rows": 1024, "pool": str(tmp_path / "pool")},
        "fit": {"batch_size": 32, "epochs_per_cycle": 1},
    }
    params = write_params(**sections)
    before = planned(params, corpus, "--seconds", "0.2")
    assert before["encode"]["hours"] > 0 and before["fit"]["hours"] > 0
    encoded = stage("encode", "--corpus", "corpus", "--out", "store", "--metrics", "encode.json")
    assert encoded.returncode == 0, encoded.stderr
    metrics = json.loads((tmp_path / "encode.json").read_text())
    assert before["encode"]["to_encode"] == metrics["rows_encoded"] == before["encode"]["texts"]
    assert before["encode"]["tokens"] == metrics["tokens"]
    assert before["encode"]["shards"] == len(Store.open(tmp_path / "store").shards)
    assert before["encode"]["store_bytes"] == pytest.approx(bytes_below(tmp_path / "store"), rel=WITHIN)
    fitted = stage("fit", "--corpus", "corpus", "--embeddings", "store", "--out", "student", "--metrics", "fit.json")
    assert fitted.returncode == 0, fitted.stderr
    metrics = json.loads((tmp_path / "fit.json").read_text())
    for name in ("steps", "presentations", "parameters"):
        assert before["fit"][name] == metrics[name], name
    assert before["fit"]["token_cache_bytes"] == pytest.approx(bytes_below(tmp_path / ".cache/fit/tokens"), rel=WITHIN)

    after = planned(params, corpus, "--seconds", "0")
    assert after["encode"] | {"hours": None} == after["encode"]
    assert (after["encode"]["held"], after["encode"]["to_encode"], after["encode"]["tokens"]) == (3000, 0, 0)
    sections["encode"] |= {"pool": str(tmp_path / "other"), "reuse": [str(tmp_path / "store")]}
    elsewhere = planned(write_params(**sections), corpus, "--seconds", "0")
    assert (elsewhere["encode"]["held"], elsewhere["encode"]["reusable"]) == (0, 3000)
    assert not (tmp_path / "other").exists()


def test_replicas_need_fewer_steps_for_the_same_texts(corpus: Path, write_params: Write) -> None:
    one, four = (
        planned(write_params(fit={"replicas": count, "batch_size": 32}), corpus, "--seconds", "0")["fit"]
        for count in (1, 4)
    )
    assert four["steps"] == -(-one["steps"] // 4)
    assert four["presentations"] == pytest.approx(one["presentations"], rel=0.05)


def test_requests_and_money_of_an_api(
    tiny_corpus: Path, write_params: Write, stage: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openai", reason="needs the official client: pip install -e '.[api]'")
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with running(key=KEY) as server:
        api = {"base_url": server.url, "items_per_request": 16}
        params = write_params(teacher={"model": "a-model", "api": api}, encode={"shard_rows": 64})
        asked = ("--ask", "200", "--seconds", "0")
        said = plan(params, tiny_corpus, *asked, "--price", "1000000").output
        before = planned(params, tiny_corpus, *asked)
        encoded = stage("encode", "--corpus", "corpus", "--out", "store", "--metrics", "encode.json")
        assert encoded.returncode == 0, encoded.stderr
        metrics = json.loads((tmp_path / "encode.json").read_text())
        probe = 1
        assert before["encode"]["requests"] == metrics["api"]["requests"] - probe
        tokens = int(pl.read_parquet(Store.open(tmp_path / "store").path / "rows" / "*.parquet")["tokens"].sum())
        assert before["encode"]["tokens"] == pytest.approx(tokens, rel=WITHIN)
        assert f"{before['encode']['requests']:,} requests, {before['encode']['tokens']:,}.00 at 1e+06" in said
    assert before["encode"]["hours"] is None


def test_a_rate_is_that_of_the_work_behind_its_warm_up() -> None:
    with SettledRate("work", "text", 100.0) as rate:
        taken = [8.0] * ROUND + [2.0] * ROUND + [1.0] * ROUND + [1.0] * 100  # the third round is faster than the second
        assert [rate.add(100, seconds) for seconds in taken].index(True) == len(taken) - 1
    assert rate.value == 100


def test_a_warm_up_is_no_longer_than_the_measurement_and_what_there_is_counts_where_it_is_short() -> None:
    with SettledRate("work", "text", 30.0) as rate:
        assert not any(rate.add(10, seconds) for seconds in (40.0, 20.0, 5.0))
        assert rate.value == 20 / 25  # the first piece alone took longer than the measurement shall
    with SettledRate("work", "text", 30.0) as rate:
        assert rate.value is None
        rate.add(10, 2.0)
        assert rate.value == 5


def test_the_first_steps_that_are_measured_are_of_all_lengths() -> None:
    for count in (1, 5, 625):
        assert sorted(evenly(count)) == list(range(count))
    first = evenly(640)[:8]
    assert len({number * 4 // 640 for number in first}) == 4
    assert abs(sum(first) / 8 - 320) < 100


def test_a_measurement_of_encoding_ends_within_a_shard(
    corpus: Path, write_params: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rate is that of batches: of shards the first would come when the second is done."""
    counted: list[int] = []
    add = SettledRate.add

    def adding(rate: SettledRate, amount: int, took: float) -> bool:
        counted.append(amount)
        return add(rate, amount, 1.0)

    monkeypatch.setattr(SettledRate, "add", adding)
    result = plan(write_params(encode={"shard_rows": 3000, "token_budget": 512}), corpus, "--seconds", "20")
    assert "encode: measured" in result.stderr and "fit: measured" in result.stderr
    tokens = planned(write_params(), corpus, "--seconds", "0")["encode"]["tokens"]
    assert sum(counted[:28]) < tokens  # 8 batches of warm-up, 8 that tell that it is over, and 12 more
