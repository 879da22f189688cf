"""With a failing API, an encode process loses no paid vector, pays for none twice, and reveals the key nowhere."""

import json
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from pipeline.base.keys import keys
from pipeline.store.store import Store
from pipeline.teacher.api.probe import PROBE_TEXTS
from tests.conftest import sentence
from tests.embeddings_server import KEY, Server, running, tokens_of, vector
from tests.faults.test_encode_faults import ENCODE, contents
from tests.forked import Start

pytest.importorskip("openai", reason="needs the official client: pip install -e '.[api]'")

Completed = subprocess.CompletedProcess[str]
Write = Callable[..., Path]
Stage = Callable[..., Completed]


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


@pytest.fixture
def server() -> Iterator[Server]:
    with running(key=KEY) as server:
        yield server


@pytest.fixture
def params(server: Server, write_params: Write, tiny_corpus: Path) -> Write:
    """Write parameters with the server as teacher; `api` keywords go to `teacher.api`."""

    def write(encode: dict[str, Any] | None = None, teacher: dict[str, Any] | None = None, **api: Any) -> Path:
        settings = {"base_url": server.url, "items_per_request": 16, "concurrency": 3, "timeout": 10.0, "retries": 3}
        return write_params(
            teacher={"model": "a-model", "api": settings | api} | (teacher or {}),
            encode={"pool": "pool", "shard_rows": 64} | (encode or {}),
        )

    return write


def encode(stage: Stage, out: str = "out/store") -> Completed:
    return stage("encode", "--corpus", "corpus", "--out", out, "--metrics", "metrics.json")


def metrics(folder: Path) -> Any:
    return json.loads((folder / "metrics.json").read_text())


def texts(folder: Path) -> pl.DataFrame:
    return pl.read_parquet(folder / "corpus")


def reworded(folder: Path, text: list[str]) -> pl.DataFrame:
    """The corpus with other texts in its rows, as the corpus stage would have written it."""
    frame = texts(folder).with_columns(text=pl.Series(text))
    frame = frame.with_columns(key=pl.Series(keys(frame["role"], text), dtype=pl.Binary)).sort("key")
    frame.write_parquet(folder / "corpus" / "part-00000.parquet")
    return frame


def check(folder: Path, out: str = "out/store", without: str = "REFUSED") -> None:
    """Every text has its own vector."""
    frame = texts(folder).filter(~pl.col("text").str.contains(without))
    expected = np.stack([vector(text) for text in frame["text"]])
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    stored = Store.open(folder / out).lookup(frame["key"].to_list())
    assert np.abs(stored - expected).max() < 1e-3


def test_a_run_through_every_failure_pays_once_and_a_second_run_asks_nothing(
    server: Server, params: Write, stage: Stage, tmp_path: Path
) -> None:
    params(teacher={"prompts": {"query": "", "document": ""}})
    wrongs = ["status:429,0", "reset", "count", "nan", "order", "cut", "status:500", "dimension"]
    server.plan = ["", "", *wrongs]
    done = encode(stage)
    assert done.returncode == 0, done.stderr
    assert server.plan == [] and set(server.texts.values()) == {1}
    check(tmp_path)
    figures = metrics(tmp_path)
    assert figures["rows_encoded"] == len(texts(tmp_path)) and figures["api"]["retries"] == len(wrongs) - 1
    assert figures["tokens"] >= sum(map(tokens_of, texts(tmp_path)["text"]))
    assert server.most_under_way <= 3
    store = Store.open(tmp_path / "out" / "store")
    rows = pl.concat([store.shard_rows_frame(i) for i in range(len(store.shards))])
    assert rows["tokens"].sum() == sum(map(tokens_of, texts(tmp_path)["text"]))
    assert [path.name for path in (tmp_path / "pool").rglob("answers*")] == []

    before, requests = contents(tmp_path / "out" / "store"), len(server.requests)
    assert encode(stage).returncode == 0
    assert len(server.requests) == requests and contents(tmp_path / "out" / "store") == before


def test_a_server_that_counts_absurdly_many_tokens_is_paid_once(
    server: Server, params: Write, stage: Stage, tmp_path: Path
) -> None:
    params()
    server.usage = 10**12
    done = encode(stage)
    assert done.returncode == 0, done.stderr
    assert set(server.texts.values()) == {1}
    check(tmp_path)
    assert 0 < metrics(tmp_path)["tokens"] < 2**31


def test_a_killed_run_continues_without_asking_for_an_answered_text_again(
    server: Server, params: Write, tmp_path: Path, start: Start
) -> None:
    params()
    server.delay = 0.05
    total, kills = len(texts(tmp_path)), 0
    for goal in (60, 150, 260):
        process = start(*ENCODE)
        deadline = time.monotonic() + 600
        while process.poll() is None and len(server.texts) < goal and time.monotonic() < deadline:
            time.sleep(0.005)
        if process.poll() is not None:
            break
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills += 1
    assert kills == 3
    server.delay = 0.0
    process = start(*ENCODE)
    assert process.wait(600) == 0, process.communicate()
    check(tmp_path)
    # A kill loses what was under way: three requests of 16 texts at most.
    again = sum(server.texts.values()) - total
    assert 0 <= again <= kills * 3 * 16
    assert [path.name for path in (tmp_path / "pool").rglob("answers*")] == []


def test_the_store_of_a_killed_run_is_that_of_one_never_killed(
    server: Server, params: Write, tmp_path: Path, start: Start
) -> None:
    one_by_one = {"items_per_request": 1, "concurrency": 2}  # then tokens do not depend on what shared a request
    params(encode={"pool": "pool-a"}, **one_by_one)
    assert start(*ENCODE).wait(600) == 0
    undisturbed = contents(tmp_path / "out" / "store")
    (tmp_path / "out").rename(tmp_path / "first")
    probe = next((tmp_path / "pool-a").glob("probe-*.json"))
    (tmp_path / "pool-b").mkdir()
    (tmp_path / "pool-b" / probe.name).write_bytes(probe.read_bytes())
    params(encode={"pool": "pool-b"}, **one_by_one)
    server.answered.clear()
    process = start(*ENCODE)
    while process.poll() is None and len(server.texts) < 100:
        time.sleep(0.005)
    process.kill()
    process.wait()
    assert start(*ENCODE).wait(600) == 0
    assert contents(tmp_path / "out" / "store") == undisturbed


def test_a_spending_limit_stops_the_run_and_the_next_one_continues(
    server: Server, params: Write, stage: Stage, tmp_path: Path
) -> None:
    params(spending_limit=1000)
    runs = []
    while (done := encode(stage)).returncode:
        runs.append(done.stderr)
        assert "teacher.api.spending_limit" in done.stderr and "Traceback" not in done.stderr
        assert not (tmp_path / "out").exists()
        assert len(runs) < 10
    assert len(runs) >= 2
    assert set(server.texts.values()) == {1}
    check(tmp_path)


def test_texts_the_server_refuses_end_the_run_by_name_or_are_left_out_and_listed(
    server: Server, params: Write, stage: Stage, tmp_path: Path
) -> None:
    text = [f"REFUSED {text}" if row in (7, 8, 200) else text for row, text in enumerate(texts(tmp_path)["text"])]
    frame = reworded(tmp_path, text)
    bad = np.flatnonzero(frame["text"].str.starts_with("REFUSED").to_numpy()).tolist()
    ids = [frame["id"][row] for row in bad]

    params()
    stopped = encode(stage)
    assert stopped.returncode == 1 and "Traceback" not in stopped.stderr
    assert f"`{ids[0]}` (status 400: content policy says no" in stopped.stderr
    assert not (tmp_path / "out").exists()

    params(refused="leave_out")
    done = encode(stage)
    assert done.returncode == 0, done.stderr
    assert "left out 3 texts" in done.stderr and ids[0] in done.stderr
    assert set(server.texts.values()) == {1}
    check(tmp_path)
    figures = metrics(tmp_path)
    assert [refusal["id"] for refusal in figures["refused"]] == [frame["id"][row] for row in bad]
    assert "content policy says no" in figures["refused"][0]["reason"] and figures["api"]["refused"] == 3
    assert figures["rows_encoded"] + figures["rows_reused"] == len(frame) - 3
    store = Store.open(tmp_path / "out" / "store")
    store.verify()
    assert set(store.meta.refused or {}) == {frame["key"][row].hex() for row in bad}

    requests, before = len(server.requests), contents(tmp_path / "out" / "store")
    assert encode(stage).returncode == 0  # the refused texts are known: no request is sent, not even for the probe
    assert len(server.requests) == requests and contents(tmp_path / "out" / "store") == before


def test_a_server_that_refuses_everything_leaves_no_text_out(
    server: Server, params: Write, stage: Stage, tmp_path: Path
) -> None:
    params(refused="leave_out", spending_limit=1000)
    assert encode(stage).returncode == 1
    params(refused="leave_out")
    server.plan = [""] * 3 + ["refuse-all"]
    done = encode(stage)
    assert done.returncode == 1 and "refuses even a probe text" in done.stderr
    assert list(tmp_path.glob("pool/*/refused.jsonl")) == []
    server.refuse_all = False
    assert encode(stage).returncode == 0
    assert set(server.texts.values()) == {1}


@pytest.mark.parametrize("poison", ["status", "nan"])
def test_a_text_that_the_server_cannot_embed_ends_the_run_by_name_or_is_left_out(
    poison: str, server: Server, params: Write, stage: Stage, tmp_path: Path
) -> None:
    server.poison = poison
    text = [f"POISON {text}" if row == 8 else text for row, text in enumerate(texts(tmp_path)["text"])]
    frame = reworded(tmp_path, text)
    bad = frame.filter(pl.col("text").str.starts_with("POISON"))
    reason = {"status": "status 500: the model gave no vector", "nan": "NaN or infinity in a vector"}[poison]

    params(retries=1)
    stopped = encode(stage)
    assert stopped.returncode == 1 and "Traceback" not in stopped.stderr
    assert f"`{bad['id'][0]}`" in stopped.stderr and reason in stopped.stderr

    params(retries=1, refused="leave_out")
    done = encode(stage)
    assert done.returncode == 0, done.stderr
    assert set(server.texts.values()) == {1} and len(server.texts) == len(frame) - 1
    check(tmp_path, without="POISON")
    store = Store.open(tmp_path / "out" / "store")
    assert set(store.meta.refused or {}) == {bad["key"][0].hex()}


def test_each_text_is_sent_with_the_fields_of_its_role_and_others_have_another_fingerprint(
    server: Server, params: Write, stage: Stage, tmp_path: Path
) -> None:
    rows = texts(tmp_path)
    server.kinds = {text: {"query": "query", "document": "passage"}[role] for role, text in rows["role", "text"].rows()}
    params(teacher={"prompts": {"query": "", "document": ""}})
    assert "server refuses" in encode(stage).stderr
    fields = {"query": {"input_type": "query"}, "document": {"input_type": "passage"}}
    params(extra=fields)
    done = encode(stage)
    assert done.returncode == 0, done.stderr
    assert set(server.texts.values()) == {1}
    check(tmp_path)
    store = Store.open(tmp_path / "out" / "store")
    assert store.meta.teacher["extra"] == fields
    first, requests = store.meta.fingerprint, len(server.requests)
    assert encode(stage).returncode == 0 and len(server.requests) == requests
    server.kinds = {}
    params(extra={**fields, "query": {"input_type": "question"}})
    assert encode(stage).returncode == 0
    assert Store.open(tmp_path / "out" / "store").meta.fingerprint != first


def test_the_most_texts_of_a_request_are_learnt_and_told(
    server: Server, params: Write, stage: Stage, tmp_path: Path
) -> None:
    server.most_items = 9
    params(concurrency=2)
    done = encode(stage)
    assert done.returncode == 0, done.stderr
    assert set(server.texts.values()) == {1}
    check(tmp_path)
    assert server.refused_requests <= 2  # one of each thread
    assert metrics(tmp_path)["api"]["items_per_request"] == 8
    assert "teacher.api.items_per_request: 8" in done.stderr


def test_another_model_behind_the_name_stops_the_run(
    server: Server, params: Write, stage: Stage, tmp_path: Path
) -> None:
    params(spending_limit=1000)
    assert encode(stage).returncode == 1
    server.drift = 0.3
    done = encode(stage)
    assert done.returncode == 1 and "the model behind the name `a-model` has changed" in done.stderr
    assert "Traceback" not in done.stderr
    server.drift, server.dim = 0.0, 12
    assert "it gives 12 dimensions" in encode(stage).stderr
    server.dim, server.drift = 16, 0.005  # another machine's last bits
    params()
    assert encode(stage).returncode == 0


def test_another_teams_store_is_reused_with_its_fingerprint_although_the_server_has_other_last_bits(
    server: Server, params: Write, stage: Stage, tmp_path: Path
) -> None:
    everything = texts(tmp_path)
    everything.head(150).write_parquet(tmp_path / "corpus" / "part-00000.parquet")
    params(encode={"pool": "their-pool"})
    assert encode(stage, "theirs").returncode == 0
    everything.write_parquet(tmp_path / "corpus" / "part-00000.parquet")
    server.answered.clear()
    server.drift = 0.002
    params(encode={"pool": "our-pool", "reuse": ["theirs"], "verify_rows": 4})
    done = encode(stage)
    assert done.returncode == 0, done.stderr
    assert Store.open(tmp_path / "out" / "store").meta.fingerprint == Store.open(tmp_path / "theirs").meta.fingerprint
    figures = metrics(tmp_path)
    assert (figures["rows_reused"], figures["rows_encoded"]) == (150, len(everything) - 150)
    # Requested: the remaining texts, the sample (four, and one of each shard without any), and the probe once.
    sampled = len(server.texts) - (len(everything) - 150)
    shards = len(Store.open(tmp_path / "theirs").shards)
    assert max(4, shards) <= sampled <= 4 + shards
    assert "theirs: encoded again" in done.stderr and "wrong vectors would have been noticed" in done.stderr
    assert server.answered[PROBE_TEXTS[0]] == 1
    # The probe is recorded beside our cache now: without the reused store the fingerprint stays.
    params(encode={"pool": "our-pool"})
    before = contents(tmp_path / "out" / "store")
    assert encode(stage).returncode == 0 and contents(tmp_path / "out" / "store") == before

    params(encode={"pool": "third-pool", "reuse": ["theirs"]})
    server.drift = 0.4
    assert "the model behind the name" in encode(stage, "third").stderr


def test_verify_asks_the_server_for_a_sample(server: Server, params: Write, stage: Stage, tmp_path: Path) -> None:
    params()
    assert encode(stage).returncode == 0
    verify = ("leaf", "store", "verify", "out/store", "--sample", "10", "--corpus", "corpus", "--params", "params.yaml")
    done = stage(*verify, "--json")
    assert done.returncode == 0, done.stderr
    assert 10 <= json.loads(done.stdout)["compared"] < 20  # and one of each shard
    server.drift = 0.3
    assert "has changed" in stage(*verify).stderr
    params(teacher={"prompts": {"query": "q: "}})
    requests = len(server.requests)
    assert "name the same model" in stage(*verify).stderr
    assert len(server.requests) == requests


def test_the_key_is_nowhere(server: Server, params: Write, stage: Stage, tmp_path: Path) -> None:
    """The server repeats the key in every error; neither files nor output may contain it."""
    said = ""
    reworded(tmp_path, ["REFUSED", *texts(tmp_path)["text"][1:]])
    for plan, settings in (
        (["status:500"] * 9, {"retries": 0}),
        (["status:404"], {}),
        (["status:403"], {}),
        ([], {"key_env": "OTHER_API_KEY"}),
        ([], {"refused": "stop"}),
        ([], {"refused": "leave_out"}),
    ):
        params(**settings)
        server.plan = plan
        done = stage("encode", "--corpus", "corpus", "--out", "store", OTHER_API_KEY=f"{KEY}x", OPENAI_LOG="debug")
        said += done.stdout + done.stderr
        server.plan = []
    assert done.returncode == 0, done.stderr
    files = b"".join(contents(tmp_path).values())
    assert "***" in said and "LEAKPROBE" not in said
    assert b"LEAKPROBE" not in files and KEY[3:].encode() not in files


def test_the_first_lines_say_what_is_sent_where_and_a_person_alone_can_allow_more(
    server: Server, params: Write, stage: Stage
) -> None:
    params(key_env="LAB_TOKEN")
    run = ("encode", "--corpus", "corpus", "--out", "out/store", "--metrics", "metrics.json")
    refused = stage(*run, LAB_TOKEN=KEY)
    assert refused.returncode == 1
    assert "add `--key-env LAB_TOKEN`" in refused.stderr
    assert not server.requests
    for options, variables in ((["--key-env", "LAB_TOKEN"], {}), ([], {"LEAF_KEY_ENV": "LAB_TOKEN"})):
        done = stage(*run, *options, LAB_TOKEN=KEY, **variables)
        assert done.returncode == 0, done.stderr
        said = f"teacher.api: texts that have no vector yet are sent to {server.url}, with the key in LAB_TOKEN"
        assert done.stderr.splitlines()[0] == said


def test_without_a_key_a_server_that_wants_none_is_used(
    server: Server, params: Write, stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    server.key = None
    server.no_usage = True
    params(max_characters=10, teacher={"prompts": {"query": "q: "}})
    done = encode(stage)
    assert done.returncode == 0, done.stderr
    assert all(len(text) <= 10 for text in server.texts)
    assert any(text.startswith("q: ") for text in server.texts)
    assert metrics(tmp_path)["tokens"] > 0


def test_a_termination_keeps_what_was_under_way(server: Server, params: Write, tmp_path: Path, start: Start) -> None:
    params()
    server.delay = 0.3
    process = start(*ENCODE)
    while len(server.texts) < 20 and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 128 + signal.SIGTERM and "Traceback" not in errors
    server.delay = 0.0
    assert start(*ENCODE).wait(600) == 0
    assert set(server.texts.values()) == {1}


def test_texts_left_out_do_not_stop_the_student(server: Server, params: Write, stage: Stage, tmp_path: Path) -> None:
    frame = texts(tmp_path)
    rows = [frame["split"].to_list().index(split) for split in ("train", "heldout")]
    refused = [f"REFUSED {sentence(row)}" if row in rows else text for row, text in enumerate(frame["text"])]
    frame = reworded(tmp_path, refused)
    params(refused="leave_out")
    assert encode(stage).returncode == 0
    places = ("--corpus", "corpus", "--embeddings", "out/store")
    fitted = stage("fit", *places, "--out", "student", "--metrics", "fit.json", "--curve", "curve.csv")
    assert fitted.returncode == 0, fitted.stderr
    figures = json.loads((tmp_path / "fit.json").read_text())
    assert figures["refused_rows"] == 2
    measured = stage("evaluate", *places, "--model", "student", "--out", "evaluate.json", "--cost", "cost.json")
    assert measured.returncode == 0, measured.stderr
    assert "cost: left out: the teacher is an API" in measured.stdout
    # A text that the store neither has nor lists as refused is still an error.
    pl.concat([frame, frame.head(1)]).write_parquet(tmp_path / "corpus" / "part-00000.parquet")
    reworded(tmp_path, [*frame["text"], "A text that is new."])
    lacking = stage("fit", *places, "--out", "student-2", "--metrics", "fit.json", "--curve", "curve.csv")
    assert lacking.returncode == 1 and "lacks the vectors of 1 of" in lacking.stderr
