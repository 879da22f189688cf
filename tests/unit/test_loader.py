"""The loader joins by key, visits every training text once an epoch, and can be entered anywhere."""

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from pipeline.base.errors import LeafError
from pipeline.base.files import locked
from pipeline.base.prefetch import prefetch
from pipeline.corpus.parts import corpus_digest
from pipeline.fit.loader import Loader, Position, pack_sorted
from pipeline.fit.token_cache import Tokens, tokenize
from pipeline.model.batch import pack
from pipeline.store.shard import StoreMeta
from pipeline.store.shard_cache import ShardCache
from pipeline.store.store import Store
from tests.conftest import WORDS, corpus_frame

DIM = 8


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """About 3,000 texts in two parts."""
    directory = tmp_path / "corpus"
    directory.mkdir()
    frame = corpus_frame(4000)
    frame[:1000].write_parquet(directory / "part-00000.parquet")
    frame[1000:].write_parquet(directory / "part-00001.parquet")
    return directory


def vector(key: bytes) -> np.ndarray:
    """The vector that stands for a key: anything that tells keys apart in float16."""
    values = np.frombuffer(key[:DIM], dtype=np.uint8).astype(np.float32) + 1
    return values / np.linalg.norm(values)


def make_store(corpus: Path, folder: Path, leave_out: int = 0, shard_rows: int = 1500) -> Store:
    """A store of the corpus in an order that has nothing to do with the corpus's."""
    meta = StoreMeta(fingerprint="0" * 64, teacher={"model": "test"}, dim=DIM, dtype="float16", normalized=True)
    frame = pl.read_parquet(corpus / "*.parquet").sample(fraction=1, shuffle=True, seed=5)[leave_out:]
    rows = frame.select("key", "role", "id", "source", pl.lit(3, pl.Int32).alias("tokens"))
    cache = ShardCache(folder / "pool", meta)
    for start in range(0, len(rows), shard_rows):
        part = rows[start : start + shard_rows]
        cache.write(part, np.stack([vector(key) for key in part["key"]]))
    return cache.publish(folder / "store", set(frame["key"]))


def make_tokens(corpus: Path, folder: Path) -> Tokens:
    vocabulary = {word: number for number, word in enumerate(["[UNK]", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenize(corpus, corpus_digest(corpus), tokenizer, folder / "tokens")


def make_loader(corpus: Path, folder: Path, seed: int = 0, batch_size: int = 32, buffer_rows: int = 1500) -> Loader:
    store = Store.open(folder / "store") if (folder / "store").exists() else make_store(corpus, folder)
    return Loader(store, make_tokens(corpus, folder), batch_size, buffer_rows, seed)


def epoch_of(loader: Loader, epoch: int) -> list[np.ndarray]:
    return [batch for buffer in loader.plan(epoch) for batch in buffer]


def take(loader: Loader, position: Position, count: int) -> list[tuple[Position, list[int], np.ndarray]]:
    batches = loader.batches(position)
    drawn = [next(batches) for _ in range(count)]
    return [(batch.position, batch.texts.ids.tolist(), batch.targets.numpy()) for batch in drawn]


def test_an_epoch_visits_each_training_text_once_in_full_batches(corpus: Path, tmp_path: Path) -> None:
    loader = make_loader(corpus, tmp_path)
    batches = epoch_of(loader, 0)
    train = pl.read_parquet(corpus / "*.parquet").filter(pl.col("split") == "train")
    visited = np.concatenate(batches)
    assert sorted(visited) == list(range(len(train)))
    keys = loader.tokens.keys[loader.items.text[visited]].tolist()
    assert set(keys) == set(train["key"])
    assert len(batches) == loader.batches_per_epoch
    assert sum(len(batch) != 32 for batch in batches) <= 1


def test_each_text_meets_the_vector_of_its_own_key(corpus: Path, tmp_path: Path) -> None:
    loader = make_loader(corpus, tmp_path)
    rows = epoch_of(loader, 0)
    for batch, items in zip(loader.batches(Position()), rows[:40], strict=False):
        keys = loader.tokens.keys[loader.items.text[items]].tolist()
        np.testing.assert_allclose(batch.targets.numpy(), np.stack([vector(k) for k in keys]), atol=1e-3)
        expected = loader.pack(items)
        assert batch.texts.ids.tolist() == expected.ids.tolist()


def test_the_order_depends_on_seed_and_epoch_alone(corpus: Path, tmp_path: Path) -> None:
    first, again, other = (make_loader(corpus, tmp_path, seed=seed) for seed in (0, 0, 1))
    flat = [np.concatenate(epoch_of(loader, 0)).tolist() for loader in (first, again, other)]
    assert flat[0] == flat[1] != flat[2]
    assert np.concatenate(epoch_of(first, 1)).tolist() != flat[0]


def test_entering_at_any_position_gives_what_follows_there(corpus: Path, tmp_path: Path) -> None:
    loader = make_loader(corpus, tmp_path)
    count = 2 * loader.batches_per_epoch + 3
    whole = take(loader, Position(), count)
    for start in (1, loader.batches_per_epoch // 2, loader.batches_per_epoch - 1, loader.batches_per_epoch + 5):
        position = whole[start][0]
        for (p, ids, targets), (q, ids_too, targets_too) in zip(
            whole[start:], take(loader, position, count - start), strict=True
        ):
            assert (p, ids) == (q, ids_too)
            np.testing.assert_array_equal(targets, targets_too)


def test_batches_hold_texts_of_similar_length(corpus: Path, tmp_path: Path) -> None:
    loader = make_loader(corpus, tmp_path)
    lengths = [loader.tokens.lengths(loader.items.text[batch]) for batch in epoch_of(loader, 0)]
    assert np.mean([np.ptp(batch) for batch in lengths]) < 2 < np.ptp(np.concatenate(lengths))


def test_held_out_texts_are_for_validation_only(corpus: Path, tmp_path: Path) -> None:
    loader = make_loader(corpus, tmp_path)
    token_ids, targets = loader.validation(100)
    assert len(token_ids) == len(targets) == 100
    assert not loader.tokens.train[loader.heldout.text].any()
    everything, _ = loader.validation(10**6)
    assert len(everything) == len(pl.read_parquet(corpus / "*.parquet").filter(pl.col("split") == "heldout"))


def test_texts_without_a_vector_are_counted(corpus: Path, tmp_path: Path) -> None:
    make_store(corpus, tmp_path, leave_out=7)
    with pytest.raises(LeafError, match=r"lacks the vectors of 7 of the corpus's .* run the encode stage"):
        make_loader(corpus, tmp_path)


def test_a_corpus_that_is_all_held_out_is_refused(tmp_path: Path) -> None:
    directory = tmp_path / "corpus"
    directory.mkdir()
    corpus_frame(100, heldout_every=1).write_parquet(directory / "part-00000.parquet")
    with pytest.raises(LeafError, match="no training texts"):
        make_loader(directory, tmp_path)


def test_a_missing_corpus_is_named(tmp_path: Path) -> None:
    with pytest.raises(LeafError, match="run the stage `corpus`"):
        corpus_digest(tmp_path)


def test_a_truncated_corpus_is_named_and_leaves_no_cache(corpus: Path, tmp_path: Path) -> None:
    part = corpus / "part-00001.parquet"
    part.write_bytes(part.read_bytes()[:-100])
    with pytest.raises(LeafError, match=r"part-00001\.parquet.*run the stage `corpus` again"):
        make_tokens(corpus, tmp_path)
    assert not [path for path in (tmp_path / "tokens").glob("*") if path.is_dir() and not path.name.startswith(".")]


def test_tokens_are_made_once(corpus: Path, tmp_path: Path) -> None:
    make_tokens(corpus, tmp_path)
    (cache,) = (path for path in (tmp_path / "tokens").iterdir() if path.is_dir())
    before = {file.name: file.stat().st_mtime_ns for file in cache.iterdir()}
    again = make_tokens(corpus, tmp_path)
    assert {file.name: file.stat().st_mtime_ns for file in cache.iterdir()} == before
    texts = pl.read_parquet(corpus / "*.parquet")["text"].to_list()
    assert [len(again[row]) for row in range(50)] == [len(text.split()) for text in texts[:50]]


def test_an_error_while_reading_ahead_reaches_the_reader() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise LeafError("damaged")

    ahead = prefetch(items(), 4)
    assert next(ahead) == 1
    with pytest.raises(LeafError, match="damaged"):
        next(ahead)


def test_a_reader_that_stops_early_leaves_no_thread_behind() -> None:
    ahead = prefetch(iter(range(1000)), 4)
    assert next(ahead) == 0
    ahead.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "prefetch"]


def test_batches_are_packed_together_as_they_are_one_by_one() -> None:
    random = np.random.default_rng(0)
    lengths = random.integers(2, 40, 200)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    ids = random.integers(0, 1000, offsets[-1]).astype(np.uint16)
    tokens = Tokens(ids, offsets, np.zeros(200, "V16"), np.ones(200, dtype=np.bool_))
    batches = np.split(random.permutation(200), [32, 64, 65, 150])
    batches = [batch[np.argsort(lengths[batch], kind="stable")] for batch in batches]
    together = pack_sorted(tokens, np.concatenate(batches), np.array([len(batch) for batch in batches]))
    for found, batch in zip(together, batches, strict=True):
        alone = pack([tokens[text] for text in batch])
        assert found.length_groups == alone.length_groups
        assert found.ids.tolist() == alone.ids.tolist()
        assert found.positions.tolist() == alone.positions.tolist()
        assert found.order.tolist() == alone.order.tolist()


def test_two_fits_do_not_write_one_token_cache(corpus: Path, tmp_path: Path) -> None:
    """One of them would take the other's half-written files for the whole corpus."""
    make_tokens(corpus, tmp_path)
    (cache,) = (path for path in (tmp_path / "tokens").iterdir() if path.is_dir())
    shutil.rmtree(cache)
    with locked(cache.with_name(f"{cache.name}.lock"), "the other"):
        with pytest.raises(LeafError, match="tokenising it for a fit: another run is under way"):
            make_tokens(corpus, tmp_path)
        assert not cache.exists()
    assert len(make_tokens(corpus, tmp_path)) == len(pl.read_parquet(corpus / "*.parquet"))
