"""docs/serve.md: the examples that need no other packages than the project's own. The others run in tests/long."""

import sys
from pathlib import Path

import numpy as np
import pytest

from tests.serve_doc import Example, examples, make_models

INSTALLED = [example for example in examples() if example.installed]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    """A folder with `models/`, and the vectors that every example must give."""
    root = tmp_path_factory.mktemp("served")
    return root, make_models(root)


@pytest.mark.parametrize("example", INSTALLED, ids=lambda example: example.name)
def test_the_example_gives_the_vectors_of_the_student_in_pytorch(
    example: Example, served: tuple[Path, np.ndarray]
) -> None:
    folder, expected = served
    np.testing.assert_allclose(example.vectors(Path(sys.executable), folder), expected, atol=1e-4)


def test_the_document_has_an_example_of_each_library() -> None:
    names = {example.name for example in examples()}
    assert {"onnxruntime alone", "sentence-transformers"} <= {example.name for example in INSTALLED}
    assert {"FastEmbed", "LangChain", "LlamaIndex", "Haystack", "Transformers.js"} <= names
