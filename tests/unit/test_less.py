"""Vectors with fewer dimensions and fewer bits, and the verdicts on them."""

from dataclasses import replace

import numpy as np
import pytest

from pipeline.evaluate.bootstrap import verdict
from pipeline.evaluate.datasets import Dataset, PairedVectors
from pipeline.evaluate.profiles import profiles
from pipeline.evaluate.quantisation import Calibration, bytes_of, dequantised, quantisation, ranges
from pipeline.evaluate.truncation import truncation
from pipeline.params.sections import EvaluateParams

DIM, ROWS = 32, 120
PARAMS = EvaluateParams(bootstrap=200, dims=(64, 32, 8, 4))


def vectors(rows: int, seed: int, scale: np.ndarray | float = 1.0) -> np.ndarray:
    random = np.random.default_rng(seed).normal(size=(rows, DIM)) * scale
    unit: np.ndarray = (random / np.linalg.norm(random, axis=1, keepdims=True)).astype(np.float32)
    return unit


def dataset(noise: float = 0.1, scale: np.ndarray | float = 1.0) -> Dataset:
    """Queries near their document; the student's vectors are the teacher's with `noise`."""
    documents = vectors(ROWS, 0, scale)
    queries = documents + 0.7 * vectors(ROWS, 1, scale)
    student = [side + noise * vectors(ROWS, seed, scale) for seed, side in enumerate((queries, documents), 2)]
    judged = [{row: 1} for row in range(ROWS)]
    return Dataset("near", PairedVectors(queries, student[0]), PairedVectors(documents, student[1]), judged)


def test_a_student_that_equals_the_teacher_has_its_profile() -> None:
    figures = truncation(dataset(noise=0.0), PARAMS)
    assert list(figures["dims"]) == ["32", "8", "4"]
    assert figures["dims"]["4"]["teacher"]["share"] < figures["dims"]["8"]["teacher"]["share"] < 1
    for mode in ("standard", "asymmetric"):
        assert figures["largest"][mode]["mean"] == 0
        assert figures["largest"][mode]["verdict"] == "unresolved"


def test_dimensions_that_carry_all_the_variance_lose_nothing() -> None:
    scale = np.where(np.arange(DIM) < 8, 1.0, 1e-6)
    assert truncation(dataset(scale=scale), PARAMS)["dims"]["8"]["standard"]["share"] == pytest.approx(1)


def test_a_student_whose_first_dimensions_are_noise_does_not_follow() -> None:
    good = dataset(noise=0.0)
    broken = [side.copy() for side in (good.queries.student, good.documents.student)]
    for seed, side in enumerate(broken, 20):
        side[:, :8] = vectors(ROWS, seed)[:, :8]
    bad = replace(
        good,
        queries=PairedVectors(good.queries.teacher, broken[0]),
        documents=PairedVectors(good.documents.teacher, broken[1]),
    )
    largest = truncation(bad, PARAMS)["largest"]["standard"]
    assert largest["verdict"] == "lower"
    assert largest["interval"][1] < 0 and largest["at"] in ("8", "4")


def test_int8_codes_stand_for_values_within_half_a_step() -> None:
    sample = vectors(500, 3)
    limits = ranges(sample)
    steps = (limits[1] - limits[0]) / 255
    assert (np.abs(dequantised(sample, "int8", limits) - sample) <= steps * 0.51 + 1e-6).all()


def test_values_beyond_the_calibrated_ranges_stay_at_their_ends() -> None:
    limits = np.array([[-1.0, -1.0], [1.0, 1.0]], np.float32)
    far = np.array([[5.0, -5.0]], np.float32)
    assert dequantised(far, "int8", limits) == pytest.approx(np.array([[1.0, -1.0]]), abs=0.01)


@pytest.mark.parametrize("dim", [32, 12])
def test_binary_codes_are_signs_of_one_bit(dim: int) -> None:
    sample = vectors(20, 4)[:, :dim]
    assert (dequantised(sample, "binary", ranges(sample)) == np.where(sample > 0, 1, -1)).all()
    assert bytes_of("binary", dim) == -(-dim // 8)


def test_quantisation_names_every_variant_with_its_bytes_and_loses_more_with_fewer_bits() -> None:
    training = Calibration(
        PairedVectors(vectors(200, 5), vectors(200, 6)), PairedVectors(vectors(200, 7), vectors(200, 8))
    )
    figures = quantisation(dataset(noise=0.3), training, PARAMS)
    variants = figures["variants"]
    assert set(variants) == {
        "float32",
        *(f"{kind} {side}" for kind in ("int8", "binary") for side in ("query", "document", "both")),
        "binary rescored",
    }
    assert variants["binary document"]["bytes"] == {"query": 4 * DIM, "document": DIM // 8}
    assert variants["int8 both"]["bytes"] == {"query": DIM, "document": DIM}
    for mode in ("teacher", "standard", "asymmetric"):
        assert variants["int8 both"][mode]["share"] == pytest.approx(1, abs=0.05)
        assert variants["binary both"][mode]["share"] <= variants["binary rescored"][mode]["share"]
        assert variants["binary both"][mode]["n"] == ROWS
    assert set(figures["largest"]) == {"int8", "binary"}


def test_the_same_seed_gives_the_same_intervals() -> None:
    assert truncation(dataset(), PARAMS) == truncation(dataset(), PARAMS)


def test_without_a_bootstrap_nothing_is_resolved() -> None:
    figures = truncation(dataset(), replace(PARAMS, bootstrap=0))
    assert figures["dims"]["4"]["teacher"]["interval"] is None
    assert figures["dims"]["4"]["teacher"]["difference"]["verdict"] == "unresolved"


@pytest.mark.parametrize(
    ("span", "word"),
    [((-0.2, -0.1), "lower"), ((0.1, 0.2), "higher"), ((-0.1, 0.1), "unresolved"), (None, "unresolved")],
)
def test_an_interval_that_straddles_zero_decides_nothing(span: tuple[float, float] | None, word: str) -> None:
    assert verdict(span) == word


def test_where_a_mode_finds_nothing_it_has_no_profile() -> None:
    values = np.zeros((10, 2, 3))
    values[:, :, 0] = 0.5
    by_variant = profiles(values, ["32", "8"], PARAMS)
    assert by_variant["8"]["standard"]["share"] is None
    assert "profile" not in by_variant["8"]["standard"]
