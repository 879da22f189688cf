"""A static web server as a process of its own, which can break connections, refuse ranges and redirect.

`python -m tests.http_server DIRECTORY LOG [OPTION=VALUE ...]` prints its port and serves until it is ended. LOG gets a
line for each request: method, path, range.
"""

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

ROOT = Path(__file__).parent.parent  # not of tests.conftest, which would have each server import PyTorch


class Handler(SimpleHTTPRequestHandler):
    """Serves files below a directory.

    Options: `break_after` (bytes of each answer), `ranges=no`, `redirect=URL`, `stall_after` (bytes of vectors: no more
    come while the file `LOG.stalled` exists).
    """

    protocol_version = "HTTP/1.1"

    def __init__(self, *arguments: object, log: Path, options: dict[str, str], **named: object) -> None:
        self.log, self.options = log, options
        super().__init__(*arguments, **named)  # type: ignore[arg-type]

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        wanted = self.headers.get("Range", "")
        with self.log.open("a") as log:
            log.write(f"{self.command} {self.path} {wanted}\n")
        file = Path(self.translate_path(self.path))
        if "redirect" in self.options:
            return self.head(302, 0, Location=self.options["redirect"] + self.path)
        if not file.is_file():
            return self.head(404, 0)
        raw, start = file.read_bytes(), 0
        if wanted and self.options.get("ranges") != "no":
            first, last = wanted.removeprefix("bytes=").split("-")
            start, whole = int(first), len(raw)
            if start >= whole:
                return self.head(416, 0)
            raw = raw[start : int(last) + 1]
            self.head(206, len(raw), **{"Content-Range": f"bytes {start}-{start + len(raw) - 1}/{whole}"})
        else:
            self.head(200, len(raw))
        if body:
            limit = int(self.options.get("break_after", len(raw)))
            sent = int(self.options.get("stall_after", limit))
            self.wfile.write(raw[:sent])
            while (
                self.path.endswith("/c/0/0")
                and sent < limit
                and self.log.with_name(f"{self.log.name}.stalled").exists()
            ):
                time.sleep(0.02)
            self.wfile.write(raw[sent:limit])
            if limit < len(raw):
                self.close_connection = True

    def head(self, status: int, length: int, **headers: str) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(length)}.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing: requests stand in the log file."""


@dataclass(frozen=True)
class Server:
    """A running server."""

    url: str
    log: Path

    def requests(self, method: str = "GET") -> list[str]:
        """The paths and ranges that were asked for since the last call."""
        lines = [line.split(" ", 1)[1] for line in self.log.read_text().splitlines() if line.startswith(method)]
        self.log.write_text("")
        return lines


@contextmanager
def serving(directory: Path, log: Path, **options: str) -> Iterator[Server]:
    """Serve a directory from another process until the block ends."""
    log.write_text("")
    settings = [f"{name}={value}" for name, value in options.items()]
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.http_server", str(directory), str(log), *settings],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        yield Server(f"http://127.0.0.1:{int(process.stdout.readline())}", log)
    finally:
        process.kill()
        process.wait()


def main(directory: str, log: str, *settings: str) -> None:
    options = dict(setting.split("=", 1) for setting in settings)
    handler = partial(Handler, directory=directory, log=Path(log), options=options)
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    sys.stdout.write(f"{server.server_port}\n")
    sys.stdout.flush()
    server.serve_forever()


if __name__ == "__main__":
    main(*sys.argv[1:])
