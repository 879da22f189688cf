"""Tokens per second of stage one against sentence-transformers, OpenVINO, and the machine's own bfloat16 products.

    python -m benchmarks.encode [--rounds N]      (needs pip install -e '.[demo,bench]')

Ours is `LocalTeacher`: tokenising, forward passes without padding, normalising. sentence-transformers
runs `encode` in its defaults (float32) and in bfloat16. OpenVINO gets bfloat16 and the best of the settings in
`openvino_encoder.candidates`, found before the clock starts: once with our batches, once with those of three sizes that
suit it best. All get the same texts: once short ones of natural lengths (`texts`), once longer `passages`. The longer
the texts, the less the library loses on small batches, and the smaller the ratio.

Speed bought with accuracy does not count: every vector is compared with that of sentence-transformers in float32.
all-mpnet-base-v2 is looked for in models/all-mpnet-base-v2.
"""

from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from typing import Any

import click
import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from torch.nn import functional

from benchmarks.common import MINILM, MPNET, QUICK, Row, Work, alternate, passages, report, skipped, texts
from benchmarks.openvino_encoder import OpenVino, candidates, own_budget, timed
from pipeline.base import cosines
from pipeline.model import resolve_model, traits_of
from pipeline.params import EncodeParams, TeacherParams
from pipeline.teacher import LocalTeacher

MAX_LENGTH = 256
BUDGET = traits_of(torch.device("cpu")).encode_tokens
LIBRARY = "sentence-transformers"
OPENVINO = "OpenVINO bfloat16"
TARGETS = {
    f"{LIBRARY} float32": 4.0,
    f"{LIBRARY} bfloat16": 1.6,
    f"{OPENVINO}, our batches": 1.05,
    f"{OPENVINO}, its best batches": 1.05,
}
PRODUCTS = ((8192, 768, 3072), (8192, 3072, 768), (4096, 4096, 4096))  # rows, inner, columns
SHARES = {"all-mpnet-base-v2": 0.65}  # target of a model's part of the machine's products
SIZES = {"all-MiniLM-L6-v2": (3000, 600), "all-mpnet-base-v2": (400, 100)}  # texts, passages


@click.command()
@click.option("--rounds", default=1 if QUICK else 5, show_default=True, help="Runs of each side, after a first one.")
def main(rounds: int) -> None:
    """Measure both models on both kinds of input and print the tables."""
    for name, model in models("encode"):
        for title, sample in inputs(name, "encode"):
            report(measure(title, model, sample, SHARES.get(name), rounds))


def models(what: str) -> Iterator[tuple[str, str]]:
    """Name and place of each model that is there."""
    for name, model in {"all-MiniLM-L6-v2": MINILM, "all-mpnet-base-v2": str(MPNET)}.items():
        if model == str(MPNET) and not MPNET.is_dir():
            skipped(f"{what} {name}", "models/all-mpnet-base-v2 is not there")
            continue
        yield name, model


def inputs(name: str, what: str) -> Iterator[tuple[str, list[str]]]:
    """A title for the rows of a model's measurement, and the texts: short ones, and passages where there are any."""
    text_count, passage_count = (24, 24) if QUICK else SIZES[name]
    yield name, texts(text_count)
    if sample := passages(passage_count):
        yield f"{name}, passages", sample
    else:
        skipped(f"{what} {name}, passages", "../shared/text/broad is not there")


def measure(name: str, model: str, sample: list[str], share: float | None, rounds: int) -> list[Row]:
    """Rows for one model and input; `share` is the target of its part of the machine's products."""
    teacher = LocalTeacher(TeacherParams(model, max_length=MAX_LENGTH), EncodeParams(token_budget=BUDGET))
    lengths = np.array([len(ids) for ids in teacher.tokenize(sample, "document")])
    tokens, work = int(lengths.sum()), operations(teacher, lengths)
    print(
        f"{name}: {len(sample)} texts, {tokens:,} tokens ({tokens / len(sample):.0f} a text), {work / 1e9:,.0f} GFLOP; "
        f"a batch of {LIBRARY} holds {batch_tokens(sample, lengths):,.0f} tokens and padding for "
        f"{batch_tokens(sample, lengths, padded=True):,.0f}"
    )
    loaded = {f"{LIBRARY} {str(dtype)[6:]}": load(model, dtype) for dtype in (torch.float32, torch.bfloat16)}
    encodings: dict[str, Callable[[], Any]] = {
        "ours": lambda: teacher.encode_tokens(teacher.tokenize(sample, "document")),
        **{side: partial(model.encode, sample, show_progress_bar=False) for side, model in loaded.items()},
        **_openvino(name, teacher, sample),
    }
    reference = loaded[f"{LIBRARY} float32"].encode(sample, show_progress_bar=False)
    closeness = {side: cosines(encodings[side](), reference) for side in encodings if "float32" not in side}
    for side, values in closeness.items():
        print(f"{name}, {side}: cosine to float32 at least {values.min():.6f}, mean {values.mean():.7f}")

    def counted(run: Callable[[], Any]) -> Callable[[], Work]:
        def side() -> Work:
            run()
            return float(tokens)

        return side

    sides = {side: counted(run) for side, run in encodings.items()}
    rates = alternate(sides | (products() if share else {}), rounds)
    rows = [
        Row(f"encode {name}", side, "tokens/s", rates["ours"], rates[side], target)
        for side, target in TARGETS.items()
        if side in rates
    ]
    if share:
        best = max(rate for side, rate in rates.items() if side.startswith("product"))
        rows.append(
            Row(
                f"encode {name}", "bfloat16 products", "GFLOP/s", rates["ours"] / tokens * work / 1e9, best / 1e9, share
            )
        )
    own = closeness["ours"]
    return [
        *rows,
        Row(f"encode {name}, worst text", "0.9995", "1 - cosine", 1 - own.min(), 0.0005, 1, less_is_better=True),
        Row(f"encode {name}, mean", "0.9999", "1 - cosine", 1 - own.mean(), 0.0001, 1, less_is_better=True),
    ]


def batch_tokens(sample: list[str], lengths: np.ndarray, padded: bool = False) -> float:
    """Mean tokens of a batch that the library makes of these texts: 32 at a time, sorted by their characters."""
    by_characters = np.argsort([-len(text) for text in sample])
    batches = [lengths[by_characters[start : start + 32]] for start in range(0, len(sample), 32)]
    return float(np.mean([len(batch) * batch.max() - batch.sum() if padded else batch.sum() for batch in batches]))


def operations(teacher: LocalTeacher, lengths: np.ndarray) -> float:
    """Multiplications and additions of the model's matrix products over these texts; no padding, nothing else counted.

    A layer has 4 projections and a feed-forward pair for every token, and two products of [tokens, tokens, width] a
    text for attention.
    """
    config = teacher._model[0].auto_model.config
    text = 4 * config.hidden_size * lengths.astype(float) ** 2
    return linear_operations(teacher, int(lengths.sum())) + float(config.num_hidden_layers * text.sum())


def linear_operations(teacher: LocalTeacher, tokens: int) -> float:
    """Those of the projections and the feed-forward pairs alone."""
    config = teacher._model[0].auto_model.config
    token = 2 * (4 * config.hidden_size**2 + 2 * config.hidden_size * config.intermediate_size)
    return float(config.num_hidden_layers * token * tokens)


def products() -> dict[str, Callable[[], Work]]:
    """Large bfloat16 linear layers, by PyTorch and with oneDNN's own layout of the weight: operations a run."""
    sides: dict[str, Callable[[], Work]] = {}
    for rows, inner, columns in PRODUCTS[: 1 if QUICK else None]:
        x, weight = (torch.randn(n, inner, dtype=torch.bfloat16) for n in (rows, columns))
        name = f"product {rows} x {inner} x {columns}"
        sides[name] = _product(partial(functional.linear, x, weight), x, weight)
        if torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
            laid = torch.ops.mkldnn._reorder_linear_weight(weight, rows)
            run = partial(torch.ops.mkldnn._linear_pointwise, x, laid, None, "none", [], "none")
            sides[f"{name}, laid out"] = _product(run, x, weight)
    return sides


def _product(run: Callable[[], torch.Tensor], x: torch.Tensor, weight: torch.Tensor) -> Callable[[], Work]:
    repeats = 1 if QUICK else 10

    def side() -> Work:
        for _ in range(repeats):
            run()
        return 2.0 * repeats * x.shape[0] * x.shape[1] * weight.shape[0]

    return side


def _openvino(name: str, teacher: LocalTeacher, sample: list[str]) -> dict[str, Callable[[], Any]]:
    """The fastest settings of OpenVINO on this machine and these texts; nothing where it is not installed."""
    if find_spec("openvino") is None:
        skipped(f"encode {name} / {OPENVINO}", "openvino is not installed: pip install -e '.[bench]'")
        return {}
    print(f"{name}:")
    measured = timed(partial(OpenVino, teacher), candidates(teacher, BUDGET)[: 2 if QUICK else None], sample)
    ours = [settings for settings in measured if settings.budget == own_budget(teacher, BUDGET)]
    best = {
        "our batches": min(ours, key=measured.__getitem__),
        "its best batches": min(measured, key=measured.__getitem__),
    }
    engines = {settings: OpenVino(teacher, settings) for settings in best.values()}
    return {
        f"{OPENVINO}, {which}": lambda e=engines[settings]: e.encode(sample)  # type: ignore[misc]
        for which, settings in best.items()
    }


def load(model: str, dtype: torch.dtype) -> SentenceTransformer:
    """The library's own model in a precision."""
    loaded = SentenceTransformer(str(resolve_model(model)), device="cpu", model_kwargs={"dtype": dtype})
    loaded.max_seq_length = MAX_LENGTH
    return loaded


if __name__ == "__main__":
    main()
