"""Requests to an OpenAI-compatible embeddings endpoint, repeated until the answer is valid.

They go through the official `openai` client with its own retries switched off, so that retries happen in one place:
here. Requests keep to the limits of `rate_limit`, honour `Retry-After`, and every answer is checked before it is used.
The API key appears in no message: see `Client.clean`.
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

from pipeline.base import LeafError, import_optional
from pipeline.params import ApiParams, TeacherParams
from pipeline.store import MAX_DIM
from pipeline.teacher.api.rate_limit import RateLimiter

FIRST_WAIT, LONGEST_WAIT = 0.5, 60.0  # seconds of exponential backoff
LONGEST_RETRY_AFTER = 600.0  # seconds; a server that asks for a longer wait ends the run
BYTES_PER_NUMBER, SLACK_BYTES = 32, 2**20  # a larger answer is rejected
MAX_REASON = 300  # characters quoted from a server's message
MAX_TOKENS = 2**31 - 1  # of a request: the journal and the store hold tokens as int32
REFUSING = (400, 413, 422)  # statuses that mean: this request's content is not accepted
TRANSIENT = (408, 409, 425, 429)  # statuses that mean: try again
NO_KEY = "none"
SHORTEST_SECRET = 6  # characters; a shorter key ("x", for a server that wants none) is not secret
KEPT = "is kept: run again, and only the rest is asked for"


class Refusal(Exception):  # noqa: N818
    """The server refuses a request because of its content; the message is the server's reason."""


class Retry(Exception):  # noqa: N818
    """No answer or an invalid one, worth another attempt; `wait` is the number of seconds that the server asked for."""

    def __init__(self, reason: str, wait: float | None = None) -> None:
        super().__init__(reason)
        self.wait = wait


@dataclass(frozen=True)
class Answer:
    """Vectors [texts, dim] float32 of a request, and the tokens that the server counted for it."""

    vectors: np.ndarray
    tokens: int


class Client:
    """A connection to one model at one endpoint. Thread-safe."""

    def __init__(self, teacher: TeacherParams) -> None:
        """Prepare the connection; nothing is sent yet. Without `teacher.api.dimensions`, the first answer sets `dim`.

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
        except Exception as error:  # an exception type of the HTTP library below the client
            raise LeafError(f"teacher.api.base_url: no possible address: {self.clean(error)}") from None

    def embed(self, texts: Sequence[str]) -> Answer:
        """Vectors of texts that fit into one request, of length 1 with `teacher.normalize`.

        Raises:
            Refusal: the server refuses this request because of its content.
            LeafError: the server refuses every request, no attempt gave a valid answer, or the spending limit is
                reached. The message holds no key.
            Stopped: another thread has ended the run.
        """
        size = sum(len(text.encode()) for text in texts)
        for attempt in range(self.api.retries + 1):
            if attempt:
                self.limiter.retries += 1
            try:
                return self._attempt(texts, size)
            except Retry as error:
                last = error
                self._check_wait(last)
            if attempt < self.api.retries:
                # Random between half and whole, so that threads that failed together do not come back together.
                backoff = min(LONGEST_WAIT, FIRST_WAIT * 2**attempt) * (0.5 + random.random() / 2)
                self.limiter.sleep(max(backoff, last.wait or 0.0))
        raise LeafError(
            f"teacher.api: no right answer after {self.api.retries + 1} attempts, at last: {last}; every vector "
            f"that was paid {KEPT}"
        )

    def probe(self, texts: Sequence[str]) -> np.ndarray:
        """`embed` for the probe texts, which no server should refuse: a refusal means that a parameter is wrong.

        Where `teacher.api.encoding` is `auto` and base64 is refused, floats are asked for from here on.
        """
        try:
            return self.embed(texts).vectors
        except Refusal as refusal:
            if self.api.encoding != "auto" or self.encoding == "float":
                raise LeafError(f"teacher.api: the server refuses even the probe texts: {refusal}") from None
        self.encoding = "float"
        return self.probe(texts)

    def clean(self, text: object) -> str:
        """A message of the server or a library, on one line, cut, without anything that is or looks like a key."""
        line = " ".join("".join(letter if letter.isprintable() else " " for letter in str(text)).split())
        for secret in filter(None, {self._key, self._key and base64.b64encode(self._key.encode()).decode()}):
            line = line.replace(secret, "***") if len(secret) >= SHORTEST_SECRET else line
        line = re.sub(r"\b(sk|key|pk)-[\w*.-]+", "***", line)
        return re.sub(r"(?i)\bbearer\s+\S+", "Bearer ***", line)[:MAX_REASON]

    def _attempt(self, texts: Sequence[str], size: int) -> Answer:
        sent = self.limiter.reserve(size)
        try:
            document = self._request(texts)
        except BaseException:
            self.limiter.failed(sent)
            raise
        tokens = self.limiter.settle(sent, size, _counted_tokens(document))  # charged even if the answer is invalid
        return Answer(self._checked(self._vectors(document, len(texts))), tokens)

    def _request(self, texts: Sequence[str]) -> Any:
        """The answer as a JSON object. The body is read here so that the deadline covers a slow one, too."""
        deadline = time.monotonic() + self.api.timeout
        options = {} if self.api.dimensions is None else {"dimensions": self.api.dimensions}
        create = self._client.embeddings.with_streaming_response.create
        try:
            with create(
                model=self.teacher.model, input=list(texts), encoding_format=self.encoding, **options
            ) as response:
                body = self._read(response, deadline, len(texts))
        except self._openai.APIStatusError as error:
            raise self._exception_of(error) from None
        except Retry:
            raise
        except Exception as error:  # the client's and, while the body is read, those of the HTTP library below it
            raise Retry(self.clean(f"{type(error).__name__}: {error}")) from None
        try:
            document = json.loads(body)
        except (ValueError, RecursionError):
            raise Retry("an answer that is not JSON") from None
        if not isinstance(document, dict):
            raise Retry("an answer that is not a JSON object")
        return document

    def _read(self, response: Any, deadline: float, texts: int) -> bytes:
        limit = texts * (self.dim or MAX_DIM) * BYTES_PER_NUMBER + SLACK_BYTES
        body = bytearray()
        for part in response.iter_bytes():
            body += part
            if time.monotonic() > deadline:
                raise Retry(f"an answer that took longer than teacher.api.timeout ({self.api.timeout:g} s)")
            if len(body) > limit:
                raise Retry(f"an answer of more than {limit:,} bytes to {texts} texts")
        return bytes(body)

    def _exception_of(self, error: Any) -> Exception:
        """The exception that an HTTP status means: Retry, Refusal, or a LeafError that ends the run."""
        status, reason = int(error.status_code), self.clean(_reason(error))
        if status in (401, 403):
            problem = "is not set" if self._key is None else "holds a key that the server does not take"
            return LeafError(
                f"teacher.api: the server answers {status}: the environment variable {self.api.key_env} {problem}, or "
                f"the key may not use `{self.teacher.model}`"
            )
        if status == 429 and error.code == "insufficient_quota":
            return LeafError(
                f"teacher.api: the account has no money left ({reason}); every vector that was paid {KEPT}"
            )
        if status in TRANSIENT or status >= 500:
            return Retry(f"status {status}: {reason}", _retry_after(error.response.headers))
        if status in REFUSING:
            return Refusal(f"status {status}: {reason}")
        return LeafError(
            f"teacher.api: the server answers {status} ({reason}); look at teacher.api.base_url "
            f"({self.api.base_url}) and teacher.model (`{self.teacher.model}`)"
        )

    def _check_wait(self, retry: Retry) -> None:
        """Hold all threads back for as long as the server asks; LeafError if that is too long."""
        if retry.wait is None:
            return
        if retry.wait > LONGEST_RETRY_AFTER:
            raise LeafError(
                f"teacher.api: the server asks to wait {retry.wait:.0f} s ({retry}); every vector that was paid {KEPT}"
            )
        self.limiter.hold(retry.wait)

    def _vectors(self, document: dict[str, Any], texts: int) -> np.ndarray:
        """Vectors [texts, dim] of an answer, in the order of the texts (the answer may have another)."""
        data = document.get("data")
        if not isinstance(data, list) or len(data) != texts:
            raise Retry(f"an answer with {len(data) if isinstance(data, list) else 'no'} vectors to {texts} texts")
        try:
            indices = [entry["index"] for entry in data]
            rows = [_decoded(entry["embedding"]) for entry in data]
        except (KeyError, TypeError, ValueError, OverflowError):
            raise Retry("an answer with something else than indices and vectors") from None
        if any(type(index) is not int for index in indices) or sorted(indices) != list(range(texts)):
            raise Retry("an answer whose indices are not those of the texts")
        dims = {len(row) for row in rows}
        dim = self.dim or len(rows[0])
        if dims != {dim} or not 1 <= dim <= MAX_DIM:
            raise Retry(f"an answer of dimension {', '.join(map(str, sorted(dims)[:3]))} instead of {dim}")
        self.dim = dim
        vectors = np.empty((texts, dim), np.float32)
        vectors[indices] = rows
        return vectors

    def _checked(self, vectors: np.ndarray) -> np.ndarray:
        """The vectors, normalised with `teacher.normalize`; Retry if one is not finite or zero."""
        if not np.isfinite(vectors).all():
            raise Retry("an answer with NaN or infinity in a vector")
        norms = np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
        if not norms.all():
            raise Retry("an answer with a vector of zeros")
        return (vectors / norms).astype(np.float32) if self.teacher.normalize else vectors


def _key(api: ApiParams) -> str | None:
    """The API key from the environment, if there is one."""
    key = os.environ.get(api.key_env, "").strip()
    if not key.isascii() or not key.isprintable() or " " in key:
        raise LeafError(
            f"teacher.api.key_env: the environment variable {api.key_env} holds no key: it has odd characters"
        )
    return key or None


def _decoded(embedding: object) -> np.ndarray:
    """One vector from base64 or a list of numbers; ValueError or TypeError if it is neither."""
    if isinstance(embedding, str):
        return np.frombuffer(base64.b64decode(embedding, validate=True), "<f4")
    with np.errstate(over="ignore"):  # a number too large for float32 becomes infinite, which `_checked` rejects
        row = np.asarray(embedding, np.float32)
    if row.ndim != 1:
        raise ValueError("not a list of numbers")
    return row


def _counted_tokens(document: dict[str, Any]) -> int | None:
    """The tokens that the server counted for the request; None if it gives no plausible number."""
    usage = document.get("usage")
    tokens = usage.get("prompt_tokens") if isinstance(usage, dict) else None
    return tokens if type(tokens) is int and 0 <= tokens <= MAX_TOKENS else None


def _reason(error: Any) -> str:
    """The message in the body of an error response, which servers nest differently."""
    body = error.body
    content = body.get("error", body) if isinstance(body, dict) else body
    message = content.get("message") if isinstance(content, dict) else content
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
