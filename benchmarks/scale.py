"""How the cost of each step grows with the corpus: seconds, bytes, files, peak memory, and the exponent of growth.

    python -m benchmarks.scale [ROWS ...]          (10,000, 100,000 and 1,000,000 where none are given)

Texts are random words; vectors are 768-d float16 that cost nothing to make. So everything except the models is
measured. Each step runs in its own process; its memory is the kernel's `VmHWM` minus what the imports took. The column
`law` is the exponent between the two largest sizes: 1 is linear, 0 is constant.
"""

import json
import math
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dvc.cli import main as dvc
from tokenizers import Tokenizer

from benchmarks.common import MINILM, child, machine, peak_mb
from benchmarks.made import TEACHER, FreeTeacher, source, write_texts
from pipeline.corpus import build, corpus_digest, corpus_keys, part_files
from pipeline.encode import ThreadsEngine, fill
from pipeline.fit import Loader, Position, tokenize
from pipeline.model import resolve_model
from pipeline.params import EncodeParams, FitParams, StudentParams
from pipeline.store import ShardCache, Store, merge

SIZES = (10_000, 100_000, 1_000_000)
GROWTH = 100  # the grown corpus has one new text per this many
MAX_EXPONENT = 1.15  # steps that grow faster are listed at the end


def _encode(folder: Path, corpus: str, out: str) -> None:
    """Encode as the stage does, with a teacher that costs nothing."""
    with ShardCache(folder / "pool", TEACHER) as cache:
        _fill_cache(folder / corpus, cache)
        cache.publish(folder / out, corpus_keys(folder / corpus))


def _fill(folder: Path, corpus: str) -> None:
    with ShardCache(folder / "pool", TEACHER) as cache:
        _fill_cache(folder / corpus, cache)


def _fill_cache(corpus: Path, cache: ShardCache) -> None:
    engine = ThreadsEngine(FreeTeacher())  # type: ignore[arg-type]
    fill(part_files(corpus), cache, EncodeParams().shard_rows, engine)


def _publish(folder: Path, corpus: str, out: str) -> None:
    with ShardCache(folder / "pool", TEACHER) as cache:
        cache.publish(folder / out, corpus_keys(folder / corpus))


def _corpus(folder: Path, names: list[str], out: str) -> None:
    build(source(*(folder / f"{name}.parquet" for name in names)), folder / out)


def _verify(folder: Path) -> None:
    Store.open(folder / "store").verify()


def _merge(folder: Path) -> None:
    merge(Store.open(folder / "store"), Store.open(folder / "grown"), folder / "merged")


def _tokens(folder: Path) -> Any:
    tokenizer = Tokenizer.from_file(str(resolve_model(MINILM) / "tokenizer.json"))
    tokenizer.no_padding()
    return tokenize(folder / "corpus", corpus_digest(folder / "corpus"), tokenizer, folder / "tokens")


def _loader(folder: Path) -> None:
    defaults = FitParams(StudentParams(MINILM))
    loader = Loader(Store.open(folder / "store"), _tokens(folder), defaults.batch_size, defaults.buffer_rows, 0)
    batches = loader.batches(Position())
    for _ in range(loader.batches_per_epoch):
        next(batches)


def _dvc(folder: Path, *command: str) -> None:
    os.chdir(folder / "repository")
    if code := dvc([*command, "--quiet"]):
        raise SystemExit(f"dvc {' '.join(command)}: exit code {code}")


def _linked(folder: Path, store: str) -> None:
    """Put a store where DVC looks for it, by hard links, as publishing does."""
    place = folder / "repository" / "embeddings"
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(folder / store, place, copy_function=os.link)


def _repository(folder: Path) -> None:
    (folder / "repository").mkdir()
    _linked(folder, "store")
    _dvc(folder, "init", "--no-scm")
    _dvc(folder, "remote", "add", "--default", "local", str(folder / "remote"))


STEPS: dict[str, tuple[Callable[[Path], Any], str]] = {
    # name: the work, and the directory whose bytes and files are counted ("" for none)
    "corpus": (lambda folder: _corpus(folder, ["texts"], "corpus"), "corpus"),
    "encode: fill the cache": (lambda folder: _fill(folder, "corpus"), "pool"),
    "encode: publish": (lambda folder: _publish(folder, "corpus", "store"), "store"),
    "verify": (_verify, "store"),
    "corpus, 1 % more": (lambda folder: _corpus(folder, ["texts", "more"], "corpus-grown"), "corpus-grown"),
    "encode, 1 % more": (lambda folder: _encode(folder, "corpus-grown", "grown"), "grown"),
    "merge with the grown store": (_merge, "merged"),
    "fit: tokenise": (_tokens, "tokens"),
    "fit: an epoch of the loader": (_loader, ""),
    "dvc add": (lambda folder: _dvc(folder, "add", "embeddings"), "repository/.dvc/cache"),
    "dvc push": (lambda folder: _dvc(folder, "push"), "remote"),
    "dvc add, 1 % more": (lambda folder: _dvc(folder, "add", "embeddings"), "repository/.dvc/cache"),
    "dvc push, 1 % more": (lambda folder: _dvc(folder, "push"), "remote"),
}
BEFORE: dict[str, Callable[[Path], None]] = {
    "dvc add": _repository,
    "dvc add, 1 % more": lambda folder: _linked(folder, "grown"),
}


def measure_step(step: str, folder: Path) -> dict[str, float]:
    """Run one step in this process and measure it."""
    do, result = STEPS[step]
    if before := BEFORE.get(step):
        before(folder)
    imports, start = peak_mb(), time.perf_counter()
    do(folder)
    seconds = time.perf_counter() - start
    files = [file for file in (folder / result).rglob("*") if file.is_file()] if result else []
    size = sum(file.stat().st_size for file in files) / 1e6
    return {"seconds": seconds, "MB": size, "files": len(files), "peak MB": max(peak_mb() - imports, 0.0)}


def measure(rows: int) -> dict[str, dict[str, float]]:
    """Measure all steps at one size, in a temporary directory."""
    figures: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory)
        write_texts(folder / "texts.parquet", rows)
        write_texts(folder / "more.parquet", rows // GROWTH, first=rows)
        for step in STEPS:
            figures[step] = child("benchmarks.scale", "--step", step, folder)
            shown = ", ".join(f"{value:,.5g} {name}" for name, value in figures[step].items())
            print(f"{rows:,} texts, {step}: {shown}", flush=True)
    return figures


def law(small: tuple[int, float], large: tuple[int, float]) -> float:
    """The exponent b of `a * rows ** b` through two points; NaN where a value is zero."""
    if min(small[1], large[1]) <= 0:
        return math.nan
    return math.log(large[1] / small[1]) / math.log(large[0] / small[0])


def main(sizes: tuple[int, ...]) -> None:
    """Print a table per kind of figure, and the steps that grow faster than the corpus."""
    results = {rows: measure(rows) for rows in sorted(sizes)}
    print(f"\n{machine()}")
    steep: list[str] = []
    for kind in ("seconds", "MB", "files", "peak MB"):
        print(f"\n| {kind} | {' | '.join(f'{rows:,}' for rows in results)} | law |\n{'|---' * (len(results) + 2)}|")
        for step in STEPS:
            points = [(rows, figures[step][kind]) for rows, figures in results.items()]
            exponent = law(*points[-2:]) if len(points) > 1 else math.nan
            cells = " | ".join(f"{value:,.4g}" for _, value in points)
            print(f"| {step} | {cells} | {'-' if math.isnan(exponent) else f'{exponent:.2f}'} |")
            if exponent > MAX_EXPONENT:
                steep.append(f"{kind} of `{step}` ({exponent:.2f})")
    print(f"\nGrows faster than the corpus: {'; '.join(steep) or 'nothing'}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--step"]:
        print(json.dumps(measure_step(sys.argv[2], Path(sys.argv[3]))))
    else:
        main(tuple(int(rows.replace(",", "").replace("_", "")) for rows in sys.argv[1:]) or SIZES)
