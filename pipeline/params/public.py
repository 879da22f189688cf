"""Parameters as readers of a report or a model card may see them: without places on this machine or in a bucket."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

PLACES = frozenset({"base_url", "beir", "classification", "model", "path", "pool", "reuse", "sts", "tokenizer"})
"""Keys, of any section, whose values are places: files, directories, models, addresses."""
HIDDEN = "..."


def public_name(place: str) -> str:
    """How to call a place in what others read.

    Of a path that leads out of the project, that is its last part, and of an address its scheme; a model's id on the
    hub, the place of a model in a package, and a path within the project say nothing of this machine.
    """
    scheme, separator, _ = place.partition("://")
    if separator:
        return f"{scheme}://{HIDDEN}"
    outside = Path(place).is_absolute() or place.startswith((".", "~")) or ".." in Path(place).parts
    return (Path(place).name or HIDDEN) if outside else place


def name_in_code(place: str) -> str:
    """`public_name` for code that loads the model. sentence-transformers knows no `package:`: a placeholder."""
    return "path/to/the/teacher" if place.startswith("package:") else public_name(place)


def public_params(params: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of a section, or sections by name, with `public_name` of each place among them."""
    seen: dict[tuple[str, int], Any] = {}  # what YAML's aliases give many names is looked at once

    def public(name: str, value: Any) -> Any:
        if isinstance(value, str):
            return public_name(value) if name in PLACES else value
        if not isinstance(value, Mapping | list | tuple):
            return value
        if (name, id(value)) not in seen:
            if isinstance(value, Mapping):
                seen[name, id(value)] = {key: public(str(key), entry) for key, entry in value.items()}
            else:
                seen[name, id(value)] = [public(name, entry) for entry in value]
        return seen[name, id(value)]

    shown: dict[str, Any] = public("", params)
    return shown
