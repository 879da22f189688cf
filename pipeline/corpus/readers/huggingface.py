"""Reader of Hugging Face data sets, on the hub or in a local directory, one record per row."""

from collections.abc import Callable

import polars as pl

from pipeline.base import LeafError, import_optional
from pipeline.corpus.readers.fields import Frames, column_names, records_frame, require_columns
from pipeline.params import SourceParams

BATCH_ROWS = 16_384


def read(source: SourceParams) -> Frames:
    """Frames of one split of the data set, which is streamed. Code in the data set is never run."""
    datasets = import_optional("datasets", "hub", f"corpus.sources `{source.name}`: kind huggingface")
    names, first = column_names(source), 0
    try:
        stream = datasets.load_dataset(
            source.path, source.config, split=source.split, revision=source.revision, streaming=True
        )
        for batch in stream.iter(batch_size=BATCH_ROWS):
            require_columns(source.path, names, batch)
            series = [pl.Series(name, batch[name]) for name in names]
            yield records_frame(source, series, first, _place_of_row(source, first))
            first += len(series[0])
    except LeafError:
        raise
    except Exception as error:  # the library's errors have no common base: network, credentials, layout, name
        raise LeafError(f"data set {source.path}: cannot be read: {type(error).__name__}: {error}") from error


def _place_of_row(source: SourceParams, first: int) -> Callable[[int], str]:
    return lambda row: f"{source.path}, row {first + row}"
