"""`leaf plan`: what the stages will cost on this corpus with these parameters, before they run."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipeline.base import release_pages
from pipeline.params import EncodeParams, FitParams, Permits, TeacherParams, load_section
from stages.common import api_options, command, echo, open_teacher, params_option

if TYPE_CHECKING:  # commands that load no model do not wait for torch
    from pipeline.encode import EncodeEstimate
    from pipeline.fit import FitEstimate


@command
@params_option
@click.option("--corpus", type=Path, default=Path("data/corpus"), show_default=True, help="Corpus directory.")
@click.option("--seconds", type=click.FloatRange(0), default=30.0, show_default=True, help="Each measurement; 0: none.")
@click.option("--workers", type=click.IntRange(1), default=1, show_default=True, help="Machines like this one.")
@click.option("--price", type=click.FloatRange(0), help="Of a million tokens, for an API.")
@click.option("--ask", type=click.IntRange(0), default=0, help="Texts to ask an API for, to count tokens.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@api_options
def main(
    *,
    params: Path,
    corpus: Path,
    seconds: float,
    workers: int,
    price: float | None,
    ask: int,
    permits: Permits,
    as_json: bool,
) -> None:
    """Say what stages one and two will cost: texts, tokens, bytes, memory, steps, hours, and money for an API.

    Counted on the corpus, but for lengths of texts, which a sample of 20,000 gives. Hours are those of a measurement,
    which needs the memory that the stage will need: they are right where the machine stays as busy as it is now.
    Sections read: teacher, encode, fit.
    """
    from pipeline.encode import estimate_encode
    from pipeline.fit import estimate_fit

    settings = load_section(params, "encode", EncodeParams)
    fit_params = load_section(params, "fit", FitParams)
    teacher = open_teacher(load_section(params, "teacher", TeacherParams), settings, permits)
    encode = estimate_encode(corpus, teacher, settings, seconds, ask)
    meta = teacher.meta
    del teacher  # its memory is the student's now
    release_pages()
    fit = estimate_fit(corpus, fit_params, meta, seconds)
    corpus_bytes = sum(part.stat().st_size for part in corpus.glob("part-*.parquet"))
    if as_json:
        figures = {"encode": vars(encode) | {"hours": encode.hours}, "fit": vars(fit) | {"hours": fit.hours}}
        echo(json.dumps(figures | {"corpus_bytes": corpus_bytes}, indent=2, sort_keys=True))
        return
    for line in [*_encode_lines(encode, workers, price), *_fit_lines(fit)]:
        echo(line)
    for name, size in [
        ("corpus", corpus_bytes),
        ("store, which the shard cache shares by hard links", encode.store_bytes),
        ("token cache", fit.token_cache_bytes),
        ("checkpoint of the fit", 3 * fit.student_bytes),
        ("student", fit.student_bytes),
    ]:
        echo(f"disk    {_size(size):>8}  {name}")


def _encode_lines(encode: "EncodeEstimate", workers: int, price: float | None) -> list[str]:
    lines = [
        f"encode  {encode.texts:,} texts: {encode.held:,} in the shard cache, {encode.reusable:,} in reused stores, "
        f"{encode.to_encode:,} to encode in {encode.shards:,} shards"
    ]
    if encode.tokens is None:
        lines.append(
            f"        {encode.characters:,} characters; --ask 256 asks the API for so many texts, to count tokens"
        )
    else:
        lines.append(f"        {encode.tokens:,} tokens, {encode.characters:,} characters")
    if encode.requests is not None:
        money = f", {encode.tokens / 1e6 * price:,.2f} at {price:g} a million tokens" if price and encode.tokens else ""
        lines.append(f"        {encode.requests:,} requests{money}")
    if encode.hours is not None:
        shared = f"; on {workers} machines {encode.hours / workers:,.2f} h" if workers > 1 else ""
        lines.append(f"        {encode.hours:,.2f} h at {encode.tokens_per_s:,.0f} tokens/s{shared}")
    return [*lines, f"        memory {_size(encode.memory_bytes)} besides the teacher"]


def _fit_lines(fit: "FitEstimate") -> list[str]:
    lines = [f"fit     {fit.steps:,} steps, {fit.presentations:,} presentations of {fit.texts:,} texts"]
    if fit.hours is not None:
        lines.append(f"        {fit.hours:,.2f} h at {fit.texts_per_s:,.0f} texts/s")
    return [*lines, f"        memory {_size(fit.memory_bytes)}; student of {fit.parameters:,} parameters"]


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:,.3g} {unit}"
        count /= 1000
    return f"{count:,.3g} TB"


if __name__ == "__main__":
    main()
