"""The exported models give the vectors of what they were made from, in environments without this project."""

import importlib.util
import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import polars as pl
import pytest
import yaml
from click.testing import CliRunner
from huggingface_hub import ModelCard
from sentence_transformers import SentenceTransformer

import stages.export
from pipeline.base.arrays import cosines
from pipeline.base.errors import LeafError
from pipeline.encode.encoding import encode
from pipeline.export import onnx_graph
from pipeline.export.cards import license_of, origin_of
from pipeline.export.exporter import Exporter
from pipeline.export.exporters import export
from pipeline.export.onnx_graph import write_graphs
from pipeline.export.router import NamedRouterExporter, RouterExporter
from pipeline.export.student_card import student_card
from pipeline.fit.card import write_card
from pipeline.model.student import Student, build
from pipeline.params.sections import EncodeParams, ExportParams, FitParams, Prompts, StudentParams, TeacherParams
from pipeline.serve import onnx_encoder
from pipeline.serve.onnx_encoder import OnnxEncoder, padded
from pipeline.store.store import Store
from pipeline.teacher.teacher import open_teacher
from tests import plain_environment
from tests.conftest import ROOT, corpus_frame, make_model, sentence
from tests.unit.test_student import file_size

TEXTS = [sentence(number) for number in range(40)]
MEASURED = {"ndcg@10": 0.5, "recall@100": 0.8, "mrr@10": 0.4, "interval": {"ndcg@10": [0.4, 0.6]}}
EVALUATION = {
    "retrieval": {"tiny": {mode: {**MEASURED, "retention": 0.9} for mode in ("teacher", "standard", "asymmetric")}}
}
PARAMS = ExportParams(speed_texts=4, bootstrap=50, teacher_id="lab/teacher")
CARD = "---\nlicense: apache-2.0\n---\n"
FITTED = {
    "validation_at_start": {"loss": 0.9, "cosine": 0.5},
    "validation": {"loss": 0.3, "cosine": 0.9},
    "validation_rows": 40,
    "steps": 59,
    "presentations": 5000,
    "parameters": 1000,
}


@dataclass(frozen=True)
class Made:
    """An export and what it was made from."""

    root: Path
    teacher: TeacherParams
    checkpoint: StudentParams
    figures: dict[str, Any]

    @property
    def student(self) -> Path:
        return self.root / "student"

    def model(self, name: str) -> Path:
        return self.root / "models" / name


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    root = tmp_path_factory.mktemp("export")
    teacher_directory = make_model(root / "teacher")
    (teacher_directory / "README.md").write_text(CARD)
    checkpoint = make_model(root / "checkpoint", width=16, seed=1)
    (checkpoint / "README.md").write_text(CARD)
    (root / "corpus").mkdir()
    corpus_frame(400).write_parquet(root / "corpus" / "part-00000.parquet")
    teacher = TeacherParams(model=str(teacher_directory), prompts=Prompts("", "the file "), max_length=20)
    settings = EncodeParams(pool=str(root / "pool"), token_budget=512)
    encode(root / "corpus", open_teacher(teacher, settings), settings, root / "embeddings")
    student = StudentParams(model=str(checkpoint), max_length=12)
    built, meta = build(student, dim=32, normalize=True), Store.open(root / "embeddings").meta
    built.save(root / "student", write_card(meta, root / "corpus", FitParams(student), FITTED, built))
    (root / "evaluate.json").write_text(json.dumps(EVALUATION))
    figures = export(
        root / "corpus",
        Store.open(root / "embeddings"),
        root / "student",
        root / "models",
        teacher=open_teacher(teacher, settings),
        checkpoint=student,
        params=PARAMS,
        evaluation=root / "evaluate.json",
    )
    return Made(root, teacher, student, figures)


def test_the_asymmetric_model_gives_the_students_queries_and_the_stores_documents(made: Made) -> None:
    model = SentenceTransformer(str(made.model("asymmetric")), device="cpu")
    student = SentenceTransformer(str(made.student), device="cpu")
    np.testing.assert_allclose(model.encode_query(TEXTS), student.encode(TEXTS), atol=1e-5)
    documents = pl.read_parquet(made.root / "corpus" / "*.parquet").filter(pl.col("role") == "document")
    stored = Store.open(made.root / "embeddings").lookup(documents["key"].to_list())
    vectors = model.encode_document(documents["text"].to_list())
    assert ((vectors * stored).sum(1) / np.linalg.norm(stored, axis=1)).min() > 0.999
    np.testing.assert_allclose(model.encode_document(TEXTS), model.encode(TEXTS, prompt_name="document"), atol=1e-5)
    assert made.figures["asymmetric"]["documents"]["cosine"]["lowest"] > 0.999


@pytest.mark.parametrize("family", ["bert", "mpnet"])
@pytest.mark.parametrize("normalize", [True, False])
def test_the_graph_gives_pytorchs_vectors_for_any_batch(family: str, normalize: bool, tmp_path: Path) -> None:
    checkpoint = make_model(tmp_path / "checkpoint", width=16, family=family)
    student = build(StudentParams(model=str(checkpoint), max_length=12), dim=24, normalize=normalize)
    student.save(tmp_path / "student")
    (tmp_path / "onnx").mkdir()
    write_graphs(student, tmp_path / "onnx")
    expected = SentenceTransformer(str(tmp_path / "student"), device="cpu").encode(TEXTS)
    encoder = OnnxEncoder(tmp_path / "onnx", "float32")
    np.testing.assert_allclose(encoder.encode(TEXTS), expected, atol=1e-4)
    np.testing.assert_allclose(np.concatenate([encoder.encode([text]) for text in TEXTS]), expected, atol=1e-4)
    assert encoder.encode([]).shape == (0, 24)
    assert cosines(OnnxEncoder(tmp_path / "onnx", "int8").encode(TEXTS), expected).min() > 0.98
    assert sorted(path.name for path in (tmp_path / "onnx" / "onnx").iterdir()) == ["model.onnx", "model_int8.onnx"]


def test_the_graph_takes_ids_and_mask_of_any_shape_and_gives_the_final_vector(made: Made) -> None:
    session = onnxruntime.InferenceSession(made.model("onnx") / "onnx" / "model.onnx")
    assert [(tensor.name, tensor.type) for tensor in session.get_inputs()] == [
        ("input_ids", "tensor(int64)"),
        ("attention_mask", "tensor(int64)"),
    ]
    assert [tensor.shape[1:] for tensor in session.get_outputs()] == [[32], [1, 32]]
    vectors, states = session.run(None, padded([[2, 7, 3], [2, 9, 11, 12, 13, 3]]))
    np.testing.assert_array_equal(states[:, 0], vectors)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


def test_parity_and_speed_are_measured(made: Made) -> None:
    graphs = made.figures["onnx"]
    assert graphs["float32"]["cosine"]["lowest"] >= 0.9999
    assert graphs["float32"]["loss"] == pytest.approx(0, abs=1e-6)
    assert graphs["int8"]["queries"] > 10
    low, high = graphs["int8"]["interval"]
    assert low <= graphs["int8"]["loss"] <= high
    assert graphs["int8"]["bytes"] < graphs["float32"]["bytes"]
    assert set(made.figures["speed"]["texts_per_s"]) == {"pytorch", "packed", "onnx_float32", "onnx_int8"}


def test_a_long_list_is_cut_into_batches_of_similar_lengths(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_encoder, "BATCH_TOKENS", 24)
    shapes, padded = [], onnx_encoder.padded

    def seen(token_ids: list[list[int]]) -> dict[str, Any]:
        shapes.append((len(token_ids), max(map(len, token_ids)), min(map(len, token_ids))))
        return padded(token_ids)

    monkeypatch.setattr(onnx_encoder, "padded", seen)
    alone = np.concatenate([OnnxEncoder(made.model("onnx"), "float32", 1).encode([text]) for text in TEXTS])
    shapes.clear()
    for threads in (1, 3):
        encoder = OnnxEncoder(made.model("onnx"), "float32", threads)
        np.testing.assert_allclose(encoder.encode(TEXTS), alone, atol=1e-5)
    assert all(count == 1 or count * longest <= 24 for count, longest, _ in shapes)
    assert sum(count for count, *_ in shapes) == 2 * len(TEXTS) > len(shapes)
    assert all(shortest >= longest - 3 for _, longest, shortest in shapes)


def test_the_int8_graph_is_taken_where_the_processor_is_made_for_it(made: Made, tmp_path: Path) -> None:
    def made_for_it(flags: str) -> bool:
        (tmp_path / "cpuinfo").write_text(f"processor : 0\nflags\t\t: fpu {flags} sse\n")
        return onnx_encoder._multiplies_int8(tmp_path / "cpuinfo")

    assert [made_for_it(flags) for flags in ("avx512_vnni", "avx_vnni", "asimddp", "avx2")] == [True] * 3 + [False]
    copy = Path(shutil.copytree(made.model("onnx"), tmp_path / "copy"))
    (copy / "onnx" / "model_int8.onnx").unlink()
    assert onnx_encoder.fastest(copy) == "float32"


def test_the_graphs_are_of_standard_operations_and_int8_does_all_products_with_weights_in_int8(made: Made) -> None:
    for name in ("onnx/model.onnx", "onnx/model_int8.onnx"):
        graph = onnx.load(made.model("onnx") / name)
        assert [(entry.domain, entry.version) for entry in graph.opset_import] == [("", onnx_graph.OPSET)]
        assert {node.domain for node in graph.graph.node} == {""}
    products = [node for node in graph.graph.node if node.op_type in ("MatMul", "Gemm", "MatMulInteger")]
    weights = {tensor.name for tensor in graph.graph.initializer}
    with_weights = [node for node in products if weights & set(node.input)]
    assert {node.op_type for node in with_weights} == {"MatMulInteger"}
    assert {len(node.input) for node in with_weights} == {3}  # without the zero points of symmetric weights


def test_an_int8_graph_that_is_too_far_from_pytorch_is_left_out(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(onnx_graph.LOWEST_COSINES, "int8", 1.0)
    figures = _export(made, tmp_path, exporters=[onnx_graph.OnnxExporter()])
    assert set(figures["onnx"]) == {"float32"}
    assert [file.name for file in (tmp_path / "onnx" / "onnx").iterdir()] == ["model.onnx"]
    card = (tmp_path / "onnx" / "README.md").read_text()
    assert "There is no int8 graph" in card and 'InferenceSession("onnx/model.onnx")' in card
    card = (made.model("onnx") / "README.md").read_text()
    assert "There is no int8 graph" not in card and 'InferenceSession("onnx/model_int8.onnx")' in card


def test_the_example_runs_with_onnxruntime_tokenizers_and_numpy_alone(made: Made, tmp_path: Path) -> None:
    example = ROOT / "examples" / "onnx_search.py"
    code = example.read_text()
    assert sum(bool(line.strip()) for line in code.splitlines()) <= 20
    python = plain_environment.make(tmp_path / "venv", "onnxruntime", "tokenizers", "numpy")
    output = plain_environment.run(python, tmp_path, str(example), str(made.model("onnx")), "sort a list")
    assert len(output.splitlines()) == 4
    without = "import importlib.util as u; print([n for n in ('torch', 'transformers', 'pipeline') if u.find_spec(n)])"
    assert plain_environment.run(python, tmp_path, "-c", without) == "[]\n"


def test_both_asymmetric_models_load_with_sentence_transformers_alone(made: Made, tmp_path: Path) -> None:
    python = plain_environment.make(tmp_path / "venv", "sentence-transformers")
    script = f"""
import importlib.util, sys
assert not [n for n in ("pipeline", "onnxruntime", "polars", "zarr") if importlib.util.find_spec(n)]
from sentence_transformers import SentenceTransformer
import numpy
inside = SentenceTransformer({str(made.model("asymmetric"))!r}, device="cpu")
sys.path.insert(0, {str(made.model("asymmetric-named"))!r})
from asymmetric import load
named = load(teacher={made.teacher.model!r}, device="cpu")
for task in ("encode_query", "encode_document"):
    first, second = (getattr(model, task)(["the file of a list", "sort"]) for model in (inside, named))
    assert first.shape == (2, 32) and abs(first - second).max() < 1e-5, abs(first - second).max()
print("loaded")
"""
    assert plain_environment.run(python, tmp_path, "-c", script).endswith("loaded\n")


def test_the_named_variant_holds_no_teacher_and_refuses_another_one(made: Made, tmp_path: Path) -> None:
    assert json.loads((made.model("asymmetric-named") / "teacher.json").read_text())["model"] == "lab/teacher"
    weights = sum(path.stat().st_size for path in made.model("asymmetric-named").rglob("*.safetensors"))
    assert weights == sum(path.stat().st_size for path in made.student.rglob("*.safetensors"))
    spec = importlib.util.spec_from_file_location(
        "asymmetric_beside_the_model", made.model("asymmetric-named") / "asymmetric.py"
    )
    assert spec is not None and spec.loader is not None
    loader = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loader)
    with pytest.raises(ValueError, match="is not the teacher of this student"):
        loader.load(teacher=str(make_model(tmp_path / "stranger", seed=9)), device="cpu")


@pytest.mark.parametrize(
    "name", ["cards/student.md", "asymmetric/README.md", "asymmetric-named/README.md", "onnx/README.md"]
)
def test_cards_tell_the_hub_licence_base_model_and_results(made: Made, name: str) -> None:
    card = ModelCard.load(made.root / "models" / name)
    assert card.data.license == "apache-2.0"
    assert card.data.base_model == ["lab/teacher"]
    results = card.data.eval_results
    assert {result.metric_type: result.metric_value for result in results}["cosine_ndcg@10"] == 0.5
    assert {result.dataset_name for result in results} == {"tiny"}
    text = (made.root / "models" / name).read_text()
    assert "| tiny | asymmetric | 0.5000 | 0.4000 to 0.6000 |" in text
    assert str(made.root) not in text


def test_the_students_card_names_the_teacher_by_its_hub_id_where_fit_named_its_directory(made: Made) -> None:
    wrote, text = (made.student / "README.md").read_text(), (made.model("cards") / "student.md").read_text()
    phrases = ("# A student of {}\n", "**{}**: its", "| teacher | {} |", 'SentenceTransformer("{}")')
    for phrase in phrases:
        assert phrase.format("teacher") in wrote and phrase.format("lab/teacher") in text
    assert text.count("lab/teacher") == len(phrases) + 2  # and base model and name in the front matter
    assert "the\nteacher's. It was fitted to the teacher's stored vectors" in text


def test_fits_card_tells_no_place_on_the_machine(made: Made) -> None:
    meta = Store.open(made.root / "embeddings").meta
    meta = replace(meta, teacher={**meta.teacher, "model": "/home/alice/served"}, license="CC-BY-NC-4.0")
    params = FitParams(StudentParams(model="/home/alice/checkpoint"))
    student = Student.load(made.student)
    card = write_card(meta, made.root / "corpus", params, FITTED, student)
    assert "alice" not in card
    assert "| licence of the teacher's vectors | CC-BY-NC-4.0 |" in card
    assert '"model": "checkpoint"' in card and '"model": "served"' in card
    assert '"model": "lab/small"' in write_card(
        meta, made.root / "corpus", FitParams(StudentParams(model="lab/small")), FITTED, student
    )


def test_no_card_has_code_that_loads_a_model_of_a_package_or_calls_the_teacher_the_teacher(made: Made) -> None:
    meta = Store.open(made.root / "embeddings").meta
    meta = replace(meta, teacher={**meta.teacher, "model": "package:tiny/model"})
    params, student = FitParams(StudentParams(model="lab/small")), Student.load(made.student)
    card = write_card(meta, made.root / "corpus", params, FITTED, student)
    assert 'SentenceTransformer("path/to/the/teacher")' in card and 'SentenceTransformer("package:' not in card
    unknown = origin_of(ExportParams(), "package:tiny/model", "c/d", (made.root, None), {}, vectors_license=None)
    assert unknown.teacher_name == "package:tiny/model"
    known = replace(unknown, teacher="lab/teacher")
    assert 'SentenceTransformer("lab/teacher")' in student_card(card, known, "package:tiny/model")
    for name, title in (("asymmetric", "asymmetric"), ("onnx", "ONNX")):
        text = (made.model(name) / "README.md").read_text()
        assert (
            f"\n# A student of lab/teacher, {title}\n" in text and f"- name: A student of lab/teacher, {title}" in text
        )


@pytest.mark.usefixtures("capsys")  # which keeps progress bars in memory: pytest's own file is limited too
def test_a_model_that_the_disk_does_not_take_is_one_message(made: Made, tmp_path: Path) -> None:
    exporters: list[Exporter] = [RouterExporter(), NamedRouterExporter()]
    for exporter in exporters:
        message = rf"{exporter.directory}: cannot be written \(.*File too large.*run again"
        with file_size(1000), pytest.raises(LeafError, match=message):
            _export(made, tmp_path, exporters=[exporter])
    assert list(tmp_path.iterdir()) == []


def test_the_licence_is_inherited_only_where_both_models_and_the_vectors_agree(tmp_path: Path) -> None:
    licenses = {"apache": "apache-2.0", "mit": "mit", "none": None}
    for name, license_name in licenses.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "README.md").write_text(f"---\nlicense: {license_name or '[1]'}\n---\n")
    assert license_of(tmp_path / "none") is None
    assert license_of(tmp_path / "missing") is None

    def inherited(teacher: str, checkpoint: str, vectors: str | None = None, **params: Any) -> str | None:
        directories = (tmp_path / teacher, tmp_path / checkpoint)
        return origin_of(ExportParams(**params), "a/b", "c/d", directories, {}, vectors_license=vectors).license

    assert inherited("apache", "apache") == "apache-2.0"
    assert inherited("apache", "mit") == "other"
    assert inherited("apache", "none") is None
    assert inherited("apache", "apache", "Apache-2.0") == "apache-2.0"
    assert inherited("apache", "apache", "CC-BY-NC-4.0") == "other"
    assert inherited("apache", "mit", license="cc-by-4.0") == "cc-by-4.0"


def test_a_store_of_another_teacher_is_refused(made: Made, tmp_path: Path) -> None:
    other = replace(made.teacher, model=str(make_model(tmp_path / "other", seed=5)))
    with pytest.raises(LeafError, match="describes another teacher"):
        _export(made, tmp_path / "models", teacher=other)
    assert not list((tmp_path / "models").iterdir())
    narrow = replace(made.teacher, model=str(make_model(tmp_path / "narrow", width=16)))
    with pytest.raises(LeafError, match="32 dimensions"):
        _export(made, tmp_path / "models", teacher=narrow)


def test_a_missing_student_is_one_message(made: Made, tmp_path: Path) -> None:
    params = tmp_path / "params.yaml"
    sections = {"export": {}, "teacher": {"model": made.teacher.model}}
    params.write_text(yaml.safe_dump(sections | {"fit": {"student": {"model": made.checkpoint.model}}}))
    arguments = ["--params", params, "--corpus", made.root / "corpus", "--embeddings", made.root / "embeddings"]
    result = CliRunner().invoke(stages.export.main, [*map(str, arguments), "--model", str(tmp_path / "none")])
    assert result.exit_code == 1
    assert "run the fit stage first" in result.output


def test_damaged_graphs_and_missing_ones_are_one_message(made: Made, tmp_path: Path) -> None:
    with pytest.raises(LeafError, match="run the export stage first"):
        OnnxEncoder(tmp_path)
    copy = Path(shutil.copytree(made.model("onnx"), tmp_path / "copy"))
    graph = copy / "onnx" / "model.onnx"
    graph.write_bytes(graph.read_bytes()[:1000])
    with pytest.raises(LeafError, match="run the export stage again"):
        OnnxEncoder(copy, "float32")


def _export(made: Made, out: Path, **changes: Any) -> dict[str, Any]:
    arguments = {"teacher": made.teacher, "checkpoint": made.checkpoint, "params": PARAMS, **changes}
    arguments["teacher"] = open_teacher(arguments["teacher"], EncodeParams())
    return export(made.root / "corpus", Store.open(made.root / "embeddings"), made.student, out, **arguments)
