"""Write the stored vectors as an index for other search engines: `leaf index --to faiss`."""

from pathlib import Path
from typing import cast

import click

from pipeline.serve import Kind
from pipeline.serve import index as indexes
from pipeline.store import Store
from stages.common import command


@command
@click.option("--to", "kind", type=click.Choice(["faiss", "usearch", "parquet"]), required=True, help="Format.")
@click.option("--embeddings", type=Path, default=Path("data/embeddings"), show_default=True, help="Teacher's store.")
@click.option("--corpus", type=Path, default=Path("data/corpus"), show_default=True, help="Texts for Parquet files.")
@click.option("--role", type=click.Choice(["document", "query", "all"]), default="document", show_default=True)
@click.option("--out", type=Path, help="Directory to write  [default: data/index-FORMAT]")
def main(*, kind: str, embeddings: Path, corpus: Path, role: str, out: Path | None) -> None:
    """Write the store as an index for faiss or usearch (HNSW), or as Parquet for a vector database."""
    place = out or Path(f"data/index-{kind}")
    texts = corpus if kind == "parquet" and corpus.is_dir() else None
    store = Store.open(embeddings)
    count = indexes.write(store, texts, cast(Kind, kind), place, role=None if role == "all" else role)
    click.echo(f"{place}: {count:,} vectors, to be compared by {store.meta.similarity}")


if __name__ == "__main__":
    main()
