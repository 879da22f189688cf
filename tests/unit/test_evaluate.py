import csv
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import click
import numpy as np
import polars as pl
import pytest
from click.testing import CliRunner, Result

import stages.encode
import stages.evaluate
from pipeline.base.errors import LeafError
from pipeline.base.keys import keys
from pipeline.encode.on_demand import ensure, vectors_on_demand
from pipeline.evaluate import plots
from pipeline.evaluate.datasets import HeldoutPairs, PairedVectors, heldout_pairs
from pipeline.evaluate.evaluation import Evaluation, evaluate, needs_of_teacher
from pipeline.evaluate.retrieval import neighbours, retrieval
from pipeline.params.sections import EncodeParams, EvaluateParams, StudentParams, TeacherParams
from pipeline.store.shard import StoreMeta
from pipeline.store.shard_cache import ShardCache
from pipeline.store.store import Store
from pipeline.teacher.local import LocalTeacher
from pipeline.teacher.teacher import open_teacher
from tests.conftest import corpus_frame

DIM = 12
PARAMS = EvaluateParams(bootstrap=100)
META = StoreMeta(fingerprint="ab" * 32, teacher={"model": "words"}, dim=DIM, dtype="float32", normalized=True)


def bag_of_words(texts: Sequence[str], role: str = "document") -> np.ndarray:
    """A real, if simple, encoder: the normalised sum of a fixed random vector for each word."""
    sums = np.zeros((len(texts), DIM), np.float32)
    for row, text in enumerate(texts):
        for word in text.split():
            sums[row] += np.random.default_rng(list(word.encode())).normal(size=DIM)
    unit: np.ndarray = sums / np.linalg.norm(sums, axis=1, keepdims=True)
    return unit


def blurred(texts: Sequence[str], role: str = "document") -> np.ndarray:
    """The same encoder with noise that depends on the text."""
    noise = [np.random.default_rng(list(text.encode())).normal(size=DIM) for text in texts]
    return (bag_of_words(texts) + 0.15 * np.array(noise)).astype(np.float32)


def teacher_vectors(texts: pl.DataFrame) -> np.ndarray:
    return bag_of_words(texts["text"].to_list())


def write_store(
    frame: pl.DataFrame, root: Path, meta: StoreMeta = META, vectors: Callable[..., np.ndarray] = bag_of_words
) -> Store:
    rows = frame.select("key", "role", "id", "source").with_columns(tokens=pl.lit(1, pl.Int32))
    with ShardCache(root / "made", meta) as cache:
        cache.write(rows, vectors(frame["text"].to_list()))
        cache.publish(root / "embeddings", frame["key"].to_list())
    return Store.open(root / "embeddings")


def write_collection(directory: Path, texts: Sequence[str]) -> Path:
    (directory / "qrels").mkdir(parents=True)
    documents = [{"_id": str(i), "text": text} for i, text in enumerate(texts)]
    queries = [{"_id": str(i), "text": " ".join(text.split()[:3])} for i, text in enumerate(texts)]
    for name, records in (("corpus", documents), ("queries", queries)):
        (directory / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    judgments = [f"{i}\t{i}\t1\n" for i in range(len(texts))]
    (directory / "qrels/test.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(judgments))
    return directory


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return write_store(corpus_frame(400), tmp_path)


def paired(rows: int, noise: float, seed: int = 0) -> PairedVectors:
    random = np.random.default_rng(seed)
    teacher = random.normal(size=(rows, DIM))
    return PairedVectors(teacher, teacher + noise * random.normal(size=(rows, DIM)))


def test_a_student_that_equals_the_teacher_keeps_everything(tiny_corpus: Path, store: Store) -> None:
    figures = evaluate(tiny_corpus, store, bag_of_words, teacher_vectors, PARAMS).figures
    held = corpus_frame(400).filter(split="heldout")
    for role in ("query", "document"):
        assert figures["alignment"][role]["n"] == held.filter(role=role).height
        assert figures["alignment"][role]["cosine"]["p05"] == pytest.approx(1, abs=1e-5)
        assert figures["alignment"][role]["l2"]["mean"] == pytest.approx(0, abs=1e-5)
    assert figures["neighbours"]["standard"] == figures["neighbours"]["asymmetric"] == 1
    tiny = figures["retrieval"]["tiny"]
    for mode in ("standard", "asymmetric"):
        assert tiny[mode]["ndcg@10"] == tiny["teacher"]["ndcg@10"] > 0
        assert tiny[mode]["retention"] == 1
        assert tiny[mode]["interval"]["retention"] == [1, 1]


def lengthened(texts: Sequence[str], role: str = "document") -> np.ndarray:
    """The same directions, with lengths between 1 and 4 that depend on the text."""
    lengths = [1 + 3 * np.random.default_rng(list(text.encode())).random() for text in texts]
    vectors: np.ndarray = (bag_of_words(texts) * np.array(lengths)[:, None]).astype(np.float32)
    return vectors


@pytest.mark.parametrize("similarity", ["dot", "cosine"])
def test_everything_that_ranks_follows_what_the_teacher_is_made_for(
    similarity: str, tiny_corpus: Path, tmp_path: Path
) -> None:
    meta = replace(META, normalized=False, teacher={"model": "words", "similarity": similarity})
    store = write_store(corpus_frame(400), tmp_path, meta, lengthened)
    scored = tmp_path / "scored.csv"
    pairs = [(" ".join(text.split()[:2]), text) for text in corpus_frame(60)["text"].to_list()]
    dots = [float(lengthened([one])[0] @ lengthened([other])[0]) for one, other in pairs]
    pl.DataFrame(pairs, ["sentence1", "sentence2"], orient="row").with_columns(score=pl.Series(dots)).write_csv(scored)
    params = EvaluateParams(bootstrap=0, dims=(6,), moved=400, sts=(str(scored),))
    result = evaluate(tiny_corpus, store, lengthened, lambda texts: lengthened(texts["text"].to_list()), params)
    held = corpus_frame(400).filter(split="heldout").sort("role", "key")
    queries, documents = (held.filter(role=role) for role in ("query", "document"))
    documents = documents.filter(pl.col("source") == "tiny")
    queries = queries.filter(pl.col("id").is_in(documents["id"].to_list()))

    def ndcg(dim: int) -> float:
        first, second = (lengthened(frame["text"].to_list())[:, :dim] for frame in (queries, documents))
        if similarity == "cosine":
            second = second / np.linalg.norm(second, axis=1, keepdims=True)
        scores = first @ second.T
        rows = [documents["id"].to_list().index(record) for record in queries["id"].to_list()]
        ranks = [int((row > row[relevant]).sum()) for row, relevant in zip(scores, rows, strict=True)]
        return float(np.mean([1 / np.log2(rank + 2) if rank < 10 else 0 for rank in ranks]))

    figures = result.figures
    assert figures["similarity"] == similarity and "similarity_note" not in figures
    expected, cut = pytest.approx(ndcg(DIM), abs=1e-4), pytest.approx(ndcg(6), abs=1e-4)
    assert figures["retrieval"]["tiny"]["teacher"]["ndcg@10"] == expected
    assert figures["quantisation"]["tiny"]["variants"]["float32"]["teacher"]["ndcg@10"] == expected
    assert figures["truncation"]["tiny"]["dims"]["6"]["teacher"]["ndcg@10"] == cut
    ranks = [entry["teacher"]["rank"] or np.inf for entry in result.moved]
    assert np.mean([1 / np.log2(rank + 1) if rank <= 10 else 0 for rank in ranks]) == expected
    assert (figures["sts"]["scored"]["teacher"]["spearman"] == pytest.approx(1)) is (similarity == "dot")


def test_a_teacher_for_the_dot_product_with_normalised_vectors_is_named(tiny_corpus: Path, tmp_path: Path) -> None:
    meta = replace(META, teacher={"model": "words", "similarity": "dot"})
    store = write_store(corpus_frame(400), tmp_path, meta)
    figures = evaluate(tiny_corpus, store, bag_of_words, teacher_vectors, PARAMS).figures
    assert figures["similarity"] == "cosine"
    assert "made for the dot product" in figures["similarity_note"]
    assert "made for the dot product" in stages.evaluate.table(figures)[0]
    assert replace(META, teacher={"similarity": "manhattan"}).similarity_note is not None
    assert META.similarity_note is None


def test_the_figures_depend_on_the_seed_alone(tiny_corpus: Path, store: Store) -> None:
    params = EvaluateParams(bootstrap=50, neighbours_rows=15, seed=1)
    first = evaluate(tiny_corpus, store, blurred, teacher_vectors, params).figures
    assert evaluate(tiny_corpus, store, blurred, teacher_vectors, params).figures == first
    other = evaluate(tiny_corpus, store, blurred, teacher_vectors, replace(params, seed=2)).figures
    for role, alignment in first["alignment"].items():
        assert other["alignment"][role] | {"interval": None} == alignment | {"interval": None}
        assert other["alignment"][role]["interval"] != alignment["interval"]
    assert other["retrieval"]["tiny"]["standard"]["interval"] != first["retrieval"]["tiny"]["standard"]["interval"]
    assert first["neighbours"]["documents"] == 15


def test_only_held_out_texts_are_measured(tiny_corpus: Path, store: Store) -> None:
    encoded: list[str] = []

    def student(texts: Sequence[str], role: str) -> np.ndarray:
        encoded.extend(texts)
        return bag_of_words(texts)

    evaluate(tiny_corpus, store, student, teacher_vectors, replace(PARAMS, calibration_rows=0))
    assert sorted(encoded) == sorted(corpus_frame(400).filter(split="heldout")["text"].to_list())


def pairs_of(rows: list[tuple[str, str, str]], further: list[tuple[int, str, str]] | None = None) -> list[HeldoutPairs]:
    """Pairs of held-out texts (source, id, role), and of further records (row, source, id)."""
    held = pl.DataFrame(rows, schema=["source", "id", "role"], orient="row").with_columns(key=KEYS[: len(rows)])
    others = [(KEYS[row], source, name) for row, source, name in further or []]
    schema = {"key": pl.Binary, "source": pl.String, "id": pl.String}
    return list(heldout_pairs(held, pl.DataFrame(others, schema=schema, orient="row")))


KEYS = pl.Series([bytes([number] * 16) for number in range(9)], dtype=pl.Binary)


def test_heldout_pairs_join_by_source_and_id_and_count_queries_without_a_document() -> None:
    by_source = pairs_of([
        ("a", "1", "query"),
        ("a", "1", "document"),
        ("a", "1", "document"),
        ("a", "2", "query"),
        ("a", "3", "document"),
        ("b", "2", "document"),
        ("c", "1", "query"),
    ])  # fmt: skip
    assert [pairs.source for pairs in by_source] == ["a"]
    assert by_source[0].queries.tolist() == [0]
    assert by_source[0].documents.tolist() == [1, 2, 4]
    assert by_source[0].judged == [{0: 1, 1: 1}]
    assert by_source[0].figures() == {"queries_without_document": 1}
    assert by_source[0].notices() == [
        "1 of 2 held-out queries are not tested, as their records have no document"
    ]  # fmt: skip


def test_a_text_is_relevant_to_the_queries_of_all_records_that_have_it() -> None:
    rows = [
        ("a", "1", "query"),
        ("a", "2", "query"),
        ("a", "3", "document"),
        ("a", "1", "document"),
        ("b", "1", "query"),
    ]
    further = [(2, "a", "1"), (2, "a", "2"), (0, "a", "3"), (2, "b", "1"), (3, "b", "9")]
    first, second = pairs_of(rows, further)
    assert (first.source, first.queries.tolist(), first.documents.tolist()) == ("a", [0, 1], [2, 3])
    assert first.judged == [{0: 1, 1: 1}, {0: 1}]
    assert (second.source, second.queries.tolist(), second.documents.tolist()) == ("b", [4], [2, 3])
    assert second.judged == [{0: 1}]
    assert first.untested == second.untested == 0


def test_retention_is_the_share_of_the_teachers_ndcg_with_a_paired_interval() -> None:
    queries, noisy = paired(200, 1.0), paired(200, 1.0, seed=1)
    documents = PairedVectors(queries.teacher, queries.teacher + noisy.student - noisy.teacher)
    figures = retrieval(queries, documents, [{i: 1} for i in range(200)], PARAMS)
    assert figures["teacher"]["ndcg@10"] == figures["teacher"]["mrr@10"] == 1
    for mode in ("standard", "asymmetric"):
        assert figures[mode]["retention"] == pytest.approx(figures[mode]["ndcg@10"])
        low, high = figures[mode]["interval"]["retention"]
        assert low < figures[mode]["retention"] < high < 1
        assert figures[mode]["n"] == 200


def test_asymmetric_uses_the_teachers_documents_and_standard_the_students() -> None:
    queries = paired(50, 0.0)
    documents = PairedVectors(queries.teacher, -queries.teacher)
    figures = retrieval(queries, documents, [{i: 1} for i in range(50)], PARAMS)
    assert figures["asymmetric"]["ndcg@10"] == 1
    assert figures["standard"]["ndcg@10"] == 0


def test_where_the_teacher_finds_nothing_there_is_no_retention() -> None:
    queries, documents = paired(5, 0.1), paired(300, 0.1, seed=1)
    worst = np.argmin(queries.teacher @ documents.teacher.T, axis=1).tolist()
    figures = retrieval(queries, documents, [{row: 1} for row in worst], PARAMS)
    assert figures["teacher"]["ndcg@10"] == 0
    assert figures["standard"]["retention"] is None
    assert figures["standard"]["interval"]["retention"] is None


def test_without_a_bootstrap_there_are_figures_and_no_intervals() -> None:
    vectors = paired(20, 0.1)
    figures = retrieval(vectors, vectors, [{i: 1} for i in range(20)], EvaluateParams(bootstrap=0))
    assert figures["standard"]["interval"] == dict.fromkeys(("ndcg@10", "recall@100", "mrr@10", "retention"))


def test_documents_are_the_queries_of_neighbours_where_there_are_none() -> None:
    figures = neighbours(None, paired(100, 0.2), PARAMS)
    assert figures["queries"] == figures["documents"] == 100
    assert 0.3 < figures["standard"] <= figures["asymmetric"] < 1


def test_there_is_no_neighbour_agreement_among_a_handful_of_documents() -> None:
    assert neighbours(paired(5, 0.1), paired(11, 0.1), PARAMS) == {}
    assert neighbours(paired(5, 0.1), None, PARAMS) == {}


def test_a_beir_directory_is_measured_beside_the_pairs(tiny_corpus: Path, store: Store, tmp_path: Path) -> None:
    texts = corpus_frame(60)["text"].to_list()
    directory = write_collection(tmp_path / "wings", texts)
    params = EvaluateParams(bootstrap=10, beir=(str(directory),))
    figures = evaluate(tiny_corpus, store, blurred, teacher_vectors, params).figures["retrieval"]
    assert list(figures) == ["tiny", "wings"]
    assert figures["wings"]["queries"] == figures["wings"]["documents"] == len(texts)
    assert figures["wings"]["teacher"]["ndcg@10"] > 0.3


def bare_index(directory: Path, texts: Sequence[str], vectors: np.ndarray) -> Path:
    """A collection of `write_collection` with vectors in the place of its documents."""
    write_collection(directory, texts)
    (directory / "corpus.jsonl").unlink()
    ids = [str(number) for number in range(len(texts))]
    pl.DataFrame({"id": ids, "vector": vectors.tolist()}).write_parquet(directory / "vectors.parquet")
    return directory


def test_an_index_of_vectors_without_texts_is_searched_as_if_they_were_there(store: Store, tmp_path: Path) -> None:
    texts = corpus_frame(60)["text"].to_list()
    bare = bare_index(tmp_path / "bare", texts, bag_of_words(texts))
    whole = write_collection(tmp_path / "whole", texts)
    params = replace(PARAMS, beir=(str(bare), str(whole)))
    figures = evaluate(None, store, blurred, teacher_vectors, params).figures
    with_texts, without = figures["retrieval"]["whole"], figures["indexes"]["bare"]
    assert set(without) == {"queries", "documents", "judgments", "teacher", "asymmetric"}
    for mode in ("teacher", "asymmetric"):
        assert without[mode]["ndcg@10"] == with_texts[mode]["ndcg@10"] > 0.3
        assert without[mode].get("retention") == with_texts[mode].get("retention")
    alone = evaluate(None, store, blurred, teacher_vectors, replace(PARAMS, beir=(str(bare),))).figures
    assert alone["retrieval"] == {} and alone["indexes"] == figures["indexes"]
    assert needs_of_teacher(replace(PARAMS, beir=(str(bare),)), store) == ["evaluate.beir"]  # for the queries


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda frame: frame.with_columns(pl.col("vector").list.head(5)), "5 dimensions, but the teacher's have 12"),
        (lambda frame: frame.with_columns(id=pl.lit("0")), "occurs twice"),
        (lambda frame: frame.rename({"vector": "v"}), "must have the columns `id` and `vector`"),
        (lambda frame: frame.with_columns(pl.col("vector").list.eval(pl.element() * 0)), "is zero or not finite"),
        (
            lambda frame: frame.with_row_index().select("id", pl.col("vector").list.head(pl.col("index") + 1)),
            "vectors of one length",
        ),
    ],
)
def test_an_index_that_cannot_be_searched_is_named(
    store: Store, tmp_path: Path, change: Callable[[pl.DataFrame], pl.DataFrame], message: str
) -> None:
    texts = corpus_frame(10)["text"].to_list()
    bare = bare_index(tmp_path / "bare", texts, bag_of_words(texts))
    change(pl.read_parquet(bare / "vectors.parquet")).write_parquet(bare / "vectors.parquet")
    with pytest.raises(LeafError, match=message):
        evaluate(None, store, blurred, teacher_vectors, replace(PARAMS, beir=(str(bare),)))


def test_the_untouched_checkpoint_is_a_fourth_mode_and_a_loss_by_fitting_outside_the_corpus_is_told(
    tiny_corpus: Path, store: Store, tmp_path: Path
) -> None:
    params = replace(PARAMS, beir=(str(write_collection(tmp_path / "wings", corpus_frame(200)["text"].to_list())),))

    def noisy(texts: Sequence[str], role: str = "document") -> np.ndarray:
        noise = [np.random.default_rng(list(text.encode())).normal(size=DIM) for text in texts]
        return (bag_of_words(texts) + np.array(noise)).astype(np.float32)

    def wider(texts: Sequence[str], role: str = "document") -> np.ndarray:
        return np.concatenate([bag_of_words(texts), np.zeros((len(texts), 3), np.float32)], axis=1)

    worse = evaluate(tiny_corpus, store, noisy, teacher_vectors, params, start=wider).figures
    for result in worse["retrieval"].values():
        assert result["start"]["ndcg@10"] == result["teacher"]["ndcg@10"]  # a width of its own, the same similarities
        change = result["standard"]["ndcg@10"] - result["start"]["ndcg@10"]
        assert result["standard"]["since_start"]["mean"] == pytest.approx(change, abs=2e-6)
    [notice] = [notice for notice in worse["notices"] if "untouched checkpoint" in notice]
    assert notice.startswith("wings: fitting has made standard mode worse") and "fit.start_share" in notice

    better = evaluate(tiny_corpus, store, bag_of_words, teacher_vectors, params, start=noisy).figures
    assert better["retrieval"]["wings"]["standard"]["since_start"]["verdict"] == "higher"
    assert not any("untouched checkpoint" in notice for notice in better.get("notices", []))
    assert "start" not in evaluate(tiny_corpus, store, noisy, teacher_vectors, params).figures["retrieval"]["wings"]


@pytest.mark.parametrize(
    ("names", "message"), [(["a/x", "b/x"], "two directories are named `x`"), (["a/tiny"], "`tiny` is a source of")]
)
def test_two_data_sets_of_one_name_are_refused(
    tiny_corpus: Path, store: Store, tmp_path: Path, names: list[str], message: str
) -> None:
    beir = tuple(str(write_collection(tmp_path / name, ["wing lift", "heat"])) for name in names)
    with pytest.raises(LeafError, match=message):
        evaluate(tiny_corpus, store, bag_of_words, teacher_vectors, EvaluateParams(beir=beir))


def test_a_student_of_another_dimension_is_refused(tiny_corpus: Path, store: Store) -> None:
    with pytest.raises(LeafError, match="have 5 dimensions, but those of the store 12"):
        evaluate(tiny_corpus, store, lambda texts, role: np.ones((len(texts), 5)), teacher_vectors, PARAMS)


def test_a_student_of_nan_is_refused(tiny_corpus: Path, store: Store) -> None:
    with pytest.raises(LeafError, match=r"vector of text `record-.*` is not finite"):
        evaluate(tiny_corpus, store, lambda texts, role: np.full((len(texts), DIM), np.nan), teacher_vectors, PARAMS)


def test_a_held_out_text_without_a_vector_is_refused(tiny_corpus: Path, tmp_path: Path) -> None:
    partial = write_store(corpus_frame(200), tmp_path)
    with pytest.raises(LeafError, match="keys are not in the store"):
        evaluate(tiny_corpus, partial, bag_of_words, teacher_vectors, PARAMS)


def test_nothing_to_evaluate_on_is_refused(tiny_corpus: Path, store: Store) -> None:
    part = tiny_corpus / "part-00000.parquet"
    pl.read_parquet(part).filter(split="train").write_parquet(part)
    with pytest.raises(LeafError, match=r"no held-out texts and evaluate\.beir names no collections"):
        evaluate(tiny_corpus, store, bag_of_words, teacher_vectors, PARAMS)


def test_a_store_of_another_teacher_is_refused(store: Store, tiny_teacher: Path) -> None:
    with pytest.raises(LeafError, match="fingerprint abababababababab, but the section `teacher` describes"):
        teacher = open_teacher(TeacherParams(model=str(tiny_teacher)), EncodeParams())
        vectors_on_demand(teacher, EncodeParams(), store)


def test_teacher_vectors_of_other_texts_are_computed_once(
    tmp_path: Path, tiny_teacher: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sentence_transformers import SentenceTransformer

    params = EncodeParams(pool=str(tmp_path / "pool"), dtype="float32")
    teacher = open_teacher(TeacherParams(model=str(tiny_teacher)), params)
    texts = pl.DataFrame({"text": ["read the file", "write", "read the file"], "id": ["1", "2", "3"]})
    texts = texts.with_columns(
        pl.Series("key", keys(["document"] * 3, texts["text"])), role=pl.lit("document"), source=pl.lit("x")
    )
    store = ensure(texts, teacher, params, tmp_path / "view")
    first = vectors_on_demand(teacher, params, store)(texts)
    expected = SentenceTransformer(str(tiny_teacher), device="cpu").encode(texts["text"].to_list())
    assert (first * expected).sum(1) == pytest.approx(np.ones(3), abs=1e-3)

    def refuse(*_: object) -> None:
        raise AssertionError("the teacher was loaded again")

    monkeypatch.setattr(LocalTeacher, "load", refuse)
    again = open_teacher(teacher.params, params)
    assert (vectors_on_demand(again, params, store)(texts) == first).all()


def test_histogram_shares_sum_to_one_and_start_at_the_lowest_text() -> None:
    rows = plots.histogram({"query": np.array([1.0000001, 0.91, 0.85]), "document": np.array([0.5, 0.99])})
    assert sum(share for role, _, share in rows if role == "query") == pytest.approx(1, abs=1e-5)
    assert sum(share for role, _, share in rows if role == "document") == pytest.approx(1)
    assert min(cosine for _, cosine, _ in rows) == pytest.approx(0.51)
    assert plots.histogram({}) == []


def test_plots_are_tables_and_a_picture_with_the_same_bytes_each_time(
    tiny_corpus: Path, store: Store, tmp_path: Path
) -> None:
    result = evaluate(tiny_corpus, store, blurred, teacher_vectors, PARAMS)
    first = plots.write(result, tmp_path / "first")
    second = plots.write(result, tmp_path / "second")
    tables = ["retention", "alignment", "truncation", "quantisation", "map"]
    assert [path.name for path in first] == [*(f"{name}.csv" for name in tables), "moved.json", "evaluation.svg"]
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    with first[0].open() as file:
        rows = list(csv.DictReader(file))
    standard = result.figures["retrieval"]["tiny"]["standard"]
    assert [row["mode"] for row in rows] == ["standard", "asymmetric"]
    assert float(rows[0]["retention"]) == standard["retention"]
    assert [float(rows[0]["low"]), float(rows[0]["high"])] == standard["interval"]["retention"]
    assert ElementTree.parse(first[-1]).getroot().tag.endswith("svg")


def test_plots_are_drawn_without_held_out_texts_or_data_sets_too(tmp_path: Path) -> None:
    empty: dict[str, Any] = {"alignment": {}, "neighbours": {}, "retrieval": {}}
    assert all(path.stat().st_size for path in plots.write(Evaluation(empty, {}), tmp_path))


@pytest.fixture
def fitted(tmp_path: Path, tiny_student: Path) -> Path:
    from pipeline.model.student import build

    build(StudentParams(model=str(tiny_student)), dim=32, normalize=True).save(tmp_path / "models/student")
    return tmp_path / "models/student"


def run(command: click.Command, *arguments: str) -> Result:
    """A stage's command in this process, in the working directory."""
    return CliRunner().invoke(command, arguments)


def test_the_stage_writes_metrics_and_plots_and_a_short_table(
    write_params: Callable[..., Path], tiny_corpus: Path, fitted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    collection = write_collection(tmp_path / "wings", corpus_frame(60)["text"].to_list())
    write_params(evaluate={"beir": [str(collection)], "cost": {"texts": 8, "queries": 4, "rounds": 2}})
    paths = ["--corpus", str(tiny_corpus), "--embeddings", "embeddings"]
    encoded = run(stages.encode.main, "--corpus", str(tiny_corpus), "--out", "embeddings")
    assert encoded.exit_code == 0, encoded.output
    done = run(stages.evaluate.main, *paths)
    assert done.exit_code == 0, done.output
    figures: dict[str, Any] = json.loads(Path("metrics/evaluate.json").read_text())
    assert figures["similarity"] == "cosine"
    assert set(figures) == {"similarity", "alignment", "neighbours", "retrieval", "truncation", "quantisation"}
    assert set(figures["retrieval"]) == {"tiny", "wings"}
    assert {"start", "standard"} < set(figures["retrieval"]["wings"]) and "start" in done.stdout
    costs = json.loads(Path("metrics/cost.json").read_text())
    assert costs["models"]["teacher"]["parameters"] > costs["models"]["student"]["parameters"] > 0
    for turn in costs["threads"].values():
        assert turn["student"]["texts_per_s"]["value"] > 0
        assert turn["teacher"]["latency_p95_ms"]["n"] == 4
    assert all(path in done.stdout for path in ("metrics/evaluate.json", "plots/evaluation.svg", "asymmetric"))

    stamps = {path: path.stat().st_mtime_ns for path in Path("plots").iterdir()}
    again = run(stages.evaluate.main, *paths, "--model", str(fitted), "--out", "dose/30k.json")
    assert again.exit_code == 0, again.output
    assert json.loads(Path("dose/30k.json").read_text()) == figures
    assert {path: path.stat().st_mtime_ns for path in Path("plots").iterdir()} == stamps


def test_the_stage_names_what_is_missing(
    write_params: Callable[..., Path],
    tiny_corpus: Path,
    tiny_store: Store,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    write_params()
    paths = ["--corpus", str(tiny_corpus), "--embeddings", "nowhere"]
    done = run(stages.evaluate.main, *paths)
    assert done.exit_code == 1
    assert "nowhere" in done.stderr
    paths[-1] = str(tiny_store.path)
    done = run(stages.evaluate.main, *paths, "--model", "none")
    assert done.exit_code == 1
    assert "none: holds no student" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--cost", "blocked/cost.json"), "blocked/cost.json: cannot be written"),
        (("--plots", "blocked/plots"), "blocked/plots/retention.csv: cannot be written"),
        (("--cost", "cost.json"), "the teacher is needed for evaluate.cost"),
    ],
)
def test_what_the_last_step_would_miss_is_refused_before_the_first(
    arguments: tuple[str, ...],
    message: str,
    write_params: Callable[..., Path],
    tiny_corpus: Path,
    fitted: Path,
    tiny_store: Store,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    write_params(teacher={"model": "package:not_installed/model"})
    Path("blocked").touch()
    paths = ["--corpus", str(tiny_corpus), "--embeddings", str(tiny_store.path), "--model", str(fitted)]
    done = run(stages.evaluate.main, *paths, "--out", "figures.json", *arguments)
    assert done.exit_code == 1
    assert message in done.output
    assert not Path("figures.json").exists()
