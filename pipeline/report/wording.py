"""Figures as a person reads them."""

from collections.abc import Mapping, Sequence
from typing import Any

UNRESOLVED = "unresolved"
NARROW = "\N{NO-BREAK SPACE}"  # a cell breaks between figure and interval, not inside


def number(value: float | None, span: Sequence[float] | None = None, digits: int = 3) -> str:
    """`0.512 [0.480, 0.541]`; a dash for nothing."""
    if value is None:
        return "–"
    return f"{value:.{digits}f}" + (f" [{span[0]:.{digits}f},{NARROW}{span[1]:.{digits}f}]" if span else "")


def change(one: Mapping[str, Any] | None, digits: int = 3) -> str:
    """A difference with its sign, interval and, where it decides nothing, the word for that."""
    if one is None:
        return "–"
    span = one["interval"]
    ends = f" [{span[0]:+.{digits}f},{NARROW}{span[1]:+.{digits}f}]" if span else ""
    return f"{one['mean']:+.{digits}f}{ends}{' unresolved' * (one['verdict'] == UNRESOLVED)}".replace("-", "−")


def percent(value: float | None) -> str:
    """A share in percent; words for nothing."""
    return "an unknown share" if value is None else f"{value:.1%}"
