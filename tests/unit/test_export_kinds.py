"""Every kind of teacher goes into a Router that gives its stored vectors, every kind of student into an ONNX graph."""

import runpy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Router
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, StaticEmbedding, Transformer
from tokenizers import Tokenizer

from pipeline.base import LISTING, LeafError, cosines
from pipeline.encode import encode
from pipeline.export.exporter import Exporter
from pipeline.export.exporters import export
from pipeline.export.onnx_graph import OnnxExporter, write_graphs
from pipeline.export.router import NamedRouterExporter, RouterExporter
from pipeline.fit import fit
from pipeline.model import Student, build, pack
from pipeline.params import EncodeParams, ExportParams, FitParams, StudentParams, TeacherParams
from pipeline.params.sections import Prompts
from pipeline.serve import OnnxEncoder
from pipeline.store import Store
from pipeline.teacher import open_teacher
from tests.conftest import WORDS, corpus_frame, make_model, sentence
from tests.families import make_family
from tests.unit.test_teacher_kinds import configure, with_modules

TEXTS = [sentence(number) for number in range(12)] + ["file", " ".join(WORDS)]
PARAMS = ExportParams(speed_texts=0, bootstrap=0, rows=40)
MODULES = "config_sentence_transformers.json"


def normalised_in_the_middle(plain: Path, out: Path) -> Path:
    torch.manual_seed(0)
    return with_modules(out, plain, Normalize(), Dense(32, 16))


def normalised_twice(plain: Path, out: Path) -> Path:
    torch.manual_seed(0)
    return with_modules(out, plain, Normalize(), Dense(32, 16), Normalize())


def copied(plain: Path, out: Path) -> Path:
    return Path(shutil.copytree(plain, out))


def truncated(plain: Path, out: Path) -> Path:
    return configure(copied(plain, out), MODULES, truncate_dim=8)


def with_own_prompts(plain: Path, out: Path) -> Path:
    configure(copied(plain, out), "1_Pooling/config.json", include_prompt=False)
    return configure(out, MODULES, prompts={"query": "sort the ", "document": "open a file "})


def static(plain: Path, out: Path) -> Path:
    torch.manual_seed(0)
    module = StaticEmbedding(Tokenizer.from_file(str(plain / "tokenizer.json")), embedding_dim=24)
    SentenceTransformer(modules=[module], device="cpu").save(str(out))
    return out


def routed(plain: Path, out: Path) -> Path:
    model: Any = SentenceTransformer(str(plain), device="cpu")
    other: Any = SentenceTransformer(str(make_model(out.parent / "queries", seed=4)), device="cpu")
    router: Any = Router.for_query_document(list(other), list(model)[:2])
    SentenceTransformer(modules=[router, Normalize()], device="cpu").save(str(out))
    return out


def made_for_the_dot_product(plain: Path, out: Path) -> Path:
    return configure(with_modules(out, plain), MODULES, similarity_fn_name="dot")


def decoder_that_pads_on_the_left(plain: Path, out: Path) -> Path:
    transformer = Transformer(str(make_family(out.parent / "gpt2", "gpt2")))
    SentenceTransformer(modules=[transformer, Pooling(32, pooling_mode="lasttoken")], device="cpu").save(str(out))
    return out


def with_adapter(plain: Path, out: Path) -> Path:
    peft = pytest.importorskip("peft", reason="needs peft: pip install -e '.[peft]'")
    copied(plain, out)
    transformer: Any = next(iter(SentenceTransformer(str(plain), device="cpu")))
    torch.manual_seed(0)
    settings = peft.LoraConfig(r=4, target_modules=["query", "value"], init_lora_weights=False)
    adapted = peft.get_peft_model(transformer.auto_model, settings)
    adapted.peft_config["default"].base_model_name_or_path = str(plain)
    for file in ("model.safetensors", "config.json"):
        (out / file).unlink()
    adapted.save_pretrained(str(out))
    return out


KINDS: list[tuple[Callable[[Path, Path], Path], dict[str, Any]]] = [
    (copied, {"max_length": 8, "prompts": Prompts("", "the file ")}),
    (normalised_in_the_middle, {}),
    (normalised_in_the_middle, {"normalize": False}),
    (normalised_twice, {"normalize": False}),
    (truncated, {}),
    (copied, {"dim": 8, "normalize": False}),
    (with_own_prompts, {}),
    (static, {}),
    (routed, {"dim": 16}),
    (made_for_the_dot_product, {"normalize": False}),
    (made_for_the_dot_product, {}),
    (decoder_that_pads_on_the_left, {}),
    (with_adapter, {}),
]


def exported(teacher: TeacherParams, checkpoint: Path, root: Path, exporters: list[Exporter]) -> dict[str, Any]:
    """Encode the tiny corpus, make an untrained student, and export both below `root`."""
    settings = EncodeParams(pool=str(root / "pool"), token_budget=512, dtype="float32")
    opened = open_teacher(teacher, settings)
    (root / "corpus").mkdir()
    corpus_frame(60).write_parquet(root / "corpus" / "part-00000.parquet")
    encode(root / "corpus", opened, settings, root / "embeddings")
    store, student = Store.open(root / "embeddings"), StudentParams(str(checkpoint))
    meta = store.meta
    build(student, meta.dim, meta.normalized, similarity=meta.similarity).save(root / "student")
    return export(
        root / "corpus",
        store,
        root / "student",
        root,
        teacher=opened,
        checkpoint=student,
        params=PARAMS,
        exporters=exporters,
    )


@pytest.mark.parametrize(("kind", "params"), KINDS, ids=lambda value: getattr(value, "__name__", None))
def test_both_routers_give_the_stored_vectors_of_documents_and_the_students_of_queries(
    kind: Callable[[Path, Path], Path],
    params: dict[str, Any],
    tiny_teacher: Path,
    tiny_student: Path,
    tmp_path: Path,
) -> None:
    directory = kind(tiny_teacher, tmp_path / "teacher")
    teacher = TeacherParams(str(directory), **params)
    figures = exported(teacher, tiny_student, tmp_path, [RouterExporter(), NamedRouterExporter()])["asymmetric"]
    rows = pl.DataFrame({"role": ["document"] * len(TEXTS), "text": TEXTS})
    documents = open_teacher(teacher, EncodeParams()).vectors(rows)
    queries = SentenceTransformer(str(tmp_path / "student"), device="cpu").encode(TEXTS)
    inside = SentenceTransformer(str(tmp_path / "asymmetric"), device="cpu")
    named = runpy.run_path(str(tmp_path / "asymmetric-named" / "asymmetric.py"))["load"](str(directory), device="cpu")
    for model in (inside, named):
        found = np.asarray(model.encode_document(TEXTS))
        assert cosines(found, documents).min() > 0.999  # the teacher may compute in bfloat16
        np.testing.assert_allclose(np.linalg.norm(found, axis=1), np.linalg.norm(documents, axis=1), rtol=0.02)
        np.testing.assert_allclose(model.encode_query(TEXTS), queries, atol=1e-4)
        assert model.similarity_fn_name == Store.open(tmp_path / "embeddings").meta.similarity
    assert min(figures[name]["cosine"]["lowest"] for name in ("documents", "named_documents")) > 0.999
    assert sorted(file.name for file in (tmp_path / "asymmetric-named").iterdir()) == [
        LISTING,
        "README.md",
        "asymmetric.py",
        "student",
        "teacher.json",
    ]


def test_cards_and_models_say_what_vectors_are_compared_by(
    tiny_teacher: Path, tiny_student: Path, tmp_path: Path
) -> None:
    directory = made_for_the_dot_product(tiny_teacher, tmp_path / "teacher")
    for normalize, words in ((False, "compared by the dot product"), (True, "made for the dot product")):
        root = tmp_path / str(normalize)
        root.mkdir()
        exporters: list[Exporter] = [RouterExporter(), OnnxExporter()]
        figures = exported(TeacherParams(str(directory), normalize=normalize), tiny_student, root, exporters)
        for card in ("asymmetric", "onnx"):
            assert words in (root / card / "README.md").read_text()
        assert ("length" in figures["onnx"]["float32"]) is not normalize
        loaded: Any = SentenceTransformer(str(root / "student"), device="cpu")
        assert (
            loaded.similarity_fn_name == Student.load(root / "student").similarity == ("cosine" if normalize else "dot")
        )


def test_a_fit_hands_it_on_and_refuses_a_loss_that_leaves_lengths_open(
    tiny_teacher: Path, tiny_student: Path, tmp_path: Path
) -> None:
    directory = made_for_the_dot_product(tiny_teacher, tmp_path / "teacher")
    exported(TeacherParams(str(directory), normalize=False), tiny_student, tmp_path, [])
    store, student = Store.open(tmp_path / "embeddings"), StudentParams(str(tiny_student))
    with pytest.raises(LeafError, match=r"fit\.loss: `cosine` leaves the lengths"):
        fit(tmp_path / "corpus", store, FitParams(student, loss="cosine"), tmp_path / "fitted", tmp_path / "work")
    fit(tmp_path / "corpus", store, FitParams(student, max_steps=2), tmp_path / "fitted", tmp_path / "work")
    assert Student.load(tmp_path / "fitted").similarity == "dot"
    assert "compared by the dot product" in (tmp_path / "fitted" / "README.md").read_text()


def test_an_export_with_vectors_of_another_length_is_refused(
    tiny_teacher: Path, tiny_student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = made_for_the_dot_product(tiny_teacher, tmp_path / "teacher")
    scaled = OnnxEncoder.encode

    def longer(self: OnnxEncoder, *arguments: Any) -> np.ndarray:
        return 1.5 * scaled(self, *arguments)

    monkeypatch.setattr(OnnxEncoder, "encode", longer)
    with pytest.raises(LeafError, match=r"float32 model has a vector 1\.5000 times as long"):
        exported(TeacherParams(str(directory), normalize=False), tiny_student, tmp_path, [OnnxExporter()])
    assert not (tmp_path / "onnx").exists()


def test_a_router_that_is_saved_wrongly_is_refused(
    tiny_teacher: Path, tiny_student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    directory = with_modules(tmp_path / "teacher", tiny_teacher, Dense(32, 16))
    saved = Dense.save

    def without_weights(self: Any, path: str, *arguments: Any, **options: Any) -> None:
        saved(self, path, *arguments, **options)
        if "document" in path:
            saved(Dense(32, 16), path, *arguments, **options)

    monkeypatch.setattr(Dense, "save", without_weights)
    with pytest.raises(LeafError, match="describes another teacher"):
        exported(TeacherParams(str(directory)), tiny_student, tmp_path, [RouterExporter()])
    assert not (tmp_path / "asymmetric").exists()


def test_a_teacher_with_code_of_its_own_is_left_out(tiny_teacher: Path, tiny_student: Path, tmp_path: Path) -> None:
    teacher = TeacherParams(str(tiny_teacher), trust_remote_code=True, revision="0" * 40)
    figures = exported(teacher, tiny_student, tmp_path, [RouterExporter()])
    assert "runs code of its own" in figures["asymmetric"]["left_out"]
    assert {file.name for file in (tmp_path / "asymmetric").iterdir()} == {LISTING, "README.md"}


FAMILIES = ["modernbert", "deberta-v2", "t5", "xlnet", "gpt2", "qwen3", "gemma3"]
GRAPHS: list[tuple[str, dict[str, Any]]] = [
    ("bert", {"pooling": "cls+max+mean+mean_sqrt_len_tokens+weightedmean+lasttoken"}),
    ("bert", {"architecture": "static"}),
    *((family, {}) for family in FAMILIES),
]


@pytest.mark.parametrize(("family", "settings"), GRAPHS, ids=str)
def test_the_graph_of_any_student_gives_pytorchs_vectors(family: str, settings: dict[str, Any], tmp_path: Path) -> None:
    params = StudentParams(str(make_family(tmp_path / "checkpoint", family)), **settings)
    student = build(params, dim=24, normalize=False).eval()
    (tmp_path / "onnx").mkdir()
    assert write_graphs(student, tmp_path / "onnx") is None
    tokenizer = student.tokenizer()
    with torch.no_grad():
        expected = torch.cat([student(pack([tokenizer.encode(text).ids])) for text in TEXTS]).numpy()
    encoder = OnnxEncoder(tmp_path / "onnx", "float32")
    for vectors in (encoder.encode(TEXTS), np.concatenate([encoder.encode([text]) for text in TEXTS])):
        np.testing.assert_allclose(vectors, expected, rtol=1e-3, atol=1e-3 * expected.std())


@pytest.mark.parametrize(
    ("family", "reason"), [("funnel", "onnxruntime cannot run it"), ("convbert", "how far a batch is padded")]
)
def test_a_family_without_a_right_graph_is_left_out_with_the_reason(
    family: str, reason: str, tiny_teacher: Path, tmp_path: Path
) -> None:
    checkpoint = make_family(tmp_path / "checkpoint", family)
    figures = exported(TeacherParams(str(tiny_teacher)), checkpoint, tmp_path, [OnnxExporter()])
    assert reason in figures["onnx"]["left_out"] and f"`{family}`" in figures["onnx"]["left_out"]
    assert {file.name for file in (tmp_path / "onnx").iterdir()} == {LISTING, "README.md"}
    with pytest.raises(LeafError, match=r"README\.md may say why"):
        OnnxEncoder(tmp_path / "onnx")
