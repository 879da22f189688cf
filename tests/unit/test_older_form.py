"""Saved models use only names and settings that sentence-transformers 4 (a Router: 5) knows, and the newest loads them.

That the older versions load them with the same vectors is tested in environments of their own, in tests/long.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

from pipeline.export.router import RouterExporter
from pipeline.model.batch import pack
from pipeline.model.student import build
from pipeline.params.sections import StudentParams, TeacherParams
from tests.conftest import sentence
from tests.families import make_family
from tests.unit.test_export_kinds import exported

TEXTS = [sentence(number) for number in range(5)]
OLDEST: dict[str, set[str]] = {  # the arguments of its constructors
    "Transformer": {"max_seq_length", "do_lower_case"},
    "Dense": {"in_features", "out_features", "bias", "activation_function"},
    "Pooling": {
        "word_embedding_dimension",
        "include_prompt",
        *(f"pooling_mode_{name}_token" for name in ("cls",)),
        *(f"pooling_mode_{name}_tokens" for name in ("max", "mean", "mean_sqrt_len", "weightedmean")),
        "pooling_mode_lasttoken",
    },
}
FILES = {"Transformer": "sentence_bert_config.json", "Dense": "config.json", "Pooling": "config.json"}


def check_settings(kind: str, place: Path) -> None:
    package, _, name = kind.rpartition(".")
    assert package == "sentence_transformers.models"
    if name in OLDEST:
        assert set(json.loads((place / FILES[name]).read_text())) <= OLDEST[name]


@pytest.mark.parametrize("settings", [{"pooling": "cls+mean"}, {"architecture": "static"}], ids=str)
def test_a_student_has_the_settings_that_version_4_knows(settings: dict[str, Any], tmp_path: Path) -> None:
    checkpoint = make_family(tmp_path / "checkpoint", "bert")
    student = build(StudentParams(str(checkpoint), **settings), dim=24, normalize=True).eval()
    student.save(tmp_path / "student")
    modules = json.loads((tmp_path / "student" / "modules.json").read_text())
    for module in modules:
        check_settings(module["type"], tmp_path / "student" / module["path"])
        # At the top it looks for nothing but a Transformer.
        assert module["path"] or module["type"].endswith(".Transformer")
    with torch.no_grad():
        expected = student(pack([student.tokenizer().encode(text).ids for text in TEXTS])).numpy()
    found = SentenceTransformer(str(tmp_path / "student"), device="cpu").encode(TEXTS)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_an_asymmetric_model_has_the_settings_that_version_5_knows(
    tiny_teacher: Path, tiny_student: Path, tmp_path: Path
) -> None:
    exported(TeacherParams(str(tiny_teacher)), tiny_student, tmp_path, [RouterExporter()])
    model = tmp_path / "asymmetric"
    router = json.loads((model / "router_config.json").read_text())
    assert json.loads((model / "modules.json").read_text())[0]["type"] == "sentence_transformers.models.Router"
    assert set(router["parameters"]) <= {"default_route", "allow_empty_key"}
    for name, kind in router["types"].items():
        check_settings(kind, model / name)
