"""What a checkout brings besides code: packages by their digests, and where DVC keeps what it knows."""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.conftest import ROOT

CONSTRAINTS = ROOT / "constraints.txt"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
ENTRY = re.compile(r"(?P<pin>[^\n\\]+?) \\\n(?P<hashes>(?: +--hash=sha256:[0-9a-f]{64}(?: \\)?\n)+)")


def pins(text: str) -> dict[str, str]:
    """Name -> version of each line `name==version`."""
    lines = (line.split(";")[0].split("\\")[0].strip() for line in text.splitlines())
    return {
        canonicalize_name(name): version for name, _, version in (line.partition("==") for line in lines) if version
    }


@pytest.mark.parametrize(("file", "extras"), [("demo.txt", ("demo",)), ("dev.txt", ("demo", "dev"))])
def test_every_package_of_the_two_commands_is_pinned_by_its_digests_but_torch(
    file: str, extras: tuple[str, ...]
) -> None:
    text = (ROOT / "requirements" / file).read_text(encoding="utf-8")
    assert ENTRY.sub("", text) == "", "a line without digests"
    listed, constraints = pins(text), pins(CONSTRAINTS.read_text(encoding="utf-8"))
    asked = [
        *PROJECT["dependencies"],
        *(entry for extra in extras for entry in PROJECT["optional-dependencies"][extra]),
    ]
    for requirement in map(Requirement, asked):
        name = canonicalize_name(requirement.name)
        assert name == "torch" or requirement.specifier.contains(listed[name]), f"{name}: run `make hashes`"
    assert {name: constraints[name] for name in listed if name in constraints} == {
        name: version for name, version in listed.items() if name in constraints
    }, "other versions than in constraints.txt: run `make hashes`"
    assert not [name for name in listed if name == "torch" or name.startswith(("nvidia-", "triton"))]
    wheels = {name: len(match["hashes"].splitlines()) for match in ENTRY.finditer(text) for name in pins(match["pin"])}
    assert wheels["numpy"] > 20, "of one machine only"


def test_dvc_keeps_its_index_in_the_project_in_directories_that_it_need_not_make() -> None:
    """It makes them writable for everybody, and reads back what lies there as Python objects."""
    config = (ROOT / ".dvc/config").read_text(encoding="utf-8")
    place = re.search(r"site_cache_dir = (\S+)", config)
    assert place is not None
    repositories = f"{place[1]}/repo"
    tracked = subprocess.run(
        ["git", "ls-files", repositories], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    assert tracked == [f"{repositories}/.gitignore"]
    ignored = (ROOT / ".dvcignore").read_text(encoding="utf-8").split("\n")
    assert Path(place[1]).parts[0] in ignored
