"""YAML files as trees whose every value knows the file and line it came from.

OmegaConf reads YAML too, but forgets where, and stops at the first mistake; here mistakes are collected.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Union

import yaml

from adaptrain.config.numbers import misread_numbers


@dataclass(frozen=True)
class Origin:
    """Where a value was written: a file and line, or a place without lines (`command line`, `default`)."""

    place: str
    line: int | None = None

    def __str__(self) -> str:
        return self.place if self.line is None else f"{self.place}:{self.line}"


COMMAND_LINE = Origin("command line")
DEFAULT = Origin("default")
"""A key that no file sets: the dataclass's own value."""


@dataclass(frozen=True)
class Leaf:
    """A value and its origin.

    Attributes:
        text: how it was typed, on the command line only: there 17 may be meant as a word.
    """

    value: Any
    origin: Origin
    text: str | None = None


Tree = dict[str, Union["Leaf", "Tree"]]


class Items(dict[str, Union["Leaf", "Tree"]]):
    """A list of sections, as a tree whose keys are 0, 1, …: each value inside knows its line, and the command line can
    set one (`adapter.configs.0.r=4`)."""


class Chosen(dict[str, Union["Leaf", "Tree"]]):
    """A section that was chosen by name, as a tree of its file: it replaces what stood in its place.

    Attributes:
        origin: of the name.
    """

    def __init__(self, tree: Tree, origin: Origin) -> None:
        super().__init__(tree)
        self.origin = origin


@dataclass(frozen=True)
class Document:
    """One YAML file.

    Attributes:
        label: the file as messages call it.
        tree: its keys, without `defaults`.
        defaults: the entries of its defaults list.
        header: its first comment line, without the `#`.
        problems: what is wrong with it, a sentence each, file and line first.
    """

    label: str
    tree: Tree
    defaults: tuple[Leaf, ...] = ()
    header: str = ""
    problems: list[str] = field(default_factory=list)


class _Loader(yaml.SafeLoader):
    """YAML 1.1 as PyYAML has it, but dates stay words. In Python: libyaml's loader, which is faster, ends the process
    where brackets are nested too deeply."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def read(file: Path, label: str) -> Document:
    """Read a file; whatever is wrong stands in `problems`, and the rest of the file is still there."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except OSError as error:
        return Document(label, {}, problems=[f"{label}: cannot be read ({error.strerror}); check the file"])
    except UnicodeDecodeError as error:
        return Document(label, {}, problems=[f"{label}: is not UTF-8 (byte {error.start}); save it as UTF-8"])
    return parse(text, label)


def parse(text: str, label: str) -> Document:
    """The same for YAML that is already in memory."""
    return deepcopy(_parse(text, label))  # whoever lays trees over each other does so in place


@lru_cache(maxsize=256)  # the cells of a sweep are composed from the same files
def _parse(text: str, label: str) -> Document:
    header = text.split("\n", 1)[0].removeprefix("#").strip() if text.startswith("#") else ""
    problems: list[str] = []
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        tree = _mapping(node, loader, label, problems) if node is not None else {}
        if node is not None:
            problems += [f"{label}:{line}: {sentence}" for line, sentence in misread_numbers(node, loader)]
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        what = " ".join(part for part in (error.context, error.problem) if part)
        return Document(label, {}, header=header, problems=[f"{label}:{line}: is not YAML ({what})"])
    except yaml.YAMLError as error:
        return Document(label, {}, header=header, problems=[f"{label}: is not YAML ({' '.join(str(error).split())})"])
    except ValueError as error:  # 0x_ has the form of a number and is none
        return Document(label, {}, header=header, problems=[f"{label}: is not YAML ({error})"])
    except RecursionError:
        told = f"{label}: is nested too deeply, or contains itself; remove the alias (`*name`)"
        return Document(label, {}, header=header, problems=[told])
    tree.pop("defaults", None)
    return Document(label, tree, _defaults(node, loader, label, problems), header, problems)


def _defaults(node: yaml.Node | None, loader: _Loader, label: str, problems: list[str]) -> tuple[Leaf, ...]:
    """The entries of `defaults:`, each with its line."""
    pairs = node.value if isinstance(node, yaml.MappingNode) else []
    for key_node, value_node in pairs:
        if key_node.value != "defaults":
            continue
        if isinstance(value_node, yaml.SequenceNode):
            return tuple(
                Leaf(loader.construct_object(entry, deep=True), Origin(label, entry.start_mark.line + 1))
                for entry in value_node.value
            )
        line = key_node.start_mark.line + 1
        problems.append(f"{label}:{line}: defaults is not a list; write lines such as `- override /adapter: lora`")
    return ()


def _mapping(node: yaml.Node, loader: _Loader, label: str, problems: list[str]) -> Tree:
    if not isinstance(node, yaml.MappingNode):
        what = "a list" if isinstance(node, yaml.SequenceNode) else "one value"
        problems.append(f"{label}:{node.start_mark.line + 1}: is {what}; write keys with values, such as `seed: 1`")
        return {}
    tree: Tree = {}
    lines: dict[str, int] = {}
    for key_node, _ in node.value:
        line = key_node.start_mark.line + 1
        name = str(key_node.value)
        if name in lines:
            problems.append(f"{label}:{line}: the key '{name}' is given twice (first in line {lines[name]})")
        lines.setdefault(name, line)
    loader.flatten_mapping(node)  # `<<: *anchor`
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        key = loader.construct_object(key_node, deep=True)
        if isinstance(key, bool) or key is None:
            said = "null" if key is None else str(key).lower()
            problems.append(f"{label}:{line}: YAML reads the key {key_node.value} as {said}; put it in quotes")
            continue
        if isinstance(value_node, yaml.MappingNode) and value_node.value:
            tree[str(key)] = _mapping(value_node, loader, label, problems)
        elif isinstance(value_node, yaml.SequenceNode) and _holds_sections(value_node):
            sections = (_mapping(entry, loader, label, problems) for entry in value_node.value)
            tree[str(key)] = Items({str(index): section for index, section in enumerate(sections)})
        else:
            tree[str(key)] = Leaf(loader.construct_object(value_node, deep=True), Origin(label, line))
    return tree


def _holds_sections(node: yaml.SequenceNode) -> bool:
    return bool(node.value) and all(isinstance(entry, yaml.MappingNode) and entry.value for entry in node.value)


def merge(base: Tree, over: Tree) -> None:
    """Lay a tree over another, in place. A section that is left empty (`trainer:`) changes nothing; a list and a
    choice replace."""
    for key, value in over.items():
        old = base.get(key)
        if isinstance(value, Items | Chosen):
            base[key] = value
        elif isinstance(value, dict):
            section: Tree = old if isinstance(old, dict) else {}
            merge(section, value)
            base[key] = section
        elif not (isinstance(old, dict) and value.value is None):
            base[key] = value


def plain(tree: Tree | Leaf) -> Any:
    """The values alone."""
    if isinstance(tree, Items):
        return [plain(value) for value in tree.values()]
    return {key: plain(value) for key, value in tree.items()} if isinstance(tree, dict) else tree.value


def leaves(tree: Tree, prefix: str = "") -> Iterator[tuple[str, Leaf]]:
    """Dotted key and leaf of everything in a tree, in order."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def first_origin(tree: Tree | Leaf) -> Origin | None:
    """Where the first value of a tree was written."""
    if isinstance(tree, Leaf | Chosen):
        return tree.origin
    for inner in tree.values():
        if (origin := first_origin(inner)) is not None:
            return origin
    return None
