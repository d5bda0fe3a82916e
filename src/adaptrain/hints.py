"""Type hints and values in the words of messages: `int | None` is "a whole number or null"."""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping
from typing import Any

from adaptrain.errors import listed

_PLAIN: dict[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a finite number",
    str: "a string",
    None: "null",
    type(None): "null",
}


def words(hint: Any) -> str:
    """What a type hint allows."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        names = [shown(word).strip("'") for word in arguments]
        return names[0] if len(names) == 1 else f"one of {listed(names)}"
    if origin in (typing.Union, types.UnionType):
        return " or ".join(words(argument) for argument in arguments)
    if origin is tuple:
        return f"a list (each item {words(arguments[0])})"
    if origin is not None:
        return f"a mapping (each value {words(arguments[1])})"
    return _PLAIN.get(hint, str(hint))


def shown(value: Any) -> str:
    """A value as YAML writes it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {shown(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(shown(item) for item in value) + "]"
    return {None: "null"}.get(value, f"'{value}'" if isinstance(value, str) else str(value))
