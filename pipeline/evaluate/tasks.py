"""STS and classification from local files, by the vectors of teacher and student."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from scipy.stats import rankdata

from pipeline.base.arrays import Array, cosines
from pipeline.base.errors import LeafError, first_line
from pipeline.base.keys import keys
from pipeline.corpus.text import clean
from pipeline.evaluate import metrics
from pipeline.evaluate.datasets import PairedVectors
from pipeline.evaluate.uncertainty import difference
from pipeline.params.sections import EvaluateParams
from pipeline.serve.modes import MODES

Encode = Callable[[pl.DataFrame], PairedVectors]  # frame key, role, id, source, text -> vectors of both models
READERS: dict[str, Callable[[Path], pl.DataFrame]] = {
    ".csv": pl.read_csv,
    ".tsv": lambda path: pl.read_csv(path, separator="\t", quote_char=None),
    ".jsonl": pl.read_ndjson,
    ".parquet": pl.read_parquet,
}
TEST_SHARE = 0.2  # of a file without a column `split`
PROBE_STEPS = 1000


def read(path: Path, columns: dict[str, str], what: str) -> pl.DataFrame:
    """The file with at least `columns` (name -> text or number), as frame; LeafError where it has not."""
    reader = READERS.get(path.suffix)
    if reader is None:
        raise LeafError(f"evaluate.{what}: {path}: the file must be one of {', '.join(READERS)}")
    try:
        frame = reader(path)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise LeafError(f"evaluate.{what}: {path}: cannot be read: {first_line(error):.160}") from None
    if missing := [name for name in columns if name not in frame.columns]:
        raise LeafError(
            f"evaluate.{what}: {path}: has no column `{missing[0]}`; its columns are {', '.join(frame.columns)}"
        )
    for name, kind in columns.items():
        frame = frame.with_columns(pl.col(name).cast(pl.Float64 if kind == "number" else pl.String, strict=False))
        if frame[name].null_count() or (kind == "number" and not frame[name].is_finite().all()):
            bad = frame[name].is_null() if kind == "text" else ~frame[name].is_finite().fill_null(False)
            raise LeafError(
                f"evaluate.{what}: {path}: row {1 + (bad.arg_max() or 0)}: `{name}` is empty or not a {kind}"
            )
    return frame


def vectors_of(texts: pl.Series, source: str, encode: Encode) -> PairedVectors:
    """Vectors of the cleaned texts, all in the role of documents: neither side of such a task asks the other."""
    frame = pl.DataFrame({"text": texts}).with_columns(clean(pl.col("text")))
    listed = frame["text"].to_list()
    return encode(
        frame.select(
            pl.Series("key", keys(["document"] * len(listed), listed), dtype=pl.Binary),
            pl.lit("document").alias("role"),
            pl.int_range(pl.len()).cast(pl.String).alias("id"),
            pl.lit(source).alias("source"),
            "text",
        )
    )


def sts(path: Path, encode: Encode, params: EvaluateParams) -> dict[str, Any]:
    """Spearman's correlation of cosine and score, in the three modes.

    Asymmetric: the first sentence by the student, the second by the teacher. Intervals from resampled pairs.

    Raises:
        LeafError: the file is not as `EvaluateParams.sts` says, or all its scores are one.
    """
    frame = read(path, {"sentence1": "text", "sentence2": "text", "score": "number"}, "sts")
    if len(frame) < 3 or frame["score"].n_unique() < 2:
        raise LeafError(f"evaluate.sts: {path}: needs at least 3 pairs and different scores")
    first, second = (vectors_of(frame[f"sentence{i}"], path.stem, encode) for i in (1, 2))
    pairs = {
        "teacher": (first.teacher, second.teacher),
        "standard": (first.student, second.student),
        "asymmetric": (first.student, second.teacher),
    }
    columns = np.stack([*(cosines(*pairs[mode]) for mode in MODES), frame["score"].to_numpy()], axis=1)
    random, n = np.random.default_rng(params.seed), len(columns)
    drawn = [spearman(columns[random.integers(n, size=n)]) for _ in range(params.bootstrap)]
    return _modes("spearman", spearman(columns), np.array(drawn).reshape(-1, len(MODES)), n)


def spearman(columns: Array) -> Array:
    """`[modes]`: Spearman's correlation of each column of `[n, modes + 1]` to the last."""
    ranks = rankdata(columns, axis=0)
    ranks = ranks - ranks.mean(0)
    lengths = np.linalg.norm(ranks, axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        found: Array = (ranks[:, :-1] * ranks[:, -1:]).sum(0) / (lengths[:-1] * lengths[-1])
    return found


def classification(path: Path, encode: Encode, params: EvaluateParams) -> dict[str, Any]:
    """Accuracy of a linear probe (logistic regression) in the three modes, intervals over the test texts.

    Asymmetric: trained on the teacher's vectors, tested on the student's.

    Raises:
        LeafError: the file is not as `EvaluateParams.classification` says, or a part of it has no two labels.
    """
    frame = read(path, {"text": "text", "label": "text"}, "classification")
    test = _test_rows(path, frame, params.seed)
    labels = frame["label"].to_numpy()
    if len(set(labels[~test].tolist())) < 2 or not test.any():
        raise LeafError(f"evaluate.classification: {path}: needs two labels among its training texts, and test texts")
    vectors = vectors_of(frame["text"], path.stem, encode)
    probes = {name: _probe(side[~test], labels[~test]) for name, side in vars(vectors).items()}
    predicted = {
        "teacher": probes["teacher"].predict(vectors.teacher[test]),
        "standard": probes["student"].predict(vectors.student[test]),
        "asymmetric": probes["teacher"].predict(vectors.student[test]),
    }
    right = np.stack([predicted[mode] == labels[test] for mode in MODES], axis=1).astype(np.float64)
    samples = metrics.bootstrap(right, params.bootstrap, params.seed)
    return {"train": int((~test).sum()), **_modes("accuracy", right.mean(0), samples, len(right))}


def _test_rows(path: Path, frame: pl.DataFrame, seed: int) -> Array:
    if "split" in frame.columns:
        if unknown := sorted(set(frame["split"].to_list()) - {"train", "test"}, key=str):
            raise LeafError(f"evaluate.classification: {path}: split must be train or test, not {unknown[0]!r:.40}")
        fixed: Array = (frame["split"] == "test").to_numpy()
        return fixed
    chosen: Array = np.random.default_rng(seed).random(len(frame)) < TEST_SHARE
    return chosen


def _probe(vectors: Array, labels: Array) -> Any:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(max_iter=PROBE_STEPS).fit(vectors, labels)


def _modes(name: str, values: Array, samples: Array, n: int) -> dict[str, Any]:
    """mode -> n, the figure, its interval and, but for the teacher, the paired difference to the teacher."""
    found: dict[str, Any] = {}
    for m, mode in enumerate(MODES):
        found[mode] = {"n": n, name: float(values[m]), "interval": metrics.interval(samples[:, m])}
        if m:
            found[mode]["difference"] = difference(values[m] - values[0], samples[:, m] - samples[:, 0])
    return found
