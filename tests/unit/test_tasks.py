import csv
import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from pipeline.base.errors import LeafError
from pipeline.evaluate.datasets import PairedVectors
from pipeline.evaluate.task_files import read
from pipeline.evaluate.tasks import classification, clustering, spearman, sts, v_measure
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
        ("sentence1,sentence2\na,b\n", "has no column `score`; columns there: `sentence1`, `sentence2`"),
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


LATE = [i % 4 for i in range(120)] + [i % 4 + 0.5 for i in range(30)]
ROWS: dict[str, list[dict[str, Any]]] = {
    "scores": [{"sentence1": f"a {i}", "sentence2": f"b {i % 7}", "score": score} for i, score in enumerate(LATE)],
    "labels": [{"text": f"a {i}", "label": i % 3 if i < 140 else "none"} for i in range(150)],
    "numbers": [{"text": i if i < 140 else "words", "label": ["000", "0"][i % 2]} for i in range(150)],
    "switches": [{"text": f"a {i}", "label": i % 2 == 0} for i in range(150)],
}


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    """These rows as a file of the path's kind; a table holds what JSON writes."""
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        with path.open("w", newline="") as file:
            table = csv.DictWriter(file, list(rows[0]), delimiter="\t" if path.suffix == ".tsv" else ",")
            table.writeheader()
            table.writerows({n: v if isinstance(v, str) else json.dumps(v) for n, v in row.items()} for row in rows)
    return path


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl"])
@pytest.mark.parametrize("name", ROWS)
def test_values_are_read_as_the_task_wants_them_wherever_they_change(tmp_path: Path, name: str, suffix: str) -> None:
    kinds = {"score": "number"} if name == "scores" else {"text": "text", "label": "text"}
    frame = read(write_rows(tmp_path / f"rows.{suffix}", ROWS[name]), kinds, "x")
    wanted = [[row[column] for column in kinds] for row in ROWS[name]]
    assert frame.rows() == [
        tuple(v if name == "scores" or isinstance(v, str) else json.dumps(v) for v in row) for row in wanted
    ]


def test_a_table_between_tabs_may_be_in_quotes_whole_or_have_quotes_in_its_texts(tmp_path: Path) -> None:
    file = tmp_path / "rows.tsv"
    file.write_text('"text"\t"label"\n"a ""b"" c"\t"x"\n"d\te"\t"y"\n')
    assert read(file, {"text": "text", "label": "text"}, "x").rows() == [('a "b" c', "x"), ("d\te", "y")]
    file.write_text('text\tlabel\n"a ""b"" c"\tx\nplain\ty\n')  # as pandas writes them: quotes only where needed
    assert read(file, {"text": "text", "label": "text"}, "x").rows() == [('a "b" c', "x"), ("plain", "y")]
    file.write_text('text\tlabel\n"a" b\tx\n"d"\ty\n5" e\tx\n')
    assert read(file, {"text": "text"}, "x")["text"].to_list() == ['"a" b', '"d"', '5" e']


@pytest.mark.parametrize(
    "content",
    [
        b"text;label;split\r\na, b;01;train\r\nc;1;test\r\n",
        b'\xef\xbb\xbftext, label, split\n"a, b", 01, train\nc, 1, "test"\n',
        'text,label,split\n"a, b",01,train\nc,1,test\n'.encode("utf-16"),
        gzip.compress(b'text,label,split\r"a, b",01,train\rc,1,test\r'),
    ],
    ids=["semicolons", "spaces and a mark", "UTF-16", "compressed, with carriage returns"],
)
def test_a_table_of_labels_is_read_as_a_source_is(tmp_path: Path, content: bytes) -> None:
    kinds = {"text": "text", "label": "text"}
    for name in ("rows.csv", "rows.csv.gz"):
        (tmp_path / name).write_bytes(content)
        frame = read(tmp_path / name, kinds, "x", optional={"split": "text"})
        assert frame.rows() == [("a, b", "01", "train"), ("c", "1", "test")]
        assert read(tmp_path / name, kinds, "x", optional={"fold": "text"}).columns == ["text", "label"]


def test_backslashes_before_quotes_are_no_part_of_a_labelled_text(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text('text,label\n"say \\"no\\"",1\nb,0\n')
    assert read(tmp_path / "rows.csv", {"text": "text"}, "x")["text"].to_list() == ['say "no"', "b"]


def test_an_optional_column_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("text,split,split\na,train,test\n")
    with pytest.raises(LeafError, match="more than one column split"):
        read(tmp_path / "rows.csv", {"text": "text"}, "x", optional={"split": "text"})


def test_a_split_that_begins_late_is_seen_and_refused_for_the_rows_that_have_none(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"text": f"a {i}", "label": "ab"[i % 2]} for i in range(200)]
    late = [row | {"split": "test" if i >= 190 else "train"} if i >= 120 else row for i, row in enumerate(rows)]
    with pytest.raises(LeafError, match="row 1: `split` is empty"):
        classification(write_rows(tmp_path / "late.jsonl", late), encode, PARAMS)
    whole = [row | {"split": "test" if i >= 190 else "train"} for i, row in enumerate(rows)]
    assert classification(write_rows(tmp_path / "whole.jsonl", whole), encode, PARAMS)["teacher"]["n"] == 10


def test_lists_and_objects_are_no_labels(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"text": "a", "label": ["x"]}, {"text": "b", "label": ["y"]}]
    with pytest.raises(LeafError, match="line 1: `label` must be text or a number, not list"):
        classification(write_rows(tmp_path / "rows.jsonl", rows), encode, PARAMS)
    pl.DataFrame(rows).write_parquet(tmp_path / "rows.parquet")
    with pytest.raises(LeafError, match="`label` must hold text, not List"):
        classification(tmp_path / "rows.parquet", encode, PARAMS)


def test_the_v_measure_is_that_of_scikit_learn() -> None:
    from sklearn.metrics import v_measure_score

    random = np.random.default_rng(0)
    for _ in range(20):
        labels, clusters = random.integers(5, size=80), random.integers(5, size=80)
        assert v_measure(np.bincount(labels * 5 + clusters, minlength=25)) == pytest.approx(
            v_measure_score(labels, clusters), abs=1e-12
        )
    assert v_measure(np.bincount([0, 0, 0, 0, 8, 8, 8, 8], minlength=9)) == pytest.approx(1)


def test_the_teacher_clusters_labelled_texts_better_than_a_noisy_student(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    kinds = {"colour": "red blue green", "size": "tall small huge", "pace": "quick slow idle"}
    rows = [
        {"label": label, "text": " ".join([*random.choice(names.split(), 3), f"w{number}"]), "split": "test"}
        for label, names in kinds.items()
        for number in range(60)
    ]
    pl.DataFrame(rows).write_csv(tmp_path / "kinds.csv")

    def encode_noisily(frame: pl.DataFrame) -> PairedVectors:
        texts = frame["text"].to_list()
        return PairedVectors(words(texts), words(texts, 8.0))

    figures = clustering(tmp_path / "kinds.csv", encode_noisily, PARAMS)
    assert figures["clusters"] == 3 and figures["teacher"]["n"] == 180
    assert figures["teacher"]["v_measure"] > figures["standard"]["v_measure"] + 0.1
    assert figures["standard"]["difference"]["verdict"] == "lower"
    low, high = figures["teacher"]["interval"]
    assert low <= figures["teacher"]["v_measure"] + 0.05 and figures["teacher"]["v_measure"] <= high
    assert clustering(tmp_path / "kinds.csv", encode_noisily, PARAMS) == figures
    (tmp_path / "one.csv").write_text("text,label\na b,x\nc d,x\n")
    with pytest.raises(LeafError, match="at least two labels"):
        clustering(tmp_path / "one.csv", encode, PARAMS)
