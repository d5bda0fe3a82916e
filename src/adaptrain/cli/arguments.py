"""What follows a verb, told apart: a path, options, overrides. Overrides pass through as they are."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from adaptrain.errors import ConfigError, UsageError, listed, nearest, unknown

if TYPE_CHECKING:
    from adaptrain.config.schema import ColumnsConfig


@dataclass(frozen=True)
class Split:
    """A verb's arguments.

    Attributes:
        paths: arguments without `=`.
        options: option → value; empty for a flag.
        overrides: the rest, in order.
        repeated: option → every value, of those that may be given more than once.
    """

    paths: tuple[str, ...]
    options: Mapping[str, str]
    overrides: tuple[str, ...]
    repeated: Mapping[str, Sequence[str]] = field(default_factory=dict)


def split(
    arguments: Sequence[str],
    flags: Iterable[str] = (),
    valued: Iterable[str] = (),
    repeated: Iterable[str] = (),
    config: bool = False,
) -> Split:
    """Tell arguments apart.

    Args:
        flags: options without a value.
        valued: options with one, `--format md` or `--format=md`.
        repeated: options with one that may be given more than once.
        config: whether the verb takes the keys of a run; an unknown option may then be meant as one of them.

    Raises:
        UsageError: an unknown option, or one without its value.
    """
    flags, valued = tuple(flags), tuple(valued)
    paths, options, overrides = [], {}, []
    several: dict[str, list[str]] = {name: [] for name in repeated}
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        name, equals, value = argument.partition("=")
        if argument == "--":
            paths += rest
            break
        if argument in flags:
            options[argument] = ""
        elif name in valued or name in several:
            if not equals and not rest:
                raise UsageError(f"{name} needs a value")
            value = value if equals else rest.pop(0)
            if name in several:
                several[name].append(value)
            else:
                options[name] = value
        elif argument.startswith("-") and argument != "-":
            known = [*flags, *valued, *several, "--help"]
            raise UsageError(_unknown_option(name, value or next(iter(rest), ""), known, config))
        elif equals or argument.startswith("~"):
            overrides.append(argument)
        else:
            paths.append(argument)
    return Split(tuple(paths), options, tuple(overrides), several)


def _unknown_option(name: str, value: str, known: Sequence[str], config: bool) -> str:
    """Why an option is refused, and the key or the verb that somebody meant by it.

    Args:
        value: what follows it.
    """
    if config:
        from adaptrain.config.options import meant_by

        if cure := meant_by(name, "" if "=" in value or value.startswith("-") else value):
            return f"There is no option '{name}'; {cure}"
    return unknown("option", name, known, "The options are")


def one_path(found: Split, verb: str, default: str | None = None) -> str:
    """The single path that a verb takes.

    Raises:
        UsageError: none, or several.
    """
    if len(found.paths) > 1:
        raise UsageError(f"adaptrain {verb} takes one PATH, not {len(found.paths)}: {listed(found.paths)}")
    if found.paths:
        return found.paths[0]
    if default is None:
        raise UsageError(f"adaptrain {verb} needs a PATH; see adaptrain {verb} --help")
    return default


def read_pairs(overrides: Sequence[str], allowed: Sequence[str], verb: str) -> dict[str, str]:
    """`key=value` for a verb that composes no config.

    Raises:
        ConfigError: every key that the verb does not take.
    """
    found, problems = {}, []
    for override in overrides:
        key, _, value = override.partition("=")
        if key in allowed:
            found[key] = value.strip("'\"")
        else:
            problems.append(
                f"{key} (command line): {verb} has no key '{key}'{nearest(key, allowed) or '.'} "
                f"The keys of {verb} are: {listed(allowed)}"
            )
    if problems:
        raise ConfigError(problems)
    return found


def read_columns(overrides: Sequence[str]) -> ColumnsConfig:
    """`task.columns.ROLE=NAME` for roles of any type of task.

    Raises:
        ConfigError: a role that there is not, or a column in two roles.
    """
    from adaptrain.config.schema import ColumnsConfig

    known = [each.name for each in dataclasses.fields(ColumnsConfig)]
    given: dict[str, Any] = {}
    problems = []
    for override in overrides:
        role, _, value = override.removeprefix("task.columns.").partition("=")
        if role not in known:
            problems.append(unknown("role", role, known, "The roles are"))
        elif value.startswith("["):
            given[role] = tuple(word.strip(" '\"") for word in value.strip("[]").split(","))
        else:
            given[role] = value.strip("'\"")
    if not problems:
        found = ColumnsConfig(**given)
        problems = [f"task.columns.{role} (command line): {sentence}" for role, sentence in found.problems()]
        if not problems:
            return found
    raise ConfigError(problems)
