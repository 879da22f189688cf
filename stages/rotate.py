"""Turn the teacher onto its principal axes, so that its first dimensions hold the most: `leaf rotate`."""

from pathlib import Path

import click

from pipeline.base import check_writable
from pipeline.encode import turn
from pipeline.params import EncodeParams, TeacherParams, load_section
from pipeline.store import MODEL_KIND, STORE_KIND, Store
from stages.common import command, echo, params_option
from stages.recorded import check_recorded


@command
@params_option
@click.option("--embeddings", type=Path, default=Path("data/embeddings"), show_default=True, help="Teacher's store.")
@click.option("--corpus", type=Path, default=Path("data/corpus"), show_default=True, help="Texts of the store.")
@click.option("--rows", type=click.IntRange(1), default=65_536, show_default=True, help="Vectors that tell the axes.")
@click.option("--model", type=Path, default=Path("models/turned-teacher"), show_default=True, help="Model to write.")
@click.option("--out", type=Path, default=Path("data/turned"), show_default=True, help="Its store, to write.")
def main(*, params: Path, embeddings: Path, corpus: Path, rows: int, model: Path, out: Path) -> None:
    """Write the teacher with a rotation behind it, and the stored vectors turned by it; nothing is encoded again.

    Distances stay as they are. Name the model as `teacher.model` and the store under `encode.reuse`, and run the
    pipeline. Sections read: teacher, encode.
    """
    check_writable([], {model: MODEL_KIND, out: STORE_KIND})
    check_recorded(corpus, embeddings)
    teacher, encode = load_section(params, "teacher", TeacherParams), load_section(params, "encode", EncodeParams)
    figures = turn(Store.open(embeddings), corpus, teacher, encode, model=model, out=out, rows=rows)
    echo(f"{figures['rows']:,} vectors; {figures['compared']} compared, cosine at least {figures['cosine_min']}")
    echo(f"{'first dimensions':18}{'of the variance before':>24}{'after':>10}")
    for dim, shares in figures["variance"].items():
        echo(f"{dim:18}{shares['before']:>24.1%}{shares['after']:>10.1%}")
    echo(f"{model}\n{out}")


if __name__ == "__main__":
    main()
