"""What is wrong with a configuration, collected key by key."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

from adaptrain.config.documents import Leaf, Origin, Tree, first_origin, plain
from adaptrain.config.numbers import misread, separated
from adaptrain.config.values import Misfit, convert

MISSING = "???"
"""Hydra's mark of a value that has to be set yet."""


class _Bad:
    pass


BAD: Final = _Bad()
"""Stands for a value that was refused (null is a value)."""


@dataclass
class Report:
    """What was found.

    Attributes:
        problems: a sentence each.
        bad: dotted keys that have one.
        silent: sections that are not looked at, because the choice that fills them is wrong already.
    """

    problems: list[str] = field(default_factory=list)
    bad: set[str] = field(default_factory=set)
    silent: set[str] = field(default_factory=set)

    def add(self, key: str, origin: Origin | None, sentence: str) -> None:
        self.bad.add(key)
        self.problems.append(f"{key}{f' ({origin})' if origin is not None else ''}: {sentence}")


def fitted(node: Tree | Leaf, hint: Any, dotted: str, report: Report) -> Any:
    """A key's value in the type that its hint asks for, or `BAD`."""
    value = plain(node)
    if value == MISSING:
        report.add(dotted, first_origin(node), f"has no value yet; set it by {dotted}=…")
        return BAD
    text = node.text if isinstance(node, Leaf) else None
    try:
        converted = convert(value, hint)
        if text is not None and isinstance(value, int | float) and separated(text):
            report.add(dotted, first_origin(node), misread(text, value))
            return BAD
        return converted
    except Misfit as misfit:
        if text is not None:
            try:
                return convert(text, hint)  # a revision 1234567, typed without quotes, is meant as a string
            except Misfit:
                pass
        report.add(dotted, first_origin(node), str(misfit))
        return BAD


def origin_of(tree: Tree, key: str) -> Origin | None:
    """Where a key of a section was set."""
    return first_origin(tree[key]) if key in tree else None
