"""Students that are smaller by shape: tables of token vectors, the corpus's tokens alone, a configuration alone."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from tokenizers import Tokenizer

from pipeline.base import LeafError
from pipeline.fit import fit
from pipeline.fit.loader import pack_sorted
from pipeline.fit.token_cache import Tokens, token_counts
from pipeline.fit.trainer import FitResult
from pipeline.model import Student, StudentEncoder, build, pack
from pipeline.params import FitParams, StudentParams, load_section
from pipeline.store import Store
from tests.conftest import WORDS, sentence
from tests.torn_fit import fitted_whole_and_torn

TEXTS = [sentence(number) for number in range(40)]
SHORT = "the a of to"
SHAPES: dict[str, dict[str, Any]] = {
    "static": {"architecture": "static"},
    "corpus": {"vocabulary": "corpus"},
    "static, corpus": {"architecture": "static", "vocabulary": "corpus"},
    "random": {"weights": "random", "pooling": "mean+cls"},
    "static, random": {"architecture": "static", "weights": "random"},
}


def _counts_of_short(tokenizer: Tokenizer) -> np.ndarray:
    return np.bincount(tokenizer.encode(SHORT).ids)


def _student(model: Path, seed: int = 0, **settings: Any) -> Student:
    params = StudentParams(model=str(model), **settings)
    return build(params, dim=24, normalize=True, seed=seed, count_tokens=_counts_of_short).eval()


@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_saved_as_what_sentence_transformers_reads(shape: str, tiny_student: Path, tmp_path: Path) -> None:
    student = _student(tiny_student, **SHAPES[shape])
    student.save(tmp_path / "student")
    loaded = Student.load(tmp_path / "student")
    assert type(loaded.backbone) is type(student.backbone)
    expected = SentenceTransformer(str(tmp_path / "student"), device="cpu").encode(TEXTS)
    for encoder in (StudentEncoder(student), StudentEncoder(loaded)):
        vectors = encoder.encode(TEXTS)
        assert (vectors * expected).sum(1).min() > 0.999
        np.testing.assert_allclose(encoder.encode(TEXTS[:1])[0], vectors[0], atol=1e-2)
    assert student.max_length == loaded.max_length == 48


def test_a_table_starts_from_the_checkpoints_vectors_of_its_tokens(tiny_student: Path) -> None:
    table = _student(tiny_student, architecture="static").backbone.token_embeddings.weight.detach()
    transformer, pooling = list(SentenceTransformer(str(tiny_student), device="cpu"))[:2]
    words = torch.from_numpy(SentenceTransformer(modules=[transformer, pooling], device="cpu").encode(WORDS[:10]))
    table = table[5:15]  # the first five are special tokens
    assert torch.nn.functional.cosine_similarity(table, words).min() > 0.999
    shares = torch.tensor([WORDS[row] in SHORT.split() for row in range(10)]) / len(SHORT.split())
    expected = words.norm(dim=1) * 1e-3 / (1e-3 + shares)  # smooth inverse frequency
    torch.testing.assert_close(table.norm(dim=1), expected, rtol=0.01, atol=0)


def test_a_text_without_tokens_has_the_vector_that_the_library_gives_it(tiny_student: Path, tmp_path: Path) -> None:
    student = _student(tiny_student, architecture="static")
    student.save(tmp_path / "student")
    library = SentenceTransformer(str(tmp_path / "student"), device="cpu")
    for texts in (["", SHORT, " "], [""]):
        np.testing.assert_allclose(StudentEncoder(student).encode(texts), library.encode(texts), atol=1e-6)


def test_texts_without_tokens_stand_in_training_batches() -> None:
    ids, offsets = np.array([7, 8, 9, 7], dtype=np.uint16), np.array([0, 0, 0, 1, 4])
    tokens = Tokens(ids, offsets, np.zeros(4, "S16"), np.ones(4, bool))
    batch = next(pack_sorted(tokens, np.arange(4), np.array([4])))
    expected = pack([tokens[row] for row in range(4)], shortest=0)
    assert torch.equal(batch.ids, expected.ids)
    assert batch.length_groups == expected.length_groups == ((2, 0), (1, 1), (1, 3))


def test_a_table_reads_as_many_tokens_as_it_is_told(tiny_student: Path, tmp_path: Path) -> None:
    student = _student(tiny_student, architecture="static", max_length=4)
    student.save(tmp_path / "student")
    library = SentenceTransformer(str(tmp_path / "student"), device="cpu")
    longer = f"{SHORT} list number"
    for encode in (library.encode, StudentEncoder.load(tmp_path / "student").encode):
        short, long = encode([SHORT, longer])
        np.testing.assert_array_equal(short, long)


def test_only_tokens_of_training_texts_are_counted() -> None:
    texts = [[3, 5], [5, 9], [7], []]
    offsets = np.concatenate([[0], np.cumsum([len(text) for text in texts])])
    train = np.array([True, True, False, True])
    tokens = Tokens(np.concatenate(texts).astype(np.uint16), offsets, np.zeros(4, "S16"), train)
    assert token_counts(tokens).tolist() == [0, 0, 0, 1, 0, 2, 0, 0, 0, 1]


def test_tokens_that_no_text_uses_are_gone_from_table_and_tokenizer(tiny_student: Path) -> None:
    whole, cut = _student(tiny_student), _student(tiny_student, vocabulary="corpus")
    kept = len(SHORT.split()) + 5 + (WORDS.count("a") == 0)  # all words of SHORT, and the special tokens
    assert cut.backbone.token_embeddings.num_embeddings == cut.tokenizer().get_vocab_size() == kept
    assert whole.backbone.token_embeddings.num_embeddings == len(WORDS) + 5
    a, b = (student.features(pack([student.tokenizer().encode(SHORT).ids])) for student in (whole, cut))
    assert torch.equal(a, b)


def test_a_model_that_computes_other_vectors_without_the_other_tokens_is_refused(
    tiny_student: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.model import vocabulary

    cut = vocabulary._cut_table
    monkeypatch.setattr(vocabulary, "_cut_table", lambda model, kept: cut(model, [0, *kept[:-1]]))
    with pytest.raises(LeafError, match=r"fit\.student\.vocabulary: .* computes other vectors .* use `checkpoint`"):
        _student(tiny_student, vocabulary="corpus")


def test_a_configuration_is_enough_and_the_seed_decides_the_weights(tiny_student: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(tiny_student, bare, ignore=shutil.ignore_patterns("*.safetensors"))
    with pytest.raises(LeafError, match="holds no"):
        _student(bare)
    first, again, other = (_student(bare, seed=seed, weights="random") for seed in (1, 1, 2))
    for name, value in first.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])
    name = "encoder.layer.0.output.dense.weight"
    weights = [student.backbone.model.state_dict()[name] for student in (first, other)]
    assert not torch.equal(*weights)
    assert not torch.equal(weights[0], load_file(tiny_student / "model.safetensors")[name])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"architecture": "static", "layers": (0,)}, r"fit\.student\.layers: must be left out .* no layers"),
        ({"architecture": "static", "pooling": "cls"}, r"fit\.student\.pooling: `cls` is impossible"),
        ({"weights": "random", "sha256": "0" * 64}, r"fit\.student\.sha256: must be left out"),
    ],
)
def test_parameters_that_contradict_each_other_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(LeafError, match=message):
        StudentParams(model="any", **settings)


CARDS = {
    "static": "| architecture | a table of token vectors, 16 wide, and no layers |",
    "static, corpus": "of its tokens: those of the training texts, special tokens, characters and bytes |",
    "random": "(configuration and tokenizer; its weights began at random) |",
}


@pytest.mark.parametrize("shape", CARDS)
def test_a_fit_that_is_interrupted_continues_bit_for_bit(
    shape: str,
    tiny_store: Store,
    tiny_student: Path,
    tiny_corpus: Path,
    write_params: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    student = {"model": str(tiny_student), **SHAPES[shape]}
    params = load_section(write_params(fit={"student": student, "max_steps": 60}), "fit", FitParams)

    def fitted(name: str) -> FitResult:
        return fit(tiny_corpus, tiny_store, params, tmp_path / name / "student", tmp_path / name / "work")

    whole = fitted_whole_and_torn(fitted, monkeypatch)
    outputs = [tmp_path / run / "student" for run in ("torn", "whole")]
    files = sorted(path.relative_to(outputs[0]) for path in outputs[0].rglob("*") if path.is_file())
    assert all((outputs[0] / file).read_bytes() == (outputs[1] / file).read_bytes() for file in files)
    card = (outputs[0] / "README.md").read_text()
    assert CARDS[shape] in card
    backbone = json.loads((outputs[0] / "modules.json").read_text())[0]["path"]
    trained = load_file(outputs[0] / backbone / "model.safetensors")
    assert f"| parameters | {whole.metrics['parameters']:,} (" in card
    if "static" in shape:
        assert list(trained) == ["embedding.weight"]
