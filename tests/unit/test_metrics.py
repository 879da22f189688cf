from typing import Any

import numpy as np
import pytest

from pipeline.base.arrays import cosines
from pipeline.evaluate import bootstrap, metrics
from pipeline.evaluate.bootstrap import bootstrap_means, interval


def vectors(rows: int, dim: int = 8, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, dim)).astype(np.float32)


def test_a_vector_and_itself_have_cosine_one_and_distance_zero() -> None:
    same = vectors(50)
    figures: dict[str, Any] = metrics.alignment(same, same)
    assert figures["n"] == 50
    assert figures["cosine"]["mean"] == pytest.approx(1)
    assert figures["l2"]["p95"] == pytest.approx(0)


def test_cosine_ignores_length_and_distance_does_not() -> None:
    teacher = vectors(20)
    assert cosines(3 * teacher, teacher) == pytest.approx(np.ones(20))
    assert metrics.distances(3 * teacher, teacher) == pytest.approx(2 * np.linalg.norm(teacher, axis=1), rel=1e-5)


def test_a_zero_vector_has_cosine_zero_and_not_nan() -> None:
    assert cosines(np.zeros((1, 4), np.float32), np.ones((1, 4), np.float32)) == [0]


def test_quantiles_ascend_and_are_named() -> None:
    spread = metrics.spread(np.arange(101.0))
    assert spread == {"mean": 50, "p05": 5, "p25": 25, "p50": 50, "p75": 75, "p95": 95}


@pytest.mark.parametrize(("query_rows", "document_rows"), [(1024, 16_384), (7, 11)])
def test_search_in_blocks_equals_sorting_everything(
    monkeypatch: pytest.MonkeyPatch, query_rows: int, document_rows: int
) -> None:
    monkeypatch.setattr(metrics, "QUERY_ROWS", query_rows)
    monkeypatch.setattr(metrics, "DOCUMENT_ROWS", document_rows)
    queries, documents = vectors(30), vectors(100, seed=1)
    normal = [v / np.linalg.norm(v, axis=1, keepdims=True) for v in (queries, documents)]
    expected = np.argsort(-(normal[0] @ normal[1].T), axis=1, kind="stable")[:, :10]
    assert (metrics.nearest(queries, documents, 10) == expected).all()


def test_search_returns_no_more_documents_than_there_are() -> None:
    assert metrics.nearest(vectors(3), vectors(4, seed=1), 10).shape == (3, 4)


def test_among_equal_documents_the_first_wins_also_across_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "DOCUMENT_ROWS", 3)
    assert metrics.nearest(np.ones((1, 4)), np.ones((8, 4)), 8).tolist() == [list(range(8))]


def test_by_the_dot_product_a_longer_document_comes_first() -> None:
    documents = np.array([[1, 0], [3, 3], [0.5, 0]], np.float32)
    queries = np.array([[1, 0], [7, 0]], np.float32)
    assert metrics.nearest(queries, documents, 3).tolist() == [[0, 2, 1]] * 2
    assert metrics.nearest(queries, documents, 3, similarity="dot").tolist() == [[1, 0, 2]] * 2


def test_a_query_does_not_find_the_document_that_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "DOCUMENT_ROWS", 4)
    monkeypatch.setattr(metrics, "QUERY_ROWS", 3)
    same = vectors(10)
    assert (metrics.nearest(same, same, 1)[:, 0] == np.arange(10)).all()
    rankings = metrics.nearest(same, same, 10, np.arange(10))
    assert (rankings[:, :9] != np.arange(10)[:, None]).all()
    assert (rankings[:, 9] == -1).all()
    leave_out = np.arange(10) * np.array([1, -1] * 5).clip(0) - (np.arange(10) % 2)
    assert (metrics.nearest(same, same, 1, leave_out)[1::2, 0] == np.arange(1, 10, 2)).all()


def test_ranking_metrics_are_those_worked_out_by_hand() -> None:
    rankings = np.array([[3, 1, 2], [0, 2, 1], [4, 5, 6]])
    figures = metrics.ranking_metrics(rankings, [{3: 1}, {1: 2, 7: 1}, {0: 1}])
    gain = (2 / np.log2(4)) / (2 + 1 / np.log2(3))
    assert figures == pytest.approx(np.array([[1, 1, 1], [gain, 0.5, 1 / 3], [0, 0, 0]]), abs=1e-6)


def test_reciprocal_rank_ends_at_ten_and_recall_at_a_hundred() -> None:
    rankings = np.arange(100)[None]
    assert metrics.ranking_metrics(rankings, [{9: 1}])[0].tolist() == pytest.approx([1 / np.log2(11), 1, 0.1], abs=1e-6)
    assert metrics.ranking_metrics(rankings, [{10: 1}])[0].tolist() == [0, 1, 0]
    assert metrics.ranking_metrics(rankings, [{500: 1}])[0].tolist() == [0, 0, 0]


def test_ranking_keeps_the_order_of_queries_beyond_ten() -> None:
    rankings = np.arange(25)[:, None]
    figures = metrics.ranking_metrics(rankings, [{i if i % 3 else 99: 1} for i in range(25)])
    assert figures[:, 0].tolist() == [float(bool(i % 3)) for i in range(25)]


def test_a_query_that_finds_nothing_at_all_counts_as_zero() -> None:
    assert metrics.ranking_metrics(np.array([[-1], [0]]), [{0: 1}, {0: 1}])[:, 0].tolist() == [0, 1]


def test_the_share_retrieved_counts_members_and_not_ranks() -> None:
    assert metrics.share_retrieved(np.array([[1, 2, 3], [4, 5, -1]]), np.array([[3, 2, 1], [5, 6, 7]])).tolist() == [
        1,
        1 / 3,
    ]


def test_bootstrap_depends_on_its_seed_alone_and_not_on_its_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    values = vectors(40, 2).astype(np.float64)
    whole = bootstrap_means(values, 100, seed=3)
    assert (bootstrap_means(values, 100, seed=3) == whole).all()
    assert (bootstrap_means(values, 100, seed=4) != whole).any()
    monkeypatch.setattr(bootstrap, "BLOCK_COUNTS", 40 * 7)
    assert bootstrap_means(values, 100, seed=3) == pytest.approx(whole)


def test_bootstrap_spreads_as_the_standard_error_says() -> None:
    values = vectors(400, 1).astype(np.float64)
    means = bootstrap_means(values, 4000, seed=0)
    assert means.std() == pytest.approx(values.std() / 20, rel=0.1)
    low, high = interval(means) or (0, 0)
    assert low < values.mean() < high
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.1)


def test_columns_are_resampled_together_so_that_a_constant_ratio_has_no_spread() -> None:
    first = np.random.default_rng(0).uniform(size=50)
    means = bootstrap_means(np.stack([first, 0.9 * first], axis=1), 200, seed=0)
    assert interval(means[:, 1] / means[:, 0]) == pytest.approx((0.9, 0.9))


def test_without_samples_there_is_no_interval() -> None:
    assert interval(np.empty(0)) is None
    assert interval(np.array([np.nan, np.inf])) is None
    assert bootstrap_means(np.ones((3, 2)), 0, seed=0).shape == (0, 2)
