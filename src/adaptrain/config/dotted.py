"""Dotted keys in a file: `trainer.epochs: 3` is what it is on the command line, the key `epochs` in the section
`trainer`. Keys with dots that are data, such as the names in a mapping of layers, stay as they are."""

from __future__ import annotations

import typing

from adaptrain.config.documents import Items, Leaf, Tree, first_origin
from adaptrain.config.keys import section_in
from adaptrain.config.schema import MemberConfig, RunConfig


def undotted(tree: Tree, problems: list[str], kind: type = RunConfig, prefix: str = "") -> Tree:
    """The tree of a run, or of a section of it, without dotted keys.

    Args:
        problems: gets a sentence for a key that is given in both ways.
        kind: the dataclass of the section.
        prefix: of its keys, for messages.
    """
    hints = typing.get_type_hints(kind)
    outcome: Tree = {}
    for key, node in tree.items():
        words = key.split(".")
        if not _is_path(words, kind, hints):
            words = [key]
        _insert(outcome, words, node, prefix, problems)
    for key, node in outcome.items():
        if not isinstance(node, dict) or isinstance(node, Items):
            continue
        if kind is RunConfig and key == "adapters":
            for name, entry in node.items():
                if isinstance(entry, dict) and not isinstance(entry, Items):
                    node[name] = undotted(entry, problems, MemberConfig, f"{prefix}{key}.{name}.")
        elif (inner := section_in(hints.get(key))) is not None:
            outcome[key] = undotted(node, problems, inner, f"{prefix}{key}.")
    return outcome


def _is_path(words: list[str], kind: type, hints: dict[str, typing.Any]) -> bool:
    """Whether the words of a key name a place in a section. At the top of a run there are no other keys with dots."""
    if len(words) < 2 or not all(words):
        return False
    return kind is RunConfig or words[0] == "adapter" or section_in(hints.get(words[0])) is not None


def _insert(tree: Tree, words: list[str], node: Tree | Leaf, prefix: str, problems: list[str]) -> None:
    """Put a node at its place; one that is there already is a mistake, two sections become one."""
    first, *rest = words
    there = tree.get(first)
    empty = isinstance(there, Leaf) and there.value in (None, {})
    if rest:
        if there is None or empty:
            there = tree[first] = {}
        if isinstance(there, dict):
            _insert(there, rest, node, f"{prefix}{first}.", problems)
            return
    elif there is None or empty:
        tree[first] = node
        return
    elif isinstance(node, Leaf) and node.value in (None, {}):
        return
    elif type(there) is dict and type(node) is dict:
        for key, inner in node.items():
            _insert(there, [key], inner, f"{prefix}{first}.", problems)
        return
    origin = first_origin(node)
    problems.append(f"{origin}: the key '{prefix}{'.'.join(words)}' is given twice (also at {first_origin(there)})")
