"""Fields of nested records: paths like `translation.en` and `data[].paragraphs[].context`, and what they lead to.

A path's parts are keys of objects and positions in arrays (`0`), joined by dots. A list on the way, or at the end,
gives each of its elements: several texts of one record. Where the paths of all texts go through the same list under
`[]`, each element of it is a record of its own; fields that lie outside of it belong to all of them. A field whose name
as a whole is a key of the record is that key, whatever dots and brackets are in it.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from itertools import chain, islice, takewhile
from typing import Any
from uuid import UUID

from pipeline.base import LeafError
from pipeline.corpus.readers.fields import column_names, require_columns, shown_names, text_columns
from pipeline.corpus.readers.records import Record
from pipeline.params import SourceParams

CHECKED_RECORDS = 100  # at the beginning of a file, one of which must have each field
EXACT = 2**53  # from here on, a double does not tell neighbouring whole numbers apart
_HINT = "; a path leads into nested fields, as `data[].paragraphs[].context` (docs/sources.md)"

Steps = tuple[str, ...]


@dataclass(frozen=True)
class Path:
    """A field's path, cut after each `[]`."""

    lists: tuple[Steps, ...]
    """The keys that lead to each list under `[]`, from the one before it."""
    rest: Steps
    """The keys after the last of them."""


def parse(name: str) -> Path:
    """The path that a field's name writes; a name with an empty part is no path, but a key."""
    parts = name.split(".")
    if not all(part.removesuffix("[]") for part in parts):
        return Path((), (name,))
    lists: list[Steps] = []
    steps: Steps = ()
    for part in parts:
        key = part.removesuffix("[]")
        steps = (*steps, key)
        if key != part:
            lists.append(steps)
            steps = ()
    return Path(tuple(lists), steps)


@dataclass(frozen=True)
class Field:
    """A field that a source names, seen from the records that it belongs to."""

    name: str
    depth: int
    """How many of the lists whose elements are records the field lies in."""
    steps: Steps
    """What leads to it from there."""
    is_label: bool
    """Whether it is an id, a role or an origin, of which a record has one."""
    may_be_number: bool
    """Whether a whole number is taken as text."""


class Fields:
    """The fields that a source names, and how they are found in its records."""

    def __init__(self, source: SourceParams, typed: bool = False) -> None:
        """`typed`: whether the source's columns have types, so that a number is never meant as a text."""
        names = column_names(source)
        paths = [parse(name) for name in names]
        number_of_texts = len(text_columns(source))
        self.lists = _common([path.lists for path in paths[:number_of_texts]])
        """The lists, from the outermost on, whose innermost elements are the records."""
        self.outer = _common([path.lists for path in paths])[:1]
        """The outermost list, if all fields lie in it: a large file can be read by its elements."""
        labels = {source.role_field, source.source_field, source.id_field}
        numbers = labels if typed else {*labels, *names}
        self.fields = [
            self._field(name, path, name in labels, name in numbers) for name, path in zip(names, paths, strict=True)
        ]

    def _field(self, name: str, path: Path, is_label: bool, may_be_number: bool) -> Field:
        depth = len(_common([self.lists, path.lists]))
        return Field(name, depth, (*chain(*path.lists[depth:]), *path.rest), is_label, may_be_number)

    def records(self, values: Iterable[tuple[str, Any]]) -> Iterator[tuple[str, Record]]:
        """Records of the values of a file (objects, arrays), each with its place.

        Raises:
            LeafError: no value of the first ones has a field, or what a field holds is no text.
        """
        fields, lists = self.fields, self.lists
        names = [field.name for field in fields]
        for place, value in self._checked(values):
            if type(value) is dict and not lists:
                cells = [value.get(name) for name in names]
                for cell in cells:
                    if type(cell) is not str:
                        break
                else:  # the usual record: all is text, and where its name says
                    yield place, tuple(cells)
                    continue
            for stack in self._stacks(place, (_container(place, value),), lists):
                yield place, tuple(_cell(place, field, stack) for field in fields)

    def _stacks(self, place: str, stack: tuple[Any, ...], lists: tuple[Steps, ...]) -> Iterator[tuple[Any, ...]]:
        """For each record, the value, and the elements of lists that lead to the record."""
        if not lists:
            yield stack
            return
        items = find(place, stack[-1], lists[0])
        if not isinstance(items, list) and items is not None:
            raise LeafError(f"{place}: `{'.'.join(lists[0])}[]` is not a list")
        for item in items or ():
            yield from self._stacks(place, (*stack, item), lists[1:])

    def _checked(self, values: Iterable[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
        """The values as they come; one of the first must have each field, as later ones need not."""
        values = iter(values)
        sought = self.fields
        without: dict[str, tuple[str, Any]] = {}
        for place, value in islice(values, CHECKED_RECORDS):
            reached = [self._reaches(field, value) for field in sought]
            for field, is_there in zip(sought, reached, strict=True):
                if is_there is False:
                    without.setdefault(field.name, (place, value))
            sought = [field for field, is_there in zip(sought, reached, strict=True) if not is_there]
            yield place, value
        for field in sought:
            if field.name in without:
                self._refuse(field, *without[field.name])
        yield from values

    def _reaches(self, field: Field, value: Any) -> bool | None:
        if isinstance(value, dict) and field.name in value:
            return True
        return _reaches(value, self._whole_path(field))

    def _whole_path(self, field: Field) -> Steps:
        return (*chain(*self.lists[: field.depth]), *field.steps)

    def _refuse(self, field: Field, place: str, value: Any) -> None:
        """Say that a field is missing, and which there are where its path comes to an end."""
        inner = value.values() if isinstance(value, dict) else [value]
        is_nested = any(isinstance(content, dict | list) for content in inner)
        require_columns(place, [field.name], _names(value, self._whole_path(field)), _HINT if is_nested else "")


def _container(place: str, value: Any) -> Any:
    """The object or array that a record is in; a bare string is taken for an object with one field, `text`.

    Raises:
        LeafError: it is neither.
    """
    if isinstance(value, dict | list):
        return value
    if isinstance(value, str):
        return {"text": value}
    raise LeafError(f"{place}: must be a JSON object or array, not {type(value).__name__}")


def _common(paths: list[tuple[Steps, ...]]) -> tuple[Steps, ...]:
    """The lists with which all of these begin."""
    return tuple(level[0] for level in takewhile(lambda level: len(set(level)) == 1, zip(*paths, strict=False)))


def find(place: str, value: Any, steps: Steps) -> Any:
    """What the steps lead to: a value, or a list of all that they lead to from the elements of lists on the way.

    Raises:
        LeafError: a step leads into what is neither an object nor an array.
    """
    if not steps or value is None:
        return value
    if isinstance(value, list) and not _is_position(steps):
        return [leaf for item in value for leaf in _flat(find(place, item, steps))]
    if isinstance(value, dict):
        whole = ".".join(steps)
        return value[whole] if whole in value else find(place, value.get(steps[0]), steps[1:])
    if isinstance(value, list):
        return find(place, value[int(steps[0])], steps[1:]) if int(steps[0]) < len(value) else None
    raise LeafError(f"{place}: the path `{'.'.join(steps)}` leads into {_described(value)} (docs/sources.md)")


def _is_position(steps: Steps) -> bool:
    return bool(steps) and steps[0].isdecimal()


def _flat(value: Any) -> list[Any]:
    """A list's elements, those of lists in it too; of anything else, a list."""
    return [leaf for item in value for leaf in _flat(item)] if isinstance(value, list) else [value]


def _cell(place: str, field: Field, stack: tuple[Any, ...]) -> Any:
    """What the record holds in a field: a text, a list of texts, or None."""
    value = stack[field.depth]
    if field.depth == 0 and isinstance(value, dict) and field.name in value:
        value = value[field.name]
    else:
        value = find(place, value, field.steps)
    if not isinstance(value, list):
        return text(place, field.name, value, field.is_label, field.may_be_number)
    if field.is_label:
        raise LeafError(
            f"{place}: column `{field.name}` holds {len(value)} values; a record has one id, one role, one origin. A "
            "list whose elements are records has `[]` in the paths of all its fields (docs/sources.md)"
        )
    return [text(place, field.name, item) for item in _flat(value)]


def text(place: str, name: str, value: Any, is_label: bool = False, may_be_number: bool = False) -> str | None:
    """What a field holds, as text; null stays None.

    Of ids and roles also whole numbers that are stored as floating point: so pandas writes ids if some are missing.

    Raises:
        LeafError: it is no text.
    """
    if value is None or type(value) is str:
        return value
    if (type(value) is int and may_be_number) or isinstance(value, UUID):
        return str(value)
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError as error:
            raise LeafError(f"{place}: column `{name}` is not UTF-8 ({error.reason})") from None
    if isinstance(value, float) and math.isnan(value):  # pandas' missing value, also of texts
        return None
    if is_label and _is_whole(value):
        return str(int(value))
    raise LeafError(f"{place}: column `{name}` must hold text, not {_described(value, name)}")


def _is_whole(value: Any) -> bool:
    """Whether a value is a whole number that is stored as another kind of number, and exactly."""
    if isinstance(value, Decimal):
        return bool(value == value.to_integral_value())
    return isinstance(value, float) and value.is_integer() and -EXACT < value < EXACT


def _described(value: Any, name: str = "") -> str:
    """What a value is, in words."""
    if isinstance(value, dict):
        longest = max(value, key=lambda key: len(value[key]) if isinstance(value[key], str) else -1, default="")
        way = f"; name one of them, as `{name}.{longest}`" if name else ""
        return f"objects with {shown_names(value)}{way} (docs/sources.md)"
    return f"{value!r:.40} ({type(value).__name__})"


def _reaches(value: Any, steps: Steps) -> bool | None:
    """Whether the steps lead somewhere; None if that cannot be told, because of an empty list or null on the way."""
    if not steps:
        return True
    if not value:
        return None
    if isinstance(value, list) and _is_position(steps):
        return int(steps[0]) < len(value)
    if isinstance(value, list):
        reached = [_reaches(item, steps) for item in value]
        return any(reached) or (None if None in reached else False)
    if isinstance(value, dict):
        return ".".join(steps) in value or (steps[0] in value and _reaches(value[steps[0]], steps[1:]))
    return True


def _names(value: Any, steps: Steps, before: str = "") -> list[str]:
    """Names of the fields where the steps come to an end."""
    if isinstance(value, list) and _is_position(steps):
        return [f"{before}{position}" for position in range(len(value))]
    if isinstance(value, list):
        return _names(value[0], steps, before) if value else []
    if isinstance(value, dict) and steps and steps[0] in value:
        return _names(value[steps[0]], steps[1:], f"{before}{steps[0]}.")
    return [f"{before}{key}" for key in value] if isinstance(value, dict) else []
