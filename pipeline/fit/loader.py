"""Training batches: corpus texts joined to stored vectors by key, in an order that only the seed decides.

Reading random rows of a store is about a thousand times slower than reading its chunks. So whole chunks are read in
random order, about `buffer_rows` rows at a time; within such a buffer rows are shuffled, windows of rows are sorted by
length and cut into batches, and the batches are shuffled. An epoch visits each training text exactly once.

Memory: one buffer of vectors, and about 24 bytes a text for the join.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from pipeline.base import LeafError
from pipeline.fit.candidates import Candidates
from pipeline.fit.objective import Expected
from pipeline.fit.token_cache import Tokens
from pipeline.model import TOKEN_MULTIPLE, Batch, pack
from pipeline.store import CHUNK_ROWS, VectorSource

WINDOW_BATCHES = 64  # rows of so many batches are sorted by length together


@dataclass(frozen=True)
class Position:
    """A place in the run: the next batch."""

    epoch: int = 0
    batch: int = 0


@dataclass(frozen=True)
class TrainingBatch:
    """One step's texts and their target vectors."""

    position: Position
    following: Position
    """Of the next batch: a run that is continued after this one starts there."""
    texts: Batch
    targets: Tensor
    """`[texts, dim]` float32, in the order given to `pack`."""
    candidates: tuple[Tensor, Tensor] | None = None
    """See `Candidates.of`."""
    beside: int = 0
    """Texts that other replicas train on in the same step."""

    @property
    def expected(self) -> Expected:
        """What the student's outputs are compared with."""
        return Expected(self.targets, *(self.candidates or ()))


@dataclass(frozen=True)
class Items:
    """Texts and the places of their vectors, `[items]` each, in the order of the source."""

    part: np.ndarray
    """Part of the source (in a store, a shard) that holds the vector."""
    row: np.ndarray
    """Row of the vector within its part."""
    chunk: np.ndarray
    """Number of the chunk that holds the vector, counted over all parts."""
    text: np.ndarray
    """Number of the text in the corpus."""

    def __len__(self) -> int:
        return len(self.text)

    def take(self, chosen: np.ndarray) -> "Items":
        """The items chosen by a mask or by numbers."""
        return Items(self.part[chosen], self.row[chosen], self.chunk[chosen], self.text[chosen])


def join(tokens: Tokens, source: VectorSource) -> Items:
    """Locate every text of the corpus in the source by its key; without those that the source lists as refused.

    Raises:
        LeafError: the source lacks other texts too; says how many.
    """
    place = source.locate(tokens.keys)
    absent = place < 0
    refused = len(set(source.refused.tolist()).intersection(tokens.keys[absent].tolist()))
    if missing := int(absent.sum()) - refused:
        raise LeafError(
            f"{source.name}: lacks the vectors of {missing} of the corpus's {len(tokens)} texts; "
            "run the encode stage on this corpus first"
        )
    text = np.argsort(place, kind="stable")[refused:]
    sizes = np.array(source.parts, dtype=np.int64)
    part = np.searchsorted(np.cumsum(sizes), place[text], side="right").astype(np.int32)
    row = (place[text] - (np.cumsum(sizes) - sizes)[part]).astype(np.int32)
    chunks = -(-sizes // CHUNK_ROWS)
    chunk = ((np.cumsum(chunks) - chunks)[part] + row // CHUNK_ROWS).astype(np.int32)
    return Items(part, row, chunk, text)


def read_vectors(source: VectorSource, items: Items) -> np.ndarray:
    """Vectors `[items, dim]` of the type that the source gives, in the items' order; reads whole chunks, each once."""
    vectors: np.ndarray | None = None
    order = np.argsort(items.chunk, kind="stable")
    starts = np.flatnonzero(np.diff(items.chunk[order], prepend=-1))
    for places in np.split(order, starts[1:]) if len(order) else []:
        part, row = int(items.part[places[0]]), items.row[places]
        start = int(row[0]) // CHUNK_ROWS * CHUNK_ROWS
        chunk = source.read(part, start, min(start + CHUNK_ROWS, source.parts[part]))
        if vectors is None:
            vectors = np.empty((len(items), chunk.shape[1]), dtype=chunk.dtype)
        vectors[places] = chunk[row - start]
    return np.empty((0, source.meta.dim), dtype=np.float32) if vectors is None else vectors


def pack_sorted(tokens: Tokens, texts: np.ndarray, sizes: np.ndarray) -> Iterator[Batch]:
    """`pack` of batches of `sizes` texts, cut from `texts` in order; within a batch they are sorted by length already.

    Computed on whole arrays: the calls for single texts would take most of the loader's time.
    """
    lengths, firsts = tokens.lengths(texts), np.cumsum(sizes) - sizes
    counts = np.add.reduceat(lengths, firsts)
    padded = -(-counts // TOKEN_MULTIPLE) * TOKEN_MULTIPLE
    ends, before = np.cumsum(padded), np.cumsum(lengths) - lengths
    # A token stands behind all texts before its own, and behind the padding of the batches before.
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

    def __init__(
        self,
        source: VectorSource,
        tokens: Tokens,
        batch_size: int,
        buffer_rows: int,
        seed: int,
        *,
        groups: np.ndarray | None = None,
        candidates: Candidates | None = None,
    ) -> None:
        """Joins corpus and source; LeafError if the source lacks a text or nothing is left to train on.

        `groups` [texts of the corpus] number the groups of which a batch holds one only.
        """
        everything = join(tokens, source)
        self.refused = len(tokens) - len(everything)  # texts that the teacher refused
        self.source, self.tokens = source, tokens
        self.batch_size, self.buffer_rows, self.seed = batch_size, buffer_rows, seed
        train = tokens.train[everything.text]
        self.items, self.heldout = everything.take(train), everything.take(~train)
        if not len(self.items):
            raise LeafError("the corpus has no training texts: lower `corpus.heldout`, or add sources")
        self._chunks, self._starts = np.unique(self.items.chunk, return_index=True)
        self._stops = np.append(self._starts[1:], len(self.items))
        self.candidates = candidates
        self.groups = np.zeros(len(self.items), np.int32) if groups is None else groups[self.items.text]
        self.batches_per_epoch = int((-(-np.bincount(self.groups) // batch_size)).sum())

    def buffers(self, epoch: int) -> Iterator[np.ndarray]:
        """Numbers of the items of each buffer of an epoch: whole chunks, in random order."""
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self._chunks))
        held: list[np.ndarray] = []
        rows = 0
        for chunk in order:
            size = int(self._stops[chunk] - self._starts[chunk])
            if held and rows + size > self.buffer_rows:
                yield np.concatenate(held)
                held, rows = [], 0
            held.append(np.arange(self._starts[chunk], self._stops[chunk]))
            rows += size
        yield np.concatenate(held)

    def plan(self, epoch: int) -> Iterator[list[np.ndarray]]:
        """Batches, as numbers of items, buffer by buffer. All but the last batch of each group are full.

        Rows left over by a buffer join the next one. No vectors are read.
        """
        carried = np.empty(0, dtype=np.int64)
        done = 0
        for number, members in enumerate(self.buffers(epoch)):
            random = np.random.default_rng([self.seed, epoch, number])
            rows = random.permutation(np.concatenate([carried, members]))
            done += len(members)
            last, size = done == len(self.items), self.batch_size
            groups = [rows[self.groups[rows] == group] for group in np.unique(self.groups[rows])]
            used = [len(group) if last else len(group) // size * size for group in groups]
            carried = np.concatenate([group[count:] for group, count in zip(groups, used, strict=True)])
            batches = [cut for group, count in zip(groups, used, strict=True) for cut in self._cut(group[:count])]
            yield [batches[i] for i in random.permutation(len(batches))]

    def _cut(self, rows: np.ndarray) -> list[np.ndarray]:
        size, batches = self.batch_size, []
        lengths = self.tokens.lengths(self.items.text[rows])
        for start in range(0, len(rows), WINDOW_BATCHES * size):
            window = slice(start, start + WINDOW_BATCHES * size)
            by_length = rows[window][np.argsort(lengths[window], kind="stable")]
            batches += [by_length[i : i + size] for i in range(0, len(by_length), size)]
        return batches

    def batches(self, position: Position) -> Iterator[TrainingBatch]:
        """Batches without end, from `position` on."""
        epoch = position.epoch + position.batch // self.batches_per_epoch
        skip = position.batch % self.batches_per_epoch
        while True:
            yield from self._epoch(epoch, skip)
            epoch, skip = epoch + 1, 0

    def batches_of(self, replica: int, replicas: int, position: Position) -> Iterator[TrainingBatch]:
        """Those of one of several replicas that take turns; each names where all of them are to be continued."""
        everything = self.batches(position)
        while True:
            turn = [next(everything) for _ in range(replicas)]
            own, beside = turn[replica], sum(len(batch.targets) for batch in turn) - len(turn[replica].targets)
            yield replace(own, following=turn[-1].following, beside=beside)

    def _epoch(self, epoch: int, skip: int) -> Iterator[TrainingBatch]:
        number = 0
        for batches in self.plan(epoch):
            if not batches or number + len(batches) <= skip:
                number += len(batches)
                continue
            rest = batches[max(0, skip - number) :]
            number = max(number, skip)
            vectors = torch.from_numpy(read_vectors(self.source, self.items.take(np.concatenate(rest))))
            start = 0
            for rows, packed in zip(rest, self._packed(rest), strict=True):
                last = number + 1 == self.batches_per_epoch
                following = Position(epoch + 1, 0) if last else Position(epoch, number + 1)
                stop = start + len(packed.order)
                candidates = self.candidates.of(self.items.text[rows]) if self.candidates else None
                targets = vectors[start:stop].float()
                yield TrainingBatch(Position(epoch, number), following, packed, targets, candidates)
                number, start = number + 1, stop

    def _packed(self, batches: list[np.ndarray]) -> Iterator[Batch]:
        """`pack` of each of these batches, which are sorted by length: a window's texts at once, as pure array work."""
        for first in range(0, len(batches), WINDOW_BATCHES):
            window = batches[first : first + WINDOW_BATCHES]
            texts = self.items.text[np.concatenate(window)]
            yield from pack_sorted(self.tokens, texts, np.array([len(batch) for batch in window]))

    def pack(self, rows: np.ndarray, shortest: int = 1) -> Batch:
        """Lay the texts of these items end to end; errors are those of `pipeline.model.pack`."""
        return pack([self.tokens[text] for text in self.items.text[rows]], shortest)

    def samples(self, rows: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Up to `rows` training items drawn by the seed, and their vectors, a buffer at a time: for the head's start.

        The first buffer is exhausted before the next one is read.
        """
        random = np.random.default_rng([self.seed, 1 << 31])
        for members in self.buffers(0):
            chosen = random.permutation(members)[:rows]
            yield chosen, read_vectors(self.source, self.items.take(chosen))
            rows -= len(chosen)
            if not rows:
                return

    def validation(self, rows: int) -> tuple[list[np.ndarray], np.ndarray]:
        """Token ids and vectors [rows, dim] float32 of up to `rows` held-out texts, shortest first.

        Those with the smallest keys are taken: keys are digests, so that is a random sample, and a stable one as the
        corpus grows.
        """
        chosen = self.heldout.take(np.argsort(self.heldout.text, kind="stable")[:rows])
        chosen = chosen.take(np.argsort(self.tokens.lengths(chosen.text), kind="stable"))
        return [self.tokens[text] for text in chosen.text], read_vectors(self.source, chosen).astype(np.float32)
