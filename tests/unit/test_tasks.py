from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from pipeline.base.errors import LeafError
from pipeline.evaluate.datasets import PairedVectors
from pipeline.evaluate.tasks import classification, spearman, sts
from pipeline.params.sections import EvaluateParams

DIM = 16
PARAMS = EvaluateParams(bootstrap=100)


def words(texts: Sequence[str], noise: float = 0.0) -> np.ndarray:
    """The sum of a direction for each word, and noise that depends on the text."""
    sums = np.zeros((len(texts), DIM))
    for row, text in enumerate(texts):
        for word in text.split():
            sums[row] += np.random.default_rng(list(word.encode())).normal(size=DIM)
        sums[row] += noise * np.random.default_rng(list(text.encode())).normal(size=DIM)
    return sums


def encode(frame: pl.DataFrame) -> PairedVectors:
    assert set(frame.columns) == {"key", "role", "id", "source", "text"}
    texts = frame["text"].to_list()
    return PairedVectors(words(texts), words(texts, 2.0))


def pairs(path: Path) -> Path:
    """Scores that are the share of words the two sentences have in common."""
    vocabulary = "red blue green tall small quick quiet bright".split()
    random = np.random.default_rng(0)
    rows = []
    for _ in range(60):
        first, second = (random.choice(vocabulary, 4, replace=False).tolist() for _ in range(2))
        score = len(set(first) & set(second))
        rows.append({"sentence1": " ".join(first), "sentence2": " ".join(second), "score": score})
    frame = pl.DataFrame(rows)
    if path.suffix == ".jsonl":
        frame.write_ndjson(path)
    else:
        frame.write_csv(path, separator="\t" if path.suffix == ".tsv" else ",")
    return path


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl"])
def test_the_teacher_orders_pairs_better_than_a_noisy_student(tmp_path: Path, suffix: str) -> None:
    figures = sts(pairs(tmp_path / f"pairs.{suffix}"), encode, PARAMS)
    assert figures["teacher"]["spearman"] > 0.75 > figures["standard"]["spearman"]
    assert figures["standard"]["difference"]["verdict"] == "lower"
    low, high = figures["teacher"]["interval"]
    assert low <= figures["teacher"]["spearman"] <= high
    assert figures["asymmetric"]["n"] == 60


def test_spearman_is_scipys() -> None:
    from scipy.stats import spearmanr

    random = np.random.default_rng(0).integers(0, 5, size=(40, 3)).astype(float)
    expected = [spearmanr(random[:, column], random[:, 2]).statistic for column in (0, 1)]
    assert spearman(random) == pytest.approx(expected)


def labelled(path: Path, split: bool) -> Path:
    colours, sizes = "red blue green bright".split(), "tall small wide long".split()
    random = np.random.default_rng(1)
    rows = []
    for number in range(120):
        chosen = random.choice(colours if number % 2 else sizes, 2, replace=False).tolist()
        rows.append(
            {
                "text": f"{' '.join(chosen)} {number}",
                "label": number % 2,
                "split": "test" if number % 5 == 0 else "train",
            }
        )
    frame = pl.DataFrame(rows)
    (frame if split else frame.drop("split")).write_csv(path)
    return path


@pytest.mark.parametrize("split", [True, False])
def test_a_linear_classifier_predicts_the_labels(tmp_path: Path, split: bool) -> None:
    figures = classification(labelled(tmp_path / "kinds.csv", split), encode, PARAMS)
    assert figures["teacher"]["accuracy"] > 0.9
    assert figures["standard"]["accuracy"] > 0.5
    assert figures["train"] + figures["teacher"]["n"] == 120
    if split:
        assert figures["teacher"]["n"] == 24
    assert set(figures["asymmetric"]["difference"]) == {"mean", "interval", "verdict"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("sentence1,sentence2\na,b\n", "has no column `score`"),
        ("sentence1,sentence2,score\na,b,1\nc,d,high\n", "row 2: `score` is empty or not a number"),
        ("sentence1,sentence2,score\na,b,1\nc,d,1\ne,f,1\n", "different scores"),
    ],
)
def test_bad_pairs_are_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "pairs.csv").write_text(content)
    with pytest.raises(LeafError, match=message):
        sts(tmp_path / "pairs.csv", encode, PARAMS)


def test_bad_labels_and_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(LeafError, match=r"must be one of \.csv"):
        sts(tmp_path / "pairs.txt", encode, PARAMS)
    with pytest.raises(LeafError, match="cannot be read"):
        sts(tmp_path / "none.csv", encode, PARAMS)
    (tmp_path / "kinds.csv").write_text("text,label,split\na,x,train\nb,x,test\n")
    with pytest.raises(LeafError, match="needs two labels"):
        classification(tmp_path / "kinds.csv", encode, PARAMS)
    (tmp_path / "kinds.csv").write_text("text,label,split\na,x,dev\n")
    with pytest.raises(LeafError, match="split must be train or test"):
        classification(tmp_path / "kinds.csv", encode, PARAMS)
