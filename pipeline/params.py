"""`params.yaml`, parsed once into one frozen dataclass per stage.

Defaults live in the dataclasses below and nowhere else. Whatever is unknown, of the wrong type or impossible is
refused with the key's full name (`fit.batch_size`) and what would be right.
"""

import math
import types
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

import yaml

from pipeline.errors import LeafError

T = TypeVar("T")
Check = tuple[Callable[[Any], bool], str]


def bounded(low: float, high: float | None = None) -> dict[str, Check]:
    """Field metadata: the value must lie in [low, high]."""
    if high is None:
        return {"check": (lambda value: value >= low, f"at least {low:g}")}
    return {"check": (lambda value: low <= value <= high, f"between {low:g} and {high:g}")}


def positive() -> dict[str, Check]:
    """Field metadata: the value must be greater than zero."""
    return {"check": (lambda value: value > 0, "greater than 0")}


@dataclass(frozen=True)
class SourceParams:
    """One entry of `corpus.sources`. Which fields a kind needs is checked by `pipeline.sources`."""

    name: str
    kind: Literal["parquet", "jsonl", "csv", "tsv", "text", "beir", "huggingface", "docstrings"]
    path: str | None = None
    """File, glob, BEIR directory, or data set name on the hub."""
    role: Literal["query", "document"] | None = None
    """The role of every text; or leave it out and name `role_field`, `query_field` and/or `document_field`."""
    id_field: str | None = None
    text_field: str | None = None
    role_field: str | None = None
    query_field: str | None = None
    document_field: str | None = None
    id_suffix: str | None = None
    """Regular expression removed from ids, so that a query and its document get one id (`/q$`)."""
    unit: Literal["line", "paragraph"] = "line"
    packages: tuple[str, ...] = ()
    config: str | None = None
    revision: str | None = None
    split: str = "train"
    limit: int | None = field(default=None, metadata=positive())
    sample: float = field(default=1.0, metadata=bounded(0, 1))
    heldout: float | None = field(default=None, metadata=bounded(0, 1))
    """Share held out of training; `corpus.heldout` where it is left out."""


@dataclass(frozen=True)
class CorpusParams:
    """Section `corpus`: where the texts come from and how they are cleaned and split."""

    sources: tuple[SourceParams, ...]
    heldout: float = field(metadata=bounded(0, 1))
    seed: int = field(default=0, metadata=bounded(0))
    min_characters: int = field(default=3, metadata=bounded(1))
    near_duplicates: float | None = field(default=None, metadata=bounded(0.5, 1))
    """Jaccard similarity from which two texts of a role count as one; None keeps both."""
    shard_rows: int = field(default=262_144, metadata=positive())


@dataclass(frozen=True)
class Prompts:
    """What the teacher puts before a text, by role."""

    query: str = ""
    document: str = ""


@dataclass(frozen=True)
class TeacherParams:
    """Section `teacher`: the model whose vectors are the targets."""

    model: str
    """Hub id, local directory, or `package:NAME/DIRECTORY` inside an installed package."""
    sha256: str | None = None
    """Of the weights; checked before they are loaded."""
    revision: str | None = None
    prompts: Prompts = Prompts()
    max_length: int | None = field(default=None, metadata=bounded(4))
    """Tokens, specials included; the model's own limit where it is left out."""
    normalize: bool = True
    license: str | None = None
    """The model's licence (SPDX, `Apache-2.0`), told to whoever gets the store; not part of the fingerprint."""


@dataclass(frozen=True)
class EncodeParams:
    """Section `encode`: stage one."""

    shard_rows: int = field(default=65_536, metadata=positive())
    dtype: Literal["float16", "float32", "int8"] = "float16"
    reuse: tuple[str, ...] = ()
    """Other stores with the same fingerprint (paths or s3:// URLs), whose vectors are taken instead of computed."""
    license: str | None = None
    """Licence of the vectors (SPDX, `CC-BY-4.0`), written into the store."""
    pool: str = ".cache/pool"
    token_budget: int = field(default=8192, metadata=bounded(64))
    """Tokens in one forward pass."""
    verify_rows: int = field(default=32, metadata=bounded(0))
    """Rows of each reused store that are encoded again and compared before it is trusted."""


@dataclass(frozen=True)
class StudentParams:
    """`fit.student`: the checkpoint the student starts from."""

    model: str
    """Hub id, local directory, or `package:NAME/DIRECTORY`."""
    sha256: str | None = None
    revision: str | None = None
    layers: tuple[int, ...] | None = None
    """Layers of the checkpoint to keep, counted from 0, in order; all where it is left out."""
    max_length: int | None = field(default=None, metadata=bounded(4))
    head_bias: bool = True
    ridge: float = field(default=1e-2, metadata=bounded(0))
    """Regularisation of the closed-form start of the head, as a share of the mean feature variance."""
    ridge_rows: int = field(default=8192, metadata=positive())


@dataclass(frozen=True)
class FitParams:
    """Section `fit`: stage two. The defaults are LEAF's full-size recipe (arXiv 2509.12539)."""

    student: StudentParams
    loss: Literal["l2", "mse", "cosine"] = "l2"
    cycles: int = field(default=3, metadata=positive())
    epochs_per_cycle: int = field(default=10, metadata=positive())
    learning_rate: float = field(default=1e-4, metadata=positive())
    learning_rate_end: float = field(default=1e-5, metadata=bounded(0))
    warmup_steps: int = field(default=0, metadata=bounded(0))
    weight_decay: float = field(default=0.01, metadata=bounded(0))
    clip_norm: float | None = field(default=1.0, metadata=positive())
    batch_size: int = field(default=32, metadata=positive())
    dropout: float = field(default=0.1, metadata=bounded(0, 0.9))
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    seed: int = field(default=0, metadata=bounded(0))
    max_steps: int | None = field(default=None, metadata=positive())
    """Stops early with the schedule unchanged in form but stretched over this many steps; None: all cycles."""
    buffer_rows: int = field(default=65_536, metadata=positive())
    """Rows held by the loader at a time."""
    validate_every: int = field(default=1000, metadata=positive())
    validation_rows: int = field(default=2048, metadata=positive())
    checkpoint_every: int = field(default=1000, metadata=positive())
    snapshots: tuple[int, ...] = ()
    """Steps after which the student is also saved, for a dose curve."""


@dataclass(frozen=True)
class CostParams:
    """`evaluate.cost`: how fast teacher and student are on this machine, alternating."""

    texts: int = field(default=256, metadata=bounded(0))
    """Documents of one measurement of throughput; 0 leaves cost out."""
    queries: int = field(default=100, metadata=positive())
    """Queries asked one at a time."""
    rounds: int = field(default=5, metadata=positive())


@dataclass(frozen=True)
class EvaluateParams:
    """Section `evaluate`: what the student is measured on."""

    beir: tuple[str, ...] = ()
    """Directories in BEIR layout; the last part of the path is the name."""
    sts: tuple[str, ...] = ()
    classification: tuple[str, ...] = ()
    """Files: pairs (sentence1, sentence2, score); texts (text, label and, where it is fixed, split: train, test)."""
    dims: tuple[int, ...] = field(
        default=(768, 512, 384, 256, 128, 64), metadata={"check": (lambda dims: min(dims, default=1) > 0, "positive")}
    )
    """Widths that vectors are cut to; those not below the teacher's are left out."""
    calibration_rows: int = field(default=4096, metadata=bounded(0))
    """Training texts of each role that int8 is calibrated on; 0 leaves quantisation out."""
    cost: CostParams = CostParams()
    moved: int = field(default=20, metadata=bounded(0))
    """Queries in the report: those whose ranking moved most."""
    map_texts: int = field(default=300, metadata=bounded(0))
    """Held-out texts on the report's map."""
    neighbours_rows: int = field(default=2000, metadata=positive())
    bootstrap: int = field(default=1000, metadata=bounded(0))
    seed: int = field(default=0, metadata=bounded(0))


@dataclass(frozen=True)
class ExportParams:
    """Section `export`: the models made for serving, their cards, and how far they are compared."""

    rows: int = field(default=1000, metadata=positive())
    """Held-out queries, and a tenth as many documents, whose exported vectors are compared with the original ones."""
    speed_texts: int = field(default=64, metadata=bounded(0))
    """Texts in one timed round; 0 measures no speed."""
    bootstrap: int = field(default=1000, metadata=bounded(0))
    seed: int = field(default=0, metadata=bounded(0))
    license: str | None = None
    """Of the student; that of teacher and checkpoint, as their model cards have it, where it is left out."""
    teacher_id: str | None = None
    """The teacher's hub id, where `teacher.model` is a directory or a package."""
    student_id: str | None = None
    """The hub id of the student's checkpoint, where `fit.student.model` is a directory or a package."""


def load_section(file: Path, section: str, cls: type[T]) -> T:
    """Parse `section` of the YAML file into `cls`.

    Raises:
        LeafError: the file cannot be read, or a key is unknown, missing, of the wrong type or impossible.
    """
    try:
        document = yaml.safe_load(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise LeafError(f"{file}: no such parameter file") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise LeafError(f"{file}: cannot be read as YAML: {error}") from None
    if not isinstance(document, dict) or section not in document:
        raise LeafError(f"{file}: has no section `{section}`")
    return parse(cls, section, document[section])


def parse(cls: type[T], name: str, raw: object) -> T:
    """Build the frozen dataclass `cls` from a mapping; `name` prefixes the keys in error messages."""
    if not isinstance(raw, Mapping):
        raise LeafError(f"{name}: must be a mapping of keys to values, not {_show(raw)}")
    hints = get_type_hints(cls)
    known = {item.name: item for item in fields(cast(Any, cls))}
    for key in raw:
        if key not in known:
            raise LeafError(f"{name}.{key}: unknown key; known keys: {', '.join(known)}")
    values: dict[str, Any] = {}
    for key, item in known.items():
        if key in raw:
            values[key] = _value(hints[key], f"{name}.{key}", raw[key])
            _check(item.metadata.get("check"), f"{name}.{key}", values[key])
        elif item.default is MISSING and item.default_factory is MISSING:
            raise LeafError(f"{name}.{key}: missing; it has no default")
    return cls(**values)


def _check(check: Check | None, name: str, value: object) -> None:
    if check is not None and value is not None and not check[0](value):
        raise LeafError(f"{name}: {_show(value)} is impossible; it must be {check[1]}")


def _value(hint: Any, name: str, raw: object) -> Any:
    if is_dataclass(hint):
        return parse(cast(type, hint), name, raw)
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (types.UnionType, Union):
        if raw is None:
            return None
        return _value(next(a for a in arguments if a is not type(None)), name, raw)
    if origin is Literal:
        if raw in arguments and not isinstance(raw, bool):
            return raw
        raise LeafError(f"{name}: {_show(raw)} is impossible; it must be one of {', '.join(map(str, arguments))}")
    if origin is tuple:
        if not isinstance(raw, list):
            raise LeafError(f"{name}: must be a list, not {_show(raw)}")
        return tuple(_value(arguments[0], f"{name}[{i}]", entry) for i, entry in enumerate(raw))
    return _scalar(hint, name, raw)


def _scalar(hint: type, name: str, raw: object) -> Any:
    if hint is float and isinstance(raw, int) and not isinstance(raw, bool):
        return float(raw)
    if hint is float and isinstance(raw, str):
        raw = _exponent(raw)
    if isinstance(raw, hint) and not (hint is not bool and isinstance(raw, bool)):
        if isinstance(raw, float) and not math.isfinite(raw):
            raise LeafError(f"{name}: {raw} is impossible; it must be a finite number")
        return raw
    wanted = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}[hint]
    raise LeafError(f"{name}: must be {wanted}, not {_show(raw)}")


def _exponent(raw: str) -> object:
    """YAML 1.1 reads `1e-4` (no dot) as text; everybody means the number."""
    try:
        return float(raw) if raw[:1].isdigit() else raw
    except ValueError:
        return raw


def _show(value: object) -> str:
    text = repr(value)
    return f"{text if len(text) < 60 else text[:57] + '...'} ({type(value).__name__})"
