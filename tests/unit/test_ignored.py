"""What DVC keeps is not for git, and git is told so by files of the repository.

DVC adds such rules itself, and takes them back where a later stage of the same `dvc repro` fails: whoever then types
`git add .` commits outputs, with the texts in them, and the stage cannot run again ("already tracked by SCM").
"""

import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
ENTRIES = [
    entry
    for stage in yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"].values()
    for kind in ("outs", "metrics", "plots")
    for entry in stage.get(kind, [])
]


@pytest.mark.parametrize("output", [entry for entry in ENTRIES if isinstance(entry, str)])
def test_every_output_that_dvc_keeps_is_ignored_by_git(output: str) -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("needs a git checkout")
    done = subprocess.run(["git", "check-ignore", "--quiet", "--no-index", output], cwd=ROOT, check=False)
    assert done.returncode == 0, f"{output}: no .gitignore names it"
