"""YAML from other people: its size is known before anything is built of it."""

from typing import Any

import yaml

from pipeline.base.errors import LeafError, first_line

MAX_YAML_CHARACTERS = 16 * 2**20
MAX_YAML_VALUES = 1_000_000
"""Scalars, lists and mappings, each counted wherever an alias repeats it: a few lines of aliases stand for billions."""


def parse_yaml(text: str) -> Any:
    """What a YAML document says, in plain Python values.

    Raises:
        LeafError: it is not YAML, or stands for more than MAX_YAML_VALUES values; begins with the reason.
    """
    if len(text) > MAX_YAML_CHARACTERS:
        raise LeafError(f"has more than {MAX_YAML_CHARACTERS:,} characters")
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        if _count_values(node, {}) > MAX_YAML_VALUES:
            raise LeafError(f"its aliases stand for more than {MAX_YAML_VALUES:,} values")
        return loader.construct_document(node)
    except RecursionError:
        raise LeafError("is nested too deeply, or holds itself") from None
    except yaml.MarkedYAMLError as error:
        raise LeafError(f"is not YAML: {_reason(error)}") from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # of a date or a number that is none
        raise LeafError(f"is not YAML: {first_line(error)}") from None


def _reason(error: yaml.MarkedYAMLError) -> str:
    """What is wrong, where, and what may mend it."""
    mark, begin = error.problem_mark or error.context_mark, error.context_mark
    place = f" in line {mark.line + 1}, column {mark.column + 1}" if mark else ""
    if mark and begin and begin.line != mark.line:
        place += f", {error.context} that begins in line {begin.line + 1}"
    hint = "what has brackets or braces, `: ` or ` #` in it stands in quotes"
    if "'\\t'" in (error.problem or ""):
        hint = "lines are indented by spaces, not by tabs"
    return f"{error.problem or error.context}{place}; {hint}"


def _count_values(node: yaml.Node, known: dict[int, int]) -> int:
    """Values that a node stands for; one that holds itself ends in a RecursionError."""
    if id(node) not in known:
        parts = [part for pair in node.value for part in pair] if isinstance(node, yaml.MappingNode) else node.value
        inner = parts if isinstance(node, yaml.CollectionNode) else []
        known[id(node)] = 1 + sum(_count_values(part, known) for part in inner)
    return known[id(node)]
