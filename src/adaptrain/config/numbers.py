"""Numbers that YAML 1.1 reads as something else than they look: `010` is 8 there, `1:30` is 90 and `1_6` is 16."""

from __future__ import annotations

import re
from collections.abc import Iterator

import yaml

_TAGS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
_DECIMAL = re.compile(r"[-+]?((0|[1-9][0-9]*)|[0-9]*\.[0-9]*([eE][-+]?[0-9]+)?|\.(inf|nan))", re.IGNORECASE)
_SEPARATED = re.compile(r"(?<![\w.])[-+]?[0-9]+(_[0-9]+)+(\.[0-9_]+)?(?![\w.])")
_QUOTED = re.compile(r"'[^']*'|\"[^\"]*\"")


def misread_numbers(root: yaml.Node, loader: yaml.SafeLoader) -> Iterator[tuple[int, str]]:
    """Line, and a sentence, of each such number among the keys and values below a node."""
    seen: set[int] = set()
    nodes = [root]
    while nodes:
        node = nodes.pop()
        if id(node) in seen:  # an alias
            continue
        seen.add(id(node))
        if isinstance(node, yaml.MappingNode):
            nodes += [each for pair in reversed(node.value) for each in reversed(pair)]
        elif isinstance(node, yaml.SequenceNode):
            nodes += reversed(node.value)
        elif isinstance(node, yaml.ScalarNode) and node.tag in _TAGS and _DECIMAL.fullmatch(node.value) is None:
            number = loader.construct_object(node)
            yield node.start_mark.line + 1, misread(node.value, number)


def misread(text: str, number: float | str) -> str:
    """Why such a number is refused, and what to write."""
    return f"{text} would be read as {number}; write {number}, or put '{text}' in quotes if it is a string"


def separated(text: str) -> str | None:
    """The first number with `_` between its digits in an override's value, outside of quotes: Hydra drops the `_`."""
    match = _SEPARATED.search(_QUOTED.sub("", text))
    return match[0] if match else None
