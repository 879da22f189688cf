"""Samples per second of stage two against sentence-transformers' own trainer, in its defaults and in bfloat16.

    python -m benchmarks.fit [--steps N] [--rounds N]        (needs pip install -e '.[demo,bench]')

all-MiniLM-L6-v2 and a head 384 -> 768 at batch 32, the same texts and targets (unit vectors; their values do not change
the work). Ours is the fit loop's own step, loader and optimiser; theirs is SentenceTransformerTrainer with MSELoss and
its default collator. The clock covers training steps alone, on both sides: theirs by the trainer's `train_runtime`.

What speed costs: three layers of all-MiniLM-L6-v2 are fitted to the whole model twice, by `pipeline.fit` as it is and
in float32, with the same seed and length, and their validation losses compared.
"""

import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import click
import numpy as np
import polars as pl
import torch

from benchmarks.common import MINILM, QUICK, Row, Work, alternate, child, report, texts
from pipeline.base import keep_pages, keys
from pipeline.corpus import corpus_digest
from pipeline.fit import Trainer, fit
from pipeline.model import best_device, resolve_model
from pipeline.params import EncodeParams, FitParams, StudentParams, TeacherParams
from pipeline.store import ShardCache, Store, StoreMeta
from pipeline.teacher import LocalTeacher

BATCH, MAX_LENGTH = 32, 256
SPEED_DIM, SPEED_ROWS = 768, 4096
LOSS_ROWS, LOSS_STEPS, HELDOUT = (400, 4, 0.1) if QUICK else (5000, 150, 0.1)
Precision = Literal["auto", "float32"]
TRAINER = "SentenceTransformerTrainer"
TARGETS = {f"{TRAINER} float32": 5.0, f"{TRAINER} bfloat16": 2.2}


@click.command()
@click.option("--steps", default=2 if QUICK else 20, show_default=True, help="Steps a run.")
@click.option("--rounds", default=1 if QUICK else 3, show_default=True, help="Runs of each side, after a first one.")
@click.option("--loss", type=(click.Choice(["auto", "float32"]), Path), help="Used by the command itself.")
def main(steps: int, rounds: int, loss: tuple[Precision, Path] | None) -> None:
    """Measure and print the table."""
    if loss:
        print(json.dumps(_fitted(*loss)))
    else:
        report([*speed(steps, rounds), accuracy()])


def speed(steps: int, rounds: int) -> list[Row]:
    """Samples per second of the three sides."""
    keep_pages()
    sample = texts(SPEED_ROWS)
    targets = np.random.default_rng(0).normal(size=(len(sample), SPEED_DIM)).astype(np.float32)
    targets /= np.linalg.norm(targets, axis=1, keepdims=True)
    with tempfile.TemporaryDirectory() as folder:
        rates = alternate(
            {
                "ours": _ours(Path(folder), sample, targets, steps),
                f"{TRAINER} float32": theirs(MINILM, Path(folder), sample, targets, steps=steps, bf16=False),
                f"{TRAINER} bfloat16": theirs(MINILM, Path(folder), sample, targets, steps=steps, bf16=True),
            },
            rounds,
        )
    return [
        Row("fit MiniLM-L6 384 -> 768, batch 32", side, "samples/s", rates["ours"], rates[side], target)
        for side, target in TARGETS.items()
    ]


def accuracy() -> Row:
    """Validation loss of a fit as it is, against that of a fit in float32."""
    sample = texts(LOSS_ROWS)
    teacher = LocalTeacher(TeacherParams(MINILM, max_length=MAX_LENGTH), EncodeParams())
    vectors = teacher.encode_tokens(teacher.tokenize(sample, "document"))
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder), sample, vectors, HELDOUT)
        ours, theirs = (
            child("benchmarks.fit", "--loss", precision, folder)["loss"] for precision in ("auto", "float32")
        )
    steps = f"{LOSS_STEPS} steps into 3 layers"
    return Row(f"fit validation loss, {steps}", "float32", "l2", ours, theirs, 0.99, less_is_better=True)


def _fitted(precision: Precision, folder: Path) -> dict[str, float]:
    """The validation figures of a short fit, in this process."""
    student = StudentParams(MINILM, layers=(1, 3, 5), max_length=MAX_LENGTH)
    params = FitParams(
        student, batch_size=BATCH, max_steps=LOSS_STEPS, learning_rate=3e-4, dropout=0.0, precision=precision
    )
    store = Store.open(folder / "store")
    result = fit(folder / "corpus", store, params, folder / precision, folder / f"work-{precision}")
    validation: dict[str, float] = result.metrics["validation"]
    return validation


def prepare(folder: Path, sample: list[str], vectors: np.ndarray, heldout: float) -> Store:
    """A corpus of these different texts and a store of their vectors, in `folder`."""
    rows = write_corpus(folder / "corpus", sample, heldout)
    with ShardCache(folder / "pool", StoreMeta("0" * 64, {}, vectors.shape[1], "float16", True)) as cache:
        cache.write(rows.select("key", "role", "id", "source", "tokens"), vectors)
        return cache.publish(folder / "store", rows["key"])


def write_corpus(directory: Path, sample: list[str], heldout: float) -> pl.DataFrame:
    """A corpus of these different texts, of which a share is held out; returns its rows in the order of the texts."""
    rows = pl.DataFrame({"text": sample}).with_columns(
        key=pl.Series(keys(["document"] * len(sample), sample), dtype=pl.Binary),
        id=pl.int_range(pl.len()).cast(pl.String),
        role=pl.lit("document"),
        source=pl.lit("bench"),
        split=pl.when(pl.int_range(pl.len()) < heldout * len(sample))
        .then(pl.lit("heldout"))
        .otherwise(pl.lit("train")),
        tokens=pl.lit(0, pl.Int32),
    )
    directory.mkdir()
    rows.drop("tokens").sort("key").write_parquet(directory / "part-00000.parquet")
    return rows


def _ours(folder: Path, sample: list[str], targets: np.ndarray, steps: int) -> Callable[[], Work]:
    store = prepare(folder, sample, targets, 0.0)
    params = FitParams(StudentParams(MINILM, max_length=MAX_LENGTH), batch_size=BATCH)
    trainer = Trainer(folder / "corpus", store, params, corpus_digest(folder / "corpus"), folder / "work")
    batches = trainer.batches()  # in this thread: its cost is measured too

    def side() -> float:
        seen = 0
        for _ in range(steps):
            batch, prepared = next(batches)
            trainer.step.run(prepared, params.learning_rate)
            seen += len(batch.targets)
        return seen

    return side


def theirs(
    checkpoint: str, folder: Path, sample: list[str], targets: np.ndarray, *, steps: int, bf16: bool
) -> Callable[[], Work]:
    """A run of sentence-transformers' own trainer on the best device: texts, and seconds of its steps."""
    from datasets import Dataset
    from sentence_transformers import (
        SentenceTransformer,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )
    from sentence_transformers.losses import MSELoss
    from sentence_transformers.sentence_transformer.modules import Dense

    device = best_device()
    loaded = SentenceTransformer(str(resolve_model(checkpoint)), device=str(device))
    loaded.max_seq_length = MAX_LENGTH
    width = loaded.get_sentence_embedding_dimension()
    assert width is not None
    head = Dense(width, targets.shape[1], activation_function=torch.nn.Identity())
    model = SentenceTransformer(modules=[*list(loaded)[:2], head], device=str(device))
    data = Dataset.from_dict({"sentence": sample, "label": targets.tolist()})
    turn = iter(range(1_000_000))

    def side() -> tuple[float, float]:
        part = data.shuffle(seed=next(turn)).select(range(steps * BATCH))
        arguments = SentenceTransformerTrainingArguments(
            output_dir=str(folder / "trainer"),
            per_device_train_batch_size=BATCH,
            num_train_epochs=1,
            bf16=bf16,
            use_cpu=device.type == "cpu",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        trainer = SentenceTransformerTrainer(model=model, args=arguments, train_dataset=part, loss=MSELoss(model))
        start = time.perf_counter()
        metrics = trainer.train().metrics
        return steps * BATCH, float(metrics.get("train_runtime", time.perf_counter() - start))

    return side


if __name__ == "__main__":
    main()
