"""Make virtual environments with only the named packages and what they require, without network or pip.

The packages are links to those of the running environment, so that making an environment takes a second.
"""

import subprocess
import venv
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement

PATHS = {"..", "bin", "Scripts", "__pycache__"}


def make(directory: Path, *packages: str) -> Path:
    """Make an environment with `packages` in `directory`; returns its Python interpreter."""
    venv.create(directory, symlinks=True, with_pip=False)
    python = directory / "bin" / "python"
    printed = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        capture_output=True,
        text=True,
        check=True,
    )
    site = Path(printed.stdout.strip())
    for name in _required(packages):
        link(name, site)
    return python


def link(name: str, site: Path) -> None:
    """Make a package of the running environment, without what it requires, known in another's site-packages."""
    installed = distribution(name)
    for entry in sorted({file.parts[0] for file in installed.files or () if file.parts[0] not in PATHS}):
        source, place = Path(str(installed.locate_file(entry))), site / entry
        if source.exists() and not place.exists():
            place.symlink_to(source)


def _required(packages: tuple[str, ...]) -> list[str]:
    """The packages and everything that they require, directly or not."""
    names: list[str] = []
    todo = list(packages)
    while todo:
        name = todo.pop()
        if name in names:
            continue
        try:
            requirements = [Requirement(line) for line in distribution(name).requires or ()]
        except PackageNotFoundError:
            continue  # required on other systems only
        names.append(name)
        todo += [
            requirement.name
            for requirement in requirements
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        ]
    return names


def run(python: Path, folder: Path, *arguments: str) -> str:
    """Run the interpreter in `folder`, without this process's environment variables; returns what it prints."""
    result = subprocess.run(
        [str(python), *arguments],
        cwd=folder,
        env={"PATH": "/usr/bin:/bin", "HOME": str(folder), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, f"{result.stdout}\n{result.stderr}"
    return result.stdout
