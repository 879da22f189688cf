"""Parameters written as YAML with comments, and their documentation, both from the dataclasses themselves.

A new key, or a new dataclass whose docstring begins with "Section `name`", appears in both by itself.
"""

import ast
import inspect
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from itertools import pairwise
from typing import Any, cast, get_args, get_origin, get_type_hints

import yaml

from pipeline.params import sections

WIDTH = 110  # characters of a comment's line
_SECTION = "Section `"


def section_classes() -> dict[str, type]:
    """The dataclass of each section of `params.yaml`, in the order of the pipeline."""
    documented = {cls: cls.__doc__ or "" for cls in vars(sections).values() if isinstance(cls, type)}
    return {
        text.removeprefix(_SECTION).partition("`")[0]: cls
        for cls, text in documented.items()
        if text.startswith(_SECTION)
    }


def commented(values: Mapping[str, object]) -> str:
    """YAML of sections (`{"fit": FitParams(...)}`) that holds only what differs from the defaults, each key explained.

    A section that is all defaults is `{}`, which DVC can depend on.
    """
    blocks = []
    for name, section in values.items():
        lines = [*_comment(_paragraph(type(section).__doc__ or ""), 0)]
        body = list(_mapping(section, 2, set()))
        blocks.append("\n".join([*lines, f"{name}:", *body] if body else [*lines, f"{name}: {{}}"]))
    return "\n\n".join(blocks) + "\n"


def explained(name: str, cls: type) -> Iterator[str]:
    """Lines that explain each key of a section, with its default and what it may be."""
    hints, documents = get_type_hints(cls), _documents(cls)
    for definition in fields(cast(Any, cls)):
        key, inner = f"{name}.{definition.name}", _dataclass_in(hints[definition.name])
        default = "" if inner else f" = {_scalar(_default(definition))}" if _has_default(definition) else "  (required)"
        yield f"{key}{default}"
        words = [documents.get(definition.name) or (_paragraph(inner.__doc__ or "") if inner else "")]
        if choices := _choices(hints[definition.name]):
            words.append(f"One of {', '.join(choices)}.")
        if check := definition.metadata.get("check"):
            words.append(f"Must be {check[1]}.")
        yield from _wrapped(" ".join(filter(None, words)), "    ")
        if inner:
            yield from explained(f"{key}[]" if get_origin(hints[definition.name]) is tuple else key, inner)


def _mapping(section: object, indent: int, known: set[str]) -> Iterator[str]:
    """Lines of the keys of a dataclass that differ from their defaults; keys in `known` have been explained before."""
    documents = _documents(cast(Any, type(section)))
    for definition in fields(cast(Any, section)):
        value, space = getattr(section, definition.name), " " * indent
        if _has_default(definition) and value == _default(definition):
            continue
        if definition.name not in known:
            text = documents.get(definition.name) or (_paragraph(value.__doc__ or "") if is_dataclass(value) else "")
            yield from _comment(text, indent)
        known.add(definition.name)
        if is_dataclass(value):
            yield f"{space}{definition.name}:"
            yield from _mapping(value, indent + 2, set())
        elif isinstance(value, tuple) and value and is_dataclass(value[0]):
            yield f"{space}{definition.name}:"
            yield from _entries(value, indent + 2)
        else:
            yield f"{space}{definition.name}: {_scalar(value)}"


def _entries(values: tuple[object, ...], indent: int) -> Iterator[str]:
    """Lines of a list of dataclasses; the keys are explained where they come first."""
    known: set[str] = set()
    for value in values:
        is_first = True
        for line in _mapping(value, indent + 2, known):
            if is_first:
                is_comment = line.lstrip().startswith("#")
                yield f"{' ' * indent}{'' if is_comment else '- '}{line.lstrip()}"
                is_first = is_comment
            else:
                yield line


def _scalar(value: object) -> str:
    """A value on one line of YAML."""
    plain = list(value) if isinstance(value, tuple) else value
    text = yaml.safe_dump(plain, default_flow_style=True, width=float("inf"), allow_unicode=True, sort_keys=False)
    return text.strip().removesuffix("...").strip()


def _comment(text: str, indent: int) -> Iterator[str]:
    yield from _wrapped(text, f"{' ' * indent}# ")


def _wrapped(text: str, head: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent=head, subsequent_indent=head, break_long_words=False)


def _paragraph(text: str) -> str:
    return " ".join(inspect.cleandoc(text).partition("\n\n")[0].split())


def _documents(cls: type) -> dict[str, str]:
    """The first paragraph of the string under each field of a dataclass."""
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    body = cast(ast.ClassDef, definition).body
    return {
        field.target.id: _paragraph(text.value.value)
        for field, text in pairwise(body)
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(text, ast.Expr)
        and isinstance(text.value, ast.Constant)
        and isinstance(text.value.value, str)
    }


def _has_default(definition: Field[Any]) -> bool:
    return definition.default is not MISSING or definition.default_factory is not MISSING


def _default(definition: Field[Any]) -> Any:
    return definition.default if definition.default_factory is MISSING else definition.default_factory()


def _dataclass_in(hint: Any) -> type | None:
    """The dataclass that a field of this type holds, alone, optional, or in a list."""
    candidates = (hint, *get_args(hint))
    return next((cast(type, candidate) for candidate in candidates if is_dataclass(candidate)), None)


def _choices(hint: Any) -> tuple[Any, ...]:
    """What a field may be, if it is one of several words."""
    inner = next((argument for argument in get_args(hint) if get_args(argument)), hint)
    return tuple(choice for choice in get_args(inner) if isinstance(choice, str))
