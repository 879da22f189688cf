"""Write the report: a page about the run, for a browser."""

from pathlib import Path

import click

from pipeline.base import written_file
from pipeline.report import Sources, render
from stages.common import command, echo, params_option


@command
@params_option
@click.option("--embeddings", type=Path, default=Path("data/embeddings"), show_default=True, help="Teacher's store.")
@click.option("--metrics", type=Path, default=Path("metrics"), show_default=True, help="Directory of metrics.")
@click.option("--plots", type=Path, default=Path("plots"), show_default=True, help="Directory of plots.")
@click.option("--out", type=Path, default=Path("reports/report.html"), show_default=True, help="Page to write.")
def main(*, params: Path, embeddings: Path, metrics: Path, plots: Path, out: Path) -> None:
    """Write a self-contained page of what the other stages measured. Reads their files, computes nothing."""
    page = render(Sources(params, embeddings / "store.json", metrics, plots))
    with written_file(out) as file:
        file.write_text(page, encoding="utf-8")
    echo(str(out))


if __name__ == "__main__":
    main()
