"""Makes a store of texts and vectors that somebody else has computed (`leaf store import`).

Nobody's word is taken for which model made them. Rows drawn at random are encoded again and compared; without the
teacher at hand the store gets a fingerprint of its own, which says that it is unverified, and joins no other store.
"""

import hashlib
import json
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from tqdm import tqdm

from pipeline.base import Array, LeafError, cosines, keys, workspace
from pipeline.corpus import clean
from pipeline.encode.comparison import compare
from pipeline.encode.sampling import proof
from pipeline.encode.vector_files import Rows, VectorFiles
from pipeline.params import EncodeParams, TeacherParams, public_name
from pipeline.store import SAME_VECTOR, UNVERIFIED, ShardCache, Store, StoreMeta, check_free, scratch_cache
from pipeline.teacher import Teacher

UNIT_TOLERANCE = 2e-3  # of a vector's length, as float16 rounds it
REPEATS_BYTES = 128 * 2**20  # vectors of repeated texts that are compared at once: a pass may read the whole store
UNKNOWN_TOKENS = 0  # what the rows say where nobody has counted


def import_vectors(
    files: VectorFiles,
    teacher: Teacher,
    params: EncodeParams,
    out: Path,
    *,
    source: str,
    sample: int,
    replace_out: bool = False,
) -> dict[str, Any]:
    """Publish the texts and vectors of `files` as a store of this teacher, once a sample of them agrees.

    The sample has a row of each of `sample` equal ranges of rows, each drawn by the system's random numbers, so that no
    file can be made to pass. Vectors are scaled to length one where the teacher's are.

    Returns:
        Counts of rows (stored, duplicate, without text, scaled) and the figures of the comparison.

    Raises:
        LeafError: `out` may not be replaced, a file cannot be read, the dimension is not the teacher's, a vector of the
            sample differs (`compare`), or a text that occurs again has other vectors there. Nothing is published then.
    """
    check_free(out, replace_out)
    meta = replace(teacher.meta, license=params.license)
    if files.dim != meta.dim:
        raise LeafError(f"{files.path}: vectors of {files.dim} dimensions, but the teacher's have {meta.dim}")
    with scratch_cache(out, meta) as cache:
        filling = _Filling(cache, params.shard_rows, source, _draw(files.rows, max(1, sample)))
        figures = filling.fill(files)
        texts = pl.concat(filling.sampled).unique("key", maintain_order=True) if filling.sampled else pl.DataFrame()
        if not len(texts):
            raise LeafError(f"{files.path}: no row that was drawn has a text: nothing could be compared")
        with workspace(out, "import") as directory:
            view = cache.publish(directory / "store", cache.keys())
            with _named(files.path):
                filling.repeats.check(view)
            similarities = compare(str(files.path), texts, view, teacher)
        cache.publish(out, cache.keys())
    return figures | {
        "compared": len(similarities),
        "proof": proof(len(similarities), files.rows),
        "cosine_min": round(float(similarities.min()), 6),
        "cosine_mean": round(float(similarities.mean()), 6),
    }


def import_unverified(
    files: VectorFiles, teacher: TeacherParams, params: EncodeParams, out: Path, *, source: str, replace_out: bool
) -> dict[str, Any]:
    """Publish the texts and vectors of `files` as a store that is marked as unverified for good.

    `teacher` says which model is claimed to have made them; it is not opened. The fingerprint covers the claim and the
    files, so that it is no teacher's and no other store's. Returns and raises: as `import_vectors`.
    """
    check_free(out, replace_out)
    claimed: dict[str, Any] = {
        "model": public_name(teacher.model),
        "prompts": {role: prompt for role, prompt in vars(teacher.prompts).items() if prompt is not None},
        "max_length": teacher.max_length,
        "normalize": teacher.normalize,
        "unverified": UNVERIFIED,
    }
    covered = json.dumps([claimed, files.digests()], sort_keys=True)
    described = claimed | ({"license": teacher.license} if teacher.license else {})
    fingerprint = hashlib.sha256(covered.encode()).hexdigest()
    meta = StoreMeta(fingerprint, described, files.dim, params.dtype, teacher.normalize, params.license)
    with scratch_cache(out, meta) as cache:
        filling = _Filling(cache, params.shard_rows, source, np.empty(0, np.int64))
        figures = filling.fill(files)
        if filling.repeats.rows:
            with workspace(out, "import") as directory, _named(files.path):
                filling.repeats.check(cache.publish(directory / "store", cache.keys()))
        cache.publish(out, cache.keys())
    return figures | {"unverified": UNVERIFIED}


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Begin a LeafError of the block, which speaks of rows, with the files that they are from."""
    try:
        yield
    except LeafError as error:
        raise LeafError(f"{path}: {error}") from None


def _draw(rows: int, count: int) -> Array:
    """Row numbers, ascending: one of each of `count` equal ranges, drawn so that nobody can foresee it."""
    bounds = np.linspace(0, rows, min(count, rows) + 1).astype(np.int64).tolist()
    drawn = [low + secrets.randbelow(high - low) for low, high in pairwise(bounds)]
    return np.array(drawn, np.int64)


class _Repeats:
    """Rows whose text an earlier row has: their vectors wait in a file until they can be compared with the stored."""

    def __init__(self, directory: Path) -> None:
        self._file = tempfile.TemporaryFile(dir=directory)  # noqa: SIM115  it is gone with this object
        self._frames: list[pl.DataFrame] = []
        self.rows = 0

    def add(self, frame: pl.DataFrame, vectors: Array) -> None:
        """Keep the rows `row, key, id` of a batch, whose vectors are `vectors[row]`."""
        if len(frame):
            self._file.write(vectors[frame["row"].to_numpy()].astype(np.float32).tobytes())
            self._frames.append(frame.select("key", "id"))
            self.rows += len(frame)

    def check(self, store: Store) -> None:
        """LeafError where a text has another vector than the one that was stored first."""
        if not self.rows:
            return
        frame, row_bytes = pl.concat(self._frames), 4 * store.meta.dim
        self._file.seek(0)
        for part in frame.iter_slices(max(1, REPEATS_BYTES // row_bytes)):
            vectors = np.frombuffer(self._file.read(len(part) * row_bytes), np.float32).reshape(len(part), -1)
            similarity = cosines(vectors, store.lookup(part["key"].to_list()))
            worst = int(np.nan_to_num(similarity, nan=-1).argmin())
            if not similarity[worst] >= SAME_VECTOR:
                raise LeafError(
                    f"the text of id `{part['id'][worst]}` occurs twice, with vectors of cosine "
                    f"{similarity[worst]:.4f}: one teacher gives a text one vector"
                )


class _Filling:
    """Writes batches of rows into a shard cache, shard by shard."""

    def __init__(self, cache: ShardCache, shard_rows: int, source: str, drawn: Array) -> None:
        self.cache, self.shard_rows, self.source, self.drawn = cache, shard_rows, source, drawn
        self.repeats = _Repeats(cache.path)
        self.sampled: list[pl.DataFrame] = []
        """`key, role, id, text` of the rows that were drawn."""
        self._frames: list[pl.DataFrame] = []
        self._vectors: list[Array] = []
        self.figures = {"rows": 0, "rows_duplicate": 0, "rows_without_text": 0, "rows_scaled": 0}

    def fill(self, files: VectorFiles) -> dict[str, Any]:
        """Store all rows; returns the counts."""
        start = 0
        with tqdm(total=files.rows, desc="import", unit="row") as bar:
            for batch in files.batches():
                with _named(files.path):
                    self._add(batch, start)
                start += len(batch.frame)
                bar.update(len(batch.frame))
        with _named(files.path):
            self._write(last=True)
        if not self.figures["rows"]:
            raise LeafError(f"{files.path}: holds no text with a vector")
        return dict(self.figures)

    def _add(self, batch: Rows, start: int) -> None:
        frame = batch.frame.with_columns(text=clean(pl.col("text"))).with_row_index("row")
        frame = frame.with_columns(key=pl.Series(keys(frame["role"], frame["text"]), dtype=pl.Binary))
        drawn = self.drawn[(self.drawn >= start) & (self.drawn < start + len(frame))] - start
        self.sampled.append(frame[drawn].filter(pl.col("text") != "").select("key", "role", "id", "text"))
        with_text = frame.filter(pl.col("text") != "")
        new = with_text.unique("key", keep="first", maintain_order=True)
        new = new.filter(~pl.Series(self.cache.has(new["key"]), dtype=pl.Boolean))
        for waiting in self._frames:
            new = new.join(waiting, on="key", how="anti", maintain_order="left")
        self.figures["rows_without_text"] += len(frame) - len(with_text)
        self.figures["rows_duplicate"] += len(with_text) - len(new)
        self.repeats.add(with_text.join(new, on="row", how="anti", maintain_order="left"), batch.vectors)
        if len(new):
            self._frames.append(new.select("key", "role", "id"))
            self._vectors.append(self._scaled(batch.vectors[new["row"].to_numpy()]))
        if sum(map(len, self._frames)) >= self.shard_rows:
            self._write()

    def _scaled(self, vectors: Array) -> Array:
        """Vectors of length one where the teacher's are; `ShardCache.write` refuses zeros and NaN."""
        if not self.cache.meta.normalized:
            return vectors
        lengths = np.linalg.norm(vectors.astype(np.float64), axis=1)
        other = np.isfinite(lengths) & (lengths > 0) & (np.abs(lengths - 1) > UNIT_TOLERANCE)
        self.figures["rows_scaled"] += int(other.sum())
        scaled = vectors.copy()
        scaled[other] = (vectors[other] / lengths[other, None]).astype(np.float32)
        return scaled

    def _write(self, last: bool = False) -> None:
        """Write what is waiting in shards of `shard_rows`; a smaller rest goes on waiting unless it is the last."""
        if not self._frames:
            return
        frame, vectors = pl.concat(self._frames), np.concatenate(self._vectors)
        rows = frame.with_columns(source=pl.lit(self.source), tokens=pl.lit(UNKNOWN_TOKENS, pl.Int32))
        written = len(rows) if last else len(rows) - len(rows) % self.shard_rows
        for start in range(0, written, self.shard_rows):
            part = slice(start, min(start + self.shard_rows, written))
            self.cache.write(rows[part], vectors[part])
        self.figures["rows"] += written
        self._frames, self._vectors = [frame[written:]], [vectors[written:]]
