"""The README.md that a store carries, filled in from `templates/store.md`, and the manifest that seals it.

No times and no paths: the same vectors give the same bytes.
"""

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from string import Template

from pipeline.base.files import sha256, sync
from pipeline.store.manifest import GROUP, README, Sources, document
from pipeline.store.shard import ShardInfo, StoreMeta

UNKNOWN = "not stated; ask whoever gave you the store"


def write_manifest(root: Path, meta: StoreMeta, shards: Sequence[ShardInfo], sources: Sources) -> None:
    """Write README.md and `store.json` into a store whose shards and Zarr group are in place, and flush them."""
    (root / README).write_text(text(meta, shards, sources), encoding="utf-8", newline="\n")
    sealed = document(meta, shards, sha256(root / GROUP), sha256(root / README), sources)
    (root / "store.json").write_bytes(sealed)
    for file in (README, "store.json", GROUP):
        sync(root / file)


def text(meta: StoreMeta, shards: Sequence[ShardInfo], sources: Sources) -> str:
    """The README of this store, in Markdown."""
    counts = [
        f"| {_cell(source)} | {_cell(role)} | {rows:,} |"
        for source in sources
        for role, rows in sources[source].items()
    ]
    prompts = meta.teacher.get("prompts")
    shown = (
        [f"{role} `{prompt}`" for role, prompt in sorted(prompts.items()) if prompt]
        if isinstance(prompts, dict)
        else []
    )
    return Template(files("pipeline.store").joinpath("templates/store.md").read_text(encoding="utf-8")).substitute(
        teacher=_cell(str(meta.teacher.get("model", "unknown"))),
        fingerprint=meta.fingerprint,
        rows=f"{sum(info.rows for info in shards):,}",
        shards=f"{len(shards):,}",
        size=f"{sum(info.bytes for info in shards):,}",
        dim=meta.dim,
        dtype=meta.dtype,
        normalized="of length one" if meta.normalized else "not normalised",
        prompts=_cell("; ".join(shown)) or "none",
        license=_cell(meta.license or UNKNOWN),
        teacher_license=_cell(str(meta.teacher.get("license") or UNKNOWN)),
        counts="\n".join(counts),
        scale=SCALE if meta.dtype == "int8" else "",
    )


SCALE = """
The vectors are int8 codes; multiply by `group[name + "_scale"][:][:, None]` to have them back."""


def _cell(value: str) -> str:
    """One line that cannot break out of a table."""
    return " ".join(value.replace("|", "\\|").split())[:500]
