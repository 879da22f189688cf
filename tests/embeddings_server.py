"""An OpenAI-compatible embeddings server for tests, which fails as it is told to. It runs in a thread.

It counts how often each text was answered, so that a test can tell whether a text was paid for twice.
"""

import base64
import hashlib
import json
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np

DIM = 16
KEY = "sk-test-LEAKPROBE-0123456789"
SPOILED = {"nan": np.nan, "zero": 0.0}
ENDLESS = {"flood": (b"x" * 2**16, 1600, 0.0, ""), "slow": (b"x", 400, 0.05, ""), "packed": (b"x", 1, 0.0, "br")}
"""Errors whose body is large, slow, or packed in an odd way: piece, number of pieces, pause, encoding."""
ERROR = {"message": "the model gave no vector", "type": "test"}


def vector(text: str, drift: float = 0.0, dim: int = DIM) -> np.ndarray:
    """[dim] float32, determined by the text alone, not normalised. `drift` mixes in the vector of another model."""
    models = [
        np.random.default_rng(int.from_bytes(hashlib.sha256(f"{salt}{text}".encode()).digest()[:8], "big")).normal(
            size=dim
        )
        for salt in ("", "other ")
    ]
    return ((1 - drift) * models[0] + drift * models[1]).astype(np.float32)


class Server(ThreadingHTTPServer):
    """Answers every text without the word REFUSED; `plan` lists what goes wrong with the next requests.

    What is always odd about it: `indices` (none, first, same, contradictory, shuffled: how it numbers vectors),
    `poison` (what a text with the word POISON gets), the most texts and tokens of a request, the `input_type` of texts.
    """

    daemon_threads = True

    def __init__(self, key: str | None = None) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.key = key
        self.plan: list[str] = []
        self.drift, self.dim, self.delay = 0.0, DIM, 0.0
        self.refuse_all = False
        self.float_only = self.no_base64 = self.no_usage = False
        self.indices = self.poison = ""
        self.most_items = self.most_tokens = 10**9
        self.kinds: dict[str, str] = {}  # text -> `input_type` that its request must have
        self.azure_version: str | None = None
        self.refused_requests = 0
        self.error_bytes = 0  # written of an error without end
        self.usage = 0  # tokens of a request; 0 counts them
        self.answered: Counter[str] = Counter()
        self.requests: list[dict[str, Any]] = []
        self.times: list[float] = []
        self.under_way = self.most_under_way = 0
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    @property
    def texts(self) -> Counter[str]:
        """How often each text was answered, probe texts left out."""
        from pipeline.teacher.api.probe import PROBE_TEXTS

        return Counter({text: count for text, count in self.answered.items() if text not in PROBE_TEXTS})

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore clients that have disconnected."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, *_: Any) -> None:
        pass

    def send(self, status: int, document: Any, headers: dict[str, str] | None = None) -> None:
        body = document if isinstance(document, bytes) else json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def authorised(self) -> bool:
        """Whether route and key are as the server wants them: OpenAI's way, or Azure's."""
        server, route = self.server, urlsplit(self.path)
        if server.azure_version is None:
            return route.path == "/v1/embeddings" and not route.query
        return (
            route.path == "/openai/deployments/a-model/embeddings"
            and parse_qs(route.query) == {"api-version": [server.azure_version]}
            and self.headers.get("Authorization") is None
        )

    def fail(self, status: int, message: str, headers: dict[str, str] | None = None, code: str | None = None) -> None:
        self.send(status, {"error": {"message": message, "type": "test", "code": code}}, headers)

    def do_POST(self) -> None:
        server = self.server
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server.lock:
            server.requests.append(request)
            server.times.append(time.monotonic())
            server.under_way += 1
            server.most_under_way = max(server.most_under_way, server.under_way)
            wrong = server.plan.pop(0) if server.plan else ""
        try:
            time.sleep(server.delay)
            self.answer(request, wrong)
        finally:
            with server.lock:
                server.under_way -= 1

    def answer(self, request: dict[str, Any], wrong: str) -> None:
        server, given = self.server, self.headers.get("Authorization", "")
        if not self.authorised():
            return self.fail(404, "unknown route")
        if server.azure_version is not None:
            given = f"Bearer {self.headers.get('api-key')}"
        if server.key is not None and given != f"Bearer {server.key}":
            return self.fail(401, f"Incorrect API key provided: {given}")
        kind, _, detail = wrong.partition(":")
        if kind in ("status", "redirect", "quota", *ENDLESS):
            return self.fail_as_told(kind, detail, given)
        server.refuse_all = server.refuse_all or kind == "refuse-all"
        if reason := self.reason_to_refuse(request):
            return self.fail(400, f"{reason}, key {given}")
        if any("POISON" in text for text in request["input"]):
            if server.poison == "status":
                return self.fail(500, ERROR["message"])
            if server.poison.startswith("error"):
                return self.send(200, {"error": ERROR | {"code": server.poison.partition(":")[2] or None}})
        self.send_vectors(request, kind)

    def fail_as_told(self, kind: str, detail: str, given: str) -> None:
        if kind == "status":
            status, _, after = detail.partition(",")
            headers = {"Retry-After": after} if after else {}
            self.fail(int(status), f"told to fail; your key is {given}", headers)
        elif kind == "redirect":
            self.send(307, {}, {"Location": detail})
        elif kind == "quota":
            self.fail(429, "no money", code="insufficient_quota")
        else:
            self.fail_without_end(*ENDLESS[kind])

    def fail_without_end(self, piece: bytes, pieces: int, pause: float, encoding: str) -> None:
        self.send_response(500)
        self.send_header("Content-Length", str(len(piece) * pieces))
        self.send_header("Content-Encoding", encoding)
        self.end_headers()
        self.close_connection = True
        for number in range(pieces):
            self.server.error_bytes = number * len(piece)
            self.wfile.write(piece)  # raises once the client has gone
            time.sleep(pause)
        self.server.error_bytes = pieces * len(piece)

    def reason_to_refuse(self, request: dict[str, Any]) -> str | None:
        server, texts = self.server, request["input"]
        if server.no_base64 and request["encoding_format"] == "base64":
            return "encoding_format base64 is not known here"
        if server.refuse_all or any("REFUSED" in text for text in texts):
            return "content policy says no"
        if len(texts) > server.most_items or sum(map(tokens_of, texts)) > server.most_tokens:
            server.refused_requests += 1
            return "too much for one request"
        kind = request.get("input_type")
        return "the wrong input_type" if any(server.kinds.get(text, kind) != kind for text in texts) else None

    def send_vectors(self, request: dict[str, Any], wrong: str) -> None:
        server, texts = self.server, request["input"]
        data = self.entries(request, wrong)
        self.number(data)
        self.spoil(data, wrong)
        tokens = server.usage or sum(tokens_of(text) for text in texts)
        document = {"object": "list", "data": data, "model": request["model"]}
        if not server.no_usage:
            document["usage"] = {"prompt_tokens": tokens, "total_tokens": tokens}
        body = json.dumps(document).encode()
        if wrong in ("reset", "drip", "cut"):
            return self.break_off(wrong, body)
        if wrong in ("", "order", *SPOILED, "dimension"):
            right = texts if wrong in ("", "order") else texts[:-1]
            with server.lock:
                server.answered.update(text for text in right if "POISON" not in text)
        self.send(200, body)

    def entries(self, request: dict[str, Any], wrong: str) -> list[dict[str, Any]]:
        """A vector for each text, those of poisoned texts spoiled, and the last one if that is `wrong`."""
        server, texts = self.server, request["input"]
        as_base64 = request["encoding_format"] == "base64" and not server.float_only
        entries = []
        for place, text in enumerate(texts):
            values = vector(text, server.drift, request.get("dimensions") or server.dim)
            odd = server.poison if "POISON" in text else wrong if place == len(texts) - 1 else ""
            if odd in SPOILED:
                values[:] = SPOILED[odd]
            if odd in ("width", "dimension"):
                values = values[:-1]
            embedding: Any = base64.b64encode(values.tobytes()).decode() if as_base64 else values.tolist()
            if odd == "null":
                embedding = None
            if odd == "digits":  # in floats
                embedding[0] = 10**400
            entries.append({"object": "embedding", "index": place, "embedding": embedding})
        return entries

    def spoil(self, data: list[dict[str, Any]], wrong: str) -> None:
        if wrong == "count":
            data.pop()
        if wrong == "order":
            data.reverse()
        if wrong == "index":
            data[0]["index"] = len(data)

    def number(self, data: list[dict[str, Any]]) -> None:
        """Number the vectors in the odd way that is set."""
        way = self.server.indices
        if way == "shuffled":
            data.sort(key=lambda entry: str(entry["embedding"]))
        for place, entry in enumerate(data):
            if way in ("none", "shuffled") or (way == "first" and place == 0):
                del entry["index"]
            elif way == "same":
                entry["index"] = 0
            elif way == "contradictory":
                entry["index"] = place // 2

    def break_off(self, wrong: str, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        if wrong == "cut":  # a body that ends early and looks whole
            self.send_header("Content-Length", str(len(body) // 2))
        else:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2])
        self.wfile.flush()
        if wrong == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
        elif wrong == "drip":
            for place in range(len(body) // 2, len(body)):
                self.wfile.write(body[place : place + 1])
                self.wfile.flush()
                time.sleep(0.05)
        self.close_connection = True


def tokens_of(text: str) -> int:
    """Tokens as this server counts them: words plus one."""
    return len(text.split()) + 1


@contextmanager
def running(**options: Any) -> Iterator[Server]:
    """Run the server in a thread of this process."""
    server = Server(**options)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
