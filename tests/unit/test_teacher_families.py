"""Teachers of many families give the very vectors of sentence-transformers, alone and in any batch."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from sentence_transformers import SentenceTransformer

from pipeline.base import cosines
from pipeline.model import bf16_is_fast
from pipeline.params import EncodeParams, TeacherParams
from pipeline.teacher import open_teacher
from tests.conftest import WORDS, sentence
from tests.families import FAMILIES, RELATIVES, make_teacher

TEXTS = ["a", "Zoë: 3.5 €?", *map(sentence, range(11)), " ".join(WORDS), " ".join([*WORDS[::-1], *WORDS]), "the test"]
ROWS = pl.DataFrame({"role": (["query", "document", "document"] * len(TEXTS))[: len(TEXTS)], "text": TEXTS})
PRECISION = ("pipeline.teacher.runners.bf16_is_fast", "pipeline.model.backbones.packed.bf16_is_fast")


def of_the_library(directory: Path) -> np.ndarray:
    """Vectors of sentence-transformers, each text by itself."""
    model: Any = SentenceTransformer(str(directory), device="cpu")
    encoders = {"query": model.encode_query, "document": model.encode_document}
    return np.stack([encoders[role](text, normalize_embeddings=True) for role, text in ROWS.iter_rows()])


@pytest.mark.parametrize("family", [*FAMILIES, *RELATIVES])
def test_a_teacher_of_any_family_gives_the_librarys_vectors_in_any_batch(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = make_teacher(tmp_path / "teacher", family)
    expected = of_the_library(directory)
    others = np.roll(expected, 1, axis=0)
    assert cosines(expected, others).max() < 0.995  # texts differ, so that agreement says something
    for bf16, token_budget, least in ((False, 8192, 0.9999), (True, 64, 0.999)):
        answer = bf16 and bf16_is_fast()
        for name in PRECISION:
            monkeypatch.setattr(name, lambda device="cpu", answer=answer: answer)
        teacher = open_teacher(TeacherParams(str(directory)), EncodeParams(token_budget=token_budget))
        assert cosines(teacher.vectors(ROWS), expected).min() >= least
        assert cosines(teacher.vectors(ROWS[-1:]), expected[-1:]).min() >= least
