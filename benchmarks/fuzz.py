"""Feed hostile stores to the readers for some minutes: `python -m benchmarks.fuzz --minutes 10`.

Every example is a whole store with one file mutated. In most, `store.json` is signed again afterwards, so that the
mutation reaches the reader behind the checksums. A reader may accept or raise LeafError. Anything else is a failure,
as is a file that appears outside the store.
"""

import hashlib
import json
import resource
import shutil
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import click
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from pipeline.base import LeafError
from pipeline.store import ShardCache, Store
from tests.store_helpers import META, meta, rows, vectors

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["../../x", "/etc/passwd", "object", "float16", 2**63, -1, 10**400, "0" * 64, "0" * 16]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=8,
)


@st.composite
def mutated(draw: st.DrawFn, raw: bytes) -> bytes:
    """A few bytes flipped, a piece cut out, doubled, zeroed or replaced."""
    data = bytearray(raw)
    for _ in range(draw(st.integers(1, 4))):
        start, length = draw(st.integers(0, max(len(data) - 1, 0))), draw(st.integers(1, 64))
        kind = draw(st.sampled_from(["flip", "cut", "double", "zero", "ones", "random"]))
        if kind == "flip" and data:
            data[start] ^= draw(st.integers(1, 255))
        elif kind == "cut":
            del data[start : start + length]
        elif kind == "double":
            data[start:start] = data[start : start + length]
        else:
            fill = {"zero": b"\0", "ones": b"\xff"}.get(kind) or draw(st.binary(min_size=1, max_size=8))
            data[start : start + length] = (fill * length)[:length]
    return bytes(data)


def paths(value: Any, here: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a JSON document."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [here, *(place for name, entry in inner for place in paths(entry, (*here, name)))]


def replaced(value: Any, place: tuple[Any, ...], new: Any) -> Any:
    """The document with another value at a place."""
    if not place:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[place[0]] = replaced(value[place[0]], place[1:], new)
    return copy


def sign(store: Path, document: Any) -> None:
    """Write `store.json` with a valid digest, as an attacker would."""

    def dump(body: Any) -> str:
        return json.dumps(body, sort_keys=True, indent=1, ensure_ascii=False) + "\n"

    if isinstance(document, dict):
        document = {name: value for name, value in document.items() if name != "digest"}
        document["digest"] = hashlib.sha256(dump(document).encode(errors="surrogatepass")).hexdigest()
    (store / "store.json").write_bytes(dump(document).encode(errors="surrogatepass"))


def resign(store: Path) -> None:
    """Bring sizes and digests of all files in `store.json` up to date."""
    document = json.loads((store / "store.json").read_bytes())
    for part in [document, *document["shards"]]:
        part["files"] = {file: hashlib.sha256((store / file).read_bytes()).hexdigest() for file in part["files"]}
    for shard in document["shards"]:
        shard["bytes"] = sum((store / file).stat().st_size for file in shard["files"])
    document["bytes"] = sum(shard["bytes"] for shard in document["shards"])
    sign(store, document)


def read_everything(path: Path) -> str:
    """Read the whole store: `accepted` or `refused`."""
    try:
        store = Store.open(path)
        for i in range(len(store.shards)):
            store.read(i)
        store.lookup(store.keys()[:5])
        store.verify()
    except LeafError:
        return "refused"
    return "accepted"


def example(whole: Path, data: st.DataObject, counts: Counter[str]) -> None:
    """Mutate one file of a copy of the store and read it."""
    files = sorted(path.relative_to(whole).as_posix() for path in whole.rglob("*") if path.is_file())
    name = data.draw(st.sampled_from(files))
    with tempfile.TemporaryDirectory() as directory:
        store = Path(shutil.copytree(whole, Path(directory) / "store"))
        if name == "store.json" and data.draw(st.booleans()):
            kind = "store.json, signed"
            document = json.loads((store / name).read_bytes())
            place = data.draw(st.sampled_from(paths(document)))
            sign(store, replaced(document, place, data.draw(JSON)))
        else:
            kind = f"{name.rpartition('/')[2] if '.zarr' in name else name.partition('/')[0]}"
            raw = (store / name).read_bytes()
            changed = data.draw(mutated(raw))
            (store / name).write_bytes(changed)
            if signed := name != "store.json" and data.draw(st.integers(0, 9)) > 0:
                resign(store)
            kind += ", signed" if signed else ""
            outcome = read_everything(store)
            if outcome == "accepted" and not signed and changed != raw:
                raise AssertionError(f"{name}: a change went undetected")
            counts[f"{kind}: {outcome}"] += 1
            counts["all"] += 1
            assert [path.name for path in Path(directory).iterdir()] == ["store"]
            return
        counts[f"{kind}: {read_everything(store)}"] += 1
        counts["all"] += 1
        assert [path.name for path in Path(directory).iterdir()] == ["store"]


def run_round(store: Path, number: int, counts: Counter[str]) -> None:
    """Run twenty examples from a seed."""

    @seed(number)
    @settings(
        max_examples=20,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(data=st.data())
    def run(data: st.DataObject) -> None:
        example(store, data, counts)

    run()


def rounds(minutes: float, first_seed: int) -> tuple[Counter[str], list[str]]:
    """Run examples until the time is up; returns counts by kind, and failures with the seed that reproduces them."""
    counts: Counter[str] = Counter()
    failures: list[str] = []
    end, number = time.monotonic() + 60 * minutes, first_seed
    with tempfile.TemporaryDirectory() as directory:
        stores = []
        for dtype in ("float16", "int8"):
            with ShardCache(Path(directory) / "pool", meta(dtype)) as cache:
                for first, size in ((0, 1100), (1100, 40)):
                    cache.write(rows(first, size), vectors(first, size))
                stores.append(cache.publish(Path(directory) / dtype, cache.keys()).path)
        while time.monotonic() < end:
            try:
                run_round(stores[number % 2], number, counts)
            except BaseException as error:  # including panics of native code
                if isinstance(error, KeyboardInterrupt):
                    raise
                failures.append(f"seed {number}: {type(error).__name__}: {error!s:.300}")
            number += 1
    return counts, failures


@click.command()
@click.option("--minutes", type=float, default=10.0, show_default=True)
@click.option("--seed", "first_seed", type=int, default=0, show_default=True)
def main(minutes: float, first_seed: int) -> None:
    """Print how many hostile stores were read, by kind and outcome; exit code 1 on any failure."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    counts, failures = rounds(minutes, first_seed)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    click.echo(
        f"{counts.pop('all', 0):,} hostile stores in {minutes:g} minutes (fingerprint {META.fingerprint[:4]}...)"
    )
    for kind, count in sorted(counts.items()):
        click.echo(f"  {kind:<40}{count:>8,}")
    click.echo(f"failures: {len(failures)}; peak memory grew by {grown:.0f} MiB")
    for failure in failures[:20]:
        click.echo(failure)
    raise SystemExit(bool(failures))


if __name__ == "__main__":
    main()
