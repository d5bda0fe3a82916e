"""The dotted keys of a run, read off the dataclasses. Light: shell completion asks for them at every keystroke."""

from __future__ import annotations

import dataclasses
import difflib
import typing
from collections.abc import Iterable
from typing import Any

from adaptrain.config.schema import RunConfig
from adaptrain.synonyms import synonym


def legal_keys(kind: type = RunConfig, prefix: str = "") -> list[str]:
    """Every dotted key of a run, but an adapter's own: those depend on its method."""
    keys = []
    for name, hint in typing.get_type_hints(kind).items():
        if (section := section_in(hint)) is not None:
            keys += legal_keys(section, f"{prefix}{name}.")
        else:
            keys.append(prefix + name)
    return keys


def section_in(hint: Any) -> type | None:
    """The dataclass of a type hint that is one, or one or null; None for all others."""
    found = [each for each in (hint, *typing.get_args(hint)) if dataclasses.is_dataclass(each)]
    return typing.cast(type, found[0]) if found and typing.get_origin(hint) is not dict else None


def named(key: str) -> list[str]:
    """The dotted keys whose last word is this one: where a misplaced key belongs."""
    return [other for other in legal_keys() if other.rpartition(".")[2] == key]


def similar(word: str, known: Iterable[str]) -> str | None:
    """The nearest known word, where one is near."""
    return next(iter(difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)), None)


def owners(key: str) -> list[str]:
    """The methods whose configs have a key."""
    from adaptrain.methods import methods  # late: it imports torch

    return [name for name, config in methods().items() if key in config.fields()]


def homes(key: str) -> list[str]:
    """The dotted keys that somebody may mean by a word: keys of ours, or what another tool's name is here."""
    if key in legal_keys():
        return [key]
    key = key.rpartition(".")[2]
    own = named(key) or [other for entry in [synonym(key)] if entry for other in entry.keys]
    return own or ([f"adapter.{key}"] if owners(key) else [])
