"""Virtual environments that hold named packages with what they require, and nothing else: no network, no pip.

The packages are links to those of the running environment, so that making one takes a second.
"""

import subprocess
import venv
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement

PATHS = {"..", "bin", "Scripts", "__pycache__"}


def make(directory: Path, *packages: str) -> Path:
    """The interpreter of a new environment with `packages`."""
    venv.create(directory, symlinks=True, with_pip=False)
    python = directory / "bin" / "python"
    found = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        capture_output=True,
        text=True,
        check=True,
    )
    site = Path(found.stdout.strip())
    for name in _required(packages):
        installed = distribution(name)
        for entry in sorted({file.parts[0] for file in installed.files or () if file.parts[0] not in PATHS}):
            source, link = Path(str(installed.locate_file(entry))), site / entry
            if source.exists() and not link.exists():
                link.symlink_to(source)
    return python


def _required(packages: tuple[str, ...]) -> list[str]:
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
        todo += [one.name for one in requirements if one.marker is None or one.marker.evaluate({"extra": ""})]
    return names


def run(python: Path, folder: Path, *arguments: str) -> str:
    """What the interpreter prints, run in `folder` with an environment that knows nothing of this one."""
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
