"""Parse a section of parameters into a frozen dataclass, by the types and limits of its fields.

Keys that are unknown, missing, of the wrong type or impossible are refused with the key's full name (`fit.batch_size`)
and what would be right.
"""

import json
import math
import types
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from datetime import date
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from pipeline.base import LeafError, near, quoted

T = TypeVar("T")
Check = tuple[Callable[[Any], bool], str]
"""Whether a value is possible, and which values are, in words."""


class MissingKeyError(LeafError):
    """A key that has no default is not given."""


def bounded(low: float, high: float | None = None) -> dict[str, Check]:
    """Field metadata: the value must lie in [low, high]."""
    if high is None:
        return {"check": (lambda value: value >= low, f"at least {low:g}")}
    return {"check": (lambda value: low <= value <= high, f"between {low:g} and {high:g}")}


def positive() -> dict[str, Check]:
    """Field metadata: the value must be greater than zero."""
    return {"check": (lambda value: value > 0, "greater than 0")}


def one_character(or_none: bool = False) -> dict[str, Check]:
    """Field metadata: the value must be a single character, or also the empty text."""
    return {"check": (lambda value: len(value) == 1 or (or_none and not value), f"one character{' or none' * or_none}")}


def parse(cls: type[T], name: str, raw: object) -> T:
    """Build the frozen dataclass `cls` from a mapping; `name` precedes the keys in error messages.

    Raises:
        LeafError: a key is unknown, missing, of the wrong type or impossible.
    """
    if not isinstance(raw, Mapping):
        raise LeafError(f"{name}: must be a mapping of keys to values, not {_show(raw)}")
    hints = get_type_hints(cls)
    known = {definition.name: definition for definition in fields(cast(Any, cls))}
    for key in raw:
        if key not in known:
            shown = key if isinstance(key, str) else quoted(key)
            raise LeafError(f"{name}.{shown}: unknown key{near(str(key), known)}; known keys: {', '.join(known)}")
    values: dict[str, Any] = {}
    for key, definition in known.items():
        if key in raw:
            values[key] = _value(hints[key], f"{name}.{key}", raw[key])
            _check(definition.metadata.get("check"), f"{name}.{key}", values[key])
        elif definition.default is MISSING and definition.default_factory is MISSING:
            raise MissingKeyError(f"{name}.{key}: missing; it has no default")
    return cls(**values)


def _check(check: Check | None, name: str, value: object) -> None:
    if check is not None and value is not None and not check[0](value):
        raise LeafError(f"{name}: {_show(value)} is impossible; it must be {check[1]}")


def _value(hint: Any, name: str, raw: object) -> Any:
    """`raw` as the type `hint`: a dataclass, an optional value, a choice, a list or a scalar."""
    if is_dataclass(hint):
        return parse(cast(type, hint), name, raw)
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (types.UnionType, Union):
        if raw is None:
            return None
        return _value(next(argument for argument in arguments if argument is not type(None)), name, raw)
    if origin is Literal:
        if raw in arguments and not isinstance(raw, bool):
            return raw
        possible = list(map(str, arguments))
        raise LeafError(
            f"{name}: {_show(raw)} is impossible{near(str(raw), possible)}; it must be one of {', '.join(possible)}"
        )
    if origin in (tuple, Mapping):
        return _collection(hint, name, raw)
    return _scalar(hint, name, raw)


def _collection(hint: Any, name: str, raw: object) -> Any:
    """`raw` as a tuple of values of one type, or as a mapping that can be sent as JSON."""
    if get_origin(hint) is tuple:
        if not isinstance(raw, list):
            raise LeafError(f"{name}: must be a list, not {_show(raw)}")
        return tuple(_value(get_args(hint)[0], f"{name}[{i}]", entry) for i, entry in enumerate(raw))
    if not isinstance(raw, dict) or not all(isinstance(key, str) for key in raw):
        raise LeafError(f"{name}: must be a mapping of names to values, not {_show(raw)}")
    try:
        json.dumps(raw, allow_nan=False)
    except (TypeError, ValueError):
        raise LeafError(f"{name}: {_show(raw)} is impossible; it must hold what JSON can: text, numbers") from None
    return raw


def _scalar(hint: type, name: str, raw: object) -> Any:
    if hint is float and isinstance(raw, int) and not isinstance(raw, bool):
        return float(raw)
    if hint is float and isinstance(raw, str):
        raw = _float_or_text(raw)
    if hint is str and type(raw) is date:
        raw = raw.isoformat()  # YAML reads 2024-10-21 as a date
    if isinstance(raw, hint) and not (hint is not bool and isinstance(raw, bool)):
        if isinstance(raw, float) and not math.isfinite(raw):
            raise LeafError(f"{name}: {raw} is impossible; it must be a finite number")
        return raw
    expected = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}[hint]
    raise LeafError(f"{name}: must be {expected}, not {_show(raw)}")


def _float_or_text(raw: str) -> object:
    """The number that `raw` writes, otherwise `raw`: YAML 1.1 reads `1e-4`, which has no dot, as text."""
    try:
        return float(raw) if raw[:1].isdigit() else raw
    except ValueError:
        return raw


def _show(value: object) -> str:
    return f"{quoted(value)} ({type(value).__name__})"
