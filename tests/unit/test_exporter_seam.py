"""The seam Exporter: an exporter that the project does not know goes through the real export stage."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from click.testing import CliRunner
from tokenizers import Tokenizer

import stages.export
from pipeline.base import LISTING, written_directory
from pipeline.base.arrays import Array
from pipeline.encode.encoding import encode
from pipeline.export.exporter import ExportedEncoder, ExportJob
from pipeline.export.exporters import EXPORTERS
from pipeline.model.student import build
from pipeline.params.sections import EncodeParams, StudentParams, TeacherParams
from pipeline.store import MODEL_KIND
from pipeline.store.store import Store
from pipeline.teacher.teacher import open_teacher
from tests.conftest import corpus_frame

LOWEST_COSINE = -1.0  # a mean of word vectors is nothing like the student; here it only has to be compared


class TableExporter:
    """The student's token embeddings, projected into the teacher's space, as plain numpy: a text is their mean."""

    name = "table"
    directory = "token-table"

    def __init__(self, lowest_cosine: float = LOWEST_COSINE) -> None:
        self.lowest_cosine = lowest_cosine

    def write(self, job: ExportJob, directory: Path) -> None:
        student: Any = job.student
        table = student.head(student.backbone.token_embeddings.weight).detach().numpy()
        np.save(directory / "table.npy", table)
        student.tokenizer().save(str(directory / "tokenizer.json"))

    def encoders(self, job: ExportJob, directory: Path) -> Mapping[str, ExportedEncoder]:
        table = np.load(directory / "table.npy", allow_pickle=False)
        tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))

        def encode_texts(texts: Sequence[str]) -> Array:
            means = np.stack([table[tokenizer.encode(text).ids].mean(0) for text in texts])
            unit: Array = means / np.linalg.norm(means, axis=1, keepdims=True)
            return unit

        return {"mean": ExportedEncoder(encode_texts, "query", self.lowest_cosine, directory / "table.npy")}

    def card(self, job: ExportJob, figures: Mapping[str, Any]) -> str:
        return f"# A table for {job.origin.teacher_name}\n\nLowest cosine {figures['mean']['cosine']['lowest']:.4f}\n"


@pytest.fixture
def arguments(tmp_path: Path, tiny_corpus: Path, tiny_teacher: Path, tiny_student: Path) -> list[str]:
    """A fitted student and its store; the arguments of the export stage that name them."""
    teacher, checkpoint = TeacherParams(model=str(tiny_teacher)), StudentParams(model=str(tiny_student))
    settings = EncodeParams(pool=str(tmp_path / "cache"), token_budget=512)
    encode(tiny_corpus, open_teacher(teacher, settings), settings, tmp_path / "embeddings")
    build(checkpoint, dim=32, normalize=True).save(tmp_path / "student")
    sections = {
        "teacher": {"model": teacher.model},
        "fit": {"student": {"model": checkpoint.model}},
        "export": {"speed_texts": 4, "bootstrap": 10},
    }
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(sections))
    places = {
        "--params": "params.yaml",
        "--corpus": "corpus",
        "--embeddings": "embeddings",
        "--model": "student",
        "--out": "models",
        "--metrics": "export.json",
    }
    return [word for option, place in places.items() for word in (option, str(tmp_path / place))]


def test_another_exporter_is_checked_and_measured_and_gets_its_card(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(stages.export, "EXPORTERS", [*EXPORTERS, TableExporter()])
    result = CliRunner().invoke(stages.export.main, arguments)
    assert result.exit_code == 0, result.output

    figures = json.loads((tmp_path / "export.json").read_text())
    assert set(figures) == {"asymmetric", "onnx", "table", "speed"}
    mean, exact = figures["table"]["mean"], figures["onnx"]["float32"]
    assert mean["n"] == exact["n"] and mean["queries"] == exact["queries"]
    assert mean["cosine"]["lowest"] < exact["cosine"]["lowest"]
    assert mean["ndcg@10"]["pytorch"] == exact["ndcg@10"]["pytorch"]
    assert figures["speed"]["texts_per_s"]["table_mean"] > 0

    directory = tmp_path / "models" / "token-table"
    assert {file.name for file in directory.iterdir()} == {LISTING, "README.md", "table.npy", "tokenizer.json"}
    assert mean["bytes"] == (directory / "table.npy").stat().st_size
    assert f"Lowest cosine {mean['cosine']['lowest']:.4f}" in (directory / "README.md").read_text()
    assert str(directory) in result.output and "table mean" in result.output
    assert Store.open(tmp_path / "embeddings").rows == len(corpus_frame(400))


def test_an_export_that_fails_its_check_takes_no_place(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with written_directory(tmp_path / "models" / "token-table", MODEL_KIND) as directory:
        (directory / "README.md").write_text("# the one before\n")
    monkeypatch.setattr(stages.export, "EXPORTERS", [TableExporter(lowest_cosine=0.9999)])
    result = CliRunner().invoke(stages.export.main, arguments)
    assert result.exit_code == 1
    assert "token-table: the mean model has a cosine of" in result.output
    assert {path.name for path in (tmp_path / "models").rglob("*")} == {"token-table", "README.md", LISTING}
    assert (tmp_path / "models" / "token-table" / "README.md").read_text() == "# the one before\n"
    assert not (tmp_path / "export.json").exists()
