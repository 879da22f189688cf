"""Students load in sentence-transformers 4, 5 and 6 with the same vectors, the asymmetric models in 5 and 6."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from pipeline.export.exporter import Exporter
from pipeline.export.router import NamedRouterExporter, RouterExporter
from pipeline.model.older_form import write_older_form
from pipeline.model.student import build
from pipeline.params.sections import Prompts, StudentParams, TeacherParams
from tests.conftest import make_model, sentence
from tests.families import make_family
from tests.long.conftest import run
from tests.unit.test_export_kinds import exported

Environment = Callable[..., Path]
LIBRARIES = [
    ("sentence-transformers==4.0.1", "transformers==4.50.3"),
    ("sentence-transformers==4.1.0", "transformers<5"),
    ("sentence-transformers==5.0.0", "transformers<5"),
    ("sentence-transformers==5.1.2", "transformers<5"),
    ("sentence-transformers==5.7.0", "transformers>=5"),
    ("sentence-transformers==6.0.0", "transformers>=5"),
]
STUDENTS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("bert", {"pooling": "mean"}),
    "side by side": ("bert", {"pooling": "cls+max+mean+mean_sqrt_len_tokens+weightedmean+lasttoken"}),
    "table": ("bert", {"architecture": "static"}),
    "mpnet": ("mpnet", {}),
    "roberta": ("roberta", {}),
    "xlm-roberta": ("xlm-roberta", {}),
    "distilbert": ("distilbert", {}),
    "deberta-v2": ("deberta-v2", {}),
    "t5": ("t5", {}),
    "gpt2": ("gpt2", {"pooling": "lasttoken"}),
}
TEXTS = [sentence(number) for number in range(12)] + ["Größe der Datei 東京", ""]
ENCODE = """
import json, sys
import numpy as np, sentence_transformers
assert sentence_transformers.__version__ == {version!r}, sentence_transformers.__version__
from sentence_transformers import SentenceTransformer
for name, (place, task) in {models!r}.items():
    if place.endswith("asymmetric-named"):
        sys.path.insert(0, place)
        from asymmetric import load
        model = load({teacher!r}, device="cpu")
    else:
        model = SentenceTransformer(place, device="cpu")
    np.save(name, getattr(model, task)({texts!r}))
"""


@pytest.fixture(scope="module")
def students(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("students")
    for name, (family, settings) in STUDENTS.items():
        checkpoint = make_family(root / f"{name} checkpoint", family)
        build(StudentParams(str(checkpoint), **settings), dim=24, normalize=name != "mpnet").save(root / name)
    return root


@pytest.fixture(scope="module")
def asymmetric(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("asymmetric")
    exporters: list[Exporter] = [RouterExporter(), NamedRouterExporter()]
    directory = make_model(root / "teacher")
    # Which library can load a teacher of the hub is up to that teacher: this one is for all.
    write_older_form(directory, list(SentenceTransformer(str(directory), device="cpu")))
    teacher = TeacherParams(str(directory), prompts=Prompts("", "the file "), max_length=20)
    exported(teacher, make_model(root / "checkpoint", width=16, seed=1), root, exporters)
    return root


@pytest.mark.parametrize("library", LIBRARIES, ids=" ".join)
def test_every_kind_of_student_gives_the_same_vectors(
    library: tuple[str, ...], students: Path, environment: Environment, tmp_path: Path
) -> None:
    models = {name: (str(students / name), "encode") for name in STUDENTS}
    encode(library, models, "", environment, tmp_path)
    for name in STUDENTS:
        expected = SentenceTransformer(str(students / name), device="cpu").encode(TEXTS)
        np.testing.assert_allclose(np.load(tmp_path / f"{name}.npy"), expected, atol=1e-4, err_msg=name)


@pytest.mark.parametrize("library", [library for library in LIBRARIES if "==4" not in library[0]], ids=" ".join)
def test_both_asymmetric_models_give_the_same_vectors(
    library: tuple[str, ...], asymmetric: Path, environment: Environment, tmp_path: Path
) -> None:
    tasks = ("encode_query", "encode_document")
    places = ("asymmetric", "asymmetric-named")
    models = {f"{place} {task}": (str(asymmetric / place), task) for place in places for task in tasks}
    encode(library, models, str(asymmetric / "teacher"), environment, tmp_path)
    newest: Any = SentenceTransformer(str(asymmetric / "asymmetric"), device="cpu")
    for task in tasks:
        expected = getattr(newest, task)(TEXTS)
        for place in places:
            np.testing.assert_allclose(np.load(tmp_path / f"{place} {task}.npy"), expected, atol=1e-4, err_msg=place)


def encode(library: tuple[str, ...], models: dict[str, Any], teacher: str, environment: Environment, out: Path) -> None:
    """Have an older version encode TEXTS with each model, into NAME.npy below `out`."""
    version = library[0].partition("==")[2]
    run(environment(*library), out, ENCODE.format(version=version, models=models, teacher=teacher, texts=TEXTS))
