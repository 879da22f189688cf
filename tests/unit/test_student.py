"""The student: built from a checkpoint, started by ridge regression, saved so that sentence-transformers reads it."""

import json
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from tokenizers import Tokenizer, models

from pipeline.base.errors import LeafError
from pipeline.fit import head as heads
from pipeline.fit.losses import LOSSES
from pipeline.fit.optimiser import learning_rate, total_steps
from pipeline.model.batch import pack
from pipeline.model.model_files import checkpoint_digest, model_sha256
from pipeline.model.student import Student, StudentEncoder, build, model_directory, untouched
from pipeline.params.sections import FitParams, StudentParams
from tests.conftest import make_model, sentence

TEXTS = [sentence(number) for number in range(60)]


@contextmanager
def file_size(most: int) -> Iterator[None]:
    """No file may grow beyond `most` bytes, as on a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def copy_of(model: Path, folder: Path) -> Path:
    return Path(shutil.copytree(model, folder / "copy"))


def test_sentence_transformers_reads_a_saved_student_and_gives_its_vectors(tiny_student: Path, tmp_path: Path) -> None:
    for normalize in (True, False):
        student = build(StudentParams(model=str(tiny_student)), dim=24, normalize=normalize).eval()
        student.save(tmp_path / "student", "a card")
        plain = SentenceTransformer(str(tmp_path / "student"), device="cpu")
        ours = StudentEncoder.load(tmp_path / "student").encode(TEXTS)
        theirs = plain.encode(TEXTS)
        assert ours.shape == theirs.shape == (60, 24)
        cosines = (ours * theirs).sum(1) / np.linalg.norm(ours, axis=1) / np.linalg.norm(theirs, axis=1)
        assert cosines.min() > 0.999  # bfloat16 against float32
        if normalize:
            np.testing.assert_allclose(np.linalg.norm(theirs, axis=1), 1, atol=1e-5)
        token_ids = [e.ids for e in student.tokenizer().encode_batch_fast(TEXTS)]
        with torch.no_grad():
            np.testing.assert_allclose(student(pack(token_ids)).numpy(), theirs, atol=1e-4)
    assert plain.similarity_fn_name == "cosine"
    assert not any(plain.prompts.values())
    assert (tmp_path / "student" / "README.md").read_text() == "a card"
    assert [path.name for path in tmp_path.iterdir()] == ["student"]


def test_the_untouched_checkpoint_gives_the_vectors_of_its_own_model(tiny_student: Path) -> None:
    encoder = StudentEncoder(untouched(StudentParams(model=str(tiny_student), vocabulary="corpus")))
    texts = ["open the file", "sort this list by key and value"]
    expected = SentenceTransformer(str(tiny_student), device="cpu").encode(texts, normalize_embeddings=True)
    assert np.abs(encoder.encode(texts) - expected).max() < 0.02  # bfloat16 where the processor has it
    for params in (
        StudentParams(model=str(tiny_student), weights="random"),
        StudentParams(model=str(tiny_student), architecture="static"),
    ):
        with pytest.raises(LeafError, match=r"random weights|static student"):
            untouched(params)


def test_the_kept_layers_are_those_named(tmp_path: Path) -> None:
    checkpoint = make_model(tmp_path / "four", width=16, layers=4)
    stored = load_file(checkpoint / "model.safetensors")
    student = build(StudentParams(model=str(checkpoint), layers=(1, 3)), dim=8, normalize=True)
    for new, old in enumerate((1, 3)):
        name = "encoder.layer.{}.output.dense.weight"
        assert torch.equal(student.backbone.model.state_dict()[name.format(new)], stored[name.format(old)])
    student.save(tmp_path / "student")
    assert json.loads((tmp_path / "student" / "config.json").read_text())["num_hidden_layers"] == 2


@pytest.mark.parametrize("layers", [(), (4,), (-1,), (1, 1), (2, 0)])
def test_layers_that_do_not_exist_are_refused(tiny_student: Path, layers: tuple[int, ...]) -> None:
    with pytest.raises(LeafError, match=r"fit\.student\.layers: .* layers 0 to 1"):
        build(StudentParams(model=str(tiny_student), layers=layers), dim=8, normalize=True)


def test_impossible_lengths_and_heads_are_refused(tiny_student: Path, tmp_path: Path) -> None:
    with pytest.raises(LeafError, match=r"fit\.student\.max_length: 65 .* 64 positions"):
        build(StudentParams(model=str(tiny_student), max_length=65), dim=8, normalize=True)
    with pytest.raises(LeafError, match="0 dimensions"):
        build(StudentParams(model=str(tiny_student)), dim=0, normalize=True)
    build(StudentParams(model=str(tiny_student)), dim=8, normalize=True).save(tmp_path / "student")
    wide = torch.nn.Linear(17, 8)
    config = tmp_path / "student" / "2_Dense" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "in_features": 17}))
    save_file({"linear.weight": wide.weight.data, "linear.bias": wide.bias.data}, config.with_name("model.safetensors"))
    with pytest.raises(LeafError, match="takes 17 features, but the backbone gives 16"):
        Student.load(tmp_path / "student")


OTHERWISE: dict[str, tuple[str, dict[str, Any], str]] = {
    "activation": ("2_Dense", {"activation_function": "torch.nn.modules.activation.Tanh"}, "the activation Tanh"),
    "residual": ("2_Dense", {"use_residual": True}, "a residual"),
}


@pytest.mark.parametrize("name", OTHERWISE)
def test_a_model_that_computes_something_else_is_no_student(tiny_student: Path, tmp_path: Path, name: str) -> None:
    module, change, message = OTHERWISE[name]
    build(StudentParams(model=str(tiny_student)), dim=16, normalize=True).save(tmp_path / "student")
    Student.load(tmp_path / "student")
    config = tmp_path / "student" / module / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), **change}))
    with pytest.raises(LeafError, match=f"student: is not a student: it has {message}.*a linear head"):
        Student.load(tmp_path / "student")


def test_saving_draws_nothing_from_the_random_numbers_of_a_fit(tiny_student: Path, tmp_path: Path) -> None:
    student = build(StudentParams(model=str(tiny_student)), dim=8, normalize=True)
    before = torch.get_rng_state()
    student.save(tmp_path / "student")
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("most", [100, 1000])  # bytes of a file: the settings do not fit, or the weights
def test_a_student_that_the_disk_does_not_take_is_one_message(tiny_student: Path, tmp_path: Path, most: int) -> None:
    student = build(StudentParams(model=str(tiny_student)), dim=8, normalize=True)
    student.save(tmp_path / "student", "a card")
    with file_size(most), pytest.raises(LeafError, match=r"student: cannot be written \(.*File too large.*run again"):
        student.save(tmp_path / "student")
    assert [path.name for path in tmp_path.iterdir()] == ["student"]
    assert (tmp_path / "student" / "README.md").read_text() == "a card"


def test_a_tokenizer_that_the_disk_does_not_take_is_one_message(tmp_path: Path) -> None:
    message = r"student: cannot be written \(No space left on device.*run again"
    with pytest.raises(LeafError, match=message), model_directory(tmp_path / "student"):
        Tokenizer(models.WordLevel({"a": 0}, unk_token="a")).save("/dev/full")


@pytest.mark.parametrize("file", ["vocab.txt", "tokenizer.json", "config.json", "merges.txt", "1_Pooling/config.json"])
def test_every_file_that_decides_a_students_start_is_in_its_digest(
    file: str, tiny_student: Path, tmp_path: Path
) -> None:
    directory = Path(shutil.copytree(tiny_student, tmp_path / "copy"))
    before = checkpoint_digest(directory)
    (directory / "README.md").write_text("another card")
    assert checkpoint_digest(directory) == before
    changed = directory / file
    changed.write_text((changed.read_text(encoding="utf-8") if changed.exists() else "") + "\n", encoding="utf-8")
    assert checkpoint_digest(directory) != before


def test_weights_with_another_digest_are_not_loaded(tiny_student: Path) -> None:
    good = model_sha256(tiny_student)
    build(StudentParams(model=str(tiny_student), sha256=good), dim=8, normalize=True)
    with pytest.raises(LeafError, match=r"fit\.student\.sha256.*SHA-256"):
        build(StudentParams(model=str(tiny_student), sha256="0" * 64), dim=8, normalize=True)


def test_checkpoints_that_are_damaged_or_incomplete_are_refused(tiny_student: Path, tmp_path: Path) -> None:
    model = copy_of(tiny_student, tmp_path)
    weights = model / "model.safetensors"
    tensors = load_file(weights)
    save_file({k: v for k, v in tensors.items() if "layer.1." not in k}, weights, metadata={"format": "pt"})
    with pytest.raises(LeafError, match="lacks 16 of the weights"):
        build(StudentParams(model=str(model)), dim=8, normalize=True)
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(LeafError, match="cannot be loaded"):
        build(StudentParams(model=str(model)), dim=8, normalize=True)
    with pytest.raises(LeafError, match="no such directory"):
        build(StudentParams(model=str(tmp_path / "nowhere")), dim=8, normalize=True)


def test_a_directory_that_is_no_student_is_named(tiny_teacher: Path, tmp_path: Path) -> None:
    with pytest.raises(LeafError, match="run the fit stage"):
        Student.load(tmp_path)
    with pytest.raises(LeafError, match="is not a student: its modules are Transformer, Pooling, Normalize"):
        Student.load(tiny_teacher)


@pytest.mark.parametrize("bias", [True, False])
def test_the_ridge_solution_is_that_of_the_textbook(bias: bool) -> None:
    x, y = torch.randn(200, 5, generator=torch.Generator().manual_seed(0)), torch.randn(200, 3)
    y = x @ torch.randn(5, 3) + 0.1 * y + 2 * bias
    head = torch.nn.Linear(5, 3, bias=bias)
    heads.ridge([(x[:70], y[:70]), (x[70:], y[70:])], head, 0.0)
    columns = torch.cat([x, torch.ones(200, 1)], 1) if bias else x
    expected = torch.linalg.lstsq(columns, y).solution
    torch.testing.assert_close(head.weight.data.T, expected[:5], atol=1e-4, rtol=1e-4)
    if bias:
        torch.testing.assert_close(head.bias.data, expected[5], atol=1e-4, rtol=1e-4)
    heads.ridge([(x, y)], head, 1e6)
    assert head.weight.abs().max() < 1e-4


def test_a_head_that_nothing_determines_is_refused() -> None:
    with pytest.raises(LeafError, match=r"fit\.student\.ridge: 0 .* 3 texts with 5 features"):
        heads.ridge([(torch.zeros(3, 5), torch.randn(3, 2))], torch.nn.Linear(5, 2), 0.0)


@pytest.mark.parametrize("dim", [5, 9])
def test_the_rotation_keeps_angles_and_is_the_nearest(dim: int) -> None:
    generator = torch.Generator().manual_seed(0)
    planted = torch.linalg.qr(torch.randn(dim, dim, generator=generator)).Q[:5]
    x = torch.nn.functional.normalize(torch.randn(300, 5, generator=generator), dim=1)
    y = x @ planted + 0.05 * torch.randn(300, dim, generator=generator)
    head = torch.nn.Linear(5, dim)
    scale = 1 + torch.rand(300, 1, generator=generator)  # lengths must not count
    heads.rotation([(scale[:70] * x[:70], y[:70]), (scale[70:] * x[70:], y[70:])], head)
    weight = head.weight.data.T
    assert not head.bias.data.any()
    torch.testing.assert_close(weight, planted, atol=0.05, rtol=0)
    found = x @ weight
    torch.testing.assert_close(found @ found.T, x @ x.T, atol=1e-5, rtol=0)


def test_a_rotation_into_fewer_dimensions_is_refused() -> None:
    with pytest.raises(LeafError, match=r"fit\.student\.head: `rotation` cannot take 9 features into 5 dimensions"):
        heads.rotation([], torch.nn.Linear(9, 5))


def test_losses_are_what_their_names_say() -> None:
    vectors, targets = (
        torch.tensor([[3.0, 0.0], [0.0, 1.0]], requires_grad=True),
        torch.tensor([[0.0, 4.0], [0.0, 1.0]]),
    )
    assert LOSSES["l2"](vectors, targets).mean().item() == 2.5
    assert LOSSES["mse"](vectors, targets).mean().item() == 12.5
    assert LOSSES["cosine"](vectors, targets).mean().item() == pytest.approx(0.5)
    LOSSES["l2"](vectors, targets).sum().backward()  # type: ignore[no-untyped-call]
    assert vectors.grad is not None
    assert vectors.grad[1].tolist() == [0, 0]  # a perfect vector has no gradient, rather than NaN


def test_the_learning_rate_falls_and_restarts_with_each_cycle() -> None:
    student = StudentParams(model="x")
    params = FitParams(student, cycles=2, epochs_per_cycle=5, learning_rate=1.0, learning_rate_end=0.1, warmup_steps=2)
    rates = [learning_rate(step, 20, params) for step in range(20)]
    assert rates[0] == 0.5
    assert rates[9] == pytest.approx(0.1)
    assert rates[10] == 1.0
    assert rates[19] == pytest.approx(0.1)
    assert rates[2:10] == sorted(rates[2:10], reverse=True)
    assert total_steps(params, batches_per_epoch=7) == 70
    assert total_steps(FitParams(student, max_steps=12), batches_per_epoch=7) == 12
