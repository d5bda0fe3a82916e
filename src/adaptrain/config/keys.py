"""The dotted keys of a run, read off the dataclasses. Light: shell completion asks for them at every keystroke."""

from __future__ import annotations

import dataclasses
import typing
from typing import Any

from adaptrain.config.schema import RunConfig


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
