"""Hostile input for `benchmarks.fuzz`: stores, models, parameters and answers of servers, changed by chance.

A kind of input is a class: what it makes once, and an example of it, which hypothesis draws. A reader of it may accept
it or raise LeafError.
"""

import hashlib
import json
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Protocol

import polars as pl
import yaml
from hypothesis import strategies as st

from pipeline.base import LeafError
from pipeline.params import (
    EncodeParams,
    StudentParams,
    TeacherParams,
    load_section,
    section_classes,
)
from pipeline.store import ShardCache, Store
from tests.store_helpers import meta, rows, vectors

ROOT = Path(__file__).parent.parent
NEVER_SAID = ("Traceback", "MemoryError", "allocate", "out of memory")
"""Words that no message may have of itself."""


def _words(size: int) -> st.SearchStrategy[str]:
    """Texts without the words that messages are searched for: hypothesis tries the program's own strings too."""
    return st.text(max_size=size).filter(lambda text: not any(word in text for word in NEVER_SAID))


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | _words(20)
    | st.sampled_from(["../../x", "/etc/passwd", "object", "float16", 2**63, -1, 0, 10**9, 10**400, "0" * 64, "0" * 16])
    | st.sampled_from(["\x1b]0;x\x07", "(a+)+$", "a\0b", "\ud800", "x" * 10_000, "somebody/kernel", "$x^{$", "auto"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_words(12), inner, max_size=4),
    max_leaves=8,
)
SECTIONS = section_classes()


class Kind(Protocol):
    """A kind of hostile input."""

    examples: int
    """In a round."""

    def example(self, data: st.DataObject) -> str:
        """Draw one and have it read; what was changed, and whether it was accepted or refused."""


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


@st.composite
def edited(draw: st.DrawFn, document: Any) -> Any:
    """A JSON document with other values at a few places, or further keys."""
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.sampled_from(paths(document)))
        document = replaced(document, place, draw(JSON))
    return document


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


def dumped(document: Any) -> bytes:
    """JSON in the form of `store.json`."""
    text = json.dumps(document, sort_keys=True, indent=1, ensure_ascii=False) + "\n"
    return text.encode(errors="surrogatepass")


def sign(store: Path, document: Any) -> None:
    """Write `store.json` with a valid digest, as an attacker would."""
    if isinstance(document, dict):
        document = {name: value for name, value in document.items() if name != "digest"}
        document["digest"] = hashlib.sha256(dumped(document)).hexdigest()
    (store / "store.json").write_bytes(dumped(document))


def resign(store: Path) -> None:
    """Bring sizes and digests of all files in `store.json` up to date."""
    document = json.loads((store / "store.json").read_bytes())
    for part in [document, *document["shards"]]:
        part["files"] = {file: hashlib.sha256((store / file).read_bytes()).hexdigest() for file in part["files"]}
    for shard in document["shards"]:
        shard["bytes"] = sum((store / file).stat().st_size for file in shard["files"])
    document["bytes"] = sum(shard["bytes"] for shard in document["shards"])
    sign(store, document)


@contextmanager
def copy_of(directory: Path) -> Iterator[Path]:
    """A copy to change; nothing may appear beside it."""
    with tempfile.TemporaryDirectory() as place:
        copy = Path(shutil.copytree(directory, Path(place) / directory.name))
        yield copy
        assert [path.name for path in Path(place).iterdir()] == [directory.name], "a file appeared outside"


class Stores:
    """Whole stores with one file mutated; in most, `store.json` is signed again afterwards."""

    examples = 20

    def __init__(self, directory: Path) -> None:
        self.stores = []
        for dtype in ("float16", "int8"):
            with ShardCache(directory / "pool", meta(dtype)) as cache:
                for first, size in ((0, 1100), (1100, 40)):
                    cache.write(rows(first, size), vectors(first, size))
                self.stores.append(cache.publish(directory / dtype, cache.keys()).path)

    def example(self, data: st.DataObject) -> str:
        """Mutate one file of a copy of a store and read it."""
        whole = data.draw(st.sampled_from(self.stores))
        files = sorted(path.relative_to(whole).as_posix() for path in whole.rglob("*") if path.is_file())
        name = data.draw(st.sampled_from(files))
        with copy_of(whole) as store:
            raw = (store / name).read_bytes()
            if name == "store.json" and data.draw(st.booleans()):
                sign(store, data.draw(edited(json.loads(raw))))
                return f"store.json, signed: {_read_store(store)}"
            (store / name).write_bytes(changed := data.draw(mutated(raw)))
            if signed := name != "store.json" and data.draw(st.integers(0, 9)) > 0:
                resign(store)
            outcome = _read_store(store)
            if outcome == "accepted" and not signed and changed != raw:
                raise AssertionError(f"{name}: a change went undetected")
            kind = name.rpartition("/")[2] if ".zarr" in name else name.partition("/")[0]
            return f"{kind}{', signed' if signed else ''}: {outcome}"


def _read_store(path: Path) -> str:
    try:
        store = Store.open(path)
        for i in range(len(store.shards)):
            store.read(i)
        store.lookup(store.keys()[:5])
        store.verify()
    except LeafError as error:
        return refused(error)
    return "accepted"


class Models:
    """Models with one file mutated, or other values in a file of settings; read as a teacher and as a checkpoint."""

    examples = 4

    def __init__(self, directory: Path) -> None:
        from tests.conftest import make_model

        self.model = make_model(directory / "model")
        settings = json.loads((self.model / "sentence_bert_config.json").read_text())
        arguments = {"model_kwargs": {}, "processor_kwargs": {"padding_side": "right"}, "config_kwargs": {}}
        (self.model / "sentence_bert_config.json").write_text(json.dumps(settings | arguments))
        self.rows = pl.DataFrame(
            {"role": ["query", "document"], "text": ["the file", "a list of words " * 9 + "a" * 40]}
        )

    def example(self, data: st.DataObject) -> str:
        """Change one file of a copy of the model, and run it."""
        names = sorted(path.relative_to(self.model).as_posix() for path in self.model.rglob("*") if path.is_file())
        name = data.draw(st.sampled_from([name for name in names if not name.endswith(".md")]))
        with copy_of(self.model) as model:
            raw = (model / name).read_bytes()
            if name.endswith(".json") and data.draw(st.integers(0, 3)):
                (model / name).write_bytes(dumped(data.draw(edited(json.loads(raw)))))
            else:
                (model / name).write_bytes(data.draw(mutated(raw)))
            return f"{Path(name).name}: teacher {self._teach(model)}, student {self._fit(model)}"

    def _teach(self, model: Path) -> str:
        from pipeline.teacher import LocalTeacher

        try:
            LocalTeacher(TeacherParams(str(model)), EncodeParams(token_budget=256)).vectors(self.rows)
        except LeafError as error:
            return refused(error)
        return "accepted"

    def _fit(self, model: Path) -> str:
        from pipeline.model import StudentEncoder, build

        try:
            student = build(StudentParams(str(model)), dim=8, normalize=True)
            StudentEncoder(student).encode(self.rows["text"].to_list())
        except LeafError as error:
            return refused(error)
        return "accepted"


class Parameters:
    """Files of parameters: the project's own, with other values, bytes, or aliases."""

    examples = 40

    def __init__(self, directory: Path) -> None:
        self.file = directory / "params.yaml"
        text = (ROOT / "params.yaml").read_text(encoding="utf-8")
        self.document: dict[str, Any] = yaml.safe_load(text)

    def example(self, data: st.DataObject) -> str:
        """Write a file and parse each of its sections."""
        kind = data.draw(st.sampled_from(["values", "bytes", "aliases"]))
        section = data.draw(st.sampled_from(list(SECTIONS)))
        key = data.draw(st.sampled_from([field.name for field in fields(SECTIONS[section])]))
        document = {**self.document, section: {**self.document.get(section, {}), key: data.draw(JSON)}}
        changed = data.draw(edited(document)) if data.draw(st.booleans()) else document
        text = yaml.safe_dump(changed, allow_unicode=True).encode(errors="surrogatepass")
        if kind == "bytes":
            text = data.draw(mutated(text))
        elif kind == "aliases":
            levels, width = data.draw(st.integers(1, 30)), data.draw(st.integers(1, 12))
            merge = data.draw(st.sampled_from(["[{}]", "{{<<: [{}]}}"]))
            lines = ["a0: &a0 {x: y}"] + [
                f"a{i}: &a{i} {merge.format(', '.join([f'*a{i - 1}'] * width))}" for i in range(1, levels)
            ]
            text = "\n".join([*lines, f"fit: *a{levels - 1}", f"encode: {{reuse: *a{levels - 1}}}"]).encode()
        self.file.write_bytes(text)
        outcomes = [self._parse(section, cls) for section, cls in SECTIONS.items()]
        return f"{kind}: {outcomes.count('accepted')} of {len(outcomes)} sections accepted"

    def _parse(self, section: str, cls: type) -> str:
        try:
            load_section(self.file, section, cls)
        except LeafError as error:
            return refused(error)
        return "accepted"


class Answers:
    """What a server of embeddings answers: a right answer with other values or bytes, and any status."""

    examples = 10

    def __init__(self, directory: Path) -> None:
        self.texts = ["the first text", "the second"]
        entries = [{"object": "embedding", "index": i, "embedding": [0.5, -1.0, 0.25 * i]} for i in range(2)]
        self.document = {"data": entries, "usage": {"prompt_tokens": 5}, "model": "m"}
        self.error = {"error": {"message": "no", "code": "rate", "type": "x", "param": None}}
        self.status, self.body = 200, b""
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        answers = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                """Give the answer of the example."""
                self.rfile.read(int(self.headers["Content-Length"]))
                self.send_response(answers.status)
                self.send_header("Content-Length", str(len(answers.body)))
                self.end_headers()
                self.wfile.write(answers.body)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                """Say nothing."""

        return Handler

    def example(self, data: st.DataObject) -> str:
        """Answer a request."""
        from pipeline.params import ApiParams
        from pipeline.teacher import Client, Refusal

        self.status = data.draw(st.sampled_from([200, 200, 200, 400, 401, 413, 422, 429, 500, 503]))
        self.body = dumped(data.draw(edited(self.document if self.status == 200 else self.error)))
        if data.draw(st.booleans()):
            self.body = data.draw(mutated(self.body))
        url = f"http://127.0.0.1:{self.server.server_port}/v1"
        api = ApiParams(url, retries=0, timeout=5, key_env="LEAF_FUZZ_NO_KEY")
        try:
            answer = Client(TeacherParams("m", api=api)).embed(self.texts, "query")
            outcome = f"accepted {len(self.texts) - len(answer.faults)} of 2 vectors"
        except Refusal as error:
            outcome = refused(LeafError(str(error)))
        except LeafError as error:
            outcome = refused(error)
        return f"status {self.status}: {outcome}"


KINDS: dict[str, type[Any]] = {"stores": Stores, "models": Models, "params": Parameters, "answers": Answers}


def refused(error: LeafError) -> str:
    """`refused`, where the message is one for people: bounded, printable, no traceback, not of memory that ran out."""
    message = str(error)
    assert len(message) < 11_000 and "\x1b" not in message, f"message: {message:.300}"
    assert not any(word in message for word in NEVER_SAID), f"message: {message:.300}"
    return "refused"
