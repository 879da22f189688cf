"""The file of parameters: one section of it for whoever needs that, and a look at all others for mistakes."""

from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from pipeline.base import LeafError, access, parse_yaml
from pipeline.params.commented import section_classes
from pipeline.params.parsing import MissingKeyError, parse

T = TypeVar("T")


def load_section(file: Path, section: str, cls: type[T], default: T | None = None) -> T:
    """Parse `section` of the YAML file into `cls`; `default` is what a section that may be left out then is.

    The other sections are checked too (`check_file`): a mistake in that of a later stage is better found now than
    hours later, when DVC has removed that stage's outputs.

    Raises:
        LeafError: the file cannot be read, or a key is unknown, missing, of the wrong type or impossible.
    """
    document = _read(file)
    if section in document:
        parsed = parse(cls, section, document[section])
    elif default is not None:
        parsed = default
    else:
        raise LeafError(f"{file}: has no section `{section}`")
    _check(document)
    return parsed


def check_file(file: Path) -> None:
    """Refuse a file in which a key of any section is unknown, of the wrong type or impossible.

    Sections and keys that are missing, and models and files that are named, are left to the stage that needs them.

    Raises:
        LeafError: there is such a key, or the file cannot be read.
    """
    _check(_read(file))


def _check(document: dict[Any, Any]) -> None:
    for name, cls in section_classes().items():
        if name in document:
            with suppress(MissingKeyError):
                parse(cls, name, document[name])


def _read(file: Path) -> dict[Any, Any]:
    try:
        with access():
            document = parse_yaml(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise LeafError(f"{file}: no such parameter file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise LeafError(f"{file}: cannot be read: {error}") from None
    except LeafError as error:
        raise LeafError(f"{file}: {error}") from None
    return document if isinstance(document, dict) else {}
