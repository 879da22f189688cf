"""Packages that only some uses need, brought by an extra of this project."""

import importlib
from typing import Any

from pipeline.base.errors import LeafError


def import_optional(module: str, extra: str, user: str, package: str | None = None) -> Any:
    """The module, imported.

    Args:
        module: what to import (`usearch.index`).
        extra: the extra of this project that brings it (`index`).
        user: who needs it, for the message (`teacher.api`, `corpus.near_duplicates`).
        package: its name on PyPI where that is not the module's.

    Raises:
        LeafError: it is not installed; says how to install it.
    """
    try:
        return importlib.import_module(module)
    except ImportError:
        name = package or module.partition(".")[0]
        raise LeafError(
            f"{user} needs the package `{name}`; install it with `pip install 'leaf-pipeline[{extra}]'`"
        ) from None
