"""Optional stage between encode and fit: pairs that the teacher would not find are left out of training."""

from pathlib import Path

import click

from pipeline.base import check_writable
from pipeline.corpus import CORPUS_KIND, corpus_digest
from pipeline.filter import filter_corpus
from pipeline.params import FilterParams, load_section
from pipeline.store import Store
from stages.common import command, echo, params_option, write_json
from stages.recorded import check_recorded


@command
@params_option
@click.option("--corpus", type=Path, default=Path("data/corpus"), show_default=True, help="Corpus directory.")
@click.option("--embeddings", type=Path, default=Path("data/embeddings"), show_default=True, help="Embedding store.")
@click.option("--out", type=Path, default=Path("data/filtered"), show_default=True, help="Corpus to write, for fit.")
@click.option(
    "--candidates", type=Path, default=Path("data/candidates.parquet"), show_default=True, help="File to write."
)
@click.option("--metrics", type=Path, default=Path("metrics/filter.json"), show_default=True, help="Metrics file.")
def main(*, params: Path, corpus: Path, embeddings: Path, out: Path, candidates: Path, metrics: Path) -> None:
    """Leave out pairs whose document the teacher does not find for the query, and write each query's nearest documents.

    Neither the corpus nor the store is changed, and no model is loaded. Section read: filter.
    """
    settings = load_section(params, "filter", FilterParams)
    check_writable([metrics, candidates], {out: CORPUS_KIND})
    check_recorded(corpus, embeddings)
    figures = filter_corpus(corpus, Store.open(embeddings), settings, out, candidates)
    write_json(metrics, {"sources": figures, "digest": corpus_digest(out)})
    echo(f"{'source':24}{'pairs':>10}{'first':>10}{'queries dropped':>18}{'documents dropped':>20}")
    for source, row in figures.items():
        echo(
            f"{source:24}{row['pairs']:>10,}{row['first']:>10,}{row['queries_dropped']:>18,}"
            f"{row['documents_dropped']:>20,}"
        )
    echo(f"{out}\n{candidates}\n{metrics}")


if __name__ == "__main__":
    main()
