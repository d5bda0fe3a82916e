"""Another composition for a trained run: `composition` and `adapters` on the command line of `eval`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from adaptrain.config.arguments import read_arguments
from adaptrain.config.compose import apply_change
from adaptrain.config.composition import read_written
from adaptrain.config.documents import Leaf, Tree, first_origin
from adaptrain.config.library import library
from adaptrain.config.members import check_member, entries_of, settled
from adaptrain.config.report import Report, origin_of
from adaptrain.config.schema import MemberConfig
from adaptrain.errors import ConfigError, listed

KEYS = ("path", "revision", "leave_out")
"""Of an entry."""


@dataclass(frozen=True)
class Swap:
    """What an evaluation changes.

    Attributes:
        composition: as written; null keeps the trained one.
        adapters: saved ones, that take the place of those of their names or are added.
    """

    composition: str | Mapping[str, Any] | None
    adapters: Mapping[str, MemberConfig]


def read_swap(overrides: Sequence[str]) -> Swap | None:
    """Read such overrides; None where there are none.

    Raises:
        ConfigError: every mistake, a sentence each.
    """
    if not overrides:
        return None
    books = library()
    arguments = read_arguments(overrides, books)
    report = Report(arguments.problems)
    tree: Tree = {}
    for change in arguments.changes:
        apply_change(tree, settled(change, books, report), set(), report)
    written, _ = read_written(tree.get("composition"), report)
    adapters: dict[str, MemberConfig] = {}
    for name, entry in entries_of(tree, report).items():
        for key in set(entry) & {"adapter", "train", "task", "seed", "trainer"}:
            sentence = f"is for training; the keys of an adapter here are: {listed(KEYS)}"
            report.add(f"adapters.{name}.{key}", origin_of(entry, key), sentence)
        path = entry.get("path")
        if path is None or (isinstance(path, Leaf) and path.value is None):
            report.add(f"adapters.{name}.path", first_origin(entry), "is missing; name the folder of a saved adapter")
        elif (member := check_member(name, {key: entry[key] for key in entry}, {}, report)) is not None:
            adapters[name] = member
    if report.problems:
        raise ConfigError(list(dict.fromkeys(report.problems)))
    return Swap(written, adapters)
