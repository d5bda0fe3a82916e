"""Plain values made to fit a type hint, or refused in words.

YAML and the command line know fewer types than a dataclass: a list is due where the hint says tuple, `8` and `"1e-4"`
are fine where a float is due. Nothing else is guessed: `1.5` is no whole number and `no` is no word.
"""

from __future__ import annotations

import math
import types
import typing
from collections.abc import Mapping
from typing import Any

from adaptrain.errors import listed, nearest


class Misfit(Exception):
    """A value that does not fit; the text says what would, and the cure."""


def convert(value: Any, hint: Any) -> Any:
    """The value in the type that the hint asks for.

    Floats come out as floats whatever way they were written, so that equal configs have equal text.

    Raises:
        Misfit: it cannot be.
    """
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        return _one_of(value, hint, arguments)
    if origin is typing.Literal:
        if any(value == word and type(value) is type(word) for word in arguments):
            return value
        raise Misfit(_not(value, hint))
    if origin is tuple:
        if isinstance(value, list | tuple):
            return tuple(convert(item, arguments[0]) for item in value)
        raise Misfit(_not(value, hint))
    if origin is not None and issubclass(origin, Mapping):
        if isinstance(value, Mapping):
            return {convert(key, arguments[0]): convert(item, arguments[1]) for key, item in value.items()}
        raise Misfit(_not(value, hint))
    if hint is float and (number := _number(value)) is not None:
        return number
    if hint is int and isinstance(value, int) and not isinstance(value, bool):
        return value
    if hint in (bool, str) and isinstance(value, hint):
        return value
    if hint in (None, type(None)) and value is None:
        return None
    raise Misfit(_not(value, hint))


def _one_of(value: Any, hint: Any, arguments: tuple[Any, ...]) -> Any:
    # What fits as it is goes before what fits after a change: in `float | Literal["learned"]`, "learned" is a word.
    exact = [a for a in arguments if a in (bool, int, str) and type(value) is a]
    for argument in [*exact, *arguments]:
        try:
            return convert(value, argument)
        except Misfit:
            continue
    raise Misfit(_not(value, hint))


def _number(value: Any) -> float | None:
    """A finite number, also as the word that YAML makes of `1e-4`."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _not(value: Any, hint: Any) -> str:
    sentence = f"is {shown(value)}, but {words(hint)} is due"
    literals = [word for word in _literals(hint) if isinstance(word, str)]
    if isinstance(value, bool) and _takes_words(hint):
        return sentence + "; YAML reads yes, no, on, off as true and false: put the word in quotes"
    if isinstance(value, int | float) and not isinstance(value, bool) and _takes_words(hint):
        return sentence + "; put it in quotes"
    return sentence + (nearest(value, literals) if isinstance(value, str) else "")


def shown(value: Any) -> str:
    """A value as YAML writes it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {shown(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(shown(item) for item in value) + "]"
    return {None: "null"}.get(value, f"'{value}'" if isinstance(value, str) else str(value))


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
    return {
        bool: "true or false",
        int: "a whole number",
        float: "a finite number",
        str: "a word",
        None: "null",
        type(None): "null",
    }.get(hint, str(hint))


def _literals(hint: Any) -> list[Any]:
    if typing.get_origin(hint) is typing.Literal:
        return list(typing.get_args(hint))
    return [word for argument in typing.get_args(hint) for word in _literals(argument)]


def _takes_words(hint: Any) -> bool:
    if typing.get_origin(hint) is typing.Literal:
        return any(isinstance(word, str) for word in typing.get_args(hint))
    return hint is str or any(_takes_words(argument) for argument in typing.get_args(hint))
