"""Stage one encodes each text once, and stores the vector that the teacher gives it."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from sentence_transformers import SentenceTransformer

from pipeline.base.errors import LeafError
from pipeline.base.keys import key
from pipeline.encode.encoding import encode, open_cache
from pipeline.encode.on_demand import ensure
from pipeline.model.model_files import resolve_model
from pipeline.params.sections import EncodeParams, Prompts, TeacherParams
from pipeline.store.shard_cache import ShardCache
from pipeline.store.store import Store
from pipeline.teacher.local import LocalTeacher
from pipeline.teacher.local_identity import describe
from pipeline.teacher.teacher import open_teacher
from tests.conftest import corpus_frame


@pytest.fixture
def params(tmp_path: Path) -> EncodeParams:
    return EncodeParams(shard_rows=64, pool=str(tmp_path / "pool"), token_budget=512)


def test_every_text_gets_the_vector_sentence_transformers_gives(
    tiny_corpus: Path, tiny_teacher: Path, params: EncodeParams, tmp_path: Path
) -> None:
    figures = encode(tiny_corpus, open_teacher(TeacherParams(str(tiny_teacher)), params), params, tmp_path / "store")
    frame = pl.read_parquet(tiny_corpus)
    stored = Store.open(tmp_path / "store").lookup(frame["key"].to_list())
    expected = SentenceTransformer(str(tiny_teacher), device="cpu").encode(frame["text"].to_list())
    assert figures["rows_encoded"] == len(frame)
    assert (stored * expected).sum(1).min() > 0.999
    assert np.abs(np.linalg.norm(stored, axis=1) - 1).max() < 2e-3


@pytest.mark.parametrize("prompt", ["", "river stone "])
def test_a_book_gets_the_vector_of_its_beginning_and_what_is_never_read_is_counted(
    prompt: str, tiny_teacher: Path, tmp_path: Path, params: EncodeParams
) -> None:
    directory = tmp_path / "corpus"
    directory.mkdir()
    books = [f"{' '.join(corpus_frame(40 + number)['text'])} " * 60 for number in range(3)]
    texts = [*books, "river stone"]
    frame = pl.DataFrame({
        "key": [key("document", text) for text in texts], "id": list("abcd"), "text": texts, "role": ["document"] * 4,
        "source": ["s"] * 4, "split": ["train"] * 4,
    }).sort("key")  # fmt: skip
    frame.write_parquet(directory / "part-00000.parquet")
    teacher = open_teacher(TeacherParams(model=str(tiny_teacher), prompts=Prompts(document=prompt)), params)
    figures = encode(directory, teacher, params, tmp_path / "embeddings")
    vectors = Store.open(tmp_path / "embeddings").lookup(frame["key"].to_list())
    model = SentenceTransformer(str(tiny_teacher), device="cpu")
    expected = model.encode(frame["text"].to_list(), prompt=prompt or None, batch_size=1)
    assert (vectors * expected).sum(1).min() > 0.9995
    content = 48 - 2 - len(prompt.split())
    unread = sum(len(book) - len(" ".join(book.split()[:content])) for book in books)
    assert figures["cut"] == {
        "texts": 3,
        "characters": sum(map(len, texts)),
        "unread_share": round(unread / sum(map(len, texts)), 6),
    }


def test_prompts_go_before_the_text_by_role(tiny_teacher: Path, tmp_path: Path, params: EncodeParams) -> None:
    prompts = Prompts(query="sort the list ", document="open the file ")
    frame = corpus_frame(40)
    store = ensure(
        frame, open_teacher(TeacherParams(str(tiny_teacher), prompts=prompts), params), params, tmp_path / "view"
    )
    model = SentenceTransformer(str(tiny_teacher), device="cpu")
    for role, prompt in (("query", prompts.query), ("document", prompts.document)):
        texts = frame.filter(pl.col("role") == role)
        expected = model.encode([prompt + text for text in texts["text"]])
        assert (store.lookup(texts["key"].to_list()) * expected).sum(1).min() > 0.999


def test_the_same_text_in_two_roles_has_two_vectors(tiny_teacher: Path, tmp_path: Path, params: EncodeParams) -> None:
    text = "read the file"
    frame = pl.DataFrame(
        {
            "key": [key(role, text) for role in ("query", "document")],
            "role": ["query", "document"],
            "id": ["1", "1"],
            "source": ["s", "s"],
            "text": [text, text],
        }
    )
    teacher = TeacherParams(str(tiny_teacher), prompts=Prompts(query="close the line "))
    query, document = ensure(frame, open_teacher(teacher, params), params, tmp_path / "view").lookup(
        frame["key"].to_list()
    )
    assert float(query @ document) < 0.999


def test_a_second_run_encodes_nothing_and_a_grown_corpus_only_what_is_new(
    tiny_corpus: Path, tiny_teacher: Path, params: EncodeParams, tmp_path: Path
) -> None:
    teacher, out = TeacherParams(str(tiny_teacher)), tmp_path / "store"
    encode(tiny_corpus, open_teacher(teacher, params), params, out)
    before = {file: file.read_bytes() for file in out.rglob("*") if file.is_file()}
    assert encode(tiny_corpus, open_teacher(teacher, params), params, out)["rows_encoded"] == 0
    assert {file: file.read_bytes() for file in out.rglob("*") if file.is_file()} == before

    grown = corpus_frame(420)
    grown.write_parquet(tiny_corpus / "part-00000.parquet")
    figures = encode(tiny_corpus, open_teacher(teacher, params), params, out)
    assert 0 < figures["rows_encoded"] <= 20  # type: ignore[operator]
    unchanged = [file for file in before if file.name not in ("store.json", "README.md")]
    assert all(file.read_bytes() == before[file] for file in unchanged)


def test_another_teams_store_is_reused_and_only_the_rest_encoded(
    tiny_corpus: Path, tiny_teacher: Path, params: EncodeParams, tmp_path: Path
) -> None:
    teacher = TeacherParams(str(tiny_teacher))
    part_of_corpus = tmp_path / "their-corpus"
    part_of_corpus.mkdir()
    frame = pl.read_parquet(tiny_corpus)
    frame.head(200).write_parquet(part_of_corpus / "part-00000.parquet")
    encode(part_of_corpus, open_teacher(teacher, params), params, tmp_path / "their-store")

    reusing = EncodeParams(shard_rows=64, pool=str(tmp_path / "our-pool"), reuse=(str(tmp_path / "their-store"),))
    figures = encode(tiny_corpus, open_teacher(teacher, reusing), reusing, tmp_path / "store")
    assert (figures["rows_reused"], figures["rows_encoded"]) == (200, len(frame) - 200)
    keys = frame.head(200)["key"].to_list()
    assert np.array_equal(
        Store.open(tmp_path / "store").lookup(keys), Store.open(tmp_path / "their-store").lookup(keys)
    )


def test_reused_vectors_keep_their_licence_and_the_store_is_under_all(
    tiny_corpus: Path, tiny_teacher: Path, tmp_path: Path
) -> None:
    """Whole shards and single rows, and later runs from the shard cache, whatever `encode.license` says then."""
    frame, part = pl.read_parquet(tiny_corpus), tmp_path / "part"
    part.mkdir()
    frame.head(100).write_parquet(part / "part-00000.parquet")
    theirs = EncodeParams(shard_rows=64, pool=str(tmp_path / "their-pool"), license="CC-BY-NC-4.0")
    teacher = TeacherParams(str(tiny_teacher), license="Apache-2.0")
    encode(part, open_teacher(teacher, theirs), theirs, tmp_path / "theirs")
    (part / "part-00000.parquet").unlink()
    frame[:90].vstack(frame[100:]).write_parquet(part / "part-00000.parquet")
    ours = EncodeParams(
        shard_rows=512, pool=str(tmp_path / "our-pool"), reuse=(str(tmp_path / "theirs"),), license="MIT"
    )
    unstated = TeacherParams(str(tiny_teacher))
    figures = encode(part, open_teacher(unstated, ours), ours, tmp_path / "store")
    assert figures["license"] == "CC-BY-NC-4.0 AND MIT"
    store = Store.open(tmp_path / "store")
    store.verify()
    assert store.meta.teacher["license"] == "Apache-2.0"
    stated = {info.rows: info.license for info in store.shards}
    assert stated == {64: "CC-BY-NC-4.0", 26: "CC-BY-NC-4.0", len(frame) - 100: "MIT"}

    changed = replace(ours, reuse=(), license="CC0-1.0")
    encode(part, open_teacher(unstated, changed), changed, tmp_path / "store")
    again = {info.rows: info.license for info in Store.open(tmp_path / "store").shards}
    assert again == {**stated, len(frame) - 100: "CC0-1.0"}


def test_terms_that_a_push_would_refuse_are_refused_before_anything_is_encoded(
    tiny_corpus: Path, tiny_teacher: Path, tmp_path: Path
) -> None:
    """Team A pushed a store, states other terms from now on, and its corpus has grown."""
    frame, part, teacher = pl.read_parquet(tiny_corpus), tmp_path / "part", TeacherParams(str(tiny_teacher))
    part.mkdir()
    frame.head(100).write_parquet(part / "part-00000.parquet")
    first = EncodeParams(shard_rows=64, pool=str(tmp_path / "pool"), license="CC-BY-4.0")
    encode(part, open_teacher(teacher, first), first, tmp_path / "place")
    frame.head(164).write_parquet(part / "part-00000.parquet")
    later = replace(first, license="MIT", reuse=(str(tmp_path / "place"),))
    with pytest.raises(LeafError, match=r"encode\.license says 'MIT'.*--replace"):
        encode(part, open_teacher(teacher, later), later, tmp_path / "store")
    with open_cache(open_teacher(teacher, later), later) as cache:
        assert len(cache.keys()) == 100
    same = replace(later, license="CC-BY-4.0")
    assert encode(part, open_teacher(teacher, same), same, tmp_path / "store")["rows_encoded"] == 64


def test_a_store_whose_vectors_another_model_made_is_not_reused(
    tiny_corpus: Path, tiny_teacher: Path, params: EncodeParams, tmp_path: Path
) -> None:
    """The fingerprint matches but the vectors do not: only encoding a sample again can tell."""
    teacher = TeacherParams(str(tiny_teacher))
    rows = pl.read_parquet(tiny_corpus).with_columns(tokens=pl.lit(5, pl.Int32)).drop("text", "split")
    noise = np.random.default_rng(0).normal(size=(len(rows), 32)).astype(np.float32)
    with ShardCache(tmp_path / "forged-pool", describe(teacher, "float16")) as cache:
        cache.write(rows, noise / np.linalg.norm(noise, axis=1, keepdims=True))
        cache.publish(tmp_path / "forged", rows["key"].to_list())
    reusing = EncodeParams(pool=str(tmp_path / "p"), reuse=(str(tmp_path / "forged"),))
    with pytest.raises(LeafError, match=r"encode\.reuse: .*forged.*cosine.*do not trust this store"):
        encode(tiny_corpus, open_teacher(teacher, reusing), reusing, tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_one_wrong_shard_among_right_ones_is_enough_to_refuse_a_store(
    tiny_corpus: Path, tiny_teacher: Path, params: EncodeParams, tmp_path: Path
) -> None:
    """The last shard alone, of 8 texts among 400, comes from another model, or is twice as long as it should be."""
    teacher = TeacherParams(str(tiny_teacher))
    encode(tiny_corpus, open_teacher(teacher, params), params, tmp_path / "right")
    rows = pl.read_parquet(tiny_corpus).with_columns(tokens=pl.lit(5, pl.Int32)).drop("text", "split")
    right = Store.open(tmp_path / "right").lookup(rows["key"].to_list())
    for name, wrong, said in (
        ("other", np.roll(right[-8:], 1, axis=0), "has cosine"),
        ("long", 2 * right[-8:], "(2.0|1.99)"),
    ):
        with ShardCache(tmp_path / f"{name}-pool", describe(teacher, "float16")) as cache:
            cache.write(rows[:-8], right[:-8])
            cache.write(rows[-8:], wrong)
            cache.publish(tmp_path / name, rows["key"].to_list())
        reusing = EncodeParams(pool=str(tmp_path / "p"), reuse=(str(tmp_path / name),), verify_rows=1)
        with pytest.raises(LeafError, match=rf"encode\.reuse: .*{name}: the vector of text .*{said}.*do not trust"):
            encode(tiny_corpus, open_teacher(teacher, reusing), reusing, tmp_path / "store")


@pytest.mark.parametrize("change", [{"text": "edited"}, {"role": "passage"}, {"text": None}])
def test_a_corpus_changed_by_hand_gets_no_vector(
    tiny_corpus: Path, tiny_teacher: Path, params: EncodeParams, tmp_path: Path, change: dict[str, str | None]
) -> None:
    """Else the new text's vector would stay in the cache under the old key, and reach every store made from it."""
    part = tiny_corpus / "part-00000.parquet"
    rows = pl.read_parquet(part)
    victim = pl.col("id") == rows["id"][7]
    edits = [pl.when(victim).then(pl.lit(value)).otherwise(pl.col(name)).alias(name) for name, value in change.items()]
    rows.with_columns(edits).write_parquet(part)
    with pytest.raises(LeafError, match=rf"`{rows['id'][7]}`.*changed by hand; run the stage `corpus` again"):
        encode(tiny_corpus, open_teacher(TeacherParams(str(tiny_teacher)), params), params, tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_a_store_of_another_fingerprint_is_not_reused(
    tiny_corpus: Path, tiny_teacher: Path, params: EncodeParams, tmp_path: Path
) -> None:
    encode(
        tiny_corpus, open_teacher(TeacherParams(str(tiny_teacher), max_length=6), params), params, tmp_path / "short"
    )
    reusing = EncodeParams(pool=str(tmp_path / "p"), reuse=(str(tmp_path / "short"),))
    with pytest.raises(LeafError, match=r"encode\.reuse: .*short.*max_length"):
        encode(tiny_corpus, open_teacher(TeacherParams(str(tiny_teacher)), reusing), reusing, tmp_path / "store")


def test_the_fingerprint_covers_what_decides_the_vectors_and_not_the_name(tiny_teacher: Path, tmp_path: Path) -> None:
    import shutil

    plain = describe(TeacherParams(str(tiny_teacher)), "float16")
    copy = tmp_path / "copy"
    shutil.copytree(tiny_teacher, copy)
    assert describe(TeacherParams(str(copy)), "float16").fingerprint == plain.fingerprint
    others = [
        TeacherParams(str(tiny_teacher), max_length=10),
        TeacherParams(str(tiny_teacher), dim=8),
        TeacherParams(str(tiny_teacher), prompts=Prompts(query="q: ")),
    ]
    prints = {plain.fingerprint, *(describe(other, "float16").fingerprint for other in others)}
    tokenizer = copy / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text().replace("[UNK]", "[UNX]"))
    prints.add(describe(TeacherParams(str(copy)), "float16").fingerprint)
    assert len(prints) == 5


def test_weights_of_another_digest_are_not_loaded(tiny_teacher: Path) -> None:
    with pytest.raises(
        LeafError, match=r"teacher\.sha256: the files of the model in .* have SHA-256 [0-9a-f]{64} .* 0{64}"
    ):
        LocalTeacher(TeacherParams(str(tiny_teacher), sha256="0" * 64), EncodeParams()).load()


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("package:no_such_package/model", "package `no_such_package` is not installed"),
        ("package:pipeline/nothing", "has no directory `nothing`"),
        ("./nowhere", "no such directory"),
    ],
)
def test_a_teacher_that_is_not_there_is_named(model: str, message: str) -> None:
    with pytest.raises(LeafError, match=message):
        resolve_model(model)


def test_damaged_weights_are_one_sentence(tiny_teacher: Path, tmp_path: Path) -> None:
    import shutil

    broken = tmp_path / "broken"
    shutil.copytree(tiny_teacher, broken)
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(LeafError, match="cannot be loaded as a sentence-transformers model"):
        LocalTeacher(TeacherParams(str(broken)), EncodeParams()).load()


def test_a_vector_that_is_not_a_number_is_refused_with_the_texts_id(
    tiny_corpus: Path, tiny_teacher: Path, params: EncodeParams, tmp_path: Path
) -> None:
    import shutil

    from safetensors.torch import load_file, save_file

    broken = tmp_path / "broken"
    shutil.copytree(tiny_teacher, broken)
    weights = load_file(broken / "model.safetensors")
    weights["embeddings.word_embeddings.weight"][10] = float("nan")
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(LeafError, match=r"NaN.*id 'record-\d+'"):
        encode(tiny_corpus, open_teacher(TeacherParams(str(broken)), params), params, tmp_path / "store")
    assert not (tmp_path / "store").exists()
