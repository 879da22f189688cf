"""Requests to an OpenAI-compatible embeddings endpoint, repeated until the answer is valid.

They go through the official `openai` client with its own retries switched off, so that retries happen in one place:
here. Requests keep to the limits of `rate_limit`, honour `Retry-After`, and every answer is checked before it is used
(`answer`). Where a request stays without an answer, a probe text tells whether its texts are to blame or the server is
out of order. The API key appears in no message: see `Client.clean`.
"""

import base64
import json
import os
import random
import re
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from email.utils import parsedate_to_datetime
from typing import Any

import numpy as np

from pipeline.base import Array, LeafError, cosines, import_optional
from pipeline.params import ApiParams, Role, TeacherParams
from pipeline.store import MAX_DIM
from pipeline.teacher.api.answer import Answer, InvalidAnswer, read_answer
from pipeline.teacher.api.probe import PROBE_ROLE, PROBE_TEXTS
from pipeline.teacher.api.rate_limit import RateLimiter
from pipeline.teacher.api.request_limits import RequestLimits

FIRST_WAIT, LONGEST_WAIT = 0.5, 60.0  # seconds of exponential backoff
LONGEST_RETRY_AFTER = 600.0  # seconds; a server that asks for a longer wait ends the run
BYTES_PER_NUMBER, SLACK_BYTES = 32, 2**20  # a larger answer is rejected
ERROR_BYTES = 2**16  # of the body of an error that are read
ENCODINGS = ("", "identity", "gzip")  # of an answer; with others a few bytes can unpack to gigabytes
MAX_REASON = 300  # characters quoted from a server's message
MAX_TOKENS = 2**31 - 1  # of a request: the journal and the store hold tokens as int32
REFUSING = (400, 413, 422)  # statuses that mean: this request's content is not accepted
BUSY = (408, 409, 425, 429, 503, 529)  # statuses that mean: try again later, whatever the texts are
BLAMELESS_RETRIES = 2  # of a request before a probe text tells whether its texts are to blame
NO_KEY = "none"
SHORTEST_SECRET = 6  # characters; a shorter key ("x", for a server that wants none) is not secret
KEPT = "is kept: run again, and only the rest is asked for"


class Refusal(Exception):  # noqa: N818
    """The server refuses a request because of its content; the message is the server's reason."""


class Retry(Exception):  # noqa: N818
    """No answer or an invalid one, worth another attempt."""

    def __init__(self, reason: str, wait: float | None = None, busy: bool = False) -> None:
        """`wait`: seconds that the server asked for; `busy`: it says that it is the server's state, not the texts."""
        super().__init__(reason)
        self.wait, self.busy = wait, busy


class HttpError(Exception):
    """An answer with a status that is no success, and as much of its body as a message needs."""

    def __init__(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        super().__init__(f"status {status}")
        self.status, self.body, self.headers = status, body, headers

    @property
    def content(self) -> dict[str, Any]:
        """What the server says about the error, with its `message`."""
        try:
            document = json.loads(self.body)
        except (ValueError, RecursionError):
            document = self.body.decode(errors="replace")
        return _error_in(document) or {"message": f"status {self.status}"}


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
        self.limits = RequestLimits(self.api)
        self.encoding = "float" if self.api.encoding == "float" else "base64"
        self._key = _key(self.api)
        self._openai = import_optional("openai", "api", "teacher.api:")
        try:
            self._client = self._connection()
        except Exception as error:  # an exception type of the HTTP library below the client
            raise LeafError(f"teacher.api.base_url: no possible address: {self.clean(error)}") from None

    def embed(self, texts: Sequence[str], role: Role) -> Answer:
        """Vectors of texts of one role that fit into one request, of length 1 with `teacher.normalize`.

        The answer may lack some, but not all. Without any, the texts are to blame only if a probe text is answered
        and they are not, once more.

        Raises:
            Refusal: the server gives no vector to these texts; of several, one alone may be the reason.
            LeafError: the server answers no request, or not within `teacher.api.retries`; the spending limit is
                reached. The message holds no key.
            Stopped: another thread has ended the run.
        """
        try:
            return self._repeat(texts, role, min(self.api.retries, BLAMELESS_RETRIES))
        except Refusal:
            self._check_probe()
            raise
        except Retry:
            self._check_probe()
        try:
            return self._repeat(texts, role, 0)
        except Retry as failure:
            raise Refusal(str(failure)) from None

    def probe(self) -> Array:
        """Vectors [texts, dim] of the probe texts, which no server should refuse: a refusal means a wrong parameter.

        Where `teacher.api.encoding` is `auto` and base64 is refused, floats are asked for from here on. A server that
        does not number its vectors is asked once more, in reverse: it must answer in the order of the texts.
        """
        try:
            vectors, numbered = self._probed(PROBE_TEXTS)
        except Refusal as refusal:
            if self.api.encoding != "auto" or self.encoding == "float":
                raise LeafError(f"teacher.api: the server refuses even the probe texts: {refusal}") from None
            self.encoding = "float"
            return self.probe()
        if not numbered:
            again = self._probed(PROBE_TEXTS[::-1])[0][::-1]
            if not cosines(vectors, again).min() >= self.api.probe_cosine:
                raise LeafError(
                    "teacher.api: the server does not say which vector belongs to which text (`index`), and does not "
                    "answer in the order of the texts either; set teacher.api.items_per_request to 1"
                )
        return vectors

    def _probed(self, texts: Sequence[str]) -> tuple[Array, bool]:
        """Vectors of probe texts, and whether the server says which belongs to which."""
        groups = self.limits.groups(texts, range(len(texts)))
        answers = [self._whole([texts[place] for place in group]) for group in groups]
        return np.concatenate([answer.vectors for answer in answers]), all(answer.numbered for answer in answers)

    def _whole(self, texts: Sequence[str]) -> Answer:
        """The answer to probe texts, with a vector for each."""
        for _ in range(self.api.retries + 1):
            try:
                answer = self._repeat(texts, PROBE_ROLE, self.api.retries)
            except Retry as failure:
                raise self._no_answer(failure) from None
            if not answer.faults:
                return answer
            self.limiter.retries += 1
        raise self._no_answer(f"an answer with {next(iter(answer.faults.values()))}")

    def _check_probe(self) -> None:
        """LeafError if the server does not embed a probe text either: then no text is to blame."""
        try:
            self._whole(PROBE_TEXTS[:1])
        except Refusal as refusal:
            raise LeafError(
                f"teacher.api: the server now refuses even a probe text: {refusal}; every vector that was paid {KEPT}"
            ) from None

    def _repeat(self, texts: Sequence[str], role: Role, retries: int) -> Answer:
        """The answer to a request that is repeated so often, or `teacher.api.retries` times while the server is busy.

        Raises:
            Retry: the last attempt's, if it may be the texts' fault.
            Refusal, LeafError, Stopped: as `embed`.
        """
        for attempt in range(self.api.retries + 1):
            if attempt:
                self.limiter.retries += 1
            try:
                return self._attempt(texts, role)
            except Retry as error:
                last = error
            self._check_wait(last)
            if not last.busy and attempt >= retries:
                raise last
            if attempt < self.api.retries:
                # Random between half and whole, so that threads that failed together do not come back together.
                backoff = min(LONGEST_WAIT, FIRST_WAIT * 2**attempt) * (0.5 + random.random() / 2)
                self.limiter.sleep(max(backoff, last.wait or 0.0))
        raise self._no_answer(last)

    def _no_answer(self, last: object) -> LeafError:
        return LeafError(
            f"teacher.api: no right answer after {self.api.retries + 1} attempts, at last: {last}; every vector "
            f"that was paid {KEPT}"
        )

    def clean(self, text: object) -> str:
        """A message of the server or a library, on one line, cut, without anything that is or looks like a key."""
        line = " ".join("".join(letter if letter.isprintable() else " " for letter in str(text)).split())
        for secret in filter(None, {self._key, self._key and base64.b64encode(self._key.encode()).decode()}):
            line = line.replace(secret, "***") if len(secret) >= SHORTEST_SECRET else line
        line = re.sub(r"\b(sk|key|pk)-[\w*.-]+", "***", line)
        return re.sub(r"(?i)\bbearer\s+\S+", "Bearer ***", line)[:MAX_REASON]

    def _connection(self) -> Any:
        options = {
            "base_url": self.api.base_url,
            "api_key": self._key or NO_KEY,
            "max_retries": 0,
            "timeout": self.api.timeout,
            "default_headers": {"Accept-Encoding": ENCODINGS[-1]},
            "http_client": self._openai.DefaultHttpxClient(
                follow_redirects=False, timeout=self.api.timeout, event_hooks={"response": [self._check_status]}
            ),
        }
        if self.api.api_version is None:
            return self._openai.OpenAI(**options)
        return self._openai.AzureOpenAI(**options, api_version=self.api.api_version)

    def _check_status(self, response: Any) -> None:
        """Raise HttpError unless an answer, of which only the head has arrived, is a success and can be read.

        The client would read the whole body of an error, and follow redirects, with texts and key, to any host.
        """
        readable = response.headers.get("Content-Encoding", "").lower() in ENCODINGS
        if response.is_success and readable:
            return
        body, deadline = bytearray(), time.monotonic() + self.api.timeout
        for part in response.iter_bytes() if readable else ():
            body += part
            if len(body) > ERROR_BYTES or time.monotonic() > deadline:
                break
        if response.is_success:
            body += b"the server compresses its answer in a way that it was not asked for"
        raise HttpError(int(response.status_code), bytes(body[:ERROR_BYTES]), response.headers)

    def _attempt(self, texts: Sequence[str], role: Role) -> Answer:
        size = sum(len(text.encode()) for text in texts)
        sent = self.limiter.reserve(size)
        try:
            document = self._request(texts, role)
        except BaseException:
            self.limiter.failed(sent)
            raise
        tokens = self.limiter.settle(sent, size, _counted_tokens(document))  # charged even if the answer is invalid
        try:
            answer = read_answer(document, len(texts), self.dim, self.teacher.normalize)
        except InvalidAnswer as error:
            raise Retry(str(error)) from None
        if not answer.faults:
            self.dim = answer.vectors.shape[1]
        return replace(answer, tokens=tokens)

    def _request(self, texts: Sequence[str], role: Role) -> dict[str, Any]:
        """The answer as a JSON object. The body is read here so that the deadline covers a slow one, too."""
        deadline = time.monotonic() + self.api.timeout
        options = {} if self.api.dimensions is None else {"dimensions": self.api.dimensions}
        create = self._client.embeddings.with_streaming_response.create
        try:
            with create(
                model=self.teacher.model,
                input=list(texts),
                encoding_format=self.encoding,
                extra_body=self.api.extra.of(role) or None,
                **options,
            ) as response:
                body = self._read(response, deadline, len(texts))
        except Retry:
            raise
        except Exception as error:  # the client's and, while the body is read, those of the HTTP library below it
            answer = error if isinstance(error, HttpError) else error.__cause__
            if isinstance(answer, HttpError):
                raise self._exception_of(answer.status, answer.content, answer.headers) from None
            raise Retry(self.clean(f"{type(error).__name__}: {error}")) from None
        try:
            document = json.loads(body)
        except (ValueError, RecursionError):
            raise Retry("an answer that is not JSON") from None
        if not isinstance(document, dict):
            raise Retry("an answer that is not a JSON object")
        if document.get("error") and not isinstance(document.get("data"), list):
            raise self._error_in_answer(_error_in(document))
        return document

    def _error_in_answer(self, content: dict[str, Any]) -> Exception:
        """What an error means that comes with the status 200: the status that it names itself, or any failure."""
        for name in ("status", "code"):
            if re.fullmatch(r"[45]\d\d", code := str(content.get(name))):
                return self._exception_of(int(code), content, {})
        return Retry(f"an error in place of vectors: {self.clean(content.get('message'))}")

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

    def _exception_of(self, status: int, content: Mapping[str, Any], headers: Mapping[str, str]) -> Exception:
        """The exception that an HTTP status means: Retry, Refusal, or a LeafError that ends the run."""
        reason = self.clean(content.get("message"))
        if status in (401, 403):
            problem = "is not set" if self._key is None else "holds a key that the server does not take"
            return LeafError(
                f"teacher.api: the server answers {status}: the environment variable {self.api.key_env} {problem}, or "
                f"the key may not use `{self.teacher.model}`"
            )
        if status == 429 and content.get("code") == "insufficient_quota":
            return LeafError(
                f"teacher.api: the account has no money left ({reason}); every vector that was paid {KEPT}"
            )
        if status in BUSY or status >= 500:
            return Retry(f"status {status}: {reason}", _retry_after(headers), status in BUSY)
        if 300 <= status < 400:
            place = self.clean(headers.get("location", "nowhere"))
            return LeafError(
                f"teacher.api.base_url: {self.api.base_url} answers with a redirect to {place}, and nothing is sent "
                "there: if you trust that place, name it"
            )
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


def _key(api: ApiParams) -> str | None:
    """The API key from the environment, if there is one."""
    key = os.environ.get(api.key_env, "").strip()
    if not key.isascii() or not key.isprintable() or " " in key:
        raise LeafError(
            f"teacher.api.key_env: the environment variable {api.key_env} holds no key: it has odd characters"
        )
    return key or None


def _counted_tokens(document: dict[str, Any]) -> int | None:
    """The tokens that the server counted for the request; None if it gives no plausible number."""
    usage = document.get("usage")
    tokens = usage.get("prompt_tokens") if isinstance(usage, dict) else None
    return tokens if type(tokens) is int and 0 <= tokens <= MAX_TOKENS else None


def _error_in(body: object) -> dict[str, Any]:
    """The error in the body of a response, which servers nest differently, with its `message`; empty without any."""
    content = body.get("error", body) if isinstance(body, dict) else body
    if not isinstance(content, dict):
        return {"message": str(content)} if content else {}
    message = next((content[name] for name in ("message", "detail") if content.get(name)), content)
    return {**content, "message": str(message)}


def _retry_after(headers: Mapping[str, str]) -> float | None:
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
