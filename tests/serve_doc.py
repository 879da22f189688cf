"""The examples of docs/serve.md: a section with what is to be installed, and code that makes `vectors`."""

import re
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from packaging.requirements import Requirement

from tests.conftest import ROOT

SECTION = re.compile(r"^### (.+?)\n(.*?)(?=^##|\Z)", re.MULTILINE | re.DOTALL)
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
INSTALL = re.compile(r"^(?:pip|npm) install (.+)$", re.MULTILINE)


@dataclass(frozen=True)
class Example:
    """A section of the document."""

    name: str
    language: str
    """`python` or `js`."""
    code: str
    requirements: tuple[str, ...]
    """What its line `pip install` or `npm install` names."""
    server: str | None
    """The command that starts a server first, if there is one."""

    @property
    def installed(self) -> bool:
        """Whether the running environment has what it needs, in the versions named."""
        return self.language == "python" and self.server is None and all(map(_is_installed, self.requirements))


def examples() -> list[Example]:
    """All examples of the document, in its order."""
    found = []
    for name, body in SECTION.findall((ROOT / "docs" / "serve.md").read_text(encoding="utf-8")):
        blocks = BLOCK.findall(body)
        shell = "".join(code for language, code in blocks if language == "sh")
        if not (programs := [(language, code) for language, code in blocks if language in ("python", "js")]):
            continue
        installs = INSTALL.findall(shell)
        requirements = tuple(word.strip("'\"") for line in installs for word in line.split() if word[0] != "-")
        commands = [line for line in shell.splitlines() if line and not INSTALL.match(line)]
        found.append(Example(name, *programs[0], requirements, commands[0] if commands else None))
    return found


def _is_installed(line: str) -> bool:
    requirement = Requirement(line)
    try:
        return requirement.specifier.contains(version(requirement.name))
    except PackageNotFoundError:
        return False
