"""Imports of packages that are optional: an extra of this project installs them."""

import importlib
from typing import Any

from pipeline.base.errors import LeafError


def import_optional(module: str, extra: str | None, user: str, package: str | None = None) -> Any:
    """Import a module of an optional package.

    Args:
        module: what to import (`usearch.index`).
        extra: the extra of this project that installs it (`index`); None is none, as the project itself requires it.
        user: what needs it, for the message: a parameter or a part of the pipeline (`teacher.api`).
        package: the package's name on PyPI, if it differs from the module's top-level name.

    Raises:
        LeafError: it is not installed; the message says how to install it.
    """
    try:
        return importlib.import_module(module)
    except ImportError:
        name = package or module.partition(".")[0]
        wanted = f"'leaf-pipeline[{extra}]'" if extra else name
        raise LeafError(f"{user} needs the package `{name}`; install it with `pip install {wanted}`") from None
