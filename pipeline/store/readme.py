"""Writes the last two files of a new store: README.md, filled in from `templates/store.md`, and `store.json`.

Neither holds a time or a path: the same vectors give the same bytes.
"""

from collections.abc import Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from string import Template

from pipeline.base import code_span, markdown, sha256, sync
from pipeline.store.manifest import GROUP, README, Manifest, Sources
from pipeline.store.shard import UNVERIFIED, ShardInfo, StoreMeta

LONGEST_LICENSE = 500  # characters
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
        f"| {markdown(source)} | {markdown(role)} | {rows:,} |"
        for source in sources
        for role, rows in sources[source].items()
    ]
    return Template(files("pipeline.store").joinpath("templates/store.md").read_text(encoding="utf-8")).substitute(
        teacher=markdown(str(meta.teacher.get("model", "unknown"))) + (" (unverified)" if meta.unverified else ""),
        unverified=f"| Unverified | {UNVERIFIED} |\n" if meta.unverified else "",
        fingerprint=meta.fingerprint,
        rows=f"{sum(info.rows for info in shards):,}",
        shards=f"{len(shards):,}",
        size=f"{sum(info.bytes for info in shards):,}",
        dim=meta.dim,
        dtype=meta.dtype,
        normalized="of length one" if meta.normalized else "not normalised",
        prompts=_prompts(meta) or "none",
        license=markdown(meta.license or UNKNOWN, LONGEST_LICENSE),
        licenses=_license_table(manifest),
        teacher_license=markdown(str(meta.teacher.get("license") or UNKNOWN), LONGEST_LICENSE),
        counts="\n".join(counts),
        scale=SCALE if meta.dtype == "int8" else "",
    )


def _license_table(manifest: Manifest) -> str:
    """What is under which licence; empty where all is under one."""
    if len(manifest.licenses) < 2:
        return ""
    rows = [
        f"| {markdown(license_, LONGEST_LICENSE)} | {sum(info.rows for info in shards):,} | {len(shards):,} |"
        for license_, shards in manifest.licenses.items()
    ]
    lines = ["", "| licence | vectors | shards |", "|---|---|---|", *rows]
    return "\n".join([*lines, "", "`store.json` names the licence of each shard.", ""])


def _prompts(meta: StoreMeta) -> str:
    """The teacher's prompts by role; empty where it has none."""
    prompts = meta.teacher.get("prompts")
    if not isinstance(prompts, dict):
        return ""
    given = {role: str(prompt) for role, prompt in sorted(prompts.items()) if prompt}
    return "; ".join(f"{markdown(role)} {code_span(prompt)}" for role, prompt in given.items())
