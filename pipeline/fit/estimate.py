"""What stage two will cost, before it runs: steps, bytes, memory, hours. It needs no vectors yet."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from pipeline.base import TokenIds
from pipeline.corpus import scan
from pipeline.fit.loader import WINDOW_BATCHES, Position, TrainingBatch
from pipeline.fit.optimiser import total_steps
from pipeline.fit.step import compute_dtype, step_for
from pipeline.model import Student, best_device, build, pack, synchronize
from pipeline.params import FitParams
from pipeline.store import StoreMeta

SAMPLE = 20_000  # texts
JOIN_BYTES_OF_A_TEXT = 80  # memory of the join of corpus and store, see docs/scale.md
WARM_STEPS = 8


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
    """Estimate the fit of a corpus to vectors of the teacher `meta`, measured for `seconds` on random vectors.

    With `vocabulary: corpus` the student is counted with its checkpoint's whole vocabulary.

    Raises:
        LeafError: there is no such checkpoint, or the corpus is damaged.
    """
    counts = dict(scan(corpus).group_by("split").len().collect().iter_rows())
    training, texts = counts.get("train", 0), sum(counts.values())
    student = build(params.student, meta.dim, meta.normalized, params.dropout, params.seed, similarity=meta.similarity)
    sample = scan(corpus).head(SAMPLE).select("text").collect()["text"].to_list()
    ids = TokenIds(student.tokenizer())(sample)
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


def _presentations(steps: int, params: FitParams, training: int) -> int:
    """Texts in so many steps; an epoch's last batch is smaller."""
    each = -(-training // params.batch_size)
    epochs, rest = divmod(steps * params.replicas, max(1, each))
    return epochs * training + rest * params.batch_size


def _speed(student: Student, params: FitParams, ids: list[list[int]], meta: StoreMeta, seconds: float) -> float:
    """Texts a second of training steps."""
    device = best_device()
    student.to(device)
    step = step_for(student, params, compute_dtype(params, device))
    batches = (step.prepare(batch) for batch in _batches(ids, params, meta.dim))
    for prepared in islice(batches, WARM_STEPS):
        step.run(prepared, params.learning_rate)
    synchronize(device)
    began, texts = time.perf_counter(), 0
    while time.perf_counter() - began < seconds or not texts:
        step.run(next(batches), params.learning_rate)
        texts += params.batch_size
    synchronize(device)
    return texts / (time.perf_counter() - began)


def _batches(ids: list[list[int]], params: FitParams, dim: int) -> Iterator[TrainingBatch]:
    """Batches without end as the loader cuts them, with random targets of length one."""
    size, random = params.batch_size, torch.Generator().manual_seed(params.seed)
    while True:
        order = torch.randperm(len(ids), generator=random).tolist()
        for first in range(0, len(order), WINDOW_BATCHES * size):
            window = sorted(order[first : first + WINDOW_BATCHES * size], key=lambda row: len(ids[row]))
            cut = [window[start : start + size] for start in range(0, len(window), size)]
            for number in torch.randperm(len(cut), generator=random).tolist():
                targets: Tensor = torch.nn.functional.normalize(torch.randn(len(cut[number]), dim, generator=random))
                yield TrainingBatch(Position(), Position(), pack([ids[row] for row in cut[number]]), targets)
