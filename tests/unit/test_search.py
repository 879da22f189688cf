"""`leaf search`, `leaf index` and `leaf push-hub`."""

import errno
import json
import os
import pty
import subprocess
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import polars as pl
import pytest
from click.testing import CliRunner, Result

from pipeline.base import written_directory
from pipeline.base.errors import LeafError
from pipeline.encode.encoding import encode
from pipeline.export.onnx_graph import write_graphs
from pipeline.model.student import build
from pipeline.params.sections import EncodeParams, StudentParams, TeacherParams
from pipeline.serve import index
from pipeline.serve.onnx_encoder import OnnxEncoder
from pipeline.serve.search import Searcher, Vectors, read_vectors, unit_vectors
from pipeline.store import MODEL_KIND, FittedTo, write_fitted_to
from pipeline.store.shard import StoreMeta
from pipeline.store.shard_cache import ShardCache
from pipeline.store.store import Store
from pipeline.teacher.teacher import open_teacher
from stages.common import command
from stages.leaf import main
from tests import plain_environment
from tests.conftest import ROOT, corpus_frame, make_model

QUERY = "copy the file to a list"
LIBRARIES = [pytest.param("faiss"), pytest.param("usearch")]


@dataclass(frozen=True)
class Searchable:
    """A corpus, its store and an exported student."""

    root: Path

    @property
    def store(self) -> Store:
        return Store.open(self.root / "embeddings")

    def leaf(self, *arguments: str, typed: str | None = None) -> Result:
        places = ["--embeddings", str(self.root / "embeddings"), "--corpus", str(self.root / "corpus")]
        model = ["--model", str(self.root / "onnx")] if arguments[0] == "search" else []
        return CliRunner().invoke(main, [*arguments, *places, *model], input=typed)

    def process(self, *arguments: str, **options: Any) -> "subprocess.CompletedProcess[str]":
        """Run the command as a process in the root; `options` are those of `subprocess.run`."""
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
        leaf = [sys.executable, "-m", "stages.leaf", *arguments]
        return subprocess.run(leaf, cwd=self.root, env=environment, text=True, timeout=600, check=False, **streams)

    def hits(self, *arguments: str) -> list[str]:
        result = self.leaf("search", QUERY, "--json", *arguments)
        assert result.exit_code == 0, result.output
        return [hit["id"] for hit in json.loads(result.stdout)["hits"]]


@pytest.fixture(scope="module")
def searchable(tmp_path_factory: pytest.TempPathFactory) -> Searchable:
    root = tmp_path_factory.mktemp("search")
    (root / "corpus").mkdir()
    corpus_frame(400).write_parquet(root / "corpus" / "part-00000.parquet")
    teacher = TeacherParams(model=str(make_model(root / "teacher")))
    settings = EncodeParams(pool=str(root / "pool"), token_budget=512, shard_rows=64)
    encode(root / "corpus", open_teacher(teacher, settings), settings, root / "embeddings")
    checkpoint = make_model(root / "checkpoint", width=16, seed=1)
    (root / "onnx").mkdir()
    write_graphs(build(StudentParams(model=str(checkpoint)), dim=32, normalize=True), root / "onnx")
    write_fitted_to(root / "onnx", FittedTo.of(Store.open(root / "embeddings").meta))
    return Searchable(root)


def test_the_nearest_documents_are_those_of_a_plain_product(searchable: Searchable) -> None:
    corpus = pl.read_parquet(searchable.root / "corpus" / "*.parquet").filter(pl.col("role") == "document")
    query = OnnxEncoder(searchable.root / "onnx").encode([QUERY])[0]
    scores = unit_vectors(searchable.store.lookup(corpus["key"].to_list())) @ query
    assert searchable.hits("--top", "7") == corpus["id"][np.argsort(-scores)[:7]].to_list()
    assert len(searchable.hits("--top", "100000")) == len(corpus)


def test_a_person_sees_texts_and_the_time_taken(searchable: Searchable) -> None:
    result = searchable.leaf("search", QUERY, "--top", "2")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    corpus = pl.read_parquet(searchable.root / "corpus" / "*.parquet")
    assert lines[1].strip() in corpus["text"].to_list()
    assert "query's vector" in lines[-1]
    assert " ms" in lines[-1]


def test_each_piped_line_gets_its_result_and_an_empty_one_none(searchable: Searchable) -> None:
    result = searchable.leaf("search", "--top", "2", "--json", typed="copy a file\n\nsort the list\n \n\N{DEGREE SIGN}")
    assert result.exit_code == 0
    assert [len(json.loads(line)["hits"]) for line in result.stdout.splitlines()] == [2, 0, 2, 0, 2]
    assert searchable.leaf("search", typed="").exit_code == 0


def test_at_a_terminal_it_asks_for_one_query_after_another_until_an_empty_one(searchable: Searchable) -> None:
    places = ["--embeddings", "embeddings", "--corpus", "corpus", "--model", "onnx", "--top", "1", "--json"]
    ours, theirs = pty.openpty()
    with os.fdopen(ours, "w") as keyboard:
        keyboard.write("copy a file\nsort the list\n\nnever read\n")
        keyboard.flush()
        result = searchable.process("search", *places, stdin=theirs)
    os.close(theirs)
    assert result.returncode == 0
    assert len([line for line in result.stdout.splitlines() if line.startswith("{")]) == 2


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("search", QUERY, "--embeddings", "embeddings", "--corpus", "corpus", "--model", "onnx"), 0),
        (("store", "info", "embeddings"), 0),
        (("store", "info", "nowhere"), 1),
    ],
    ids=["search", "info", "an error"],
)
def test_output_that_nobody_reads_is_no_error(searchable: Searchable, words: tuple[str, ...], code: int) -> None:
    reader, writer = os.pipe()
    os.close(reader)  # as `head` does, once it has its lines
    result = searchable.process(*words, stdout=writer)
    os.close(writer)
    assert result.returncode == code, result.stderr
    assert bool(result.stderr) == bool(code) and "Traceback" not in result.stderr


def test_a_broken_connection_is_an_error() -> None:
    @command
    def send() -> None:
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    result = CliRunner().invoke(send)
    assert result.exit_code == 1 and "Broken pipe" in result.output


@pytest.mark.parametrize("kind", LIBRARIES)
def test_an_index_finds_what_exact_search_finds(searchable: Searchable, kind: str, tmp_path: Path) -> None:
    pytest.importorskip(kind, reason=f"needs {kind}")
    written = searchable.leaf("index", "--to", kind, "--out", str(tmp_path / kind))
    assert written.exit_code == 0, written.output
    exact, indexed = searchable.hits("--top", "10"), searchable.hits("--top", "10", "--index", str(tmp_path / kind))
    assert len(set(exact) & set(indexed)) >= 9
    assert indexed[0] == exact[0]
    about = json.loads((tmp_path / kind / "index.json").read_text())
    assert about["fingerprint"] == searchable.store.meta.fingerprint
    assert about["similarity"] == index.load(tmp_path / kind).similarity == "cosine"


def test_parquet_holds_every_text_with_its_vector(searchable: Searchable, tmp_path: Path) -> None:
    assert searchable.leaf("index", "--to", "parquet", "--role", "all", "--out", str(tmp_path / "p")).exit_code == 0
    rows = pl.read_parquet(tmp_path / "p" / "*.parquet")
    corpus = pl.read_parquet(searchable.root / "corpus" / "*.parquet")
    assert len(rows) == len(corpus)
    together = rows.with_columns(pl.col("key").str.decode("hex")).join(corpus, on="key")
    assert (together["text"] == together["text_right"]).all()
    stored = unit_vectors(searchable.store.lookup(together["key"].to_list()))
    np.testing.assert_allclose(together["vector"].to_numpy(), stored, atol=2e-3)


@pytest.mark.parametrize("kind", LIBRARIES)
def test_a_damaged_index_is_one_message(
    searchable: Searchable, kind: Literal["faiss", "usearch"], tmp_path: Path
) -> None:
    pytest.importorskip(kind, reason=f"needs {kind}")
    index.write(searchable.store, None, kind, tmp_path / kind)
    file = tmp_path / kind / f"vectors.{kind}"
    file.write_bytes(b"")
    with pytest.raises(LeafError, match="write it again with `leaf index`"):
        index.load(tmp_path / kind)
    file.unlink()
    with pytest.raises(LeafError, match="write it again with `leaf index`"):
        index.load(tmp_path / kind)
    with pytest.raises(LeafError, match="write it again with `leaf index`"):
        index.load(tmp_path / "none")


CLIENTS = {
    "lancedb": """
import lancedb
table = lancedb.connect(place).open_table("texts")
entries = table.to_arrow().to_pylist()
found = table.search(query).limit(10).to_list()
hits = [(hit["id"], hit.get("text"), 1 - hit["_distance"]) for hit in found]
""",
    "qdrant": """
from qdrant_client import QdrantClient
client = QdrantClient(path=place)
entries = [point.payload for point in client.scroll("texts", limit=10_000)[0]]
found = client.query_points("texts", query=query, limit=10).points
hits = [(hit.payload["id"], hit.payload.get("text"), hit.score) for hit in found]
""",
}
"""By kind: what a stranger writes who searches the database with its own client. Scores are cosines or dot products."""
PACKAGES = {"lancedb": "lancedb", "qdrant": "qdrant-client"}
DATABASES = [pytest.param(kind) for kind in CLIENTS]


def ask(kind: str, place: Path, query: np.ndarray, folder: Path) -> tuple[list[dict[str, Any]], list[Any]]:
    """All entries and the ten best hits of a database, by its own client in an environment without this project."""
    python = plain_environment.make(folder / "venv", PACKAGES[kind])
    head = f"import json\nplace, query = {str(place)!r}, {query.tolist()}\n"
    printed = plain_environment.run(python, folder, "-c", f"{head}{CLIENTS[kind]}print(json.dumps([entries, hits]))")
    entries, hits = json.loads(printed)
    return entries, hits


@pytest.mark.parametrize("kind", DATABASES)
def test_a_databases_own_client_finds_what_leaf_search_finds(searchable: Searchable, kind: str, tmp_path: Path) -> None:
    pytest.importorskip(PACKAGES[kind].replace("-", "_"), reason=f"needs {PACKAGES[kind]}")
    written = searchable.leaf("index", "--to", kind, "--out", str(tmp_path / kind))
    assert written.exit_code == 0, written.output
    assert "with their texts, to be compared by cosine" in written.stdout
    entries, hits = ask(kind, tmp_path / kind, OnnxEncoder(searchable.root / "onnx").encode([QUERY])[0], tmp_path)
    expected = json.loads(searchable.leaf("search", QUERY, "--json", "--top", "10").stdout)["hits"]
    assert [hit[0] for hit in hits] == [hit["id"] for hit in expected]
    assert [hit[1] for hit in hits] == [hit["text"] for hit in expected]
    np.testing.assert_allclose([hit[2] for hit in hits], [hit["score"] for hit in expected], atol=1e-3)
    corpus = pl.read_parquet(searchable.root / "corpus" / "*.parquet").filter(role="document")
    corpus = corpus.with_columns(pl.col("key").bin.encode("hex")).sort("key")
    for name in ("key", "id", "text", "role", "source"):
        assert [entry[name] for entry in sorted(entries, key=lambda entry: entry["key"])] == corpus[name].to_list()


@pytest.mark.parametrize("kind", DATABASES)
def test_a_database_ranks_by_the_dot_product_where_the_store_says_so(kind: str, tmp_path: Path) -> None:
    pytest.importorskip(PACKAGES[kind].replace("-", "_"), reason=f"needs {PACKAGES[kind]}")
    frame, values, store = made_for_the_dot_product(tmp_path)
    assert index.write(store, None, cast(index.Kind, kind), tmp_path / kind, role=None) == len(frame)
    query = np.array([1, 2, 0, 0, 0, 0, 1, -1], np.float32)
    entries, hits = ask(kind, tmp_path / kind, query, tmp_path)
    assert {entry["role"] for entry in entries} == {"query", "document"}
    assert "text" not in entries[0]
    best = np.argsort(-(values @ query))[:10]
    assert [hit[2] for hit in hits] == pytest.approx((values @ query)[best].tolist(), rel=1e-4)
    assert [hit[0] for hit in hits] == frame["id"][best].to_list()


@pytest.mark.parametrize("kind", DATABASES)
def test_a_database_without_its_client_or_without_a_text_is_one_message(
    searchable: Searchable, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = PACKAGES[kind]
    if find_spec(package.replace("-", "_")):
        (tmp_path / "corpus").mkdir()
        corpus_frame(2).write_parquet(tmp_path / "corpus" / "part-00000.parquet")
        with pytest.raises(LeafError, match=r"lacks the text of `record-.*`: name the corpus that was encoded"):
            index.write(searchable.store, tmp_path / "corpus", cast(index.Kind, kind), tmp_path / kind)
        assert not (tmp_path / kind).exists()
    monkeypatch.setitem(sys.modules, package.replace("-", "_"), None)
    refused = searchable.leaf("index", "--to", kind, "--out", str(tmp_path / kind))
    assert refused.exit_code == 1
    assert f"needs the package `{package}`; install it with `pip install 'leaf-pipeline[{kind}]'`" in refused.output


def test_a_database_is_left_to_its_client(tmp_path: Path) -> None:
    (tmp_path / "index.json").write_text(json.dumps({"kind": "lancedb", "rows": 1, "dim": 1}))
    with pytest.raises(LeafError, match="is a database, which lancedb's own client searches"):
        index.load(tmp_path)


def test_bad_input_is_one_message(searchable: Searchable, tmp_path: Path) -> None:
    assert "the query is empty" in searchable.leaf("search", "  ").output
    wide = build(StudentParams(model=str(make_model(tmp_path / "wide", width=16))), dim=20, normalize=True)
    (tmp_path / "onnx").mkdir()
    write_graphs(wide, tmp_path / "onnx")
    places = ["--embeddings", str(searchable.root / "embeddings"), "--corpus", str(searchable.root / "corpus")]
    result = CliRunner().invoke(main, ["search", QUERY, *places, "--model", str(tmp_path / "onnx")])
    assert result.exit_code == 1
    assert "fitted to another store" in result.output
    result = CliRunner().invoke(main, ["search", QUERY, *places, "--model", str(tmp_path / "none")])
    assert "run the export stage first" in result.output
    (tmp_path / "corpus").mkdir()
    foreign = corpus_frame(400).with_columns(key=pl.lit(b"x" * 15) + pl.col("key").bin.head(1))
    foreign.unique("key").sort("key").write_parquet(tmp_path / "corpus" / "part-00000.parquet")
    places[-1] = str(tmp_path / "corpus")
    result = CliRunner().invoke(main, ["search", QUERY, *places, "--model", str(searchable.root / "onnx")])
    assert result.exit_code == 1
    assert "has none of the" in result.output


def without_the_nearest(searchable: Searchable, directory: Path) -> list[str]:
    """Write the corpus without the twenty documents nearest to QUERY; the ids of the five after these."""
    nearest = searchable.hits("--top", "25")
    directory.mkdir()
    corpus = pl.read_parquet(searchable.root / "corpus" / "*.parquet")
    gone = (pl.col("role") == "document") & pl.col("id").is_in(nearest[:20])
    corpus.filter(~gone).write_parquet(directory / "part-00000.parquet")
    return nearest[20:]


@pytest.mark.parametrize("kind", [None, *LIBRARIES])
def test_documents_taken_out_of_the_corpus_make_room_for_the_next(
    searchable: Searchable, tmp_path: Path, kind: str | None
) -> None:
    if kind:
        pytest.importorskip(kind, reason=f"needs {kind}")
        assert searchable.leaf("index", "--to", kind, "--out", str(tmp_path / "index")).exit_code == 0
    following = without_the_nearest(searchable, tmp_path / "corpus")
    places = ["--embeddings", str(searchable.root / "embeddings"), "--corpus", str(tmp_path / "corpus")]
    index_option = ["--index", str(tmp_path / "index")] if kind else []
    model = ["--model", str(searchable.root / "onnx")]
    result = CliRunner().invoke(main, ["search", QUERY, "--json", *places, *model, *index_option])
    assert result.exit_code == 0, result.output
    assert [hit["id"] for hit in json.loads(result.stdout)["hits"]] == following
    assert "20 documents are passed over" in result.stderr
    assert "was written" not in result.stderr


@pytest.mark.parametrize("kind", LIBRARIES)
def test_an_index_older_than_its_store_says_so(
    searchable: Searchable, kind: Literal["faiss", "usearch"], tmp_path: Path
) -> None:
    pytest.importorskip(kind, reason=f"needs {kind}")
    store = searchable.store
    with ShardCache(tmp_path / "pool", store.meta) as cache:
        cache.adopt(store.path, store.shards[0])
        smaller = cache.publish(tmp_path / "store", cache.keys())
    index.write(smaller, None, kind, tmp_path / "index")
    result = searchable.leaf("search", QUERY, "--json", "--index", str(tmp_path / "index"))
    assert result.exit_code == 0, result.output
    assert "was last changed: documents may be missing" in result.stderr
    about = json.loads((tmp_path / "index/index.json").read_text())
    (tmp_path / "index/index.json").write_text(json.dumps({**about, "fingerprint": "cd" * 32}))
    refused = searchable.leaf("search", QUERY, "--index", str(tmp_path / "index"))
    assert refused.exit_code == 1
    assert "vectors of fingerprint" in refused.output and "cdcd" in refused.output


def test_an_index_replaces_an_index_and_nothing_else(searchable: Searchable, tmp_path: Path) -> None:
    into = ["index", "--to", "parquet", "--out"]
    assert searchable.leaf(*into, str(tmp_path / "p")).exit_code == 0
    assert searchable.leaf(*into, str(tmp_path / "p")).exit_code == 0
    searched = searchable.leaf("search", QUERY, "--index", str(tmp_path / "p"))
    assert searched.exit_code == 1
    assert "holds Parquet files" in searched.output and "leave out --index for exact search" in searched.output
    refused = searchable.leaf(*into, str(searchable.root / "embeddings"))
    assert refused.exit_code == 1
    assert "holds no index of this program" in refused.output
    searchable.store.verify()


def test_equal_documents_keep_their_order_and_few_are_all_found() -> None:
    vectors = Vectors(pl.DataFrame({"id": ["a", "b", "c"]}), np.array([[1, 0], [0, 1], [1, 0]], np.float16))
    rows, scores = vectors.nearest(np.array([1, 0], np.float32), 10)
    assert rows.tolist() == [0, 2, 1]
    assert scores.tolist() == [1, 1, 0]


def made_for_the_dot_product(folder: Path) -> tuple[pl.DataFrame, np.ndarray, Store]:
    """A corpus below `folder`, vectors of many lengths, and the store of them."""
    frame = corpus_frame(60)
    (folder / "corpus").mkdir()
    frame.write_parquet(folder / "corpus" / "part-00000.parquet")
    values = np.random.default_rng(0).normal(size=(len(frame), 8)) * np.linspace(1, 9, len(frame))[:, None]
    meta = StoreMeta("ab" * 32, {"model": "made", "similarity": "dot"}, dim=8, dtype="float32", normalized=False)
    with ShardCache(folder / "pool", meta) as cache:
        cache.write(frame.with_columns(tokens=pl.lit(1, pl.Int32)), values.astype(np.float32))
        store = cache.publish(folder / "store", frame["key"].to_list())
    return frame, values, store


def test_documents_are_ranked_by_the_dot_product_where_the_teacher_is_made_for_it(tmp_path: Path) -> None:
    frame, values, store = made_for_the_dot_product(tmp_path)
    query = np.array([[1, 2, 0, 0, 0, 0, 1, -1]], np.float32)
    documents = frame.with_columns(score=values @ query[0]).filter(role="document").sort("score", descending=True)
    vectors = read_vectors(store)
    searcher = Searcher(lambda texts: query, vectors.rows, vectors.nearest, tmp_path / "corpus", vectors.similarity)
    hits = searcher.search("anything", 10).hits
    assert [hit.text for hit in hits] == documents["text"].to_list()[:10]
    assert hits[0].score == pytest.approx(documents["score"][0], rel=1e-5)


def test_only_documents_are_searched(searchable: Searchable) -> None:
    assert set(read_vectors(searchable.store).rows["role"]) == {"document"}
    assert len(read_vectors(searchable.store, None).rows) == searchable.store.rows


def test_push_hub_shows_what_it_would_send_and_sends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _write_model(tmp_path / "models/student")
    push = ["push-hub", "student", "--repo", "lab/model", "--models", str(tmp_path / "models")]
    dry = CliRunner().invoke(main, push)
    assert dry.exit_code == 0, dry.output
    assert "config.json" in dry.output
    assert "nothing was sent" in dry.output
    monkeypatch.setenv("HF_TOKEN", "")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    refused = CliRunner().invoke(main, [*push, "--upload"])
    assert refused.exit_code == 1
    assert "HF_TOKEN" in refused.output
    missing = CliRunner().invoke(
        main, ["push-hub", "onnx", "--repo", "lab/model", "--models", str(tmp_path / "models")]
    )
    assert "run the export stage first" in missing.output


def _write_model(directory: Path) -> None:
    with written_directory(directory, MODEL_KIND) as new:
        (new / "config.json").write_text("{}")
        (new / "README.md").write_text("# as fit wrote it\n")


def test_push_hub_sends_the_files_that_were_written_there_and_no_others(tmp_path: Path) -> None:
    student, secret = tmp_path / "models/student", tmp_path / "credentials"
    secret.write_text("key = sk-secret")
    push = ["push-hub", "student", "--repo", "lab/model", "--models", str(tmp_path / "models")]
    _write_model(student)
    (student / "notes").symlink_to(secret)
    (student / "thesis.tex").write_text("years of work")
    (student / "README.md").write_text("# as somebody edited it\n")
    dry = CliRunner().invoke(main, push)
    assert dry.exit_code == 0, dry.output
    assert [line.split()[-1] for line in dry.output.splitlines() if " MB " in line] == ["README.md", "config.json"]
    assert "README.md: was changed by hand" in dry.output
    for name in ("config.json", "README.md"):
        written = (student / name).read_bytes()
        (student / name).unlink()
        (student / name).symlink_to(secret)
        refused = CliRunner().invoke(main, push)
        assert f"{name}: is not the file that was written there" in refused.output
        (student / name).unlink()
        (student / name).write_bytes(written)
    (student / "config.json").write_text('{"changed": 1}')
    assert "config.json: is not the file that was written there" in CliRunner().invoke(main, push).output
    (student / ".leaf.json").unlink()
    assert "does not say which files belong to the model" in CliRunner().invoke(main, push).output
