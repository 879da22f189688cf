"""What accelerators do differently, on a CPU: texts padded to a few lengths, and steps that are replayed."""

import copy
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from click.testing import CliRunner
from sentence_transformers import SentenceTransformer
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pipeline.base.arrays import cosines
from pipeline.fit.loader import Position, TrainingBatch
from pipeline.fit.step import PackedStep, PaddedStep, padded_length
from pipeline.fit.trainer import fit
from pipeline.model import device as devices
from pipeline.model import parallel
from pipeline.model.backbones.packed import PackedBackbone
from pipeline.model.batch import Batch, pack, pad
from pipeline.model.parallel import in_threads
from pipeline.model.pooling import Pooling
from pipeline.model.student import Student, StudentEncoder, build
from pipeline.params.file import load_section
from pipeline.params.sections import EncodeParams, FitParams, StudentParams, TeacherParams
from pipeline.store.store import Store
from pipeline.teacher import local
from pipeline.teacher.local import LocalTeacher
from stages.encode import main as encode_stage
from tests.conftest import ROOT, make_model, sentence

TEXTS = [[5, 6, 7], [8, 9], [10, 11, 12, 13, 14], [5, 6, 7], [20], [21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31]]
MODES: tuple[Pooling, ...] = ("mean", "cls", "lasttoken", "max", "mean_sqrt_len_tokens", "weightedmean")
Run = Callable[[], None]


@pytest.fixture
def as_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU is treated as an accelerator that can record nothing."""
    monkeypatch.setitem(devices.TRAITS, "cpu", devices.traits_of(torch.device("xpu")))


@pytest.fixture(scope="module", params=["bert", "mpnet"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("accelerator") / request.param, width=16, family=request.param)


@pytest.fixture
def student(checkpoint: Path) -> Student:
    return build(StudentParams(str(checkpoint)), 8, True)


def padded(texts: Sequence[Sequence[int]], length: int) -> Batch:
    return Batch.padded(*pad(pack(texts), len(texts), length))


def test_padded_texts_have_the_features_and_gradients_of_texts_without_padding(student: Student) -> None:
    backbone = PackedBackbone(student.backbone.model, MODES)
    results = []
    for batch in (pack(TEXTS), padded(TEXTS, 16)):
        backbone.zero_grad()
        features = backbone.features(batch)
        (features * torch.linspace(-1, 1, features.shape[1])).square().sum().backward()  # type: ignore[no-untyped-call]
        results.append([features.detach(), *(p.grad for p in backbone.parameters() if p.grad is not None)])
    assert results[0][0].shape == (len(TEXTS), len(MODES) * 16)
    for ours, expected in zip(*reversed(results), strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(results[1][0], results[0][0], atol=1e-5, rtol=1e-5)


def test_there_are_few_padded_lengths_and_none_is_much_longer_than_the_text() -> None:
    found = {padded_length(longest, 500) for longest in range(1, 501)}
    assert sorted(found) == [8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 500]
    assert all(longest <= padded_length(longest, 500) <= max(16, 1.5 * longest) for longest in range(1, 501))


def batches(count: int, size: int, seed: int = 0) -> list[TrainingBatch]:
    """Training batches of random texts, shortest first as the loader gives them; the last one is not full."""
    random = np.random.default_rng(seed)
    made = []
    for number in range(count):
        texts = size if number + 1 < count else size // 2 + 1
        lengths = np.sort(random.integers(1, random.integers(2, 40), texts))
        targets = torch.nn.functional.normalize(torch.from_numpy(random.normal(size=(texts, 8))).float(), dim=1)
        ids = [random.integers(5, 40, length) for length in lengths]
        made.append(TrainingBatch(Position(0, number), Position(0, number + 1), pack(ids), targets))
    return made


def trained(step: Any, steps: int = 24, size: int = 8) -> tuple[dict[str, Tensor], list[float]]:
    """Weights after some steps, and the loss of each."""
    torch.manual_seed(3)
    losses = [
        float(step.run(step.prepare(batch), 1e-3 * (1 + number % 3)))
        for number, batch in enumerate(batches(steps, size))
    ]
    return {name: value.clone() for name, value in step.student.state_dict().items()}, losses


def assert_equal_weights(ours: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """But for the biases of keys, whose gradient is rounding alone: they move all scores of a softmax alike."""
    for name, value in expected.items():
        if not name.endswith(("key.bias", "k.bias")):
            assert torch.allclose(ours[name], value, atol=2e-4, rtol=1e-3), name


def params(checkpoint: Path, **changes: Any) -> FitParams:
    settings: dict[str, Any] = {"batch_size": 8, "clip_norm": 0.5, "dropout": 0.0} | changes
    return FitParams(StudentParams(str(checkpoint)), **settings)


@pytest.mark.parametrize("loss", ["l2", "mse", "cosine"])
def test_a_padded_step_changes_the_weights_as_the_packed_one_does(
    student: Student, checkpoint: Path, loss: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = params(checkpoint, loss=loss)
    weights, losses = trained(PackedStep(copy.deepcopy(student), settings, torch.float32))
    ours, own_losses = trained(PaddedStep(copy.deepcopy(student), settings, torch.float32, lambda run: run))
    assert own_losses == pytest.approx(losses, rel=1e-4)
    assert_equal_weights(ours, weights)

    # Too large for one pass: the gradients of parts add up to the same.
    monkeypatch.setitem(devices.TRAITS, "cpu", replace(devices.TRAITS["cpu"], fit_tokens=60))
    parts, _ = trained(PaddedStep(copy.deepcopy(student), settings, torch.float32, lambda run: run))
    assert_equal_weights(parts, weights)


class Recording(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records the operations of a function, and repeats them on the same memory, as a graph of kernels would."""

    WAITS = ("_local_scalar_dense", "nonzero", "_unique", "unique", "masked_select", "is_nonzero", "equal")

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations: list[tuple[Any, ...]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        assert not name.startswith(self.WAITS), f"{name} waits for the device"
        result = func(*args, **(kwargs or {}))
        self.operations.append((func, args, kwargs or {}, result))
        return result

    @torch.no_grad()
    def replay(self) -> None:
        for func, args, kwargs, result in self.operations:
            pairs = zip(tree_leaves(result), tree_leaves(func(*args, **kwargs)), strict=True)
            for recorded, again in pairs:
                if isinstance(recorded, Tensor) and recorded.data_ptr() != again.data_ptr():
                    recorded.copy_(again)


def recorder(run: Run) -> Run:
    """Like `Graphs.recorded`: the first call runs, the second is recorded, all later ones are replayed."""
    calls = 0
    recording = Recording()

    def call() -> None:
        nonlocal calls
        calls += 1
        if calls > 2:
            return recording.replay()
        if calls == 2:
            with recording:
                return run()
        return run()

    return call


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_a_step_can_be_replayed_from_what_it_did_before(student: Student, checkpoint: Path, dropout: float) -> None:
    """Nothing in it waits for the device or depends on what the host knows of a batch; its memory stays in place."""
    student.backbone.set_dropout(dropout)
    results = [
        trained(PaddedStep(copy.deepcopy(student), params(checkpoint), torch.float32, recorder=kind))
        for kind in (lambda run: run, recorder)
    ]
    assert results[0][1] == results[1][1]
    for name, expected in results[0][0].items():
        assert torch.equal(results[1][0][name], expected), name


def test_a_fit_on_an_accelerator_that_is_killed_ends_with_the_weights_of_one_that_is_not(
    as_accelerator: None,
    tiny_corpus: Path,
    write_params: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    file = write_params(fit={"checkpoint_every": 6, "max_steps": 40, "batch_size": 16})
    arguments = ["--params", str(file), "--corpus", str(tiny_corpus), "--out", "store", "--metrics", "encode.json"]
    encoded = CliRunner().invoke(encode_stage, arguments)
    assert encoded.exit_code == 0, encoded.output
    settings, store = load_section(file, "fit", FitParams), Store.open(tmp_path / "store")
    whole = fit(tiny_corpus, store, settings, tmp_path / "whole", tmp_path / "work-whole")
    assert whole.metrics["steps"] == 40

    run, steps = PaddedStep.run, iter(range(20))
    monkeypatch.setattr(PaddedStep, "run", lambda *given, **named: (next(steps), run(*given, **named))[1])
    with pytest.raises(StopIteration):
        fit(tiny_corpus, store, settings, tmp_path / "torn", tmp_path / "work-torn")
    monkeypatch.setattr(PaddedStep, "run", run)
    torn = fit(tiny_corpus, store, settings, tmp_path / "torn", tmp_path / "work-torn")
    assert torn.curve == whole.curve
    for name in ("model.safetensors", "2_Dense/model.safetensors"):
        assert (tmp_path / "torn" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.parametrize("threads", [1, 3])
def test_texts_that_are_tokenised_on_several_threads_keep_their_order(threads: int) -> None:
    began: list[int] = []

    def run(item: int) -> int:
        began.append(item)
        time.sleep(0.002 * (item % 3))
        if item == 30:
            raise ValueError("item 30")
        return item * item

    assert list(in_threads(run, iter(range(20)), threads)) == [item * item for item in range(20)]
    assert began[0] == 0
    with pytest.raises(ValueError, match="item 30"):
        list(in_threads(run, range(25, 35), threads))
    assert list(in_threads(run, [], threads)) == []


@pytest.mark.parametrize("kind, order", [("cpu", "fwfwfw"), ("xpu", "ffwfww")])
def test_an_accelerator_has_its_next_batch_before_vectors_are_waited_for(
    kind: str, order: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    happened: list[str] = []
    monkeypatch.setattr(parallel, "worker_count", lambda device: 1)

    def download(tensor: Tensor) -> Callable[[], Tensor]:
        def wait() -> Tensor:
            happened.append("w")
            return tensor

        return wait

    monkeypatch.setattr(parallel, "download", download)

    def forward(ids: list[Sequence[int]]) -> Tensor:
        happened.append("f")
        return torch.tensor([[float(sum(text))] for text in ids])

    ids = [[5, 6, 7], [8, 9, 10], [11, 12, 13]]
    parts = parallel.vectors_in_parts(forward, ids, 3, torch.device(kind))
    assert {int(row): vectors[0, 0] for (row,), vectors in parts} == {0: 18, 1: 27, 2: 36}
    assert "".join(happened) == order


def test_the_device_is_the_accelerator_that_pytorch_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: torch.device("mps"))
    assert devices.best_device().type == "mps"
    assert not devices.traits_of(devices.best_device()).packed
    assert not devices.bf16_is_fast(devices.best_device())
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: None)
    assert devices.best_device().type == "cpu"


def test_encoding_on_an_accelerator_gives_the_same_vectors(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [sentence(number) for number in range(150)]
    rows = pl.DataFrame({"text": texts, "role": ["query", "document"] * 75})
    on_cpu = LocalTeacher(TeacherParams(str(checkpoint)), EncodeParams()).vectors(rows)
    monkeypatch.setitem(devices.TRAITS, "cpu", devices.traits_of(torch.device("xpu")))
    monkeypatch.setattr(local, "TOKENIZE_ROWS", 20)
    for budget in (None, 100):  # all texts, which differ too much in length to be padded; few at a time, which do not
        ours = LocalTeacher(TeacherParams(str(checkpoint)), EncodeParams(token_budget=budget)).vectors(rows)
        assert cosines(ours, on_cpu).min() > 0.9995


WITHOUT_BFLOAT16 = """
from pipeline.model import bf16_is_fast
from pipeline.teacher import local
from pipeline.teacher.local import LocalTeacher
from stages.encode import main as encode
from stages.fit import main as fit

assert not bf16_is_fast()
places = ["--params", "params.yaml", "--corpus", "corpus"]
encode([*places, "--out", "store", "--metrics", "encode.json"], standalone_mode=False)
arguments = ["--embeddings", "store", "--out", "student", "--metrics", "fit.json", "--curve", "curve.csv"]
fit([*places, *arguments], standalone_mode=False)
"""


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="the variables are those of x86 processors")
def test_a_processor_without_bfloat16_encodes_and_fits_in_float32(
    tiny_corpus: Path, write_params: Callable[..., Path], tiny_teacher: Path, tmp_path: Path
) -> None:
    changes = {"max_steps": 12, "dropout": 0.0}
    file = write_params(fit=changes)
    older = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", WITHOUT_BFLOAT16]
    done = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, **older}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr

    texts = pl.read_parquet(tiny_corpus)
    store = Store.open(tmp_path / "store")
    stored = store.lookup(texts["key"].to_list()).astype(np.float32)
    reference = SentenceTransformer(str(tiny_teacher), device="cpu").encode(texts["text"].to_list())
    assert cosines(stored, reference).min() > 1 - 1e-6

    settings = load_section(file, "fit", FitParams)
    here = fit(tiny_corpus, store, replace(settings, precision="float32"), tmp_path / "here", tmp_path / "work")
    sample = texts["text"].to_list()[:50]
    students = [StudentEncoder.load(tmp_path / name).student.eval() for name in ("student", "here")]
    batch = pack([encoding.ids for encoding in students[0].tokenizer().encode_batch(sample)])
    with torch.no_grad():
        ours, expected = (student(batch).numpy() for student in students)
    assert here.metrics["steps"] == 12
    assert cosines(ours, expected).min() > 1 - 1e-5
