"""Held-out texts that several records have: a text is in the corpus once, with the id of the first of them.

The others stand in a file beside the corpus's parts, which is not there if there are none: without it, a question whose
document came first with another question would have no relevant document.
"""

from pathlib import Path

import polars as pl
import pyarrow as pa

from pipeline.base import LeafError

NAME = "_further-records.arrow"  # what reads the corpus's *.parquet does not meet it, nor what leaves out `_` names
SCHEMA = pa.schema([("key", pa.binary()), ("source", pa.string()), ("id", pa.string())])


class FurtherRecords:
    """Writes the file in a corpus's directory."""

    def __init__(self, directory: Path) -> None:
        self._file = directory / NAME
        self._writer: pa.ipc.RecordBatchFileWriter | None = None

    def add(self, rows: pl.DataFrame, first: pl.Series) -> None:
        """Add the records of a partition's held-out rows, sorted by key, but for the `first` ones with their key."""
        if first.all():
            return
        heldout = pl.col("split") == "heldout"
        others = rows.filter(~first).filter(heldout).select(SCHEMA.names).unique(maintain_order=True)
        others = others.join(rows.filter(first), on=SCHEMA.names, how="anti", maintain_order="left")
        if others.is_empty():
            return
        if self._writer is None:
            options = pa.ipc.IpcWriteOptions(compression="zstd")
            self._writer = pa.ipc.new_file(str(self._file), SCHEMA, options=options)
        self._writer.write_table(others.to_arrow().cast(SCHEMA))

    def close(self) -> None:
        """Close the file. Closing twice does no harm."""
        if self._writer is not None:
            self._writer.close()
        self._writer = None


def further_records(corpus: Path) -> pl.DataFrame:
    """Columns `key, source, id`: the records that have a held-out text, besides the one that its row in `corpus` names.

    Raises:
        LeafError: the file is damaged.
    """
    file = corpus / NAME
    if not file.exists():
        return pl.DataFrame(schema={"key": pl.Binary, "source": pl.String, "id": pl.String})
    try:
        with pa.OSFile(str(file)) as opened, pa.ipc.open_file(opened) as records:
            return pl.DataFrame(records.read_all()).select(SCHEMA.names)
    except (pl.exceptions.PolarsError, pa.ArrowException, OSError) as error:
        raise LeafError(f"{file}: damaged ({error!s:.200}); run the stage `corpus` again") from None
