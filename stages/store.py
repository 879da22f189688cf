"""`leaf store`: commands that describe, check, combine, convert, repair and send embedding stores."""

import dataclasses
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from pipeline.base import ROLES, LeafError, on_one_line
from pipeline.corpus import corpus_keys
from pipeline.params import EncodeParams, Permits, TeacherParams, load_section
from pipeline.store import (
    EncodeAgain,
    Listed,
    Store,
    check_free,
    find_stores,
    formats,
    open_stores,
    operations,
    remote_url,
    upload,
    write_list,
)
from pipeline.store import repair as repair_store
from stages.common import api_options, command, echo, open_teacher, params_option

SHOWN = 500  # characters of a name that somebody gave
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for machines.")
replace_option = click.option("--replace", is_flag=True, help="Replace a store that is at --out already.")
corpus_option = click.option("--corpus", type=Path, default=Path("data/corpus"), show_default=True, help="Its texts.")


@click.group()
def main() -> None:
    """Work on an embedding store: a directory, s3://BUCKET/PREFIX, or http(s)://HOST/PATH."""


def _command(function: Callable[..., None]) -> click.Command:
    """Make a function a command of the group `store`, with the option --json."""
    subcommand = command(json_option(function))
    subcommand.name = function.__name__.rstrip("_")
    main.add_command(subcommand)
    return subcommand


@_command
@click.argument("path")
def info(path: str, as_json: bool) -> None:
    """Teacher, licence, rows, dimension, bytes, roles and sources, from store.json alone."""
    _show(operations.info(Store.open(path)), as_json)


@_command
@click.argument("place")
@click.option("--write", is_flag=True, help="Write stores.json there, by which a web server's stores are found.")
@click.option("--params", type=Path, help="Parameter file  [default: params.yaml if there is one]")
@api_options
def list_(*, place: str, write: bool, params: Path | None, permits: Permits, as_json: bool) -> None:
    """The stores of a place: teacher, rows, licence, and whether encode.reuse can take them, or why not.

    PLACE is a directory, s3://BUCKET/PREFIX, or http(s)://HOST/PATH with a list there (stores.json).
    """
    if write:
        echo(write_list(place), err=True)
    params = params or (Path("params.yaml") if Path("params.yaml").exists() else None)
    listed = open_stores(find_stores(place))
    reasons = _misfits(listed, params, permits) if params else {}
    entries = [_entry(one, bool(params), reasons.get(one.name)) for one in listed]
    if as_json:
        echo(json.dumps(entries, indent=1, sort_keys=True))
        return
    for entry in entries:
        echo(entry["store"])
        if "rows" in entry:
            described = f"{entry['teacher']}, {entry['rows']:,} vectors of {entry['dim']} {entry['dtype']}"
            echo(f"  {described}, licence {entry['license'] or 'not stated'}")
        if "fits" in entry or "why" in entry:
            echo(f"  {'fits encode.reuse' if entry.get('fits') else entry['why']}")


def _entry(listed: Listed, compared: bool, reason: str | None) -> dict[str, Any]:
    if listed.store is None:
        return {"store": listed.name, "fits": False, "why": listed.problem}
    meta = listed.store.meta
    described = {
        "store": listed.name,
        "teacher": meta.teacher.get("model"),
        "fingerprint": meta.fingerprint,
        "rows": listed.store.rows,
        "dim": meta.dim,
        "dtype": meta.dtype,
        "license": meta.license,
    }
    return described | ({"fits": reason is None, "why": reason} if compared else {})


def _misfits(listed: Sequence[Listed], params: Path, permits: Permits) -> dict[str, str | None]:
    """Why the vectors of each store that could be opened cannot be reused with these parameters; None if they can."""
    from pipeline.encode import comparison  # here, so that commands that need no model do not wait for torch
    from pipeline.teacher import open_teacher as open_unasked  # nothing is sent, so nothing is said of it

    section, encode = _sections(params)
    teacher, reasons = open_unasked(section, encode, None, permits), {}
    for one in listed:
        if one.store is not None:
            if section.api is not None:  # is recognised by the probe in the store, without a request
                teacher = open_unasked(section, encode, one.store, permits)
            reasons[one.name] = comparison.misfit(one.store.meta, teacher)
    return reasons


@_command
@click.argument("path")
@click.option("--sample", type=click.IntRange(0), default=0, help="Texts to encode again and compare.")
@corpus_option
@params_option
@api_options
def verify(*, path: str, sample: int, corpus: Path, params: Path, permits: Permits, as_json: bool) -> None:
    """Check every byte: checksums, counts, unique keys, NaN, norms; exit code 1 and the shard's name on damage.

    With --sample N, N texts of the corpus are encoded again with section `teacher` of the parameters and compared.
    """
    opened = Store.open(path)
    figures = operations.verify(opened)
    if sample:
        from pipeline.encode import comparison  # here, so that commands that need no model do not wait for torch

        teacher, encode = _sections(params)
        figures |= comparison.sample(opened, corpus, open_teacher(teacher, encode, permits, opened), sample)
    _show(figures, as_json)


@_command
@click.argument("first")
@click.argument("second")
@click.option("--out", type=Path, required=True, help="Store to write.")
@replace_option
def merge(first: str, second: str, out: Path, replace: bool, as_json: bool) -> None:
    """One store of the texts of both. Vectors are moved, never computed; a text of both is taken from FIRST.

    Refused where the teachers differ, or the vectors of a text that both have: all of these are compared. `rows
    duplicate` counts the rows of SECOND that FIRST has as well.
    """
    _show(operations.merge(Store.open(first), Store.open(second), out, replace), as_json)


@_command
@click.argument("first")
@click.argument("second")
@click.option(
    "--cosines", type=click.IntRange(0), default=0, help="Compare the vectors of so many texts  [default: all]"
)
def diff(first: str, second: str, cosines: int, as_json: bool) -> None:
    """Texts in one store or in both, and how the vectors compare that both have.

    Exit status, as that of diff(1): 0 if both hold the same texts with the same vectors (cosine of at least 0.999), 1
    if not, 2 if a store cannot be read.
    """
    try:
        figures = operations.diff(Store.open(first), Store.open(second), cosines)
    except LeafError as error:
        echo(f"Error: {error}", err=True)
        sys.exit(2)
    _show(figures, as_json)
    sys.exit(0 if figures["agree"] else 1)


@_command
@click.argument("path")
@click.option("--to", "form", type=click.Choice(formats.FORMATS), required=True, help="Format.")
@click.option("--out", type=Path, required=True, help="Directory to make.")
def export(path: str, form: str, out: Path, as_json: bool) -> None:
    """Write Parquet files, a NumPy array, or a data set directory for the Hugging Face hub."""
    _show(formats.convert(Store.open(path), out, form), as_json)


@_command
@click.argument("path")
@corpus_option
@click.option("--out", type=Path, help="Store to write  [default: PATH itself]")
@replace_option
@click.option("--drop-most", is_flag=True, help="Even if most rows of PATH itself would be lost.")
def compact(*, path: str, corpus: Path, out: Path | None, replace: bool, drop_most: bool, as_json: bool) -> None:
    """Drop the rows whose text is not in the corpus."""
    if out is None and remote_url(path):
        raise LeafError("--out: name a directory; a store behind a URL is not changed")
    store, keys = Store.open(path), corpus_keys(corpus)
    figures = operations.compact(store, keys, str(corpus), out or Path(path), replace_out=replace, drop_most=drop_most)
    _show(figures, as_json)


@_command
@click.argument("path", type=Path)
@click.option("--out", type=Path, required=True, help="Store to write.")
@replace_option
@click.option("--texts", type=Path, help="Of a .npy file: the file with its texts, row by row.")
@click.option("--text-field", default="text", show_default=True)
@click.option("--vector-field", default="vector", show_default=True)
@click.option("--id-field", help="[default: rows are numbered]")
@click.option("--role-field", help="Column that holds query or document  [default: --role]")
@click.option("--role", type=click.Choice(ROLES), default="document", show_default=True, help="Of all texts.")
@click.option("--source", default="imported", show_default=True, help="Name of the rows' source.")
@click.option("--teacher", "model", help="Model that made them  [default: section teacher of --params]")
@click.option("--license", "license_", help="Licence of the vectors  [default: encode.license of --params]")
@click.option("--sample", type=click.IntRange(1), default=64, show_default=True, help="Rows to encode and compare.")
@click.option("--unverified", is_flag=True, help="Encode none; the store is marked as unverified for good.")
@click.option("--params", type=Path, help="Parameter file  [default: params.yaml if there is one]")
@api_options
def import_(
    *,
    path: Path,
    out: Path,
    replace: bool,
    texts: Path | None,
    text_field: str,
    vector_field: str,
    id_field: str | None,
    role_field: str | None,
    role: str,
    source: str,
    model: str | None,
    license_: str | None,
    sample: int,
    unverified: bool,
    params: Path | None,
    permits: Permits,
    as_json: bool,
) -> None:
    """Make a store of texts and vectors that somebody else has computed.

    PATH: Parquet or Arrow, a file or a directory; a data set that `save_to_disk` wrote; a .npy file with --texts. Rows
    drawn at random are encoded with the teacher first: unless all agree, nothing is written.
    """
    from pipeline.encode import Fields, VectorFiles, import_unverified, import_vectors  # here: they wait for torch

    params = params or (Path("params.yaml") if Path("params.yaml").exists() else None)
    if model is not None:
        teacher = TeacherParams(model)
    elif params is not None:
        teacher = load_section(params, "teacher", TeacherParams)
    else:
        raise LeafError("--teacher: name the model that made these vectors, or give a --params with a section teacher")
    encode = load_section(params, "encode", EncodeParams) if params else EncodeParams()
    if license_ is not None:
        encode = dataclasses.replace(encode, license=license_)
    files = VectorFiles(path, Fields(text_field, vector_field, id_field, role_field, role), texts)
    if unverified:
        figures = import_unverified(files, teacher, encode, out, source=source, replace_out=replace)
    else:
        opened = open_teacher(teacher, encode, permits)
        figures = import_vectors(files, opened, encode, out, source=source, sample=sample, replace_out=replace)
    _show(figures, as_json)


@_command
@click.argument("path", type=Path)
@click.option("--from", "copies", multiple=True, help="Another copy of the store, path or URL; may be repeated.")
@click.option("--fingerprint", help="If store.json itself is damaged: take that of the copy with this fingerprint.")
@click.option("--pool", type=Path, help="Shard cache that may have the shard  [default: encode.pool of --params]")
@click.option("--corpus", type=Path, help="Corpus to encode lost shards from, with the teacher of --params.")
@click.option("--params", type=Path, help="Parameter file  [default: params.yaml if there is one]")
@api_options
def repair_(
    *,
    path: Path,
    copies: tuple[str, ...],
    fingerprint: str | None,
    pool: Path | None,
    corpus: Path | None,
    params: Path | None,
    permits: Permits,
    as_json: bool,
) -> None:
    """Restore damaged shards, and only those, from other copies or the shard cache, or encode their texts again."""
    here = Path("params.yaml")
    params = params or (here if corpus or here.exists() else None)
    if pool is None:  # a store may be repaired where there are no parameters
        pool = Path(load_section(params, "encode", EncodeParams).pool if params else EncodeParams.pool)
    encode_again = _encoder_of_lost_shards(corpus, params, permits) if corpus and params else None
    caches = sorted(entry for entry in pool.glob("*") if entry.is_dir())
    others: list[Store | Path] = [*(Store.open(copy) for copy in copies), *caches]
    _show(repair_store(path, others, encode_again, fingerprint), as_json)


@_command
@click.argument("path")
@corpus_option
@click.option("--out", type=Path, help="Store to write  [default: PATH itself]")
@replace_option
@params_option
@api_options
def migrate(
    *, path: str, corpus: Path, out: Path | None, replace: bool, params: Path, permits: Permits, as_json: bool
) -> None:
    """Give a store of an earlier version the teacher's fingerprint of this one, beside the same shards.

    Texts of the corpus are encoded again with section `teacher` of the parameters, and must agree with the stored.
    """
    from pipeline.encode import migrate as migrate_store  # here, so that other commands do not wait for torch

    if out is None and remote_url(path):
        raise LeafError("--out: name a directory; a store behind a URL is not changed")
    opened, (teacher, encode) = Store.open(path), _sections(params)
    if out is not None:
        check_free(out, replace)
    _show(migrate_store(opened, corpus, open_teacher(teacher, encode, permits, opened), out or Path(path)), as_json)


@_command
@click.argument("path", type=Path)
@click.argument("url")
@click.option("--replace", is_flag=True, help="Put PATH in the place of the store there, whose other shards drop out.")
def push(path: Path, url: str, replace: bool, as_json: bool) -> None:
    """Add a store to the one at s3://BUCKET/PREFIX: only what is not there is sent, and store.json last.

    Refused where the teachers differ, the vectors of a text that both have, or the licences of a shard of both.
    """
    target = remote_url(url)
    if target is None or not target.startswith("s3:"):
        raise LeafError("URL: must be s3://BUCKET/PREFIX; other places can be read but not added to")
    _show(upload.push(Store.open(path), target, replace), as_json)


def _encoder_of_lost_shards(corpus: Path, params: Path, permits: Permits) -> EncodeAgain:
    teacher, encode = _sections(params)

    def encode_again(store: Store, lost: list[int]) -> int:
        from pipeline.encode import encode_lost_shards  # here, so that a repair from copies needs no torch

        return encode_lost_shards(store, lost, corpus, open_teacher(teacher, encode, permits, store), encode.shard_rows)

    return encode_again


def _sections(params: Path) -> tuple[TeacherParams, EncodeParams]:
    return load_section(params, "teacher", TeacherParams), load_section(params, "encode", EncodeParams)


def _show(figures: Mapping[str, Any], as_json: bool) -> None:
    if as_json:
        echo(json.dumps(figures, indent=1, sort_keys=True))
        return
    for name, value in figures.items():
        if isinstance(value, dict):
            echo(f"{name.replace('_', ' ')}:")
            for inner, entry in value.items():
                shown = ", ".join(f"{k} {v:,}" for k, v in entry.items()) if isinstance(entry, dict) else entry
                echo(f"  {_in_a_line(inner):<26}{_in_a_line(shown)}")
        else:
            echo(f"{name.replace('_', ' '):<28}{_in_a_line(value)}")


def _in_a_line(value: object) -> str:
    """A figure, or a name that somebody gave, which must not look like further lines."""
    return f"{value:,}" if type(value) is int else on_one_line(str(value))[:SHOWN]
