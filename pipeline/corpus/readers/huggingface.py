"""Reader of Hugging Face data sets, on the hub or in a local directory, one record per row."""

from collections.abc import Iterator
from itertools import chain

from pipeline.base import LeafError, import_optional
from pipeline.corpus.readers.columns import BATCH_ROWS, Columns
from pipeline.corpus.readers.fields import Batch, Frames, frames_of_batches
from pipeline.params import SourceParams


def read(source: SourceParams) -> Frames:
    """Frames of one split of the data set, which is streamed. Code in the data set is never run."""
    return frames_of_batches(source, _batches(source))


def _batches(source: SourceParams) -> Iterator[Batch]:
    datasets = import_optional("datasets", "hub", f"corpus.sources `{source.name}`: kind huggingface")
    try:
        stream = datasets.load_dataset(
            source.path, source.config, split=source.split, revision=source.revision, streaming=True
        )
        tables = (part for table in stream.with_format("arrow").iter(BATCH_ROWS) for part in table.to_batches())
        if (first := next(tables, None)) is not None:
            yield from Columns(source, source.path, first.schema).batches(chain([first], tables))
    except LeafError:
        raise
    except Exception as error:  # the library's errors have no common base: network, credentials, layout, name
        raise LeafError(f"data set {source.path}: cannot be read: {type(error).__name__}: {error}") from error
