"""The terms of stored vectors: each shard's licence, and that of a store made of shards under several.

The licence of a whole is an SPDX expression (ISO/IEC 5962, annex D) in which all of its parts apply. Terms are never
changed on the way: whoever combines shards keeps what each of them says.
"""

import re
from collections.abc import Iterable
from typing import Any

NOT_STATED = "LicenseRef-not-stated"
"""Stands for vectors whose licence nobody has stated, beside others."""


def joint_license(licenses: Iterable[str | None]) -> str | None:
    """The licence of a whole whose parts are under these: all of them apply. None if nobody has stated any."""
    stated = {license_ or NOT_STATED for license_ in licenses}
    if stated <= {NOT_STATED}:
        return None
    if len(stated) == 1:
        return stated.pop()
    return " AND ".join(sorted(set().union(*map(_conditions, stated))))


def joint_teacher(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """The description of one teacher from two stores: the first's, under the licences that either states for it."""
    stated = [description["license"] for description in (first, second) if description.get("license")]
    return {**first, "license": joint_license(stated)} if stated else first


def _conditions(license_: str) -> set[str]:
    """What an expression demands, each by itself; a choice (`OR`) is one condition."""
    if " OR " in re.sub(r"\([^()]*\)", "", license_):
        return {f"({license_})"}
    return set(re.split(r" AND (?![^()]*\))", license_))
