"""docs/serve.md: the examples that need other packages, or other versions, than the project's own."""

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.serve_doc import Example, examples, make_models

OTHERS = [example for example in examples() if not example.installed]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    """A folder with `models/`, and the vectors that every example must give."""
    root = tmp_path_factory.mktemp("served")
    return root, make_models(root)


@pytest.mark.parametrize("example", OTHERS, ids=lambda example: example.name)
def test_the_example_gives_the_vectors_of_the_student_in_pytorch(
    example: Example, served: tuple[Path, np.ndarray], environment: Callable[..., Path]
) -> None:
    folder, expected = served
    if example.language == "js":
        program = Path(shutil.which("node") or "node")
        subprocess.run(["npm", "install", "--ignore-scripts", *example.requirements], cwd=folder, check=True)
    else:
        program = environment(*example.requirements)
    np.testing.assert_allclose(example.vectors(program, folder), expected, atol=1e-4)
