"""Students of any family: run by transformers' own forward pass, fitted, interrupted, saved as plain models."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling as PoolingModule
from torch import Tensor

from pipeline.base.errors import LeafError
from pipeline.fit.trainer import FitResult, fit
from pipeline.model.backbones.packed import PackedBackbone
from pipeline.model.backbones.padded import PaddedBackbone
from pipeline.model.batch import pack
from pipeline.model.student import Student, StudentEncoder, build
from pipeline.params.file import load_section
from pipeline.params.parsing import parse
from pipeline.params.sections import FitParams, StudentParams, pooling_modes
from pipeline.store.store import Store
from tests.conftest import sentence
from tests.families import FAMILIES, LEFT, make_family
from tests.torn_fit import fitted_whole_and_torn

TEXTS = [sentence(number) for number in range(24)]
SHORT, LONG = [7, 9, 11], [number % 40 + 5 for number in range(40)]
Checkpoint = Callable[[str], Path]
PADDED = sorted(set(FAMILIES) - {"bert"})
DEPENDS_ON_PADDING = "funnel"  # it halves the text, padding and all


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """The directory of a family's checkpoint, made once."""
    made: dict[str, Path] = {}

    def of(family: str) -> Path:
        if family not in made:
            made[family] = make_family(tmp_path_factory.mktemp("families") / family, family)
        return made[family]

    return of


def student_of(directory: Path, **params: Any) -> Student:
    return build(StudentParams(model=str(directory), **params), dim=24, normalize=True).eval()


def vectors(student: Student, texts: list[str]) -> np.ndarray:
    with torch.no_grad():
        found: np.ndarray = student(pack([e.ids for e in student.tokenizer().encode_batch_fast(texts)])).numpy()
    return found


def lowest_cosine(ours: np.ndarray, theirs: np.ndarray) -> float:
    return float((ours * theirs).sum(1).min())


@pytest.mark.parametrize("family", PADDED)
def test_a_saved_student_gives_its_vectors_wherever_it_is_loaded(
    family: str, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    student = student_of(checkpoint(family))
    student.save(tmp_path / "student")
    ours = vectors(student, TEXTS)
    assert lowest_cosine(ours, np.roll(ours, 1, axis=0)) < 0.95  # texts differ, so that agreement says something
    plain = SentenceTransformer(str(tmp_path / "student"), device="cpu")
    for length in (1, 24):
        if length == 1 or family != DEPENDS_ON_PADDING:
            assert lowest_cosine(ours, plain.encode(TEXTS, batch_size=length)) > 0.9999
    np.testing.assert_array_equal(ours, vectors(Student.load(tmp_path / "student"), TEXTS))
    in_bf16 = lowest_cosine(ours, StudentEncoder.load(tmp_path / "student").encode(TEXTS))
    assert in_bf16 > (0.99 if family != DEPENDS_ON_PADDING else 0.9)


@pytest.mark.parametrize("family", PADDED)
def test_a_texts_features_do_not_depend_on_its_neighbours(family: str, checkpoint: Checkpoint) -> None:
    backbone = student_of(checkpoint(family)).backbone
    with torch.no_grad():
        alone = [backbone.features(pack([text]))[0] for text in (LONG, SHORT)]
        together = backbone.features(pack([LONG, SHORT, SHORT, LONG[:20]]))
    torch.testing.assert_close(together[:2], torch.stack(alone), atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(together[2], alone[1], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("family", sorted(set(PADDED) - {DEPENDS_ON_PADDING}))
def test_the_features_have_the_gradients_of_the_models_own_forward(family: str, checkpoint: Checkpoint) -> None:
    student = student_of(checkpoint(family), pooling="mean")
    model, ids = student.backbone.model, torch.tensor([LONG])
    types = {"token_type_ids": torch.tensor([[0] * 39 + [2]])} if family == "xlnet" else {}
    model(input_ids=ids, **types).last_hidden_state.mean(1).square().sum().backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    features = student.features(pack([SHORT, LONG]))
    features[1].square().sum().backward()  # type: ignore[no-untyped-call]
    assert expected
    for name, gradient in expected.items():
        found = dict(model.named_parameters())[name].grad
        torch.testing.assert_close(found, gradient, atol=1e-4 * float(gradient.abs().max()) + 1e-6, rtol=1e-3)


@pytest.mark.parametrize("modes", ["cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken", "all"])
@pytest.mark.parametrize("kind", [PackedBackbone, PaddedBackbone])
def test_poolings_are_those_of_sentence_transformers(
    kind: type[PackedBackbone | PaddedBackbone], modes: str, checkpoint: Checkpoint
) -> None:
    names = pooling_modes("cls+max+mean+mean_sqrt_len_tokens+weightedmean+lasttoken" if modes == "all" else modes)
    model = student_of(checkpoint("bert")).backbone.model
    features = {"token_embeddings": model(input_ids=torch.tensor([LONG])).last_hidden_state}
    features["attention_mask"] = torch.ones(1, len(LONG), dtype=torch.int64)
    expected = PoolingModule(32, pooling_mode=list(names))(features)["sentence_embedding"]
    backbone = kind(model, names)
    assert backbone.width == 32 * len(names)
    torch.testing.assert_close(backbone.features(pack([SHORT, LONG]))[1:], expected, atol=1e-5, rtol=1e-4)


def test_the_pooling_is_the_parameters_else_the_checkpoints_else_that_of_its_kind(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    assert student_of(checkpoint("qwen3")).backbone.pooling == ("lasttoken",)
    assert student_of(checkpoint("gemma3")).backbone.pooling == ("mean",)  # this one reads in both directions
    student = student_of(checkpoint("distilbert"), pooling="mean+cls")
    assert (student.width, student.head.in_features) == (64, 64)
    student.save(tmp_path / "two")
    plain = SentenceTransformer(str(tmp_path / "two"), device="cpu")
    assert lowest_cosine(vectors(student, TEXTS), plain.encode(TEXTS)) > 0.9999
    assert student_of(tmp_path / "two").backbone.pooling == ("cls", "mean")
    assert student_of(tmp_path / "two", pooling="max").backbone.pooling == ("max",)


@pytest.mark.parametrize("pooling", ["average", "mean+mean", "mean,cls", ""])
def test_poolings_that_do_not_exist_are_refused(pooling: str) -> None:
    with pytest.raises(LeafError, match=r"fit\.student\.pooling: .* impossible; it must be cls, max, .*joined"):
        parse(StudentParams, "fit.student", {"model": "x", "pooling": pooling})


@pytest.mark.parametrize("family", sorted(set(PADDED) - {DEPENDS_ON_PADDING}))
def test_a_student_of_fewer_layers_is_saved_as_what_it_computes(
    family: str, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    student = student_of(checkpoint(family), layers=(0, 2))
    assert student.backbone.layers == 2
    whole = student_of(checkpoint(family))
    assert sum(p.numel() for p in student.parameters()) <= sum(p.numel() for p in whole.parameters())
    student.save(tmp_path / "student")
    plain = SentenceTransformer(str(tmp_path / "student"), device="cpu")
    assert lowest_cosine(vectors(student, TEXTS), plain.encode(TEXTS)) > 0.9999
    assert lowest_cosine(vectors(student, TEXTS), vectors(whole, TEXTS)) < 0.999


@pytest.mark.parametrize(("family", "layers"), [("modernbert", (1, 2)), ("t5", (1, 2)), ("funnel", (0,))])
def test_layers_that_no_configuration_could_describe_are_refused(
    family: str, layers: tuple[int, ...], checkpoint: Checkpoint
) -> None:
    with pytest.raises(LeafError, match=r"fit\.student\.layers: .* leave it out"):
        student_of(checkpoint(family), layers=layers)


@pytest.mark.parametrize("family", PADDED)
def test_dropout_is_everywhere_or_nowhere(family: str, checkpoint: Checkpoint) -> None:
    batch = pack([LONG])

    def features(share: float) -> list[Tensor]:
        params = StudentParams(model=str(checkpoint(family)))
        student = build(params, dim=8, normalize=True, dropout=share).train()
        return [student.features(batch, torch.bfloat16) for _ in range(2)]

    never, often = features(0.0), features(0.5)
    assert torch.equal(never[0], never[1])
    assert not torch.allclose(often[0], often[1])


def test_a_text_has_the_token_types_that_its_tokenizer_gives(checkpoint: Checkpoint) -> None:
    backbone: Any = student_of(checkpoint("xlnet")).backbone
    types = backbone._forward.token_types.like(torch.tensor([3, 5]), 5)
    assert types[0, :3].tolist() == [0, 0, 2]
    assert types[1].tolist() == [0, 0, 0, 0, 2]


def test_lengths_are_limited_by_the_position_table_or_must_be_given(checkpoint: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(
        LeafError, match=r"fit\.student\.max_length: 64 .* 62 positions"
    ):  # two precede the first token's
        student_of(checkpoint("xlm-roberta"), max_length=64)
    assert student_of(checkpoint("t5"), max_length=900).max_length == 900
    endless = make_family(tmp_path / "t5", "t5")
    settings = endless / "tokenizer_config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "model_max_length": int(1e30)}))
    with pytest.raises(LeafError, match=r"fit\.student\.max_length: missing; .*set it \(512, say\)"):
        student_of(endless)
    assert student_of(endless, max_length=30).max_length == 30


def test_a_tokenizer_of_python_code_is_refused_in_a_sentence(checkpoint: Checkpoint, tmp_path: Path) -> None:
    from transformers import AutoModel, ByT5Tokenizer

    AutoModel.from_pretrained(checkpoint("bert")).save_pretrained(tmp_path / "slow")
    slow: Any = ByT5Tokenizer
    slow().save_pretrained(tmp_path / "slow")
    with pytest.raises(LeafError, match=r"fit\.student\.model .*its tokenizer \(ByT5Tokenizer\) runs Python code"):
        student_of(tmp_path / "slow")


def test_the_files_are_those_that_version_5_reads(checkpoint: Checkpoint, tmp_path: Path) -> None:
    student_of(checkpoint("gpt2"), pooling="mean+lasttoken").save(tmp_path / "student")

    def settings(name: str) -> Any:
        return json.loads((tmp_path / "student" / name).read_text())

    kinds = ("Transformer", "Pooling", "Dense", "Normalize")
    assert [module["type"] for module in settings("modules.json")] == [
        f"sentence_transformers.models.{k}" for k in kinds
    ]
    pooling = settings("1_Pooling/config.json")
    assert pooling["word_embedding_dimension"] == 32
    assert [key for key, value in pooling.items() if value is True and key.startswith("pooling_mode_")] == [
        "pooling_mode_mean_tokens",
        "pooling_mode_lasttoken",
    ]
    assert set(settings("2_Dense/config.json")) == {"in_features", "out_features", "bias", "activation_function"}
    assert settings("sentence_bert_config.json") == {"max_seq_length": 48, "do_lower_case": False}
    tokenizer = settings("tokenizer_config.json")
    assert tokenizer["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert tokenizer["model_input_names"] == ["input_ids", "attention_mask"]


@pytest.mark.parametrize("family", LEFT)
def test_no_student_is_saved_with_padding_before_its_texts(family: str, checkpoint: Checkpoint, tmp_path: Path) -> None:
    student_of(checkpoint(family)).save(tmp_path / "student")
    assert json.loads((tmp_path / "student/tokenizer_config.json").read_text())["padding_side"] == "right"


def test_a_tokenizer_without_a_padding_token_is_saved_with_one(tmp_path: Path) -> None:
    settings = make_family(tmp_path / "gpt2", "gpt2") / "tokenizer_config.json"
    kept = {name: value for name, value in json.loads(settings.read_text()).items() if name != "pad_token"}
    settings.write_text(json.dumps(kept))
    student = student_of(tmp_path / "gpt2")
    student.save(tmp_path / "student")
    plain = SentenceTransformer(str(tmp_path / "student"), device="cpu")
    assert lowest_cosine(vectors(student, TEXTS), plain.encode(TEXTS)) > 0.9999


@pytest.mark.parametrize("family", ["t5", "qwen3", "modernbert"])  # the first has its token embeddings under two names
def test_a_fit_that_is_interrupted_continues_bit_for_bit(
    family: str,
    checkpoint: Checkpoint,
    tiny_store: Store,
    tiny_corpus: Path,
    write_params: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    student = {"model": str(checkpoint(family)), "pooling": "mean+lasttoken", "layers": [0, 1]}
    file = write_params(fit={"student": student, "max_steps": 80, "start_share": 0.1})
    params = load_section(file, "fit", FitParams)

    def fitted(name: str) -> FitResult:
        return fit(tiny_corpus, tiny_store, params, tmp_path / name / "student", tmp_path / name / "work")

    fitted_whole_and_torn(fitted, monkeypatch)
    for name in ("model.safetensors", "2_Dense/model.safetensors"):
        found, expected = (load_file(tmp_path / run / "student" / name) for run in ("torn", "whole"))
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[tensor], expected[tensor]) for tensor in expected)
    start = load_file(checkpoint(family) / "model.safetensors")
    trained = load_file(tmp_path / "whole/student/model.safetensors")
    assert not all(torch.equal(value, start[name]) for name, value in trained.items())
    card = (tmp_path / "torn/student/README.md").read_text()
    assert "| pooling | mean, last token |" in card
    assert ("with transformers 5" in card) == (family != "t5")  # its positions are all that version 4 would miss
