"""The project's own figures and mteb's are the same figures."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from pipeline.base.errors import LeafError
from pipeline.evaluate import collection as beir
from pipeline.evaluate import mteb_tasks
from pipeline.evaluate.datasets import PairedVectors
from pipeline.evaluate.retrieval import retrieval
from pipeline.params.sections import EvaluateParams

DIM = 96


def hashed(texts: Sequence[str], role: str = "document") -> np.ndarray:
    """Rough but real: each word longer than three letters adds its own random direction."""
    known: dict[str, np.ndarray] = {}
    sums = np.full((len(texts), DIM), 1e-3, np.float32)
    for row, text in enumerate(texts):
        for word in set(text.lower().split()):
            if len(word) > 3:
                if word not in known:
                    known[word] = np.random.default_rng(list(word.encode())).normal(size=DIM)
                sums[row] += known[word]
    return sums


def agreement(directory: Path, out: Path) -> tuple[float, float]:
    """nDCG@10 of a BEIR directory by mteb and by the project."""
    pytest.importorskip("mteb", reason="needs the extra mteb")
    rows = mteb_tasks.run(mteb_tasks.model("words", hashed, DIM), [mteb_tasks.local_task(directory)], out)
    collection = beir.read(directory)
    queries, documents = (hashed(texts["text"].to_list()) for texts in (collection.queries, collection.documents))
    params = EvaluateParams(bootstrap=0)
    ours = retrieval(
        PairedVectors(queries, queries),
        PairedVectors(documents, documents),
        collection.judged,
        params,
        collection.itself,
    )
    return rows[0]["score"], ours["teacher"]["ndcg@10"]


def write(directory: Path, queries: dict[str, str]) -> Path:
    (directory / "qrels").mkdir(parents=True)
    documents = {"d1": "wings that lift", "d2": "heat transfer in plates", "q3": "supersonic flow"}
    for name, texts in (("corpus", documents), ("queries", queries)):
        lines = [json.dumps({"_id": key, "title": "", "text": text}) + "\n" for key, text in texts.items()]
        (directory / f"{name}.jsonl").write_text("".join(lines))
    judged = "".join(f"{query}\td{1 + number % 2}\t1\n" for number, query in enumerate(queries))
    (directory / "qrels/test.tsv").write_text("query-id\tcorpus-id\tscore\n" + judged)
    return directory


def test_mteb_and_the_project_agree_on_cranfield(shared: Path, tmp_path: Path) -> None:
    by_mteb, ours = agreement(shared / "ir" / "cran", tmp_path)
    assert by_mteb == pytest.approx(ours, abs=1e-4)
    assert ours > 0.05
    written = json.loads((tmp_path / "words" / "CranLocal.json").read_text())
    assert written["scores"]["test"][0]["ndcg_at_10"] == pytest.approx(ours, abs=1e-4)


def test_mteb_and_the_project_agree_where_a_query_is_a_document(tmp_path: Path) -> None:
    directory = write(tmp_path / "own", {"q1": "lift of wings", "q2": "plates with heat", "q3": "supersonic flow"})
    by_mteb, ours = agreement(directory, tmp_path / "out")
    assert by_mteb == pytest.approx(ours, abs=1e-4)


def test_a_task_that_mteb_lacks_is_refused() -> None:
    pytest.importorskip("mteb", reason="needs the extra mteb")
    with pytest.raises(LeafError, match="no such task"):
        mteb_tasks.named_tasks(["NoSuchTaskAnywhere"])
