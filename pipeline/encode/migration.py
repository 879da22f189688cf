"""Gives a store that an earlier version made the fingerprint of this one, beside the same shards."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.base import LeafError, check_replaceable
from pipeline.encode.comparison import sample
from pipeline.encode.reuse import EARLIER_ROWS
from pipeline.store import STORE_KIND, Store, scratch_cache
from pipeline.teacher import Teacher


def migrate(store: Store, corpus: Path, teacher: Teacher, out: Path) -> dict[str, Any]:
    """Publish at `out` the store under the teacher's fingerprint of today; its shards are linked, none is computed.

    A sample of the corpus's texts is encoded again first and must agree: the earlier fingerprint covered less.

    Returns:
        The number of rows, both fingerprints, and the figures of the comparison.

    Raises:
        LeafError: the store has today's fingerprint already, or another teacher's; a vector differs; a shard is
            damaged.
    """
    if store.meta.fingerprint == teacher.meta.fingerprint:
        raise LeafError(f"{store.name}: has the fingerprint of this version already: there is nothing to migrate")
    check_replaceable(out, STORE_KIND)
    compared = sample(store, corpus, teacher, EARLIER_ROWS)
    license_ = {name: text for name, text in store.meta.teacher.items() if name == "license"}
    meta = replace(store.meta, fingerprint=teacher.meta.fingerprint, teacher=license_ | teacher.meta.teacher)
    with scratch_cache(out, meta) as cache:
        for number, shard in enumerate(store.shards):
            with store.shard_files(number) as root:
                cache.adopt(root, shard)
        cache.publish(out, cache.keys())
    return {
        "rows": store.rows,
        "fingerprint_before": store.meta.fingerprint,
        "fingerprint": meta.fingerprint,
        **compared,
    }
