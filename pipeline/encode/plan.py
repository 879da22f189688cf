"""Planning stage one: which texts still need a vector, cut into work orders, one per shard.

A plan is a pure function of the corpus's part files and the keys that are done. A work order is plain data: another
process can read its rows, encode them, and check that they are the ones that were meant.
"""

import base64
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.base import Array, LeafError, contains, key_array
from pipeline.corpus import check_rows, read_blocks, read_keys
from pipeline.store import shard_name

COLUMNS = ["key", "role", "id", "source", "text"]


@dataclass(frozen=True)
class Piece:
    """Rows of one part file of the corpus: from `first` to `first + count`, all or those in `chosen`."""

    part: str
    """Path of the Parquet file."""
    first: int
    count: int
    chosen: str | None = None
    """Where there are holes: a bit per row, packed (`numpy.packbits`), in base64."""

    def mask(self) -> Array:
        """`[count] bool`: the rows that belong to the order."""
        if self.chosen is None:
            return np.ones(self.count, dtype=bool)
        bits = np.frombuffer(base64.b64decode(self.chosen, validate=True), np.uint8)
        return np.unpackbits(bits, count=self.count).astype(bool)


@dataclass(frozen=True)
class WorkOrder:
    """The rows of one shard that is to be made. As JSON it is smaller than 1 KB unless the rows have holes."""

    shard: str
    """Name of the shard, which is derived from the rows' keys (`shard_name`)."""
    rows: int
    pieces: tuple[Piece, ...]

    def to_json(self) -> str:
        """The order as one line of JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "WorkOrder":
        """The order that `to_json` wrote."""
        fields = json.loads(text)
        return cls(fields["shard"], fields["rows"], tuple(Piece(**piece) for piece in fields["pieces"]))


def plan(part_files: Sequence[Path], done: Array, shard_rows: int) -> Iterator[WorkOrder]:
    """Work orders for the corpus's texts whose key is not among `done` (sorted), in the corpus's order.

    Every order but the last has `shard_rows` rows. So the orders that are left after some were carried out are the
    same as before. Keys of one part file and of one shard are in memory at a time.

    Raises:
        LeafError: a part file is damaged.
    """
    pieces: list[Piece] = []
    keys: list[Array] = []
    held = 0
    for part in part_files:
        part_keys = read_keys(part)
        missing = np.flatnonzero(~contains(done, part_keys))
        while len(missing):
            rows, missing = np.split(missing, [shard_rows - held])
            pieces.append(_piece(part, rows))
            keys.append(part_keys[rows])
            held += len(rows)
            if held == shard_rows:
                yield _order(pieces, keys)
                pieces, keys, held = [], [], 0
    if held:
        yield _order(pieces, keys)


def count_missing(part_files: Sequence[Path], done: Array) -> int:
    """How many texts of the corpus have a key that is not among `done` (sorted)."""
    return sum(int((~contains(done, read_keys(part))).sum()) for part in part_files)


def read_order(order: WorkOrder) -> pl.DataFrame:
    """The rows of a work order, in its order: columns `key, role, id, source, text`. Errors: `order_blocks`."""
    return pl.concat(order_blocks(order))


def order_blocks(order: WorkOrder) -> Iterator[pl.DataFrame]:
    """`read_order`, a block of bounded size at a time.

    Raises:
        LeafError: a part file is damaged or has changed since the plan was made, or a row is not what the corpus stage
            writes (`check_rows`); it may be raised behind the last block.
    """
    keys = []
    for piece in order.pieces:
        for rows in read_blocks(Path(piece.part), COLUMNS, _chosen_rows(piece)):
            check_rows(rows, "the corpus")
            keys.append(key_array(rows["key"]))
            yield rows
    if shard_name(np.concatenate(keys)) != order.shard:
        raise LeafError(
            f"{order.pieces[0].part}: the corpus has changed since shard {order.shard} was planned: run encode again"
        )


def _chosen_rows(piece: Piece) -> Array:
    """`[rows of the part file] bool`: the rows of the piece."""
    try:
        rows = pq.read_metadata(piece.part).num_rows
    except (pa.ArrowException, OSError) as error:
        raise LeafError(f"{piece.part}: damaged ({error!s:.200}); run the stage `corpus` again") from None
    if rows < piece.first + piece.count:
        raise LeafError(f"{piece.part}: has fewer rows than when the shards were planned: run encode again")
    chosen = np.zeros(rows, dtype=bool)
    chosen[piece.first : piece.first + piece.count] = piece.mask()
    return chosen


def _piece(part: Path, rows: Array) -> Piece:
    """The given row numbers (increasing) of a part file."""
    first, count = int(rows[0]), int(rows[-1] - rows[0]) + 1
    if count == len(rows):
        return Piece(str(part.absolute()), first, count)
    mask = np.zeros(count, dtype=bool)
    mask[rows - first] = True
    return Piece(str(part.absolute()), first, count, base64.b64encode(np.packbits(mask).tobytes()).decode())


def _order(pieces: list[Piece], keys: list[Array]) -> WorkOrder:
    shard_keys = np.concatenate(keys)
    return WorkOrder(shard_name(shard_keys), len(shard_keys), tuple(pieces))
