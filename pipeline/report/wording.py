"""Numbers as text for people: figures with intervals, differences, shares."""

from collections.abc import Mapping, Sequence
from typing import Any

UNRESOLVED = "unresolved"
NARROW = "\N{NO-BREAK SPACE}"  # a line may break between figure and interval, but not inside the interval


def number(value: float | None, span: Sequence[float] | None = None, digits: int = 3) -> str:
    """`0.512 [0.480, 0.541]`, `span` being the interval; a dash for None."""
    if value is None:
        return "–"
    return f"{value:.{digits}f}" + (f" [{span[0]:.{digits}f},{NARROW}{span[1]:.{digits}f}]" if span else "")


def change(difference: Mapping[str, Any] | None, digits: int = 3) -> str:
    """A difference (an entry of `bootstrap.difference`) with sign and interval, `unresolved` if it straddles zero."""
    if difference is None:
        return "–"
    span = difference["interval"]
    ends = f" [{span[0]:+.{digits}f},{NARROW}{span[1]:+.{digits}f}]" if span else ""
    unresolved = f" {UNRESOLVED}" if difference["verdict"] == UNRESOLVED else ""
    return f"{difference['mean']:+.{digits}f}{ends}{unresolved}".replace("-", "−")


def percent(value: float | None, span: Sequence[float] | None) -> str:
    """A share in percent, `98.1% [96.4%, 99.7%]`; without an interval, whole percents; in words for None."""
    if value is None:
        return "an unknown share"
    return f"{value:.1%} [{span[0]:.1%},{NARROW}{span[1]:.1%}]" if span else f"{value:.0%}"
