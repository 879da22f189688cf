"""The examples of docs/serve.md: what is to be installed, and code that makes `vectors` of TEXTS; how they are run."""

import contextlib
import os
import re
import shlex
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
from packaging.requirements import Requirement
from sentence_transformers import SentenceTransformer

from pipeline.export.onnx_graph import OnnxExporter
from pipeline.params.sections import TeacherParams
from tests.conftest import ROOT, make_model
from tests.families import make_family
from tests.unit.test_export_kinds import exported

TEXTS = ["how to copy a file", "sort a list"]
SECTION = re.compile(r"^### (.+?)\n(.*?)(?=^##|\Z)", re.MULTILINE | re.DOTALL)
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
INSTALL = re.compile(r"^(?:pip|npm) install (.+)$", re.MULTILINE)
SAVE = {
    "python": "\nimport numpy\nnumpy.savetxt('vectors.txt', numpy.asarray(vectors))\n",
    "js": "\nimport fs from 'fs';\nfs.writeFileSync('vectors.txt', vectors.map((row) => row.join(' ')).join('\\n'));\n",
}


@dataclass(frozen=True)
class Example:
    """A section of the document."""

    name: str
    language: str
    """`python` or `js`."""
    code: str
    requirements: tuple[str, ...]
    """What its lines `pip install` or `npm install` name."""
    server: str | None
    """The command that starts a server before the code runs; None for none."""

    @property
    def installed(self) -> bool:
        """Whether the running environment has what it needs, in the versions named."""
        return self.language == "python" and self.server is None and all(map(_is_installed, self.requirements))

    def vectors(self, program: Path, folder: Path) -> np.ndarray:
        """Run it by `program` (a Python, or node) in a folder that holds `models/`; the vectors that it makes."""
        script = folder / f"example.{ {'python': 'py', 'js': 'mjs'}[self.language] }"
        script.write_text(self.code + SAVE[self.language], encoding="utf-8")
        path = f"{program.parent}{os.pathsep}{os.environ['PATH']}"
        environment = {"PATH": path, "HOME": str(folder), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        with _running(self.server, folder, environment):
            done = subprocess.run(
                [str(program), script.name],
                cwd=folder,
                env=environment,
                capture_output=True,
                text=True,
                timeout=600,
                check=False,
            )
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
        return np.loadtxt(folder / "vectors.txt")


@contextmanager
def _running(server: str | None, folder: Path, environment: dict[str, str]) -> Iterator[None]:
    """Run a server, if one is given, from when it listens at its `--port` to the end of the block."""
    if server is None:
        yield
        return
    words = shlex.split(server)
    port = int(words[words.index("--port") + 1])
    process = subprocess.Popen(words, cwd=folder, env=environment)
    try:
        for _ in range(600):
            assert process.poll() is None, f"the server has ended: {server}"
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            time.sleep(0.5)
        yield
    finally:
        process.kill()
        process.wait()


def examples() -> list[Example]:
    """All examples of the document, in its order."""
    found = []
    for name, body in SECTION.findall((ROOT / "docs" / "serve.md").read_text(encoding="utf-8")):
        blocks = BLOCK.findall(body)
        shell = "".join(code for language, code in blocks if language == "sh")
        programs = [(language, code) for language, code in blocks if language in SAVE]
        requirements = tuple(word.strip("'") for line in INSTALL.findall(shell) for word in line.split())
        servers = [line for line in shell.splitlines() if line and not INSTALL.match(line)]
        found += [Example(name, language, code, requirements, next(iter(servers), None)) for language, code in programs]
    return found


def make_models(root: Path) -> np.ndarray:
    """Write `models/student` and `models/onnx` of a tiny student below `root`; its vectors of TEXTS in PyTorch."""
    teacher = TeacherParams(str(make_model(root / "teacher")))
    models = root / "models"
    models.mkdir()
    exported(teacher, make_family(root / "checkpoint", "bert"), models, [OnnxExporter()])
    vectors: np.ndarray = SentenceTransformer(str(models / "student"), device="cpu").encode(TEXTS)
    return vectors


def _is_installed(line: str) -> bool:
    requirement = Requirement(line)
    try:
        return requirement.specifier.contains(version(requirement.name))
    except PackageNotFoundError:
        return False
