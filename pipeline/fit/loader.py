"""Training batches: corpus texts joined to stored vectors by key, in an order that the seed alone decides.

Reading random rows from Zarr is about a thousand times slower than reading its chunks. So chunks are visited in random
order, some `buffer_rows` at a time; within such a buffer rows are shuffled, windows of rows are sorted by length and
cut into batches, and the batches are shuffled. An epoch visits each training text exactly once.

Memory: one buffer of vectors, and about 24 bytes a text for the join.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipeline.base.errors import LeafError
from pipeline.fit.token_cache import Tokens
from pipeline.model.batch import TOKEN_MULTIPLE, Batch, pack
from pipeline.store.chunks import CHUNK_ROWS
from pipeline.store.store import Store

WINDOW_BATCHES = 64  # batches' worth of rows that are sorted by length together


@dataclass(frozen=True)
class Position:
    """A place in the run: the batch that comes next."""

    epoch: int = 0
    batch: int = 0


@dataclass(frozen=True)
class TrainingBatch:
    """One batch: where it stands, the position after it, its texts, and their vectors [texts, dim] float32."""

    position: Position
    following: Position
    batch: Batch
    targets: Tensor


@dataclass(frozen=True)
class Join:
    """Texts and their places in the store, in the store's order; item i is text `text[i]` of the corpus.

    `unit[i]` numbers the chunk that holds the vector (over all shards), `row[i]` the vector's row in its shard.
    """

    shard: np.ndarray
    row: np.ndarray
    unit: np.ndarray
    text: np.ndarray

    def __len__(self) -> int:
        return len(self.text)

    def take(self, chosen: np.ndarray) -> "Join":
        """The items chosen by a mask or by numbers."""
        return Join(self.shard[chosen], self.row[chosen], self.unit[chosen], self.text[chosen])


def join(tokens: Tokens, store: Store) -> Join:
    """Find every text of the corpus in the store by its key; without those that the store lists as refused.

    Raises:
        LeafError: other texts whose key the store lacks; says how many.
    """
    place = store.locate(tokens.keys)
    absent = place < 0
    left_out = len(set(store.refused.tolist()).intersection(tokens.keys[absent].tolist()))
    if missing := int(absent.sum()) - left_out:
        raise LeafError(
            f"{store.path}: lacks the vectors of {missing} of the corpus's {len(tokens)} texts; "
            "run the encode stage on this corpus first"
        )
    text = np.argsort(place, kind="stable")[left_out:]
    sizes = np.array([info.rows for info in store.shards], dtype=np.int64)
    shard = np.searchsorted(np.cumsum(sizes), place[text], side="right").astype(np.int32)
    row = (place[text] - (np.cumsum(sizes) - sizes)[shard]).astype(np.int32)
    chunks = -(-sizes // CHUNK_ROWS)
    unit = ((np.cumsum(chunks) - chunks)[shard] + row // CHUNK_ROWS).astype(np.int32)
    return Join(shard, row, unit, text)


def read_vectors(store: Store, items: Join) -> np.ndarray:
    """Vectors [items, dim] as the store gives them, in the items' order; reads whole chunks, each once."""
    out: np.ndarray | None = None
    order = np.argsort(items.unit, kind="stable")
    starts = np.flatnonzero(np.diff(items.unit[order], prepend=-1))
    for places in np.split(order, starts[1:]) if len(order) else []:
        shard, row = int(items.shard[places[0]]), items.row[places]
        start = int(row[0]) // CHUNK_ROWS * CHUNK_ROWS
        chunk = store.read(shard, start, min(start + CHUNK_ROWS, store.shards[shard].rows))
        if out is None:
            out = np.empty((len(items), chunk.shape[1]), dtype=chunk.dtype)
        out[places] = chunk[row - start]
    return np.empty((0, store.meta.dim), dtype=np.float32) if out is None else out


def pack_sorted(tokens: Tokens, texts: np.ndarray, sizes: np.ndarray) -> Iterator[Batch]:
    """Batches of `sizes` texts, cut from `texts` in order; within a batch these are sorted by length already.

    Equal to `pack` of each, without a call for every text, of which the loader would spend most of its time.
    """
    lengths, firsts = tokens.lengths(texts), np.cumsum(sizes) - sizes
    counts = np.add.reduceat(lengths, firsts)
    padded = -(-counts // TOKEN_MULTIPLE) * TOKEN_MULTIPLE
    ends, before = np.cumsum(padded), np.cumsum(lengths) - lengths
    # A token's place: behind all texts before its own, and the spare tokens of the batches before.
    within = np.arange(int(counts.sum())) - np.repeat(before, lengths)
    spare = np.cumsum(padded - counts) - (padded - counts)
    places = np.repeat(before + np.repeat(spare, sizes), lengths) + within
    ids, positions = torch.zeros(2, int(ends[-1]), dtype=torch.int64)
    ids.numpy()[places] = tokens.ids[np.repeat(tokens.offsets[texts], lengths) + within]
    positions.numpy()[places] = within
    new = np.diff(lengths, prepend=-1) != 0
    new[firsts] = True
    starts = np.flatnonzero(new)
    length_groups = list(zip(np.diff(starts, append=len(texts)).tolist(), lengths[starts].tolist(), strict=True))
    cuts = np.searchsorted(starts, [*firsts, len(texts)]).tolist()
    orders = {size: torch.arange(size) for size in set(sizes.tolist())}
    for batch, (size, end, length) in enumerate(zip(sizes.tolist(), ends.tolist(), padded.tolist(), strict=True)):
        place = slice(end - length, end)
        yield Batch(ids[place], positions[place], tuple(length_groups[cuts[batch] : cuts[batch + 1]]), orders[size])


class Loader:
    """Batches of the training texts, epoch after epoch, from any position on."""

    def __init__(self, store: Store, tokens: Tokens, batch_size: int, buffer_rows: int, seed: int) -> None:
        """Joins corpus and store; LeafError if the store lacks a text or nothing is left to train on."""
        everything = join(tokens, store)
        self.left_out = len(tokens) - len(everything)  # refused by the teacher
        self.store, self.tokens = store, tokens
        self.batch_size, self.buffer_rows, self.seed = batch_size, buffer_rows, seed
        train = tokens.train[everything.text]
        self.items, self.heldout = everything.take(train), everything.take(~train)
        if not len(self.items):
            raise LeafError("the corpus has no training texts: lower `corpus.heldout`, or add sources")
        self._units, self._starts = np.unique(self.items.unit, return_index=True)
        self._stops = np.append(self._starts[1:], len(self.items))
        self.batches_per_epoch = -(-len(self.items) // batch_size)

    def buffers(self, epoch: int) -> Iterator[np.ndarray]:
        """Numbers of the items of each buffer of an epoch: whole chunks, in random order."""
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self._units))
        held: list[np.ndarray] = []
        rows = 0
        for unit in order:
            size = int(self._stops[unit] - self._starts[unit])
            if held and rows + size > self.buffer_rows:
                yield np.concatenate(held)
                held, rows = [], 0
            held.append(np.arange(self._starts[unit], self._stops[unit]))
            rows += size
        yield np.concatenate(held)

    def plan(self, epoch: int) -> Iterator[list[np.ndarray]]:
        """Batches, as numbers of items, buffer by buffer. All but the epoch's last batch are full.

        Rows left over by a buffer join the next one. No vectors are read.
        """
        carried = np.empty(0, dtype=np.int64)
        done = 0
        for number, members in enumerate(self.buffers(epoch)):
            random = np.random.default_rng([self.seed, epoch, number])
            rows = random.permutation(np.concatenate([carried, members]))
            done += len(members)
            used = len(rows) if done == len(self.items) else len(rows) // self.batch_size * self.batch_size
            carried = rows[used:]
            yield self._cut(rows[:used], random)

    def _cut(self, rows: np.ndarray, random: np.random.Generator) -> list[np.ndarray]:
        size, batches = self.batch_size, []
        lengths = self.tokens.lengths(self.items.text[rows])
        for start in range(0, len(rows), WINDOW_BATCHES * size):
            window = slice(start, start + WINDOW_BATCHES * size)
            by_length = rows[window][np.argsort(lengths[window], kind="stable")]
            batches += [by_length[i : i + size] for i in range(0, len(by_length), size)]
        return [batches[i] for i in random.permutation(len(batches))]

    def examples(self, position: Position) -> Iterator[TrainingBatch]:
        """Batches without end, from `position` on."""
        epoch = position.epoch + position.batch // self.batches_per_epoch
        skip = position.batch % self.batches_per_epoch
        while True:
            yield from self._epoch(epoch, skip)
            epoch, skip = epoch + 1, 0

    def _epoch(self, epoch: int, skip: int) -> Iterator[TrainingBatch]:
        number = 0
        for batches in self.plan(epoch):
            if number + len(batches) <= skip:
                number += len(batches)
                continue
            rest = batches[max(0, skip - number) :]
            number = max(number, skip)
            vectors = torch.from_numpy(read_vectors(self.store, self.items.take(np.concatenate(rest))))
            start = 0
            for packed in self._packed(rest):
                last = number + 1 == self.batches_per_epoch
                following = Position(epoch + 1, 0) if last else Position(epoch, number + 1)
                stop = start + len(packed.order)
                yield TrainingBatch(Position(epoch, number), following, packed, vectors[start:stop].float())
                number, start = number + 1, stop

    def _packed(self, batches: list[np.ndarray]) -> Iterator[Batch]:
        """`pack` of each of these batches, which are sorted by length: a window's texts at once, as pure array work."""
        for first in range(0, len(batches), WINDOW_BATCHES):
            window = batches[first : first + WINDOW_BATCHES]
            texts = self.items.text[np.concatenate(window)]
            yield from pack_sorted(self.tokens, texts, np.array([len(batch) for batch in window]))

    def pack(self, rows: np.ndarray) -> Batch:
        """Lay the texts of these items end to end."""
        return pack([self.tokens[text] for text in self.items.text[rows]])

    def sample(self, rows: int) -> tuple[np.ndarray, np.ndarray]:
        """Up to `rows` training items drawn by the seed from one buffer, and their vectors: for the head's start."""
        members = next(self.buffers(0))
        chosen = np.random.default_rng([self.seed, 1 << 31]).permutation(members)[:rows]
        return chosen, read_vectors(self.store, self.items.take(chosen)).astype(np.float32)

    def validation(self, rows: int) -> tuple[list[np.ndarray], np.ndarray]:
        """Token ids and vectors [rows, dim] float32 of up to `rows` held-out texts, shortest first.

        Those with the smallest keys are taken: keys are digests, so that is a random sample, and a stable one as the
        corpus grows.
        """
        chosen = self.heldout.take(np.argsort(self.heldout.text, kind="stable")[:rows])
        chosen = chosen.take(np.argsort(self.tokens.lengths(chosen.text), kind="stable"))
        return [self.tokens[text] for text in chosen.text], read_vectors(self.store, chosen).astype(np.float32)
