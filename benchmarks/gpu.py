"""Everything that needs a GPU, in one run of at most seven minutes; with --small, all of it that a CPU can do.

    python -m benchmarks.gpu [--json FILE] [--small]

Made for a machine that is lent for minutes and has no network. It needs this repository (1 MB) and, besides torch,
transformers, sentence-transformers, accelerate, pyarrow, click, tqdm and pyyaml, these wheels (47 MB), fetched before:

    pip download --no-deps --only-binary=:all: --python-version 3.12 --platform manylinux_2_17_x86_64 \\
        --platform manylinux_2_28_x86_64 --platform manylinux2014_x86_64 --dest wheels polars==1.30.0 zarr==3.1.6 \\
        numcodecs==0.16.6 google-crc32c==1.9.0 donfig==0.8.1.post1 datasets==5.2.0 dill==0.4.1 multiprocess==0.70.19
    pip install --no-index --no-deps --target site wheels/*.whl
    PYTHONPATH=site:. python -m benchmarks.gpu --json gpu.json

`datasets`, `dill` and `multiprocess` are for the trainer of sentence-transformers; without them it is left out. Models
have the true shapes and random weights, texts are made.

- Stage one with the shapes of all-MiniLM-L6-v2 and all-mpnet-base-v2, stored vectors included, against `encode` of
  sentence-transformers in bfloat16 with its best batch size; and the forward passes alone against the machine's
  matrix products.
- Stage two of MiniLM-L6 384 -> 768 at batch 32, against 970 samples/s (reported on an A100) and against the trainer of
  sentence-transformers in bfloat16.
- A fit on the GPU against the same fit on the CPU, in float32 without dropout; a fit that is killed and continued
  against one that is not.

What breaks off ends its own part alone, and every part's figures are written as soon as they are there.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from itertools import count, islice
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer

from benchmarks.common import ROOT, Row, Work, alternate, machine, skipped, table
from benchmarks.fit import BATCH, prepare, theirs, write_corpus
from pipeline.base import cosines, prefetch
from pipeline.corpus import corpus_digest
from pipeline.encode import encode
from pipeline.fit import Trainer, fit
from pipeline.model import TRAITS, best_device, repeatable, synchronize, traits_of
from pipeline.params import EncodeParams, FitParams, StudentParams, TeacherParams
from pipeline.store import Store
from pipeline.teacher import LocalTeacher

DIM = 768
MAX_LENGTH = 256
A100 = 970  # samples a second of LEAF's training, as reported
WEIGHTS = ("model.safetensors", "2_Dense/model.safetensors")
ACCELERATED = "LEAF_BENCH_ACCELERATED"  # set for a process whose CPU is to be treated as an accelerator


@dataclass(frozen=True)
class Shape:
    """A model's shape, and how many texts it is measured on."""

    name: str
    family: str
    width: int
    layers: int
    heads: int
    feed_forward: int
    vocabulary: int
    texts: int

    def operations(self, lengths: np.ndarray) -> float:
        """Multiplications and additions of the matrix products over texts of these lengths, without padding."""
        linear = 2 * (4 * self.width**2 + 2 * self.width * self.feed_forward)
        attention = 4 * self.width * lengths.astype(float) ** 2
        return float(self.layers * (linear * lengths.sum() + attention.sum()))


@dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    shapes: tuple[Shape, ...]
    """The first is also fitted."""
    batch_sizes: tuple[int, ...]
    products: tuple[tuple[int, int, int], ...]
    rounds: int
    fit_texts: int
    fit_steps: int
    equal_steps: int
    killed_steps: int


FULL = Sizes(
    shapes=(
        Shape("all-MiniLM-L6-v2", "bert", 384, 6, 12, 1536, 30_522, 60_000),
        Shape("all-mpnet-base-v2", "mpnet", 768, 12, 12, 3072, 30_527, 20_000),
    ),
    batch_sizes=(64, 256, 1024),
    products=((65_536, 768, 3072), (65_536, 3072, 768), (8192, 8192, 8192)),
    rounds=2,
    fit_texts=20_000,
    fit_steps=400,
    equal_steps=200,
    killed_steps=600,
)
SMALL = Sizes(
    shapes=(Shape("small BERT", "bert", 32, 2, 4, 64, 500, 120), Shape("small MPNet", "mpnet", 32, 2, 4, 64, 500, 60)),
    batch_sizes=(16, 32),
    products=((256, 64, 256),),
    rounds=1,
    fit_texts=300,
    fit_steps=8,
    equal_steps=12,
    killed_steps=60,
)


@click.command()
@click.option("--small", is_flag=True, help="Tiny sizes, also on a CPU: shows that everything runs.")
@click.option("--json", "file", type=click.Path(dir_okay=False, path_type=Path), help="Where to write the figures.")
@click.option("--child", type=(click.Path(path_type=Path), str, int), help="Used by the command itself.")
def main(small: bool, file: Path | None, child: tuple[Path, str, int] | None) -> None:
    """Measure and print the table."""
    if os.environ.get(ACCELERATED):
        TRAITS["cpu"] = traits_of(torch.device("xpu"))
    if child:
        _fit_here(*child)
        return
    device = best_device()
    if device.type == "cpu" and not small:
        raise SystemExit("no GPU: PyTorch sees no accelerator here; --small runs on a CPU all of this that a CPU can")
    if device.type == "cpu":
        os.environ[ACCELERATED] = "1"
        TRAITS["cpu"] = traits_of(torch.device("xpu"))
    sys.exit(1 if _run(SMALL if small else FULL, device, file) else 0)


def _run(sizes: Sizes, device: torch.device, file: Path | None) -> list[str]:
    """Measure every part; returns the names of those that broke off."""
    figures: dict[str, Any] = {"machine": f"{_name(device)}; {machine()}", "rows": {}, "seconds": {}, "broke": []}
    with tempfile.TemporaryDirectory() as folder:
        parts: dict[str, Callable[[], list[Row]]] = {
            **{f"encode {shape.name}": partial(encoding, shape, sizes, device, Path(folder)) for shape in sizes.shapes},
            "fit": partial(fitting, sizes, device, Path(folder)),
            "fit, against the CPU": partial(against_the_cpu, sizes, Path(folder)),
            "fit, killed and continued": partial(killed, sizes, Path(folder)),
        }
        for name, part in parts.items():
            with _timed(name, figures["seconds"]):
                try:
                    for row in part():
                        figures["rows"][f"{row.name} / {row.against}"] = vars(row) | {"ratio": row.ratio}
                except Exception:  # of whatever kind: the time on such a machine is short, and the other parts go on
                    figures["broke"].append(name)
                    traceback.print_exc()
            if file is not None:
                file.write_text(json.dumps(figures, indent=1) + "\n")
    print(f"{_name(device)}; {table(figures['rows'])}", flush=True)
    print(f"{sum(figures['seconds'].values()):.0f} s in all; broke off: {', '.join(figures['broke']) or 'nothing'}")
    broke: list[str] = figures["broke"]
    return broke


def _name(device: torch.device) -> str:
    module = torch.get_device_module(device)
    name = module.get_device_name() if hasattr(module, "get_device_name") else device.type
    return "no GPU, its paths on the CPU" if device.type == "cpu" else f"{name}, driver's CUDA {torch.version.cuda}"


@contextmanager
def _timed(name: str, seconds: dict[str, float]) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[name] = round(time.perf_counter() - start, 1)
    print(f"{name}: {seconds[name]:.1f} s", flush=True)


def made_texts(number: int, words: int, seed: int = 0) -> list[str]:
    """Different texts of 2 to 180 made words of a vocabulary of `words`, 55 in the mean."""
    random = np.random.default_rng(seed)
    lengths = np.clip(random.lognormal(3.8, 0.7, number).astype(int), 2, 180)
    chosen = [f"w{word}" for word in random.integers(0, words, lengths.sum())]
    starts = np.cumsum(lengths) - lengths
    parts = (chosen[start : start + length] for start, length in zip(starts, lengths, strict=True))
    return [" ".join([*part, f"n{place}"]) for place, part in enumerate(parts)]


def model_directory(shape: Shape, folder: Path) -> Path:
    """A sentence-transformers model of this shape with random weights; a word of `made_texts` is one or two tokens."""
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, MPNetConfig, MPNetModel, PreTrainedTokenizerFast

    directory = folder / shape.name.replace(" ", "-")
    if directory.exists():
        return directory
    special, digits = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"], [f"##{number}" for number in range(10)]
    words = [f"w{number}" for number in range(shape.vocabulary - len(special) - len(digits) - 1)]
    known = {token: number for number, token in enumerate([*special, *digits, "n", *words])}
    tokenizer = Tokenizer(models.WordPiece(known, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", None, [("[CLS]", 2), ("[SEP]", 3)])
    torch.manual_seed(0)
    settings: dict[str, Any] = {
        "vocab_size": len(known),
        "hidden_size": shape.width,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "intermediate_size": shape.feed_forward,
    }
    model = (
        BertModel(BertConfig(**settings))
        if shape.family == "bert"
        else MPNetModel(MPNetConfig(**settings, max_position_embeddings=514))
    )
    plain = directory.with_name(f"{directory.name}-plain")
    model.save_pretrained(plain)
    marks = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    fast: Any = PreTrainedTokenizerFast
    fast(tokenizer_object=tokenizer, model_max_length=MAX_LENGTH, **marks).save_pretrained(plain)
    modules = [Transformer(str(plain), max_seq_length=MAX_LENGTH), Pooling(shape.width, pooling_mode="mean")]
    SentenceTransformer(modules=[*modules, Normalize()], device="cpu").save(str(directory))
    return directory


def encoding(shape: Shape, sizes: Sizes, device: torch.device, folder: Path) -> list[Row]:
    """Stage one of a model against sentence-transformers, and its forward passes against the machine's products."""
    directory = model_directory(shape, folder)
    sample = made_texts(shape.texts, shape.vocabulary - 16)
    rows = write_corpus(folder / f"corpus {shape.name}", sample, 0.0)
    teacher = LocalTeacher(TeacherParams(str(directory)), EncodeParams())
    tokenised = teacher.tokenize_rows(rows)
    lengths = np.array([len(text) for text in tokenised])
    tokens, turn = float(lengths.sum()), count()
    print(f"{shape.name}: {len(sample):,} texts, {tokens:,.0f} tokens")
    library = SentenceTransformer(str(directory), device=str(device), model_kwargs={"dtype": torch.bfloat16})
    best = min(sizes.batch_sizes, key=lambda size: _seconds(library, sample[: len(sample) // 8], size))
    reference = SentenceTransformer(str(directory), device=str(device)).encode(sample[:256])
    closeness = cosines(teacher.encode_tokens(teacher.tokenize(sample[:256], "document")), reference)

    def stage() -> Work:
        place = folder / f"store {shape.name} {next(turn)}"
        figures = encode(folder / f"corpus {shape.name}", teacher, EncodeParams(pool=f"{place} cache"), place)
        print(f"  {figures['seconds']}, {figures['tokens_per_s']:,} tokens/s while computing")
        return tokens

    sides: dict[str, Callable[[], Work]] = {
        "stage": stage,
        "library": lambda: (library.encode(sample, batch_size=best, show_progress_bar=False), tokens)[1],
        "forward": lambda: (teacher.encode_tokens(tokenised), tokens)[1],
        **{f"product {size}": partial(_products, size, device) for size in sizes.products},
    }
    rates = alternate(sides, sizes.rounds)
    product = max(rate for side, rate in rates.items() if side.startswith("product")) / 1e12
    forward = rates["forward"] / tokens * shape.operations(lengths) / 1e12
    name = f"encode {shape.name}"
    return [
        Row(name, f"sentence-transformers bfloat16, batch {best}", "tokens/s", rates["stage"], rates["library"], 2.0),
        Row(f"{name}, forward passes", "bfloat16 products", "TFLOP/s", forward, product, 0.5),
        Row(f"{name}, worst text", "0.999", "1 - cosine", 1 - closeness.min(), 0.001, 1, less_is_better=True),
    ]


def _seconds(library: SentenceTransformer, sample: list[str], batch_size: int) -> float:
    library.encode(sample[:batch_size], batch_size=batch_size, show_progress_bar=False)  # warms up
    start = time.perf_counter()
    library.encode(sample, batch_size=batch_size, show_progress_bar=False)
    return time.perf_counter() - start


def _products(size: tuple[int, int, int], device: torch.device) -> float:
    """Operations of some matrix products of random bfloat16 numbers."""
    rows, inner, columns = size
    a = torch.randn(rows, inner, dtype=torch.bfloat16, device=device)
    b = torch.randn(inner, columns, dtype=torch.bfloat16, device=device)
    for _ in range(20):
        a @ b
    synchronize(device)
    return 20 * 2.0 * rows * inner * columns


def fitting(sizes: Sizes, device: torch.device, folder: Path) -> list[Row]:
    """Samples a second of stage two, its loader included."""
    shape = sizes.shapes[0]
    directory, place = model_directory(shape, folder), folder / "fit"
    place.mkdir()
    sample = made_texts(sizes.fit_texts, shape.vocabulary - 16)
    targets = _targets(len(sample))
    store = prepare(place, sample, targets, 0.0)
    params = FitParams(StudentParams(str(directory)), batch_size=BATCH)
    trainer = Trainer(place / "corpus", store, params, corpus_digest(place / "corpus"), place / "work")
    batches = prefetch(trainer.batches(), 32)

    def ours() -> Work:
        seen = 0
        start = time.perf_counter()
        for batch, prepared in islice(batches, sizes.fit_steps):
            trainer.step.run(prepared, params.learning_rate)
            seen += len(batch.targets)
        synchronize(device)
        return seen, time.perf_counter() - start

    sides: dict[str, Callable[[], Work]] = {"ours": ours}
    if all(map(find_spec, ("datasets", "accelerate"))):
        few = max(sizes.fit_steps // 4, 2)
        sides["library"] = theirs(str(directory), place, sample, targets, steps=few, bf16=True)
    else:
        skipped("fit / SentenceTransformerTrainer bfloat16", "datasets or accelerate is not installed")
    with repeatable(device):
        rates = alternate(sides, sizes.rounds)
    batches.close()
    name = f"fit {shape.name} {shape.width} -> {DIM}, batch {BATCH}"
    rows = [
        Row(name, "5,000 samples/s", "samples/s", rates["ours"], 5000, 1.0),
        Row(name, "970 reported on an A100", "samples/s", rates["ours"], A100, 1.0),
    ]
    if "library" in rates:
        rows.append(Row(name, "SentenceTransformerTrainer bfloat16", "samples/s", rates["ours"], rates["library"], 1.0))
    return rows


def _targets(rows: int) -> np.ndarray:
    vectors = np.random.default_rng(1).standard_normal((rows, DIM), dtype=np.float32)
    scaled: np.ndarray = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return scaled


def _prepared(sizes: Sizes, folder: Path, name: str, settings: dict[str, Any]) -> Path:
    """A directory with a corpus, a store and the parameters of fits."""
    place = folder / name
    place.mkdir()
    shape = sizes.shapes[0]
    sample = [" ".join(text.split()[-24:]) for text in made_texts(sizes.fit_texts // 4, shape.vocabulary - 16, 1)]
    prepare(place, sample, _targets(len(sample)), 0.01)
    (place / "fit.json").write_text(json.dumps({"model": str(model_directory(shape, folder)), **settings}))
    return place


def _fit_here(place: Path, name: str, steps: int) -> None:
    """The fit of `_prepared`, in this process; writes `place/NAME`."""
    settings = json.loads((place / "fit.json").read_text())
    params = FitParams(StudentParams(settings.pop("model")), max_steps=steps, batch_size=BATCH, **settings)
    fit(place / "corpus", Store.open(place / "store"), params, place / name, place / f"work {name}")


def _start(place: Path, name: str, steps: int, environment: dict[str, str]) -> "subprocess.Popen[bytes]":
    """The same in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.gpu", "--child", str(place), name, str(steps)]
    return subprocess.Popen(command, cwd=ROOT, env=os.environ | environment, stderr=subprocess.DEVNULL)


def against_the_cpu(sizes: Sizes, folder: Path) -> list[Row]:
    """How far the weights of a fit here are from those of the same fit on the CPU, as a share of how far they moved.

    Adam moves a weight as far for a gradient of rounding as for a large one. On one CPU, texts with and without padding
    end a ninth of the way apart after 200 steps of a small model; a mistake would lead somewhere else entirely.
    """
    settings = {"precision": "float32", "dropout": 0.0, "snapshots": [0], "checkpoint_every": 10**6}
    place = _prepared(sizes, folder, "equal", settings)
    hidden = {ACCELERATED: "", "CUDA_VISIBLE_DEVICES": "", "ZE_AFFINITY_MASK": "none"}
    on_cpu = _start(place, "cpu", sizes.equal_steps, hidden)
    _fit_here(place, "here", sizes.equal_steps)
    if code := on_cpu.wait():
        raise RuntimeError(f"the fit on the CPU ended with code {code}")
    apart = moved = 0.0
    for file in WEIGHTS:
        ours, cpu, start = (load_file(place / name / file) for name in ("here", "cpu", "cpu-snapshots/step-0"))
        for name, value in cpu.items():
            apart += float((ours[name] - value).square().sum())
            moved += float((value - start[name]).square().sum())
    name = f"fit, {sizes.equal_steps} steps in float32, distance to the CPU's weights"
    return [Row(name, "a quarter of the way", "share", (apart / moved) ** 0.5, 0.25, 1, less_is_better=True)]


def killed(sizes: Sizes, folder: Path) -> list[Row]:
    """The weights of a fit that was killed and continued against those of one that was not."""
    place = _prepared(sizes, folder, "killed", {"checkpoint_every": sizes.killed_steps // 6})
    process = _start(place, "torn", sizes.killed_steps, {})
    seen: set[int] = set()  # times of states, which are written before the first step and at every sixth of the run
    while len(seen) < 3 and process.poll() is None:
        seen.update(file.stat().st_mtime_ns for file in place.glob("work torn/*/state.safetensors"))
        time.sleep(0.002)
    if process.poll() is not None:
        raise RuntimeError("the fit ended before it could be killed")
    process.send_signal(signal.SIGKILL)
    process.wait()
    for name in ("torn", "whole"):
        _fit_here(place, name, sizes.killed_steps)
    equal = weights = 0
    for file in WEIGHTS:
        torn, whole = (load_file(place / name / file) for name in ("torn", "whole"))
        equal += sum(int((torn[name] == value).sum()) for name, value in whole.items())
        weights += sum(value.numel() for value in whole.values())
    return [Row("fit, killed and continued", "not killed", "weights that are equal", equal, weights, 1)]


if __name__ == "__main__":
    main()
