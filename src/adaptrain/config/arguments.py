"""The command line's overrides, read with Hydra's grammar: `key=value`, `group=name`, `+key=value`, `~key`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import HydraException

from adaptrain.config.defaults import refusal, stand_in
from adaptrain.config.documents import COMMAND_LINE, Items, Leaf, Tree
from adaptrain.config.library import GROUPS, Library, is_yaml
from adaptrain.config.numbers import misread, separated
from adaptrain.config.options import meant_by
from adaptrain.errors import UsageError, nearest

_EXPRESSION = re.compile(r"(?!(choice|shuffle|sort|tag|glob)\()\w+\s*\(")
"""A block with its children; not one of the functions that Hydra has for sweeps."""


@dataclass(frozen=True)
class Change:
    """A key to set (`node`), or to take out (`node` is None)."""

    key: str
    node: Tree | Leaf | None


@dataclass
class Arguments:
    """What the overrides ask for.

    Attributes:
        choices: group → name; a wrong name is replaced by what was probably meant.
        unsettled: groups whose choice is wrong and resembles nothing.
        changes: in the order given.
        problems: a sentence each.
    """

    choices: dict[str, str] = field(default_factory=dict)
    unsettled: set[str] = field(default_factory=set)
    changes: list[Change] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def read_arguments(arguments: Sequence[str], books: Library) -> Arguments:
    """Read overrides of one run; every mistake in the grammar or in a choice is collected."""
    found = Arguments()
    for argument in arguments:
        try:
            override = parse_override(argument, books)
        except UsageError as error:
            found.problems.append(str(error))
            continue
        problem = _refuse(override, argument)
        if problem is not None:
            found.problems.append(problem)
        elif is_choice(override):
            _choose(override, argument, books, found)
        elif override.is_delete():
            found.changes.append(Change(override.key_or_group, None))
        else:
            text = override.get_value_string()
            number = separated(text) if isinstance(override.value(), list | dict) else None
            if number is not None:
                meant = number.replace("_", "")
                found.problems.append(f"{override.key_or_group} (command line): {misread(number, meant)}")
                continue
            found.changes.append(Change(override.key_or_group, _node(override.value(), text)))
    return found


def parse_override(argument: str, books: Library) -> Override:
    """One override.

    Raises:
        UsageError: it does not follow Hydra's grammar.
    """
    try:
        return OverridesParser.create().parse_override(_quoted(argument))
    except HydraException as error:
        raise UsageError(f"'{argument}' (command line): {_misread(argument, str(error), books)}") from None


def _misread(argument: str, reason: str, books: Library) -> str:
    """What somebody meant whose words are no key=value: a recipe, a file, or an option with dashes."""
    if argument in books.choices("recipe"):
        return f"is a recipe; write recipe={argument}"
    if is_yaml(argument) and "=" not in argument:
        return f"is a file; say what of: recipe={argument}, or task=, adapter=, model="
    if argument.startswith("-"):
        option, _, value = argument.partition("=")
        return f"is an option, and keys are written without dashes; {meant_by(option, value) or 'write key=value'}"
    if "=" not in argument:
        reason = "there is no `=`"
        if meant := nearest(argument, books.choices("recipe")):
            return f"cannot be read as key=value ({reason}){meant} A recipe is chosen by recipe=NAME"
    return (
        f"cannot be read as key=value ({reason.strip().splitlines()[0]}); quote a value that has spaces or special "
        "characters: \"key='the value'\""
    )


def _quoted(argument: str) -> str:
    """`composition=stack(a, b)` with its value in quotes, since Hydra would call a function `stack`; of several values
    each."""
    key, equals, value = argument.partition("=")
    if key.lstrip("+") != "composition" or not equals:
        return argument
    pieces = [
        QuotedString(piece, Quote.single).with_quotes() if _EXPRESSION.match(piece) else piece
        for piece in map(str.strip, _pieces(value))
    ]
    return f"{key}={','.join(pieces)}"


def _pieces(text: str) -> list[str]:
    """A text cut at the commas that stand in no brackets and no quotes."""
    pieces, depth, quote = [""], 0, ""
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"":
            quote = character
        elif character in "([{":
            depth += 1
        elif character in ")]}":
            depth -= 1
        if character == "," and depth == 0 and not quote:
            pieces.append("")
        else:
            pieces[-1] += character
    return pieces


def is_choice(override: Override) -> bool:
    """Whether an override chooses from a group, rather than setting keys."""
    return override.key_or_group in GROUPS and not isinstance(override.value(), dict)


def _refuse(override: Override, argument: str) -> str | None:
    if override.is_hydra_override():
        return f"{argument} (command line): settings of Hydra are for sweeps; add -m"
    if override.is_sweep_override():
        return f"{argument} (command line): names several values; add -m to run each, or quote the value to mean one"
    if override.package is not None:
        return f"{argument} (command line): adaptrain has no packages; leave out '@{override.package}'"
    if "/" in override.key_or_group:
        dotted = override.key_or_group.replace("/", ".")
        return f"{argument} (command line): keys are written with dots: {dotted}"
    return None


def _choose(override: Override, argument: str, books: Library, found: Arguments) -> None:
    group, value = override.key_or_group, override.value()
    if group == "recipe" and (value is None or override.is_delete()):
        found.choices.pop("recipe", None)
        return
    if override.is_delete() or value is None or isinstance(value, list):
        found.problems.append(f"{argument} (command line): a run needs one {group}; choose it by {group}=NAME")
        return
    name = value if isinstance(value, str) else override.get_value_string()
    if books.find(group, name) is None:
        found.problems.append(f"{group}={name} (command line): {refusal(books, group, name)}")
        near = stand_in(books, group, name)
        if near is None:
            found.unsettled.add(group)
            return
        name = near
    found.choices[group] = name


def _node(value: Any, text: str | None = None) -> Tree | Leaf:
    if isinstance(value, Mapping) and value:
        return {str(key): _node(item) for key, item in value.items()}
    if isinstance(value, list) and value and all(isinstance(item, Mapping) and item for item in value):
        return Items({str(index): _node(item) for index, item in enumerate(value)})
    return Leaf(value, COMMAND_LINE, None if isinstance(value, list | dict) else text)
