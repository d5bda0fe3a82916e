"""The dotted keys of a run, read off the dataclasses. Light: shell completion asks for them at every keystroke."""

from __future__ import annotations

import dataclasses
import typing

from adaptrain.config.schema import RunConfig


def legal_keys(kind: type = RunConfig, prefix: str = "") -> list[str]:
    """Every dotted key of a run, but an adapter's own: those depend on its method."""
    keys = []
    for name, hint in typing.get_type_hints(kind).items():
        if dataclasses.is_dataclass(hint):
            keys += legal_keys(typing.cast(type, hint), f"{prefix}{name}.")
        else:
            keys.append(prefix + name)
    return keys


def named(key: str) -> list[str]:
    """The dotted keys whose last word is this one: where a misplaced key belongs."""
    return [other for other in legal_keys() if other.rpartition(".")[2] == key]
