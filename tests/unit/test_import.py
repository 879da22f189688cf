"""Texts and vectors that somebody else computed become a store once a sample agrees, or are marked for good."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from click.testing import CliRunner

from pipeline.base.errors import LeafError
from pipeline.base.keys import keys
from pipeline.encode import importing, vector_files
from pipeline.encode.encoding import encode
from pipeline.encode.importing import _draw
from pipeline.params.sections import EncodeParams, Prompts, TeacherParams
from pipeline.store import operations
from pipeline.store.store import Store
from pipeline.teacher.teacher import open_teacher
from stages.leaf import main
from tests.conftest import sentence

ROWS = 150


@pytest.fixture(scope="module")
def frame(tiny_teacher: Path) -> pl.DataFrame:
    """Texts as their owner has them, with the vectors that the teacher gave them, of other lengths than one."""
    texts = [f"  {sentence(number)} " if number % 3 else sentence(number) for number in range(ROWS)]
    opened = open_teacher(TeacherParams(str(tiny_teacher)), EncodeParams(token_budget=512))
    vectors = opened.vectors(pl.DataFrame({"role": ["document"] * ROWS, "text": [text.strip() for text in texts]}))
    lengths = np.linspace(0.5, 3, ROWS, dtype=np.float32)[:, None]
    return pl.DataFrame(
        {"name": [f"n{number}" for number in range(ROWS)], "text": texts, "vector": list(vectors * lengths)},
        schema_overrides={"vector": pl.Array(pl.Float32, 32)},
    )


@pytest.fixture
def leaf(tmp_path: Path, tiny_teacher: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text(
        f"teacher: {{model: {tiny_teacher}, license: MIT}}\n"
        "encode: {shard_rows: 64, token_budget: 512, license: CC-BY-4.0, dtype: float32}\n"
    )

    def run(*arguments: str, status: int = 0) -> Any:
        result = CliRunner().invoke(main, ["store", *arguments, "--json"])
        assert result.exit_code == status, result.output
        return result.output if status else json.loads(result.stdout)

    return run


def write(frame: pl.DataFrame, kind: str, root: Path) -> list[str]:
    """Write the frame in one of the forms; the arguments that name it."""
    if kind == "parquet":
        frame.write_parquet(root / "vectors.parquet", row_group_size=40)
        return [str(root / "vectors.parquet")]
    if kind == "directory":
        (root / "parts").mkdir()
        frame.head(70).write_parquet(root / "parts/a.parquet")
        frame[70:].with_columns(vector=pl.col("vector").arr.to_list()).write_parquet(root / "parts/b.parquet")
        return [str(root / "parts")]
    if kind == "dataset":
        datasets = pytest.importorskip("datasets", reason="needs datasets: pip install -e '.[hub]'")
        table = {"name": frame["name"].to_list(), "text": frame["text"].to_list(), "vector": frame["vector"].to_list()}
        datasets.DatasetDict({"train": datasets.Dataset.from_dict(table)}).save_to_disk(str(root / "saved"))
        return [str(root / "saved")]
    if kind == "arrow":
        table = pa.table({"name": frame["name"].to_list(), "text": frame["text"].to_list(),
                          "vector": frame["vector"].to_list()})  # fmt: skip
        (root / "saved/train").mkdir(parents=True)
        with pa.ipc.new_stream(root / "saved/train/data-00000-of-00001.arrow", table.schema) as stream:
            stream.write_table(table)
        (root / "saved/train/cache-1.arrow").write_bytes(b"of a transform, and no part of the data set")
        state = {"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}
        (root / "saved/train/state.json").write_text(json.dumps(state))
        (root / "saved/dataset_dict.json").write_text('{"splits": ["train"]}')
        return [str(root / "saved")]
    np.save(root / "vectors.npy", frame["vector"].to_numpy())
    texts = root / f"texts.{kind}"
    if kind == "csv":
        frame.drop("vector").write_csv(texts)
    else:
        frame.drop("vector").write_ndjson(texts)
    return [str(root / "vectors.npy"), "--texts", str(texts)]


@pytest.mark.parametrize(("roles", "status"), [(["query", "document"], 0), (["document", "query"], 1)])
def test_vectors_are_compared_in_the_role_that_their_column_says(
    leaf: Callable[..., Any], tmp_path: Path, tiny_teacher: Path, roles: list[str], status: int
) -> None:
    """A teacher with prompts gives another vector to a query than to a document of the same words."""
    prompts = Prompts(query="the the the ", document="")
    opened = open_teacher(TeacherParams(str(tiny_teacher), prompts=prompts), EncodeParams(token_budget=512))
    rows = pl.DataFrame({"role": ["query", "document"] * 20, "text": [sentence(number) for number in range(40)]})
    rows = rows.with_columns(vector=pl.Series(list(opened.vectors(rows)), dtype=pl.Array(pl.Float32, 32)))
    rows.with_columns(role=pl.Series(roles * 20)).write_parquet(tmp_path / "vectors.parquet")
    params = tmp_path / "params.yaml"
    said = "prompts: {query: 'the the the ', document: ''}, license"
    params.write_text(params.read_text().replace("license", said, 1))
    result = leaf("import", "vectors.parquet", "--out", "store", "--role-field", "role", status=status)
    assert (tmp_path / "store").exists() == (status == 0)
    if status:
        assert "vectors.parquet" in result and "cosine" in result
    else:
        assert result["rows"] == 40


@pytest.mark.parametrize("kind", ["parquet", "directory", "dataset", "arrow", "csv", "jsonl"])
def test_what_agrees_with_the_teacher_is_a_store_of_the_teacher(
    leaf: Callable[..., Any], frame: pl.DataFrame, tmp_path: Path, kind: str, tiny_teacher: Path
) -> None:
    figures = leaf("import", *write(frame, kind, tmp_path), "--out", "store", "--id-field", "name", "--sample", "20")
    unique = len(set(frame["text"].str.strip_chars()))
    assert figures["rows"] == unique
    assert figures["rows"] + figures["rows_duplicate"] == ROWS
    assert figures["rows_scaled"] >= unique - 2
    assert 1 <= figures["compared"] <= 20
    assert figures["cosine_min"] > 0.999
    store = Store.open(tmp_path / "store")
    assert operations.verify(store)["shards"] == -(-unique // 64)
    assert (store.meta.license, store.meta.teacher["license"]) == ("CC-BY-4.0", "MIT")
    if kind == "parquet":
        corpus = tmp_path / "corpus"
        corpus.mkdir()
        texts = frame["text"].str.strip_chars().unique(maintain_order=True)
        pl.DataFrame({"key": keys(["document"] * len(texts), texts), "id": texts, "text": texts}).with_columns(
            role=pl.lit("document"), source=pl.lit("s"), split=pl.lit("train")
        ).sort("key").write_parquet(corpus / "part-00000.parquet")
        params = EncodeParams(pool=str(tmp_path / "pool"), token_budget=512, dtype="float32", reuse=("store",))
        figures = encode(corpus, open_teacher(TeacherParams(str(tiny_teacher)), params), params, tmp_path / "ours")
        assert figures["rows_encoded"] == 0
        assert Store.open(tmp_path / "ours").meta.license == "CC-BY-4.0"


def test_vectors_of_another_model_are_refused_and_nothing_is_written(
    leaf: Callable[..., Any], frame: pl.DataFrame, tmp_path: Path
) -> None:
    swapped = frame.with_columns(vector=pl.Series("vector", list(frame["vector"].to_numpy()[::-1])))
    said = leaf("import", *write(swapped, "parquet", tmp_path), "--out", "store", status=1)
    assert "do not trust this store" in said
    assert not (tmp_path / "store").exists()


def test_a_block_of_foreign_rows_is_found_wherever_it_lies(
    leaf: Callable[..., Any], frame: pl.DataFrame, tmp_path: Path
) -> None:
    """A tenth of the rows: with 64 ranges drawn from, some row of the block is always in the sample."""
    vectors = frame["vector"].to_numpy().copy()
    vectors[100:115] = vectors[:15]
    forged = frame.with_columns(vector=pl.Series("vector", list(vectors)))
    assert "do not trust" in leaf("import", *write(forged, "csv", tmp_path), "--out", "store", status=1)


def test_the_sample_is_spread_over_all_rows_and_not_the_same_twice() -> None:
    first, second = _draw(9_984, 64), _draw(9_984, 64)
    assert (first // 156).tolist() == list(range(64))
    assert first.tolist() != second.tolist()
    assert _draw(3, 64).tolist() == [0, 1, 2]


def test_unverified_vectors_are_marked_for_good_and_join_no_others(
    leaf: Callable[..., Any], frame: pl.DataFrame, tmp_path: Path, tiny_teacher: Path, tiny_corpus: Path
) -> None:
    places = write(frame, "parquet", tmp_path)
    leaf("import", *places, "--out", "store")
    figures = leaf("import", *places, "--out", "claimed", "--unverified", "--teacher", "org/absent-model")
    assert "nobody has checked" in figures["unverified"]
    claimed, verified = Store.open("claimed"), Store.open("store")
    assert claimed.meta.fingerprint != verified.meta.fingerprint
    assert "nobody has checked" in leaf("info", "claimed")["unverified"]
    assert "org/absent-model (unverified)" in (tmp_path / "claimed/README.md").read_text()
    assert "unverified" not in (tmp_path / "store/README.md").read_text()
    assert leaf("verify", "claimed")["rows"] == claimed.rows
    leaf("import", *places, "--out", "ours", "--unverified")
    for command in (("merge", "store", "ours", "--out", "m"), ("merge", "claimed", "ours", "--out", "m")):
        assert "fingerprint" in leaf(*command, status=1)
    assert "is unverified" in leaf("verify", "ours", "--sample", "3", "--corpus", str(tiny_corpus), status=1)
    params = EncodeParams(pool="pool", token_budget=512, dtype="float32", reuse=("ours",))
    with pytest.raises(LeafError, match=r"encode.reuse: ours: is unverified .*import the files again"):
        encode(tiny_corpus, open_teacher(TeacherParams(str(tiny_teacher)), params), params, tmp_path / "out")
    listed = {entry["store"]: entry for entry in leaf("list", ".")}
    assert listed["./ours"]["why"].startswith("is unverified")
    assert listed["./store"]["fits"]


@pytest.mark.parametrize("unverified", [True, False])
def test_a_text_that_occurs_again_anywhere_must_have_the_same_vector(
    leaf: Callable[..., Any], frame: pl.DataFrame, unverified: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also in another batch, when its first vector has been written long since."""
    monkeypatch.setattr(vector_files, "BATCH_ROWS", 20)
    monkeypatch.setattr(importing, "REPEATS_BYTES", 5 * 4 * 32)  # five rows
    arguments = ["import", "twice.parquet", "--out", "twice", *(["--unverified"] if unverified else [])]
    vectors = frame["vector"].to_numpy()
    for row in (3, 12, 149):
        other = frame[row : row + 1].with_columns(pl.Series("vector", vectors[[row - 2]]))
        pl.concat([frame, frame, other]).write_parquet("twice.parquet")
        refused = leaf(*arguments, status=1)
        assert "twice.parquet: the text of id `300` occurs twice, with vectors of cosine" in refused
        assert not Path("twice").exists()
    pl.concat([frame, frame]).write_parquet("twice.parquet")
    figures = leaf(*arguments)
    assert figures["rows"] == len(set(frame["text"].str.strip_chars()))
    assert figures["rows"] + figures["rows_duplicate"] == 2 * ROWS


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["vectors.parquet", "--text-field", "body"], "has no column `body`; its columns are name, text, vector"),
        (["vectors.parquet", "--vector-field", "text"], "column `text` must hold lists of numbers, not"),
        (["vectors.parquet", "--texts", "short.csv"], "belongs to a .npy file"),
        (["vectors.npy"], "name the file of its texts with --texts"),
        (["vectors.npy", "--texts", "short.csv"], "holds 10 rows, but vectors.npy 150 vectors"),
        (["pickled.npy", "--texts", "short.csv"], "cannot be read as a NumPy array"),
        (["narrow.parquet"], "vectors of 5 dimensions, but the teacher's have 32"),
        (["ragged.parquet"], "every row must have a vector, all of one dimension"),
        (["nothing.parquet"], "no such file"),
        (["empty"], "holds no *.parquet"),
        (["twice.parquet", "--sample", "1"], "occurs twice, with vectors of cosine"),
        (["zero.npy", "--texts", "texts.csv", "--unverified"], "zero.npy: 1 vectors are zero as float32"),
        (["vectors.parquet", "--role-field", "name"], "must hold query or document"),
    ],
)
def test_bad_files_are_one_message(
    leaf: Callable[..., Any], frame: pl.DataFrame, tmp_path: Path, arguments: list[str], said: str
) -> None:
    write(frame, "parquet", tmp_path)
    write(frame, "csv", tmp_path)
    frame.head(10).drop("vector").write_csv("short.csv")
    frame.drop("vector").write_csv("texts.csv")
    np.save("zero.npy", np.where(np.arange(ROWS)[:, None] == 7, 0, frame["vector"].to_numpy()))
    np.save("pickled.npy", np.array([{}], object), allow_pickle=True)
    narrow = frame.with_columns(vector=pl.col("vector").arr.to_list().list.head(5))
    narrow.write_parquet("narrow.parquet")
    pl.concat([narrow.head(1), frame.with_columns(vector=pl.col("vector").arr.to_list())]).write_parquet(
        "ragged.parquet"
    )
    pl.concat([frame, frame.head(1).with_columns(vector=frame["vector"][1:2])]).write_parquet("twice.parquet")
    (tmp_path / "empty").mkdir()
    output = leaf("import", *arguments, "--out", "store", status=1)
    assert said in output
    assert not (tmp_path / "store").exists()
