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

import numpy as np

DIM = 16
KEY = "sk-test-LEAKPROBE-0123456789"
SPOILED = {"nan": np.nan, "zero": 0.0}


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
    """Answers every text without the word REFUSED; `plan` lists what goes wrong with the next requests."""

    daemon_threads = True

    def __init__(self, key: str | None = None) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.key = key
        self.plan: list[str] = []
        self.drift, self.dim, self.delay = 0.0, DIM, 0.0
        self.refuse_all = False
        self.float_only = self.no_base64 = self.no_usage = False
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
        from pipeline.teacher.api.identity import PROBE_TEXTS

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
        if self.path != "/v1/embeddings":
            return self.fail(404, "unknown route")
        if server.key is not None and given != f"Bearer {server.key}":
            return self.fail(401, f"Incorrect API key provided: {given}")
        kind, _, detail = wrong.partition(":")
        if kind == "status":
            status, _, after = detail.partition(",")
            headers = {"Retry-After": after} if after else {}
            return self.fail(int(status), f"told to fail; your key is {given}", headers)
        if kind == "quota":
            return self.fail(429, "no money", code="insufficient_quota")
        texts = request["input"]
        if kind == "refuse-all":
            server.refuse_all = True
        if server.no_base64 and request["encoding_format"] == "base64":
            return self.fail(400, "encoding_format base64 is not known here")
        if server.refuse_all or any("REFUSED" in text for text in texts):
            return self.fail(400, f"content policy says no, key {given}")
        self.send_vectors(request, kind)

    def send_vectors(self, request: dict[str, Any], wrong: str) -> None:
        server, texts = self.server, request["input"]
        dim = request.get("dimensions") or server.dim
        vectors = [vector(text, server.drift, dim) for text in texts]
        if wrong in SPOILED:
            vectors[-1][:] = SPOILED[wrong]
        if wrong == "dimension":
            vectors[-1] = vectors[-1][:-1]
        as_base64 = request["encoding_format"] == "base64" and not server.float_only
        data = [
            {
                "object": "embedding",
                "index": place,
                "embedding": base64.b64encode(values.tobytes()).decode() if as_base64 else values.tolist(),
            }
            for place, values in enumerate(vectors)
        ]
        if wrong == "count":
            data.pop()
        if wrong == "order":
            data.reverse()
        if wrong == "index":
            data[0]["index"] = len(data)
        if wrong == "digits":  # in floats
            embedding: Any = data[-1]["embedding"]
            embedding[0] = 10**400
        tokens = server.usage or sum(tokens_of(text) for text in texts)
        document = {"object": "list", "data": data, "model": request["model"]}
        if not server.no_usage:
            document["usage"] = {"prompt_tokens": tokens, "total_tokens": tokens}
        body = json.dumps(document).encode()
        if wrong in ("reset", "drip", "cut"):
            return self.break_off(wrong, body)
        if wrong in ("", "order"):
            with server.lock:
                server.answered.update(texts)
        self.send(200, body)

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
