"""Requests to an embeddings API are repeated until the answer is valid; a lasting failure is one sentence."""

import threading
from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest

from pipeline.base.errors import LeafError
from pipeline.params import EncodeParams, Permits
from pipeline.params.parsing import parse
from pipeline.params.sections import ApiParams, RoleFields, TeacherParams
from pipeline.teacher import open_teacher
from pipeline.teacher.api import client as api
from pipeline.teacher.api.client import Client, Refusal, Retry
from pipeline.teacher.api.division import Embedded, Refused, embed_all
from pipeline.teacher.api.identity import identity
from pipeline.teacher.api.probe import PROBE_TEXTS
from pipeline.teacher.api.rate_limit import RateLimiter, Stopped
from tests.embeddings_server import DIM, KEY, Server, running, tokens_of, vector

TEXTS = ["open the file", "close it", "a list of numbers"]

pytest.importorskip("openai", reason="needs the official client: pip install -e '.[api]'")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "FIRST_WAIT", 0.01)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


@pytest.fixture
def server() -> Iterator[Server]:
    with running(key=KEY) as server:
        yield server


def client(server: Server, normalize: bool = True, **settings: Any) -> Client:
    options = {"timeout": 5.0, "retries": 2} | settings
    return Client(TeacherParams("a-model", normalize=normalize, api=ApiParams(server.url, **options)))


def expected(texts: list[str]) -> np.ndarray:
    vectors = np.stack([vector(text) for text in texts])
    scaled: np.ndarray = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return scaled


@pytest.mark.parametrize("encoding", ["auto", "base64", "float"])
def test_vectors_come_in_the_order_of_the_texts_in_either_encoding(server: Server, encoding: Any) -> None:
    answer = client(server, encoding=encoding).embed(TEXTS, "query")
    assert np.allclose(answer.vectors, expected(TEXTS), atol=1e-6)
    assert answer.tokens == sum(map(tokens_of, TEXTS))
    assert server.requests[0]["encoding_format"] == ("float" if encoding == "float" else "base64")
    assert server.requests[0]["model"] == "a-model"


def test_a_server_that_answers_floats_to_base64_is_understood(server: Server) -> None:
    server.float_only = True
    assert np.allclose(client(server).embed(TEXTS, "query").vectors, expected(TEXTS), atol=1e-6)


def test_a_number_too_large_for_any_float_is_a_wrong_answer(server: Server) -> None:
    server.plan = ["digits"]
    connection = client(server, encoding="float")
    assert np.allclose(vectors_of(list(embed_all(connection, TEXTS, "query"))), expected(TEXTS), atol=1e-6)
    assert connection.limiter.retries == 1


def test_a_count_of_tokens_that_cannot_be_stored_is_none(server: Server) -> None:
    connection, estimating = client(server), client(server)
    server.no_usage = True
    estimate = estimating.embed(TEXTS, "query").tokens
    server.no_usage, server.usage = False, 10**12
    assert connection.embed(TEXTS, "query").tokens == connection.limiter.tokens == estimate


def test_an_address_that_the_client_does_not_take_is_named(server: Server) -> None:
    with pytest.raises(LeafError, match=r"teacher\.api\.base_url: no possible address: Invalid"):
        Client(TeacherParams("a-model", api=ApiParams("http://1.2.3.999/v1")))


def test_a_server_that_refuses_base64_is_asked_for_floats(server: Server) -> None:
    server.no_base64 = True
    assert np.allclose(client(server).probe(), expected([*PROBE_TEXTS]), atol=1e-6)
    with pytest.raises(LeafError, match="refuses even the probe texts: status 400: encoding_format base64"):
        client(server, encoding="base64").probe()


def test_dimensions_are_asked_of_the_server_and_lengths_kept_where_wanted(server: Server) -> None:
    answer = client(server, normalize=False, dimensions=8).embed(TEXTS, "query")
    assert server.requests[0]["dimensions"] == 8
    assert np.array_equal(answer.vectors, np.stack([vector(text, dim=8) for text in TEXTS]))


@pytest.mark.parametrize(
    "wrong",
    ["status:500", "status:503", "status:429", "reset", "cut", "count", "order", "nan", "zero", "dimension"],
)
def test_what_goes_wrong_once_leaves_no_trace_in_the_vectors(server: Server, wrong: str) -> None:
    connection = client(server)
    connection.embed(TEXTS[:1], "query")
    server.plan = [wrong]
    outcomes = list(embed_all(connection, TEXTS, "query"))
    assert all(isinstance(outcome, Embedded) for outcome in outcomes)
    assert np.allclose(vectors_of(outcomes), expected(TEXTS), atol=1e-6)
    assert connection.limiter.retries == (0 if wrong == "order" else 1)


def test_an_answer_that_drips_is_given_up_after_the_timeout(server: Server) -> None:
    server.plan = ["drip"]
    connection = client(server, timeout=0.5)  # its 150 bytes take 7 s, each well within any timeout of a read
    assert np.allclose(connection.embed(TEXTS, "query").vectors, expected(TEXTS), atol=1e-6)
    assert connection.limiter.retries == 1


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("status:500", "after 3 attempts, at last: status 500"),
        ("reset", "after 3 attempts, at last: .*"),
        ("count", "an answer with 0 vectors to 1 texts"),
        ("index", "the vectors of 3 texts the indices 3, 1, 2, so that nobody can tell"),
        ("quota", "no money left"),
        ("status:404", r"answers 404 .*base_url .* teacher\.model \(`a-model`\)"),
        ("status:429,4000", "asks to wait 4000 s"),
    ],
)
def test_what_stays_wrong_is_one_sentence_without_the_key(server: Server, wrong: str, message: str) -> None:
    server.plan = [wrong] * 6  # of these texts, then of a probe text
    with pytest.raises(LeafError, match=message) as raised:
        client(server).embed(TEXTS, "query")
    assert KEY not in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize(("key", "message"), [("sk-WRONG-KEY", "holds a key that"), (None, "MY_KEY is not set")])
def test_a_key_that_is_not_taken_stops_at_once(
    server: Server, monkeypatch: pytest.MonkeyPatch, key: str | None, message: str
) -> None:
    if key:
        monkeypatch.setenv("MY_KEY", key)
    with pytest.raises(
        LeafError, match=rf"answers 401: the environment variable {message if key is None else 'MY_KEY'}"
    ) as raised:
        client(server, key_env="MY_KEY").embed(TEXTS, "query")
    assert len(server.requests) == 1 and "WRONG" not in str(raised.value) and message in str(raised.value)


def test_a_redirect_is_not_followed_and_nothing_is_sent_there(server: Server) -> None:
    with running() as other:
        server.plan = [f"redirect:{other.url}/embeddings"]
        with pytest.raises(LeafError, match=rf"base_url: .* with a redirect to {other.url}/embeddings, and nothing"):
            client(server).embed(TEXTS, "query")
        assert not other.requests


@pytest.mark.parametrize(("kind", "most"), [("flood", 32 * 2**20), ("slow", 200)])
def test_an_error_without_end_is_read_no_further_than_a_message_needs(server: Server, kind: str, most: int) -> None:
    server.plan = [kind, *["status:500"] * 9]
    with pytest.raises(LeafError, match="no right answer after 1 attempts, at last: status 500: told") as raised:
        client(server, timeout=1.0, retries=0).embed(TEXTS, "query")
    assert 0 < server.error_bytes < most
    assert "xxxxx" not in str(raised.value)


def test_an_answer_that_is_packed_in_an_odd_way_is_not_unpacked(server: Server) -> None:
    server.plan = ["packed"]
    with pytest.raises(Retry, match="status 500: status 500"):
        client(server, retries=0)._repeat(TEXTS, "query", 0)


@pytest.mark.parametrize(
    ("name", "allowed"),
    [
        ("OPENAI_API_KEY", True),
        ("MY_API_KEY_2", True),
        ("mistral_apikey", True),
        ("AWS_SECRET_ACCESS_KEY", False),
        ("GITHUB_TOKEN", False),
        ("CLOUD_API_TOKEN", False),
        ("PATH", False),
    ],
)
def test_a_recipe_names_no_other_secret_than_an_api_key(name: str, allowed: bool) -> None:
    api = ApiParams("https://elsewhere.example/v1", key_env=name)
    teacher = TeacherParams("a-model", api=api)
    if not allowed:
        with pytest.raises(LeafError, match=rf"key_env: {name} is not the name of an API key .*`--key-env {name}`"):
            open_teacher(teacher, EncodeParams())
        with pytest.raises(LeafError, match="key_env"):
            open_teacher(teacher, EncodeParams(), permits=Permits(key_env=f"{name}_"))
    open_teacher(teacher, EncodeParams(), permits=Permits(key_env=name))


@pytest.mark.parametrize(
    ("url", "allowed"),
    [
        ("https://elsewhere.example/v1", True),
        ("http://localhost:8000/v1", True),
        ("http://127.3.2.1/v1", True),
        ("http://[::1]:8000/v1", True),
        ("http://elsewhere.example/v1", False),
        ("http://10.0.0.1/v1", False),
        ("http://localhost.example/v1", False),
    ],
)
def test_texts_and_keys_go_to_another_machine_encrypted(url: str, allowed: bool) -> None:
    teacher = TeacherParams("a-model", api=ApiParams(url))
    host = urlsplit(url).hostname
    if not allowed:
        with pytest.raises(LeafError, match=rf"base_url: http:// sends .* to {host}: .*`--plain-http {host}`"):
            open_teacher(teacher, EncodeParams(), permits=Permits(plain_http="another.example"))
    open_teacher(teacher, EncodeParams(), permits=Permits(plain_http=host))


def test_the_time_the_server_asks_for_is_waited(server: Server) -> None:
    server.plan = ["status:429,1"]
    connection = client(server)
    connection.embed(TEXTS, "query")
    assert server.times[1] - server.times[0] >= 1.0


def test_a_text_the_server_will_not_have_is_told_from_a_failure(server: Server) -> None:
    with pytest.raises(Refusal, match=r"status 400: content policy says no") as raised:
        client(server).embed(["REFUSED text", *TEXTS], "query")
    assert [request["input"] for request in server.requests[1:]] == [[PROBE_TEXTS[0]]]
    assert KEY not in str(raised.value)


@pytest.mark.parametrize("indices", ["none", "first", "same"])
def test_vectors_without_numbers_are_taken_in_order(server: Server, indices: str) -> None:
    server.indices = indices
    connection = client(server)
    assert np.allclose(connection.probe(), expected([*PROBE_TEXTS]), atol=1e-6)
    assert np.allclose(connection.embed(TEXTS, "query").vectors, expected(TEXTS), atol=1e-6)
    assert connection.limiter.retries == 0


def test_a_server_without_numbers_and_without_order_is_found_out_by_the_probe(server: Server) -> None:
    server.indices = "shuffled"
    with pytest.raises(LeafError, match="does not answer in the order of the texts"):
        client(server).probe()
    alone = client(server, items_per_request=1)
    assert np.allclose(alone.probe(), expected([*PROBE_TEXTS]), atol=1e-6)


def test_contradictory_numbers_are_refused_at_once(server: Server) -> None:
    server.indices = "contradictory"
    with pytest.raises(LeafError, match="the indices 0, 0, 1, so that nobody can tell"):
        client(server).embed(TEXTS, "query")
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("poison", "reason"),
    [
        ("status", "status 500: the model gave no vector"),
        ("error", "an error in place of vectors: the model gave no vector"),
        ("error:400", "status 400: the model gave no vector"),
        ("null", "null in place of a vector"),
        ("nan", "NaN or infinity in a vector"),
        ("zero", "a vector of zeros"),
        ("width", "a vector of dimension 15 instead of 16"),
    ],
)
def test_one_text_that_the_server_cannot_embed_is_found_and_the_others_are_paid_once(
    server: Server, poison: str, reason: str
) -> None:
    server.poison = poison
    texts = [f"POISON {n}" if n in (3, 11) else f"text {n}" for n in range(14)]
    connection = client(server, dimensions=DIM)
    outcomes = list(embed_all(connection, texts, "document"))
    refused = {outcome.place: outcome.reason for outcome in outcomes if isinstance(outcome, Refused)}
    assert sorted(refused) == [3, 11] and all(reason in said for said in refused.values())
    others = [text for text in texts if "POISON" not in text]
    assert np.allclose(vectors_of(outcomes), expected(others), atol=1e-6)
    assert server.texts == dict.fromkeys(others, 1)


def test_a_server_out_of_order_is_not_taken_for_a_bad_text(server: Server) -> None:
    """It fails three times, then a probe text is answered, and so are the texts when they are asked for once more."""
    server.plan = ["status:500"] * 3
    outcomes = list(embed_all(client(server), TEXTS, "query"))
    assert [type(outcome) for outcome in outcomes] == [Embedded]
    assert [len(request["input"]) for request in server.requests] == [3, 3, 3, 1, 3]


@pytest.mark.parametrize(("status", "message"), [("429", "no right answer after 3"), ("401", "answers 401")])
def test_an_error_in_an_answer_means_what_its_code_says(server: Server, status: str, message: str) -> None:
    server.poison = f"error:{status}"
    with pytest.raises(LeafError, match=message):
        client(server).embed(["a POISON text"], "query")


@pytest.mark.parametrize(
    ("limit", "learnt"),
    [
        ({"most_items": 5}, {"items_per_request": 5}),
        ({"most_tokens": 60}, {"items_per_request": 20, "tokens_per_request": 80}),
    ],
)
def test_the_limit_of_a_server_is_learnt_once(server: Server, limit: dict[str, int], learnt: dict[str, int]) -> None:
    """Words have 4 letters: 5 texts are 25 tokens of the server's, 40 of ours."""
    vars(server).update(limit)
    texts = [f"word {'word ' * 3}{n:04}" for n in range(200)]
    connection = client(server, items_per_request=40, concurrency=1)
    outcomes = list(embed_all(connection, texts, "query"))
    assert np.allclose(vectors_of(outcomes), expected(texts), atol=1e-6)
    assert server.refused_requests <= 3
    assert set(connection.limits.learnt()) <= set(learnt)


def test_a_refusal_that_no_limit_explains_teaches_nothing(server: Server) -> None:
    connection = client(server, items_per_request=8)
    texts = [f"text number {n}" for n in range(24)]
    list(embed_all(connection, texts, "query"))
    server.plan = ["status:400"]
    list(embed_all(connection, texts, "query"))
    assert connection.limits.learnt() == {}


def test_fields_are_sent_with_the_texts_of_their_role(server: Server) -> None:
    connection = client(server, extra=RoleFields({"input_type": "query"}, {"input_type": "passage"}))
    connection.embed(TEXTS, "query")
    connection.embed(TEXTS, "document")
    assert [request["input_type"] for request in server.requests] == ["query", "passage"]


def test_a_fingerprint_covers_fields_by_role_and_is_as_before_without_any() -> None:
    plain = TeacherParams("m", api=ApiParams("http://host/v1"))
    typed = TeacherParams("m", api=ApiParams("http://host/v1", extra=RoleFields({"task": "q"})))
    assert set(identity(plain)) == {"kind", "model", "dimensions", "max_characters", "prompts", "normalize"}
    assert identity(typed) == {**identity(plain), "extra": {"query": {"task": "q"}}}


def test_azure_is_given_its_version_and_the_key_in_its_own_header(server: Server) -> None:
    server.azure_version = "2024-10-21"
    url = server.url.removesuffix("/v1") + "/openai"
    for base_url in (url, f"{url}/deployments/a-model"):
        params = TeacherParams("a-model", api=ApiParams(base_url, api_version="2024-10-21", retries=0))
        assert np.allclose(Client(params).embed(TEXTS, "query").vectors, expected(TEXTS), atol=1e-6)


def vectors_of(outcomes: Sequence[Embedded | Refused]) -> np.ndarray:
    """All vectors in the order of their texts."""
    rows: dict[int, np.ndarray] = {}
    for outcome in outcomes:
        if isinstance(outcome, Embedded):
            rows.update(zip(outcome.places, outcome.vectors, strict=True))
    return np.stack([rows[place] for place in sorted(rows)])


def test_tokens_of_wrong_answers_count_as_spent(server: Server) -> None:
    connection = client(server)
    server.plan = ["count"]
    connection.embed(TEXTS, "query")
    assert connection.limiter.tokens == 2 * sum(map(tokens_of, TEXTS))


def test_the_spending_limit_is_not_crossed(server: Server) -> None:
    connection = client(server, spending_limit=30)
    with pytest.raises(LeafError, match=r"teacher\.api\.spending_limit: .* beyond 30 tokens .*run again"):
        for _ in range(10):
            connection.embed(TEXTS, "query")
    assert 15 < connection.limiter.tokens <= 30


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def rate_limiter(**settings: Any) -> tuple[RateLimiter, Clock]:
    clock = Clock()
    return RateLimiter(ApiParams("http://host/v1", **settings), threading.Event(), clock), clock


def test_no_minute_holds_more_requests_than_allowed() -> None:
    limiter, clock = rate_limiter(requests_per_minute=2)
    limiter.reserve(10)
    clock.now += 20
    limiter.reserve(10)
    assert limiter.wait(1) == 40
    clock.now += 40
    limiter.reserve(10)
    assert limiter.wait(1) == 20


def test_no_minute_holds_more_tokens_than_allowed_and_counts_replace_estimates() -> None:
    limiter, clock = rate_limiter(tokens_per_minute=100, tokens_per_request=100)
    sent = limiter.reserve(240)  # taken for 80 tokens
    assert limiter.wait(60) == 60
    limiter.settle(sent, 240, 30)
    assert limiter.wait(60) <= 0
    clock.now += 15
    limiter.reserve(480)  # taken for 60, at the rate that the server has counted
    assert limiter.wait(40) == 45


def test_a_hold_keeps_every_thread_back_and_the_end_of_a_run_wakes_them() -> None:
    limiter, _ = rate_limiter()
    limiter.hold(5)
    assert limiter.wait(1) == 5
    limiter.stop.set()
    with pytest.raises(Stopped):
        limiter.reserve(1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sha256": "0" * 64}, "teacher.sha256: must be left out with teacher.api"),
        ({"revision": "main"}, "teacher.revision: must be left out"),
        ({"max_length": 128}, r"teacher.max_length: .*teacher\.api\.max_characters"),
        ({"api": {"base_url": "localhost:8000"}}, "teacher.api.base_url: must begin with http"),
        ({"api": {"base_url": "http://[::1:8000/v1"}}, "teacher.api.base_url: .*a port by number only"),
        ({"api": {"base_url": "http://localhost:80a0/v1"}}, "teacher.api.base_url: .*a port by number only"),
        ({"api": {"base_url": "http://me:hunter2/v1"}}, "teacher.api.base_url: .*a port by number only"),
        ({"api": {"base_url": "http://localhost:99999/v1"}}, "teacher.api.base_url: .*a port by number only"),
        ({"api": {"base_url": "http://me:hunter2@host/v1"}}, "teacher.api.base_url: must hold no user"),
        ({"api": {"base_url": "http://host/v1?key=hunter2"}}, "teacher.api.base_url: must hold no user"),
        ({"api": {"base_url": "http://host/v1", "key_env": "sk-hunter2"}}, "teacher.api.key_env: must be the name"),
        ({"api": {"base_url": "http://h/v1", "tokens_per_minute": 10}}, "teacher.api.tokens_per_minute: 10 is less"),
        ({"api": {"base_url": "http://h/v1", "concurrency": 0}}, "teacher.api.concurrency: 0"),
        (
            {"api": {"base_url": "http://h/v1", "extra": {"query": {"model": "x"}}}},
            r"teacher\.api\.extra\.query\.model: is sent by itself; set teacher\.model",
        ),
        (
            {"api": {"base_url": "http://h/v1", "extra": {"document": {"api_key": "hunter2"}}}},
            r"teacher\.api\.extra\.document\.api_key: .* not the place for secrets",
        ),
        ({"api": {"base_url": "http://h/v1", "extra": {"query": "x"}}}, r"teacher\.api\.extra\.query: must be a map"),
        ({"api": {"base_url": "http://h/v1", "speed": 1}}, "teacher.api.speed: unknown key"),
        ({"api": {}}, "teacher.api.base_url: missing"),
    ],
)
def test_impossible_parameters_are_named_and_secrets_in_them_are_not_repeated(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(LeafError, match=message) as raised:
        parse(TeacherParams, "teacher", {"model": "m", "api": {"base_url": "http://host/v1"}} | changes)
    assert "hunter2" not in str(raised.value)
