"""After a kill at any moment, a journal holds exactly the answers that were added to it."""

import random
from pathlib import Path

import numpy as np
import pytest

from pipeline.store.refused import RefusedText, RefusedTexts
from pipeline.teacher.api.division import split_tokens
from pipeline.teacher.api.journal import Journal

DIM = 5


def keys(*numbers: int) -> list[bytes]:
    return [number.to_bytes(16, "big") for number in numbers]


def vectors(*numbers: int) -> np.ndarray:
    return np.stack([np.full(DIM, number + 0.5, np.float32) for number in numbers])


def write_journal(file: Path, *batches: tuple[int, ...]) -> None:
    with Journal(file, DIM) as journal:
        for batch in batches:
            journal.add(keys(*batch), [10 * number for number in batch], vectors(*batch))


def test_answers_are_read_back_in_any_order_by_another_run(tmp_path: Path) -> None:
    write_journal(tmp_path / "j", (1, 2), (3,))
    with Journal(tmp_path / "j", DIM) as journal:
        tokens, read = journal.read(keys(3, 1))
        assert tokens.tolist() == [30, 10] and np.array_equal(read, vectors(3, 1))
        assert keys(2)[0] in journal and keys(4)[0] not in journal


def test_whatever_length_a_kill_leaves_whole_answers_stay_and_new_ones_can_follow(tmp_path: Path) -> None:
    file = tmp_path / "j"
    write_journal(file, (1,), (2,), (3,))
    whole = file.read_bytes()
    size = len(whole) // 3
    for length in range(len(whole) + 1):
        file.write_bytes(whole[:length])
        with Journal(file, DIM) as journal:
            assert journal.keys() == keys(1, 2, 3)[: length // size]
            journal.add(keys(9), [90], vectors(9))
        with Journal(file, DIM) as journal:
            assert journal.read(keys(9))[0].tolist() == [90]


def test_a_flipped_bit_costs_its_own_answer_and_no_other(tmp_path: Path) -> None:
    file = tmp_path / "j"
    write_journal(file, (1, 2, 3))
    whole = file.read_bytes()
    size, generator = len(whole) // 3, random.Random(0)
    for _ in range(200):
        place = generator.randrange(len(whole))
        damaged = bytearray(whole)
        damaged[place] ^= 1 << generator.randrange(8)
        file.write_bytes(damaged)
        with Journal(file, DIM) as journal:
            expected = [number for number in (1, 2, 3) if number != place // size + 1]
            assert journal.keys() == keys(*expected)
            assert np.array_equal(journal.read(keys(*expected))[1], vectors(*expected))


def test_a_tail_of_zeros_is_no_answer(tmp_path: Path) -> None:
    file = tmp_path / "j"
    write_journal(file, (1,))
    file.write_bytes(file.read_bytes() + bytes(500))
    with Journal(file, DIM) as journal:
        assert journal.keys() == keys(1)


def test_answers_that_are_in_a_shard_are_dropped_and_an_empty_journal_is_removed(tmp_path: Path) -> None:
    file = tmp_path / "j"
    with Journal(file, DIM) as journal:
        journal.add(keys(1, 2, 3), [1, 2, 3], vectors(1, 2, 3))
        journal.drop(keys(1, 3))
        assert journal.keys() == keys(2) and np.array_equal(journal.read(keys(2))[1], vectors(2))
        journal.add(keys(4), [4], vectors(4))
    with Journal(file, DIM) as journal:
        assert journal.keys() == keys(2, 4)
        journal.drop(keys(2, 4))
    assert list(tmp_path.iterdir()) == []


def test_refused_texts_are_known_to_the_next_run_and_a_torn_line_is_not(tmp_path: Path) -> None:
    refused = RefusedTexts(tmp_path / "r")
    first, second = keys(1, 2)
    refused.add(first, "id-1", "says “no”")
    with (tmp_path / "r").open("ab") as file:
        file.write(b'{"key": "00')
    again = RefusedTexts(tmp_path / "r")
    assert dict(again) == {first: RefusedText("id-1", "says “no”")}
    again.add(second, "id-2", "no")
    assert set(RefusedTexts(tmp_path / "r")) == {first, second}
    again.clear()
    assert not RefusedTexts(tmp_path / "r")


@pytest.mark.parametrize("tokens", [0, 1, 7, 100])
def test_shares_of_tokens_follow_the_characters_and_add_up(tokens: int) -> None:
    texts = ["a" * 10, "b" * 30, "c", "d" * 59]
    counts = split_tokens(tokens, texts)
    assert sum(counts) == tokens
    assert all(abs(count - tokens * len(text) / 100) <= 1 for count, text in zip(counts, texts, strict=True))
