"""Marks all tests of this directory `long`, and makes the environments that they run in."""

import hashlib
import subprocess
import sys
import venv
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

import pytest

from tests import plain_environment
from tests.conftest import ROOT

ENVIRONMENTS = ROOT / ".cache" / "environments"  # kept between runs


def pytest_collection_modifyitems(items: Sequence[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.long)


@pytest.fixture(scope="session")
def environment() -> Callable[..., Path]:
    """The Python of an environment with these requirements of pip, and PyTorch from the running one.

    So PyTorch is not fetched again, and its version is that of the vectors that are compared with.
    """

    def make(*requirements: str) -> Path:
        name = hashlib.sha256("\n".join([sys.prefix, *sorted(requirements)]).encode()).hexdigest()[:16]
        directory = ENVIRONMENTS / name
        python, done = directory / "bin" / "python", directory / "done"
        if done.exists():
            return python
        venv.create(directory, with_pip=True, clear=True)
        minor = f"python{sys.version_info.major}.{sys.version_info.minor}"
        plain_environment.link("torch", directory / "lib" / minor / "site-packages")
        constraints = directory / "constraints.txt"
        constraints.write_text(f"torch=={version('torch')}\n")
        install = [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check", "-c", str(constraints)]
        subprocess.run([*install, *requirements], check=True)
        done.touch()
        return python

    return make


def run(python: Path, folder: Path, code: str) -> str:
    """Run code in `folder`, without this checkout on the path; returns what it prints."""
    result = subprocess.run(
        [str(python), "-c", code],
        cwd=folder,
        env={"PATH": "/usr/bin:/bin", "HOME": str(folder), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert result.returncode == 0, f"{result.stdout}\n{result.stderr}"
    return result.stdout
