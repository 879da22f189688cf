"""Stage one: corpus and teacher in, embedding store out.

The shard cache knows which keys have vectors. The rest is planned into work orders, one per shard, in the corpus's
order, and an engine encodes and commits them. So a killed run, a grown corpus and vectors of another team's store are
handled by one mechanism, and the shards of a resumed run are those of a run that was never killed.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

from pipeline.base import Array, LeafError, keep_pages, key_array, merge_sorted
from pipeline.corpus import corpus_keys, part_files, scan
from pipeline.encode.engines.api import ApiEngine
from pipeline.encode.engines.engine import EncodeFigures, Engine
from pipeline.encode.engines.ray import RayEngine
from pipeline.encode.engines.threads import ThreadsEngine
from pipeline.encode.plan import COLUMNS, count_missing, plan
from pipeline.encode.reuse import Reused, take_over_all, take_over_earlier
from pipeline.encode.worker import write_orders
from pipeline.params import ClusterParams, EncodeParams
from pipeline.store import ShardCache
from pipeline.teacher import ApiTeacher, LocalTeacher, Teacher


def encode(
    corpus: Path, teacher: Teacher, params: EncodeParams, out: Path, engine: Engine | None = None
) -> dict[str, object]:
    """Bring the store at `out` to hold a vector for every text of the corpus; return the metrics.

    `engine` does the encoding; by default the one for this kind of teacher.

    Raises:
        LeafError: bad corpus, teacher or reused store; a vector of NaN, of zeros or of the wrong length; a run is
            already under way; no space left. Finished shards stay in the shard cache in every case.
    """
    keys = _keys(corpus)
    with open_cache(teacher, params, license_=params.license) as cache:
        reused = _reuse(corpus, keys, cache, teacher, params)
        figures = fill(part_files(corpus), cache, params.shard_rows, engine or engine_for(teacher))
        refused = [cache.refused[key] for key in sorted(cache.left_out(keys))]
        store = cache.publish(out, keys)
        teacher.remember(Path(params.pool))
    return {
        "rows_encoded": figures.rows,
        "rows_reused": len(keys) - figures.rows - len(refused),
        **({"api": figures.api | {"refused": len(refused)}} if teacher.directory is None else {}),
        **({"cluster": figures.cluster} if figures.cluster else {}),
        **({"refused": [vars(refusal) for refusal in refused]} if refused else {}),
        "taken_over": reused.rows,
        **({"compared": reused.compared} if reused.compared else {}),
        **({"passed_over": reused.passed_over} if reused.passed_over else {}),
        "tokens_saved": reused.tokens,
        **({"license": store.meta.license} if store.meta.license != params.license else {}),
        "tokens": figures.tokens,
        **({"cut": _cut(figures)} if isinstance(teacher, LocalTeacher) else {}),
        "tokens_per_s": round(figures.tokens / figures.computing, 1) if figures.rows and figures.computing else 0.0,
        "seconds": {
            "reading": round(figures.reading, 2),
            "computing": round(figures.computing, 2),
            "writing": round(figures.writing, 2),
        },
    }


def plan_shards(corpus: Path, teacher: Teacher, params: EncodeParams, file: Path) -> int:
    """Write the work orders that are left to do for a corpus, for workers that no engine starts; returns how many.

    They hold until the shard cache is opened again. Errors: `encode`.
    """
    keys = _keys(corpus)
    with open_cache(teacher, params, license_=params.license) as cache:
        _reuse(corpus, keys, cache, teacher, params)
        return write_orders(file, cache, plan(part_files(corpus), _done(cache), params.shard_rows))


def _keys(corpus: Path) -> Array:
    """The sorted keys of the corpus; LeafError where it is empty."""
    keys = corpus_keys(corpus)
    if not len(keys):
        raise LeafError(f"{corpus}: the corpus holds no text; look at the sources under corpus.sources")
    return keys


def _reuse(corpus: Path, keys: Array, cache: ShardCache, teacher: Teacher, params: EncodeParams) -> Reused:
    """Take over into the cache what vectors earlier versions and other stores have of the corpus's texts."""
    texts = scan(corpus).select(COLUMNS)
    take_over_earlier(texts, keys, cache, teacher)
    return take_over_all(params.reuse, texts, keys, cache, teacher=teacher, verify_rows=params.verify_rows)


def _cut(figures: EncodeFigures) -> dict[str, object]:
    """Of the texts that were encoded here, how many the teacher's maximum length cut, and what it left unread."""
    share = figures.unread / figures.characters if figures.characters else 0.0
    return {"texts": figures.cut, "characters": figures.characters, "unread_share": round(share, 6)}


def engine_for(teacher: Teacher) -> Engine:
    """The engine that encodes with this teacher on this machine."""
    if isinstance(teacher, ApiTeacher):
        return ApiEngine(teacher)
    if isinstance(teacher, LocalTeacher):
        return ThreadsEngine(teacher)
    raise TypeError(f"no engine is known for {type(teacher).__name__}: name one in the call")


def engine_on(cluster: ClusterParams, teacher: Teacher, params: EncodeParams) -> Engine:
    """The engine that encodes with this teacher where `cluster.engine` says.

    Raises:
        LeafError: not with this kind of teacher.
    """
    if cluster.engine == "local":
        return engine_for(teacher)
    check_local(teacher, f"cluster.engine: `{cluster.engine}`")
    return RayEngine(cast(LocalTeacher, teacher), params, cluster)


def check_local(teacher: Teacher, user: str) -> None:
    """LeafError where the teacher is behind an API; `user` is what would run it in several processes."""
    if not isinstance(teacher, LocalTeacher):
        raise LeafError(
            f"{user} cannot be used with teacher.api: an account's limits and spending are kept by one client; encode "
            "with cluster.engine: local, and raise teacher.api.concurrency"
        )


def open_cache(teacher: Teacher, params: EncodeParams, license_: str | None = None) -> ShardCache:
    """The shard cache of the teacher's vectors, locked; `license_` is that of the stores published from it."""
    keep_pages()  # before the cache starts threads of its own
    cache = ShardCache(Path(params.pool), replace(teacher.meta, license=license_))
    if teacher.retries_refused:
        cache.refused.clear()
    return cache


def fill(parts: Sequence[Path], cache: ShardCache, shard_rows: int, engine: Engine) -> EncodeFigures:
    """Encode and commit the texts of these part files that the cache lacks; see `Engine.run`."""
    done = _done(cache)
    missing = count_missing(parts, done)
    if not missing:
        return EncodeFigures()
    return engine.run(plan(parts, done, shard_rows), missing, cache)


def _done(cache: ShardCache) -> Array:
    """Sorted keys of the texts that need no encoding: they have a vector, or the teacher has refused them."""
    return merge_sorted([cache.keys(), key_array(list(cache.refused))]) if cache.refused else cache.keys()
