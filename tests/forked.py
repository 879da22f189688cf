"""Stages as processes that begin with the large libraries imported: forks of one process that only imports them.

Starting Python, PyTorch and sentence-transformers takes longer than what most tests have a stage do. What is forked is
a process like any other (it can be killed, and its memory is its own), and the project's modules it imports itself.
"""

import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

ROOT = Path(__file__).parent.parent
MOST = 2**20  # bytes of a request


class Process:
    """A module that runs as `__main__`; as `subprocess.Popen`, with text for output."""

    def __init__(
        self, address: str, module: str, arguments: Sequence[str], folder: Path, env: Mapping[str, str]
    ) -> None:
        self.returncode: int | None = None
        self._outputs = [tempfile.TemporaryFile(), tempfile.TemporaryFile()]  # noqa: SIM115 - closed by `communicate`
        self._connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._connection.connect(address)
        request = {"module": module, "arguments": list(arguments), "folder": str(folder), "env": dict(env)}
        files = [output.fileno() for output in self._outputs]
        socket.send_fds(self._connection, [json.dumps(request).encode()], files)
        self.pid = int(self._connection.recv(64))

    def poll(self) -> int | None:
        """The exit status, negative for a signal; None while it runs."""
        with suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """The exit status once it has ended; TimeoutExpired."""
        if self.returncode is None:
            if not select.select([self._connection], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired("a forked process", timeout or 0)
            self.returncode = int(self._connection.recv(64))
            self._connection.close()
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Standard output and error once it has ended; TimeoutExpired."""
        self.wait(timeout)
        printed = []
        for output in self._outputs:
            output.seek(0)
            printed.append(output.read().decode().replace("\r\n", "\n"))
        return printed[0], printed[1]

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)


Start = Callable[..., Process]
"""The fixture `start`: the name of a stage, then its arguments."""


class Forks:
    """The process that others are forked from, while the block lasts."""

    def __enter__(self) -> Self:
        self._directory = tempfile.TemporaryDirectory()
        self.address = f"{self._directory.name}/socket"
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.forked", self.address],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
        )
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._server.kill()
        self._server.wait()
        self._directory.cleanup()

    def start(self, module: str, arguments: Sequence[str], folder: Path, env: Mapping[str, str]) -> Process:
        """Start a module."""
        while not os.path.exists(self.address):  # noqa: PTH110
            assert self._server.poll() is None, "the process to be forked has ended"
            time.sleep(0.02)
        return Process(self.address, module, arguments, folder, env)


def serve(address: str) -> tuple[str, list[str]]:
    """Answer requests until standard input ends; returns, in each fork, the module to run and its arguments."""
    import sklearn.metrics  # noqa: F401
    import transformers.modeling_utils
    import transformers.models.bert.modeling_bert  # noqa: F401

    threads = [file.read_text().strip() for file in Path("/proc/self/task").glob("*/comm")]
    others = [name for name in threads if name != "jemalloc_bg_thd"]  # which knows what to do in a fork
    assert len(others) < 2, f"threads {others}: a fork has the locks of all of them and only one"
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(f"{address}.new")
    listener.listen(64)
    os.rename(f"{address}.new", address)  # noqa: PTH104
    ended, wakes = os.pipe()
    os.set_blocking(wakes, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wakes, warn_on_full_buffer=False)
    running: dict[int, socket.socket] = {}
    while True:
        ready = select.select([listener, ended, sys.stdin], [], [])[0]
        if sys.stdin in ready:
            raise SystemExit(0)
        if ended in ready:
            os.read(ended, 4096)
            while running and (reaped := os.waitpid(-1, os.WNOHANG))[0]:
                with running.pop(reaped[0]) as connection, suppress(OSError):  # nobody may have waited
                    connection.send(str(os.waitstatus_to_exitcode(reaped[1])).encode())
        if listener in ready:
            connection, _ = listener.accept()
            message, files, _, _ = socket.recv_fds(connection, MOST, 2)
            if pid := os.fork():
                running[pid] = connection
                connection.send(str(pid).encode())
                for file in files:
                    os.close(file)
                continue
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for opened in (listener, connection, *running.values()):
                opened.close()
            return _become(json.loads(message), files)


def _become(request: dict[str, Any], outputs: Sequence[int]) -> tuple[str, list[str]]:
    """Take on a request's directory, environment and files in place of those of the process that was forked."""
    import torch

    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, file in enumerate(outputs, 1):
        os.dup2(file, number)
        os.close(file)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["env"])
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or len(os.sched_getaffinity(0))))
    sys.path[0] = request["folder"]
    return request["module"], request["arguments"]


if __name__ == "__main__":
    name, arguments = serve(sys.argv[1])
    sys.argv = [name, *arguments]
    runpy.run_module(name, run_name="__main__", alter_sys=True)
