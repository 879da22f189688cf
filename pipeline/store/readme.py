"""Writes the last two files of a new store: README.md, filled in from `templates/store.md`, and `store.json`.

Neither holds a time or a path: the same vectors give the same bytes.
"""

from collections.abc import Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from string import Template

from pipeline.base import sha256, sync
from pipeline.store.manifest import GROUP, README, Manifest, Sources
from pipeline.store.shard import UNVERIFIED, ShardInfo, StoreMeta

UNKNOWN = "not stated; ask whoever gave you the store"
SCALE = """
The vectors are int8 codes; multiply by `group[name + "_scale"][:][:, None]` to have them back."""


def write_manifest(root: Path, meta: StoreMeta, shards: Sequence[ShardInfo], sources: Sources) -> None:
    """Write README.md and `store.json` into a store whose shards and Zarr group are in place, and flush them."""
    manifest = Manifest.of(meta, shards, sha256(root / GROUP), sources=sources)
    (root / README).write_text(readme_text(manifest), encoding="utf-8", newline="\n")
    manifest = replace(manifest, readme_sha256=sha256(root / README))
    (root / "store.json").write_bytes(manifest.to_bytes())
    for file in (README, "store.json", GROUP):
        sync(root / file)


def readme_text(manifest: Manifest) -> str:
    """The README of this store, in Markdown."""
    meta, shards, sources = manifest.meta, manifest.shards, manifest.sources or {}
    counts = [
        f"| {_table_cell(source)} | {_table_cell(role)} | {rows:,} |"
        for source in sources
        for role, rows in sources[source].items()
    ]
    return Template(files("pipeline.store").joinpath("templates/store.md").read_text(encoding="utf-8")).substitute(
        teacher=_table_cell(str(meta.teacher.get("model", "unknown"))) + (" (unverified)" if meta.unverified else ""),
        unverified=f"| Unverified | {UNVERIFIED} |\n" if meta.unverified else "",
        fingerprint=meta.fingerprint,
        rows=f"{sum(info.rows for info in shards):,}",
        shards=f"{len(shards):,}",
        size=f"{sum(info.bytes for info in shards):,}",
        dim=meta.dim,
        dtype=meta.dtype,
        normalized="of length one" if meta.normalized else "not normalised",
        prompts=_table_cell(_prompts(meta)) or "none",
        license=_table_cell(meta.license or UNKNOWN),
        licenses=_license_table(manifest),
        teacher_license=_table_cell(str(meta.teacher.get("license") or UNKNOWN)),
        counts="\n".join(counts),
        scale=SCALE if meta.dtype == "int8" else "",
    )


def _license_table(manifest: Manifest) -> str:
    """What is under which licence; empty where all is under one."""
    if len(manifest.licenses) < 2:
        return ""
    rows = [
        f"| {_table_cell(license_)} | {sum(info.rows for info in shards):,} | {len(shards):,} |"
        for license_, shards in manifest.licenses.items()
    ]
    lines = ["", "| licence | vectors | shards |", "|---|---|---|", *rows]
    return "\n".join([*lines, "", "`store.json` names the licence of each shard.", ""])


def _prompts(meta: StoreMeta) -> str:
    """The teacher's prompts by role; empty where it has none."""
    prompts = meta.teacher.get("prompts")
    if not isinstance(prompts, dict):
        return ""
    return "; ".join(f"{role} `{prompt}`" for role, prompt in sorted(prompts.items()) if prompt)


def _table_cell(value: str) -> str:
    """One line of at most 500 characters that cannot break out of a Markdown table."""
    return " ".join(value.replace("|", "\\|").split())[:500]
