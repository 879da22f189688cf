"""Write the stored vectors for other search engines: `leaf index --to faiss`, `leaf index --to lancedb`."""

from pathlib import Path
from typing import cast, get_args

import click

from pipeline.serve import Kind
from pipeline.serve import index as indexes
from pipeline.store import Store
from stages.common import command, echo


@command
@click.option("--to", "kind", type=click.Choice(get_args(Kind)), required=True, help="Format.")
@click.option("--embeddings", type=Path, default=Path("data/embeddings"), show_default=True, help="Teacher's store.")
@click.option("--corpus", type=Path, default=Path("data/corpus"), show_default=True, help="Texts of the entries.")
@click.option("--no-texts", is_flag=True, help="Leave the texts out of Parquet files and databases.")
@click.option("--role", type=click.Choice(["document", "query", "all"]), default="document", show_default=True)
@click.option("--out", type=Path, help="Directory to write  [default: data/index-FORMAT]")
def main(*, kind: str, embeddings: Path, corpus: Path, no_texts: bool, role: str, out: Path | None) -> None:
    """Write the store as an index for faiss or usearch (HNSW), as Parquet, or as a database of LanceDB or Qdrant."""
    place = out or Path(f"data/index-{kind}")
    takes_texts = kind in indexes.WITH_TEXTS
    texts = corpus if takes_texts and corpus.is_dir() and not no_texts else None
    store = Store.open(embeddings)
    count = indexes.write(store, texts, cast(Kind, kind), place, role=None if role == "all" else role)
    carried = f", {'with' if texts else 'without'} their texts" if takes_texts else ""
    echo(f"{place}: {count:,} vectors{carried}, to be compared by {store.meta.similarity}")


if __name__ == "__main__":
    main()
