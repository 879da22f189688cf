"""What stage two will cost, before it runs: steps, bytes, memory, hours. It needs no vectors yet."""

import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from math import gcd
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipeline.base import SettledRate, TokenIds, keep_pages, prefetch, under_way
from pipeline.corpus import scan
from pipeline.fit.loader import WINDOW_BATCHES, Position, TrainingBatch
from pipeline.fit.optimiser import total_steps
from pipeline.fit.step import compute_dtype, step_for
from pipeline.fit.trainer import AHEAD, KEEP_BYTES
from pipeline.model import Student, best_device, build, pack, synchronize
from pipeline.params import FitParams
from pipeline.store import StoreMeta

SAMPLE = 20_000  # texts
JOIN_BYTES_OF_A_TEXT = 80  # memory of the join of corpus and store, see docs/scale.md
BLOCK_TEXTS = 2048  # that are tokenised at once
GOLDEN = (5**0.5 - 1) / 2  # multiples of it, on a circle, leave the most even gaps
PIECE_SECONDS = 0.25  # of steps between two looks at the clock, for which an accelerator has to end what it does


@dataclass(frozen=True)
class FitEstimate:
    """The fit of a corpus."""

    texts: int
    """That it is trained on."""
    steps: int
    presentations: int
    parameters: int
    student_bytes: int
    """Of the student's weights."""
    token_cache_bytes: int
    memory_bytes: int
    """Of keys, the loader's buffer, weights, gradients and moments."""
    texts_per_s: float | None
    """As measured; None where it was not."""

    @property
    def hours(self) -> float | None:
        """Of this machine."""
        return self.presentations / self.texts_per_s / 3600 if self.texts_per_s else None


def estimate(corpus: Path, params: FitParams, meta: StoreMeta, seconds: float) -> FitEstimate:
    """Estimate the fit of a corpus to vectors of the teacher `meta`.

    Steps on random vectors are measured for `seconds` behind their warm-up; 0 measures none.

    With `vocabulary: corpus` the student is counted with its checkpoint's whole vocabulary.

    Raises:
        LeafError: there is no such checkpoint, or the corpus is damaged.
    """
    counts = dict(scan(corpus).group_by("split").len().collect().iter_rows())
    training, texts = counts.get("train", 0), sum(counts.values())
    keep_pages(KEEP_BYTES)
    with under_way("fit: the student, and a sample of its texts"):
        student = build(
            params.student, meta.dim, meta.normalized, params.dropout, params.seed, similarity=meta.similarity
        )
        ids = _sampled_ids(corpus, student)
    steps = total_steps(params, -(-training // params.batch_size)) if training else 0
    parameters = sum(parameter.numel() for parameter in student.parameters())
    tokens = sum(map(len, ids)) / max(1, len(ids))
    return FitEstimate(
        texts=training,
        steps=steps,
        presentations=_presentations(steps, params, training),
        parameters=parameters,
        student_bytes=4 * parameters,
        token_cache_bytes=round(texts * (2 * tokens + 25)),
        memory_bytes=texts * JOIN_BYTES_OF_A_TEXT + min(params.buffer_rows, texts) * meta.dim * 6 + 16 * parameters,
        texts_per_s=_speed(student, params, ids, meta, seconds) if seconds and training else None,
    )


def _sampled_ids(corpus: Path, student: Student) -> list[np.ndarray]:
    """Token ids of the corpus's first texts; it is sorted by a digest, so they are a fair sample."""
    texts, ids_of = scan(corpus).head(SAMPLE).select("text").collect(), TokenIds(student.tokenizer())
    blocks = (ids_of(block["text"].to_list()) for block in texts.iter_slices(BLOCK_TEXTS))
    return [np.array(ids, dtype=np.int32) for block in blocks for ids in block]


def _presentations(steps: int, params: FitParams, training: int) -> int:
    """Texts in so many steps; an epoch's last batch is smaller."""
    each = -(-training // params.batch_size)
    epochs, rest = divmod(steps * params.replicas, max(1, each))
    return epochs * training + rest * params.batch_size


def _speed(student: Student, params: FitParams, ids: list[np.ndarray], meta: StoreMeta, seconds: float) -> float | None:
    """Texts a second of training steps, of which the tokens are measured: batches differ by far in their length."""
    device = best_device()
    student.to(device)
    step = step_for(student, params, compute_dtype(params, device))
    batches = prefetch(((batch, step.prepare(batch)) for batch in _batches(ids, params, meta.dim)), AHEAD)
    with closing(batches), SettledRate("fit", "tokens", seconds) as rate:
        is_measured = False
        while not is_measured:
            began, tokens = time.perf_counter(), 0
            while time.perf_counter() - began < PIECE_SECONDS:
                batch, prepared = next(batches)
                step.run(prepared, params.learning_rate)
                tokens += sum(texts * length for texts, length in batch.texts.length_groups)
            synchronize(device)
            is_measured = rate.add(tokens, time.perf_counter() - began)
    return rate.value and rate.value * len(ids) / sum(map(len, ids))


def _batches(ids: list[np.ndarray], params: FitParams, dim: int) -> Iterator[TrainingBatch]:
    """Batches without end as the loader cuts them, with random targets of length one.

    They come in such an order that the first of them, however many, are of all lengths: by chance, a few steps would be
    of short texts or of long ones.
    """
    size, random = params.batch_size, torch.Generator().manual_seed(params.seed)
    cut: list[list[int]] = []
    order = torch.randperm(len(ids), generator=random).tolist()
    for first in range(0, len(order), WINDOW_BATCHES * size):
        window = sorted(order[first : first + WINDOW_BATCHES * size], key=lambda row: len(ids[row]))
        cut += [window[start : start + size] for start in range(0, len(window), size)]
    cut.sort(key=lambda rows: sum(len(ids[row]) for row in rows))
    while True:
        for number in evenly(len(cut)):
            rows = cut[number]
            targets: Tensor = torch.nn.functional.normalize(torch.randn(len(rows), dim, generator=random))
            yield TrainingBatch(Position(), Position(), pack([ids[row] for row in rows]), targets)


def evenly(count: int) -> list[int]:
    """The numbers below `count`, from the middle on; the first of them, however many are taken, are spread evenly."""
    step = next(step for step in range(max(1, round(GOLDEN * count)), count + 1) if gcd(step, count) == 1)
    return [(count // 2 + place * step) % count for place in range(count)]
