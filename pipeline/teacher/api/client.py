"""A request to an OpenAI-compatible embeddings endpoint, through the official client, until its answer is right.

The client's own retries are off: there is one mechanism, here. It keeps to the limits of `pipeline.pace`, honours
`Retry-After`, and believes an answer only once it was checked. The key is in no message: see `Client.clean`.
"""

import base64
import json
import os
import random
import re
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any

import numpy as np

from pipeline.base.errors import LeafError
from pipeline.base.optional import import_optional
from pipeline.params.sections import ApiParams, TeacherParams
from pipeline.store.shard import MAX_DIM
from pipeline.teacher.api.rate_limit import RateLimiter

FIRST_WAIT, LONGEST_WAIT = 0.5, 60.0  # seconds, of waits that nobody asked for
LONGEST_ASKED = 600.0  # a server that asks for more is asked again by the next run
BYTES_PER_NUMBER, SLACK_BYTES = 32, 2**20  # an answer larger than that is none
MOST_REASON = 300  # characters of what a server says
MOST_TOKENS = 2**31 - 1  # of a request: the journal and the store hold tokens as int32
TOO_MUCH_OR_BAD = (400, 413, 422)
TRANSIENT = (408, 409, 425, 429)
NO_KEY = "none"
SHORTEST_SECRET = 6  # characters; "x", for a server that wants no key, is none
KEPT = "is kept: run again, and only the rest is asked for"


class Refusal(Exception):  # noqa: N818
    """The server will not answer these texts, and gives a reason."""


class Again(Exception):  # noqa: N818
    """No answer, or a wrong one; `wait` seconds are what the server asked for."""

    def __init__(self, reason: str, wait: float | None = None) -> None:
        super().__init__(reason)
        self.wait = wait


@dataclass(frozen=True)
class Answer:
    """Vectors [texts, dim] float32, and the tokens that were counted for all of them."""

    vectors: np.ndarray
    tokens: int


class Client:
    """One endpoint and model. `embed` may be called from many threads."""

    def __init__(self, teacher: TeacherParams) -> None:
        """Send nothing yet. Where `teacher.api.dimensions` is left out, the first answer decides `dim`.

        Raises:
            LeafError: the client's package is missing, the key has odd characters, or `teacher.api.base_url` is no
                possible address.
        """
        assert teacher.api is not None
        self.teacher, self.api, self.dim = teacher, teacher.api, teacher.api.dimensions
        self.stop = threading.Event()
        self.limiter = RateLimiter(self.api, self.stop)
        self.encoding = "float" if self.api.encoding == "float" else "base64"
        self._key = _key(self.api)
        self._openai = import_optional("openai", "api", "teacher.api:")
        try:
            self._client = self._openai.OpenAI(
                base_url=self.api.base_url, api_key=self._key or NO_KEY, max_retries=0, timeout=self.api.timeout
            )
        except Exception as error:  # of the library below the client, which has a name of its own for it
            raise LeafError(f"teacher.api.base_url: no possible address: {self.clean(error)}") from None

    def embed(self, texts: Sequence[str]) -> Answer:
        """Vectors of texts that fit into one request, of length one where `teacher.normalize` says so.

        Raises:
            Refusal: the server refuses this request for what is in it.
            LeafError: it refuses all of them, gives no right answer however often it is asked, or the spending limit
                is reached. Holds no key.
            Stopped: another thread has ended the run.
        """
        size = sum(len(text.encode()) for text in texts)
        for attempt in range(self.api.retries + 1):
            if attempt:
                self.limiter.retries += 1
            try:
                return self._once(texts, size)
            except Again as error:
                again = error
                self._check_wait(again)
            if attempt < self.api.retries:
                # Full jitter over the upper half: threads that failed together do not come back together.
                backoff = min(LONGEST_WAIT, FIRST_WAIT * 2**attempt) * (0.5 + random.random() / 2)
                self.limiter.sleep(max(backoff, again.wait or 0.0))
        raise LeafError(
            f"teacher.api: no right answer after {self.api.retries + 1} attempts, at last: {again}; every vector "
            f"that was paid {KEPT}"
        )

    def probe(self, texts: Sequence[str]) -> np.ndarray:
        """`embed` for texts that no server refuses: a refusal means that the parameters are wrong."""
        try:
            return self.embed(texts).vectors
        except Refusal as refusal:
            if self.api.encoding != "auto" or self.encoding == "float":
                raise LeafError(f"teacher.api: the server refuses even the probe texts: {refusal}") from None
        self.encoding = "float"
        return self.probe(texts)

    def clean(self, text: object) -> str:
        """What a server or library says, on one line, cut, and without anything that is or looks like a key."""
        line = " ".join("".join(one if one.isprintable() else " " for one in str(text)).split())
        for secret in filter(None, {self._key, self._key and base64.b64encode(self._key.encode()).decode()}):
            line = line.replace(secret, "***") if len(secret) >= SHORTEST_SECRET else line
        line = re.sub(r"\b(sk|key|pk)-[\w*.-]+", "***", line)
        return re.sub(r"(?i)\bbearer\s+\S+", "Bearer ***", line)[:MOST_REASON]

    def _once(self, texts: Sequence[str], size: int) -> Answer:
        sent = self.limiter.reserve(size)
        try:
            found = self._request(texts)
        except BaseException:
            self.limiter.failed(sent)
            raise
        tokens = self.limiter.settle(sent, size, _usage(found))  # wrong or not, it was charged
        return Answer(self._checked(self._vectors(found, len(texts))), tokens)

    def _request(self, texts: Sequence[str]) -> Any:
        """The answer's document. Its body is read here, so that a slow drip meets the deadline too."""
        deadline = time.monotonic() + self.api.timeout
        options = {} if self.api.dimensions is None else {"dimensions": self.api.dimensions}
        create = self._client.embeddings.with_streaming_response.create
        try:
            with create(
                model=self.teacher.model, input=list(texts), encoding_format=self.encoding, **options
            ) as response:
                body = self._read(response, deadline, len(texts))
        except self._openai.APIStatusError as error:
            raise self._judged(error) from None
        except Again:
            raise
        except Exception as error:  # the client's own and, while the body is read, those of the library below it
            raise Again(self.clean(f"{type(error).__name__}: {error}")) from None
        try:
            found = json.loads(body)
        except (ValueError, RecursionError):
            raise Again("an answer that is not JSON") from None
        if not isinstance(found, dict):
            raise Again("an answer that is not a JSON object")
        return found

    def _read(self, response: Any, deadline: float, texts: int) -> bytes:
        most = texts * (self.dim or MAX_DIM) * BYTES_PER_NUMBER + SLACK_BYTES
        body = bytearray()
        for part in response.iter_bytes():
            body += part
            if time.monotonic() > deadline:
                raise Again(f"an answer that took longer than teacher.api.timeout ({self.api.timeout:g} s)")
            if len(body) > most:
                raise Again(f"an answer of more than {most:,} bytes to {texts} texts")
        return bytes(body)

    def _judged(self, error: Any) -> Exception:
        """What a status means: ask again, refused for what is in it, or wrong for good."""
        status, reason = int(error.status_code), self.clean(_reason(error))
        if status in (401, 403):
            known = "is not set" if self._key is None else "holds a key that the server does not take"
            return LeafError(
                f"teacher.api: the server answers {status}: the environment variable {self.api.key_env} {known}, or "
                f"the key may not use `{self.teacher.model}`"
            )
        if status == 429 and error.code == "insufficient_quota":
            return LeafError(
                f"teacher.api: the account has no money left ({reason}); every vector that was paid {KEPT}"
            )
        if status in TRANSIENT or status >= 500:
            return Again(f"status {status}: {reason}", _retry_after(error.response.headers))
        if status in TOO_MUCH_OR_BAD:
            return Refusal(f"status {status}: {reason}")
        return LeafError(
            f"teacher.api: the server answers {status} ({reason}); look at teacher.api.base_url "
            f"({self.api.base_url}) and teacher.model (`{self.teacher.model}`)"
        )

    def _check_wait(self, again: Again) -> None:
        if again.wait is None:
            return
        if again.wait > LONGEST_ASKED:
            raise LeafError(
                f"teacher.api: the server asks to wait {again.wait:.0f} s ({again}); every vector that was paid {KEPT}"
            )
        self.limiter.hold(again.wait)

    def _vectors(self, found: dict[str, Any], texts: int) -> np.ndarray:
        """Vectors [texts, dim] in the order of the texts, whatever the order of the answer."""
        data = found.get("data")
        if not isinstance(data, list) or len(data) != texts:
            raise Again(f"an answer with {len(data) if isinstance(data, list) else 'no'} vectors to {texts} texts")
        try:
            at = [entry["index"] for entry in data]
            rows = [_decoded(entry["embedding"]) for entry in data]
        except (KeyError, TypeError, ValueError, OverflowError):
            raise Again("an answer with something else than indices and vectors") from None
        if any(type(index) is not int for index in at) or sorted(at) != list(range(texts)):
            raise Again("an answer whose indices are not those of the texts")
        dims = {len(row) for row in rows}
        wanted = self.dim or len(rows[0])
        if dims != {wanted} or not 1 <= wanted <= MAX_DIM:
            raise Again(f"an answer of dimension {', '.join(map(str, sorted(dims)[:3]))} instead of {wanted}")
        self.dim = wanted
        vectors = np.empty((texts, wanted), np.float32)
        vectors[at] = rows
        return vectors

    def _checked(self, vectors: np.ndarray) -> np.ndarray:
        if not np.isfinite(vectors).all():
            raise Again("an answer with NaN or infinity in a vector")
        norms = np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
        if not norms.all():
            raise Again("an answer with a vector of zeros")
        return (vectors / norms).astype(np.float32) if self.teacher.normalize else vectors


def _key(api: ApiParams) -> str | None:
    key = os.environ.get(api.key_env, "").strip()
    if not key.isascii() or not key.isprintable() or " " in key:
        raise LeafError(
            f"teacher.api.key_env: the environment variable {api.key_env} holds no key: it has odd characters"
        )
    return key or None


def _decoded(embedding: object) -> np.ndarray:
    if isinstance(embedding, str):
        return np.frombuffer(base64.b64decode(embedding, validate=True), "<f4")
    with np.errstate(over="ignore"):  # what float32 cannot hold is infinite, and refused as that
        row = np.asarray(embedding, np.float32)
    if row.ndim != 1:
        raise ValueError("not a list of numbers")
    return row


def _usage(found: dict[str, Any]) -> int | None:
    usage = found.get("usage")
    tokens = usage.get("prompt_tokens") if isinstance(usage, dict) else None
    return tokens if type(tokens) is int and 0 <= tokens <= MOST_TOKENS else None


def _reason(error: Any) -> str:
    body = error.body
    inside = body.get("error", body) if isinstance(body, dict) else body
    message = inside.get("message") if isinstance(inside, dict) else inside
    return str(message or error.message)


def _retry_after(headers: Any) -> float | None:
    """Seconds, from `retry-after-ms` or from `Retry-After` as a number or as a date."""
    try:
        if (milliseconds := headers.get("retry-after-ms")) is not None:
            return max(0.0, float(milliseconds) / 1000)
        value = headers.get("retry-after")
        if value is None:
            return None
        if re.fullmatch(r"\s*\d+(\.\d+)?\s*", value):
            return float(value)
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (TypeError, ValueError, OverflowError):
        return None
