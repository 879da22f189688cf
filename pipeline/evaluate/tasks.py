"""Semantic textual similarity (STS), classification and clustering of local files, by teacher and by student."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from scipy.stats import rankdata

from pipeline.base import Array, LeafError, Similarity, keys, similarities
from pipeline.corpus import clean
from pipeline.evaluate.bootstrap import bootstrap_means, difference, interval
from pipeline.evaluate.datasets import PairedVectors, sides
from pipeline.evaluate.task_files import read
from pipeline.params import EvaluateParams
from pipeline.serve import MODES

Encode = Callable[[pl.DataFrame], PairedVectors]  # frame key, role, id, source, text -> vectors of both models
TEST_SHARE = 0.2  # of a file without a column `split`
TEXT_COLUMNS = {"sts": ("sentence1", "sentence2"), "classification": ("text",), "clustering": ("text",)}
MAX_ITERATIONS = 1000  # of the classifier's solver
CLUSTERINGS = 3  # runs of k-means, from different starts, whose v-measures are averaged
CLUSTERING_BATCH = 500  # texts of a step of k-means, as in MTEB


def keyed(texts: pl.Series, source: str) -> pl.DataFrame:
    """The cleaned texts as `key, role, id, source, text`, all in the role `document`: here no text is a query."""
    frame = pl.DataFrame({"text": texts}).with_columns(clean(pl.col("text")))
    cleaned = frame["text"].to_list()
    return frame.select(
        pl.Series("key", keys(["document"] * len(cleaned), cleaned), dtype=pl.Binary),
        pl.lit("document").alias("role"),
        pl.int_range(pl.len()).cast(pl.String).alias("id"),
        pl.lit(source).alias("source"),
        "text",
    )


def encode_column(texts: pl.Series, source: str, encode: Encode) -> PairedVectors:
    """Vectors of `keyed` texts."""
    return encode(keyed(texts, source))


def task_texts(path: Path, task: str) -> pl.DataFrame:
    """All texts of a file of the task `sts`, `classification` or `clustering`, `keyed`; LeafError as `read`."""
    frame = read(path, dict.fromkeys(TEXT_COLUMNS[task], "text"), task)
    return pl.concat([keyed(frame[column], path.stem) for column in TEXT_COLUMNS[task]])


def sts(path: Path, encode: Encode, params: EvaluateParams, similarity: Similarity = "cosine") -> dict[str, Any]:
    """Spearman's correlation of similarity and score, in the three modes, with intervals from resampled pairs.

    Asymmetric mode encodes the first sentence with the student, the second with the teacher.

    Raises:
        LeafError: the file is not as `EvaluateParams.sts` says, or all its scores are the same.
    """
    frame = read(path, {"sentence1": "text", "sentence2": "text", "score": "number"}, "sts")
    if len(frame) < 3 or frame["score"].n_unique() < 2:
        raise LeafError(f"evaluate.sts: {path}: needs at least 3 pairs and different scores")
    first, second = (encode_column(frame[f"sentence{i}"], path.stem, encode) for i in (1, 2))
    vectors = sides(first, second)
    by_mode = [similarities(*vectors[mode], similarity) for mode in MODES]
    columns = np.stack([*by_mode, frame["score"].to_numpy()], axis=1)
    random, n = np.random.default_rng(params.seed), len(columns)
    samples = [spearman(columns[random.integers(n, size=n)]) for _ in range(params.bootstrap)]
    return _by_mode("spearman", spearman(columns), np.array(samples).reshape(-1, len(MODES)), n)


def spearman(columns: Array) -> Array:
    """`[modes]`: Spearman's correlation of each column of `[n, modes + 1]` to the last; NaN for a constant column."""
    ranks = rankdata(columns, axis=0)
    ranks = ranks - ranks.mean(0)
    lengths = np.linalg.norm(ranks, axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        correlations: Array = (ranks[:, :-1] * ranks[:, -1:]).sum(0) / (lengths[:-1] * lengths[-1])
    return correlations


def classification(path: Path, encode: Encode, params: EvaluateParams) -> dict[str, Any]:
    """Accuracy of a linear classifier (logistic regression) in the three modes, with intervals over the test texts.

    Asymmetric mode trains on the teacher's vectors and tests on the student's.

    Raises:
        LeafError: the file is not as `EvaluateParams.classification` says; fewer than two labels among the training
            texts; no test texts.
    """
    frame = read(path, {"text": "text", "label": "text"}, "classification", optional={"split": "text"})
    test = _test_rows(path, frame, params.seed)
    labels = frame["label"].to_numpy()
    if len(set(labels[~test].tolist())) < 2 or not test.any():
        raise LeafError(f"evaluate.classification: {path}: needs two labels among its training texts, and test texts")
    vectors = encode_column(frame["text"], path.stem, encode)
    by_teacher = _train_classifier(vectors.teacher[~test], labels[~test])
    by_student = _train_classifier(vectors.student[~test], labels[~test])
    predicted = {
        "teacher": by_teacher.predict(vectors.teacher[test]),
        "standard": by_student.predict(vectors.student[test]),
        "asymmetric": by_teacher.predict(vectors.student[test]),
    }
    right = np.stack([predicted[mode] == labels[test] for mode in MODES], axis=1).astype(np.float64)
    samples = bootstrap_means(right, params.bootstrap, params.seed)
    return {"train": int((~test).sum()), **_by_mode("accuracy", right.mean(0), samples, len(right))}


def _test_rows(path: Path, frame: pl.DataFrame, seed: int) -> Array:
    """`[n]` bool: the rows whose `split` is `test`; without that column a seeded random share."""
    if "split" in frame.columns:
        if unknown := sorted(set(frame["split"].to_list()) - {"train", "test"}, key=str):
            raise LeafError(f"evaluate.classification: {path}: split must be train or test, not {unknown[0]!r:.40}")
        fixed: Array = (frame["split"] == "test").to_numpy()
        return fixed
    chosen: Array = np.random.default_rng(seed).random(len(frame)) < TEST_SHARE
    return chosen


def _train_classifier(vectors: Array, labels: Array) -> Any:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(max_iter=MAX_ITERATIONS).fit(vectors, labels)


def clustering(path: Path, encode: Encode, params: EvaluateParams) -> dict[str, Any]:
    """V-measure of k-means against the labels in the three modes, with intervals over the texts.

    As in MTEB (arXiv 2210.07316): mini-batch k-means with as many clusters as there are labels. Asymmetric mode finds
    the clusters in the teacher's vectors and assigns the student's to the nearest.

    Raises:
        LeafError: the file is not as `EvaluateParams.clustering` says, or has fewer than two labels.
    """
    from sklearn.cluster import MiniBatchKMeans

    frame = read(path, {"text": "text", "label": "text"}, "clustering")
    names, labels = np.unique(frame["label"].to_numpy(), return_inverse=True)
    if len(names) < 2:
        raise LeafError(f"evaluate.clustering: {path}: needs at least two labels")
    vectors = encode_column(frame["text"], path.stem, encode)
    random, n = np.random.default_rng(params.seed), len(frame)
    weights = random.multinomial(n, np.full(n, 1 / n), size=params.bootstrap)
    values, samples = np.zeros(len(MODES)), np.zeros((params.bootstrap, len(MODES)))
    for run in range(CLUSTERINGS):
        means = MiniBatchKMeans(len(names), batch_size=CLUSTERING_BATCH, n_init="auto", random_state=params.seed + run)
        clusters = {
            "standard": means.fit(vectors.student).labels_,
            "teacher": means.fit(vectors.teacher).labels_,
            "asymmetric": means.predict(vectors.student.astype(vectors.teacher.dtype)),
        }
        for m, mode in enumerate(MODES):
            pairs = labels * len(names) + clusters[mode]
            values[m] += v_measure(np.bincount(pairs, minlength=len(names) ** 2)) / CLUSTERINGS
            for sample, counts in enumerate(weights):
                samples[sample, m] += v_measure(np.bincount(pairs, counts, len(names) ** 2)) / CLUSTERINGS
    return {"clusters": len(names), **_by_mode("v_measure", values, samples, n)}


def v_measure(counts: Array) -> float:
    """Harmonic mean of homogeneity and completeness (Rosenberg and Hirschberg, 2007).

    `counts` are those of texts by label and cluster, `[labels x clusters]`, as many of the one as of the other.
    """
    table = counts.reshape(round(len(counts) ** 0.5), -1) / counts.sum()
    of_label, of_cluster = table.sum(1), table.sum(0)
    both, label, cluster = _entropy(table.reshape(-1)), _entropy(of_label), _entropy(of_cluster)
    shared = label + cluster - both  # mutual information, which is homogeneity of the labels' entropy
    return float(2 * shared / (label + cluster)) if label + cluster > 0 else 1.0


def _entropy(shares: Array) -> float:
    positive = shares[shares > 0]
    return float(-(positive * np.log(positive)).sum())


def _by_mode(name: str, values: Array, samples: Array, n: int) -> dict[str, Any]:
    """mode -> `n`, the figure `name`, its `interval` and, except for the teacher, its `difference` to the teacher's.

    `values [modes]`; `samples [bootstrap, modes]`, paired across modes.
    """
    result: dict[str, Any] = {}
    for m, mode in enumerate(MODES):
        result[mode] = {"n": n, name: float(values[m]), "interval": interval(samples[:, m])}
        if m:
            result[mode]["difference"] = difference(values[m] - values[0], samples[:, m] - samples[:, 0])
    return result
