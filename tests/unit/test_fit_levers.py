"""What a fit may do beside plain regression: each formula on small numbers, and each in a fit that was interrupted."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from click.testing import CliRunner

from pipeline.base.errors import LeafError
from pipeline.fit.optimiser import learning_rate
from pipeline.fit.trainer import FitResult, fit
from pipeline.model.student import Student
from pipeline.params.sections import FitParams, StudentParams
from pipeline.store.shard import StoreMeta
from pipeline.store.shard_cache import ShardCache
from pipeline.store.store import Store
from stages.soup import main as soup_command
from tests.conftest import corpus_frame, make_model
from tests.torn_fit import torn

DIM = 24
STEPS = 24


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus of 300 texts in `corpus`, a checkpoint with 2 layers in `checkpoint`."""
    folder = tmp_path_factory.mktemp("levers")
    (folder / "corpus").mkdir()
    corpus_frame(300).write_parquet(folder / "corpus/part-00000.parquet")
    make_model(folder / "checkpoint", width=16, seed=1)
    return folder


def make_store(root: Path, name: str, dim: int = DIM, seed: int = 0) -> Store:
    """A store of vectors that a student can learn, in an order of its own, of a teacher of its own."""
    frame = pl.read_parquet(root / "corpus/*.parquet").sample(fraction=1, shuffle=True, seed=seed)
    rows = frame.select("key", "role", "id", "source", pl.lit(3, pl.Int32).alias("tokens"))
    words = sorted({word for text in frame["text"] for word in text.split()})
    counts = np.array([[text.split().count(word) for word in words] for text in frame["text"]], np.float32)
    vectors = counts @ np.random.default_rng(seed).normal(size=(len(words), dim)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    cache = ShardCache(root / f"pool-{name}", StoreMeta(f"{seed:064x}", {"model": name}, dim, "float16", True))
    for start in range(0, len(rows), 128):
        cache.write(rows[start : start + 128], vectors[start : start + 128])
    return cache.publish(root / name, set(frame["key"]))


@pytest.fixture(scope="module")
def store(root: Path) -> Store:
    return make_store(root, "store")


Fitted = Callable[..., FitResult]


@pytest.fixture
def fitted(root: Path, store: Store, tmp_path: Path) -> Fitted:
    """Fits a student and writes it to the directory `name` below `tmp_path`."""

    def run(name: str, student: dict[str, Any] | None = None, **given: Any) -> FitResult:
        settings = {"batch_size": 8, "dropout": 0.0, "max_steps": STEPS, "learning_rate": 2e-3} | given
        params = FitParams(StudentParams(str(root / "checkpoint"), **(student or {})), **settings)
        return fit(root / "corpus", store, params, tmp_path / name, tmp_path / f"work-{name}")

    return run


def weights(place: Path) -> dict[str, torch.Tensor]:
    return dict(Student.load(place).state_dict())


def test_schedules_fall_as_their_papers_draw_them() -> None:
    def rates(**given: Any) -> list[float]:
        params = FitParams(StudentParams("x"), cycles=1, learning_rate=1.0, learning_rate_end=0.0, **given)
        return [learning_rate(step, 11, params) for step in range(11)]

    assert rates(schedule="cosine") == pytest.approx([(1 + np.cos(np.pi * n / 10)) / 2 for n in range(11)])
    falling = rates(schedule="stable", decay_share=0.4)
    assert falling == pytest.approx([1, 1, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25, 0])
    assert rates(schedule="stable", decay_share=0.0) == [1.0] * 11
    assert rates() == pytest.approx([1 - n / 10 for n in range(11)])


def test_deeper_layers_keep_less_of_the_start(fitted: Fitted, tmp_path: Path) -> None:
    fitted("plain", snapshots=(0,))
    fitted("graded", start_share=0.2, start_share_first=0.8)
    start, end = (weights(tmp_path / name) for name in ("plain-snapshots/step-0", "plain"))
    for name, value in weights(tmp_path / "graded").items():
        share = 0.2 if name.startswith("head.") or ".layer.1." in name or ".pooler." in name else 0.8
        torch.testing.assert_close(value, torch.lerp(end[name], start[name], share), msg=name)


def test_the_last_points_of_a_run_are_averaged(fitted: Fitted, tmp_path: Path) -> None:
    fitted("plain", snapshots=(8, 16))
    fitted("mean", average_last=3, average_every=8)
    points = [weights(tmp_path / name) for name in ("plain-snapshots/step-8", "plain-snapshots/step-16", "plain")]
    for name, value in weights(tmp_path / "mean").items():
        torch.testing.assert_close(value, sum(point[name] for point in points) / 3, msg=name)


def test_a_soup_is_the_mean_of_students_of_one_shape(fitted: Fitted, tmp_path: Path) -> None:
    for seed in range(2):
        fitted(f"seed-{seed}", seed=seed)
    fitted("other", {"layers": (1,)})
    places = [str(tmp_path / name) for name in ("seed-0", "seed-1", "other", "soup")]
    done = CliRunner().invoke(soup_command, [*places[:2], "--out", places[3]])
    assert done.exit_code == 0, done.output
    first, second, mean = (weights(tmp_path / name) for name in ("seed-0", "seed-1", "soup"))
    for name, value in mean.items():
        torch.testing.assert_close(value, (first[name] + second[name]) / 2)
    assert (tmp_path / "soup/fitted_to.json").read_text() == (tmp_path / "seed-0/fitted_to.json").read_text()
    refused = CliRunner().invoke(soup_command, [places[0], places[2], "--out", places[3]])
    assert "other shapes of weights" in refused.output


def test_the_head_trains_first_and_frozen_layers_never(fitted: Fitted, tmp_path: Path) -> None:
    fitted("run", head_steps=8, frozen_layers=1, weight_decay=0.5, snapshots=(0, 8))
    start, middle, end = (weights(tmp_path / name) for name in ("run-snapshots/step-0", "run-snapshots/step-8", "run"))
    moved = [{name for name, value in later.items() if not torch.equal(value, start[name])} for later in (middle, end)]
    assert moved[0] == {"head.weight", "head.bias"}
    assert all(name.startswith("head.") or ".layer.1." in name for name in moved[1])
    assert len(moved[1]) > 10
    with pytest.raises(LeafError, match=r"fit\.frozen_layers: 2 is impossible; the student has 2 layers"):
        fitted("none", frozen_layers=2)


LEVERS: dict[str, dict[str, Any]] = {
    "weights": {
        "start_share": 0.1,
        "start_share_first": 0.5,
        "average_last": 3,
        "average_every": 6,
        "head_steps": 9,
        "schedule": "stable",
    },
    "frozen": {"frozen_layers": 1, "schedule": "cosine", "head_steps": 20},
}


@pytest.mark.parametrize("lever", LEVERS)
def test_a_fit_interrupted_with_any_lever_ends_with_the_same_weights(
    lever: str, fitted: Fitted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"dropout": 0.1, "max_steps": 40, "checkpoint_every": 4, "snapshots": (5,), **LEVERS[lever]}
    assert fitted("whole", **given).curve == torn(lambda name: fitted(name, **given), monkeypatch).curve
    for whole in sorted(tmp_path.glob("whole*/**/*.safetensors")):
        continued = tmp_path / str(whole.relative_to(tmp_path)).replace("whole", "torn")
        assert continued.read_bytes() == whole.read_bytes(), whole
