"""Teacher vectors of texts that are not a corpus, through the shard cache of stage one: no text is encoded twice."""

from collections.abc import Callable
from pathlib import Path

import polars as pl

from pipeline.base import Array, LeafError, disk, key_array, workspace
from pipeline.encode.comparison import misfit
from pipeline.encode.encoding import engine_for, fill, open_cache
from pipeline.encode.engines.engine import EncodeFigures
from pipeline.encode.plan import COLUMNS
from pipeline.encode.reuse import take_over_earlier
from pipeline.params import EncodeParams
from pipeline.store import ShardCache, Store, VectorSource
from pipeline.teacher import Teacher


def vectors_on_demand(teacher: Teacher, params: EncodeParams, source: VectorSource) -> Callable[[pl.DataFrame], Array]:
    """A function from a frame `key, role, id, source, text` to its teacher vectors `[rows, dim]`.

    What it encodes stays in the shard cache. `teacher` is opened with `source`.

    Raises:
        LeafError: `source` was made by another teacher than `teacher`.
    """
    meta = teacher.meta
    if source.meta.unverified:
        raise LeafError(f"{source.name}: {misfit(source.meta, teacher)}")
    if source.meta.fingerprint in teacher.earlier_fingerprints:
        raise LeafError(
            f"{source.name}: has the fingerprint that an earlier version gave to this teacher: run encode again, which "
            "takes its vectors over, or `leaf store migrate`"
        )
    if meta.fingerprint != source.meta.fingerprint:
        raise LeafError(
            f"{source.name}: holds vectors of fingerprint {source.meta.fingerprint[:16]}, but the section `teacher` "
            f"describes {meta.fingerprint[:16]}: run encode and fit again, or use the parameters that they ran with"
        )

    def vectors(texts: pl.DataFrame) -> Array:
        # Beside the cache, so that its shards can be hard-linked there.
        name = f"{meta.fingerprint[:16]}-{params.dtype}-{texts['source'][0]}"
        view = Path(params.pool).with_name("evaluation") / name
        return ensure(texts, teacher, params, view).lookup(texts["key"].to_list())

    return vectors


def ensure(texts: pl.DataFrame, teacher: Teacher, params: EncodeParams, view: Path) -> Store:
    """A store at `view` with a vector for each of `texts` (columns key, role, id, source, text), duplicates allowed.

    The teacher is loaded only if a vector is missing in the shard cache.

    Raises:
        LeafError: as `encode`; or a teacher behind an API refuses a text.
    """
    unique = texts.select(COLUMNS).unique("key", keep="first").sort("key")
    with open_cache(teacher, params) as cache:
        take_over_earlier(unique.lazy(), key_array(unique["key"]), cache, teacher)
        fill_frame(unique, cache, params.shard_rows, teacher)
        store = cache.publish(view, unique["key"])
    if len(store.refused):
        first = unique.filter(pl.col("key").is_in(store.refused.tolist()))["id"][0]
        raise LeafError(
            f"teacher.api: the server refuses {len(store.refused)} texts that need a vector, first `{first}`"
        )
    return store


def fill_frame(texts: pl.DataFrame, cache: ShardCache, shard_rows: int, teacher: Teacher) -> EncodeFigures:
    """`fill` for the rows of a frame `key, role, id, source, text`, in its order.

    Engines read rows from part files, so the frame is written into a scratch directory beside the cache.
    """
    if cache.has(texts["key"]).all():
        return EncodeFigures()
    with workspace(cache.path, "texts") as directory:
        part = directory / "part-00000.parquet"
        with disk(part):
            texts.select(COLUMNS).write_parquet(part)
        return fill([part], cache, shard_rows, engine_for(teacher))
