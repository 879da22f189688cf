"""Where the time of encoding goes, by operation, on one core: what bounds the rows of `benchmarks.encode`.

    python -m benchmarks.profile

One stream of batches as stage one cuts them, without tokenising, under PyTorch's profiler. `products` are the linear
layers with bias and GELU; their rate counts their operations over real tokens.
"""

import time

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.common import machine
from benchmarks.encode import BUDGET, MAX_LENGTH, inputs, linear_operations, models
from pipeline.model import pack, token_batches
from pipeline.params import EncodeParams, TeacherParams
from pipeline.teacher import LocalTeacher, PackedRunner

KINDS = {
    "products": ("_linear_pointwise",),
    "softmax": ("_softmax",),
    "products of attention": ("bmm",),
    "copies": ("copy_", "index_select", "fill_"),
    "layer norms": ("native_layer_norm",),
    "residuals and embeddings": ("aten::add",),
}


def main() -> None:
    """Profile both models on both kinds of input and print a table for each."""
    torch.set_num_threads(1)
    print(machine())
    for name, model in models("profile"):
        for title, sample in inputs(name, "profile"):
            _profile(title, model, sample)


def _profile(name: str, model: str, sample: list[str]) -> None:
    teacher = LocalTeacher(TeacherParams(model, max_length=MAX_LENGTH), EncodeParams(token_budget=BUDGET))
    ids = teacher.tokenize(sample, "document")
    lengths = np.array([len(text) for text in ids])
    batches = [pack([ids[row] for row in rows]) for rows in token_batches(lengths, BUDGET // 2)]
    runner = teacher._runners["document"]
    assert isinstance(runner, PackedRunner)
    backbone = runner.compiled
    for batch in batches:
        backbone(batch)
    start = time.perf_counter()
    for batch in batches:
        backbone(batch)
    seconds = time.perf_counter() - start
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for batch in batches:
            backbone(batch)
    spent = {event.key: event.self_cpu_time_total / 1e6 for event in profiler.key_averages()}
    whole, left = sum(spent.values()), dict(spent)
    work = linear_operations(teacher, int(lengths.sum()))
    print(f"\n{name}: {lengths.sum():,} tokens, {lengths.sum() / seconds:,.0f} a second on one core\n")
    print("| operation | seconds | share |\n|---|---|---|")
    for kind, names in KINDS.items():
        chosen = [key for key in left if any(part in key for part in names)]
        total = sum(left.pop(key) for key in chosen)
        rate = f" ({work / total / 1e9:,.0f} GFLOP/s)" if kind == "products" and total else ""
        print(f"| {kind}{rate} | {total:.2f} | {total / whole:.1%} |")
    print(f"| all else (views, allocation, Python) | {sum(left.values()):.2f} | {sum(left.values()) / whole:.1%} |")


if __name__ == "__main__":
    main()
