"""Search the documents: `leaf search "how to copy a directory"`."""

import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path

import click

from pipeline.base import LeafError, on_one_line
from pipeline.serve import MODELS, Answer, OnnxEncoder, Searcher, Vectors, check_dim, read_vectors
from pipeline.serve import index as indexes
from pipeline.store import Store, remote_url
from stages.common import check_student, command, echo

SHOWN = 300  # characters of a text
NOTHING = Answer((), 0.0, 0.0)


@command
@click.argument("query", required=False)
@click.option("--embeddings", type=Path, default=Path("data/embeddings"), show_default=True, help="Teacher's store.")
@click.option("--corpus", type=Path, default=Path("data/corpus"), show_default=True, help="Corpus that was encoded.")
@click.option("--model", type=Path, default=Path("models/onnx"), show_default=True, help="Exported student.")
@click.option("--precision", type=click.Choice(list(MODELS)), help="Of the model  [default: the fastest here]")
@click.option("--index", type=Path, help="Search a faiss or usearch index of `leaf index`  [default: exact search]")
@click.option("--top", type=click.IntRange(1), default=5, show_default=True, help="How many documents.")
@click.option("--json", "as_json", is_flag=True, help="A JSON object per query.")
def main(*, query: str | None, embeddings: Path, corpus: Path, model: Path, precision: str | None, index: Path | None,
         top: int, as_json: bool) -> None:  # fmt: skip
    """Find the documents nearest to QUERY; without it, ask for queries until an empty one.

    Queries that are piped in are one a line, and each gets its result, an empty line one without documents. The
    query's vector is the student's, through ONNX; the documents' are the teacher's, as stored.
    """
    encoder = OnnxEncoder(model, precision)
    if index is not None:
        searched: indexes.Index | Vectors = (loaded := indexes.load(index))
        check_dim(encoder.dim, loaded.dim, index)
        check_student(model, loaded.fingerprint, str(index))
        if (remote_url(embeddings) or (embeddings / "store.json").is_file()) and (
            older := indexes.check_origin(loaded, index, Store.open(embeddings))
        ):
            echo(older, err=True)
    else:
        store = Store.open(embeddings)
        check_dim(encoder.dim, store.meta.dim, embeddings)
        check_student(model, store.meta.fingerprint, store.name)
        searched = read_vectors(store)
    encoder.encode(["the first call prepares the graph"])
    texts = corpus if corpus.exists() else None
    if texts is None:
        echo(f"{corpus}: no corpus there: documents are shown by their ids", err=True)
    searcher = Searcher(encoder.encode, searched.rows, searched.nearest, texts, searched.similarity)
    if searcher.absent:
        echo(f"{searcher.absent:,} documents are passed over: their texts are not in {corpus}", err=True)
    if query is not None:
        queries: Iterable[str] = [query]
    else:
        queries = _typed() if sys.stdin.isatty() else _piped()
    for line in queries:
        answer = NOTHING
        try:
            if line or query is not None:
                answer = searcher.search(line, top)
        except LeafError as error:
            if query is not None:
                raise
            echo(str(error), err=True)
        _show(answer, searcher.documents, as_json)


def _typed() -> Iterator[str]:
    """Queries from a terminal, until an empty one or the end of the input."""
    try:
        while query := str(click.prompt("query (empty to end)", default="", show_default=False, err=True)).strip():
            yield query
    except click.Abort:
        return


def _piped() -> Iterator[str]:
    """Queries from a pipe or a file, one a line, the empty ones among them."""
    for line in sys.stdin.buffer:
        yield line.decode("utf-8", "replace").strip()


def _show(answer: Answer, documents: int, as_json: bool) -> None:
    if as_json:
        echo(json.dumps(asdict(answer), ensure_ascii=False))
        return
    for hit in answer.hits:
        echo(f"{hit.score:.3f}  {on_one_line(hit.id)}  ({on_one_line(hit.source)})")
        if hit.text is not None:
            echo(f"       {on_one_line(hit.text if len(hit.text) <= SHOWN else hit.text[: SHOWN - 1] + '…')}")
    echo(
        f"{len(answer.hits)} of {documents:,} documents; query's vector {answer.encode_ms:.1f} ms, "
        f"search {answer.search_ms:.1f} ms"
    )


if __name__ == "__main__":
    main()
