"""Plain values made to fit a type hint, or refused in words.

YAML and the command line know fewer types than a dataclass: a list becomes the tuple of a hint, `8` and `"1e-4"` become
floats. Nothing else is guessed: `1.5` is no whole number and `no` is no string.
"""

from __future__ import annotations

import math
import re
import types
import typing
from collections.abc import Mapping
from typing import Any

from adaptrain.errors import nearest
from adaptrain.hints import shown, words

_DECIMAL = re.compile(r"[-+]?((0|[1-9][0-9]*)(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?")


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
    # What fits as it is goes before what fits after a change: in `float | Literal["learned"]`, "learned" is a string.
    exact = [a for a in arguments if a in (bool, int, str) and type(value) is a]
    for argument in [*exact, *arguments]:
        try:
            return convert(value, argument)
        except Misfit:
            continue
    raise Misfit(_not(value, hint))


def _number(value: Any) -> float | None:
    """A finite number, also as the string that YAML makes of `1e-4`."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    if isinstance(value, str) and _DECIMAL.fullmatch(value.strip()) is None:  # Python also reads 1_0 and ١٢
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _not(value: Any, hint: Any) -> str:
    literals = [word for word in _literals(hint) if isinstance(word, str)]
    if isinstance(value, str) and (near := nearest(value, literals)):
        return f"is {shown(value)}{near} It must be {words(hint)}"
    sentence = f"is {shown(value)}; it must be {words(hint)}"
    if isinstance(value, bool) and _takes_words(hint):
        return sentence + "; YAML reads yes, no, on, off as true and false: put it in quotes"
    if isinstance(value, int | float) and not isinstance(value, bool) and _takes_words(hint):
        return sentence + "; put it in quotes"
    return sentence


def _literals(hint: Any) -> list[Any]:
    if typing.get_origin(hint) is typing.Literal:
        return list(typing.get_args(hint))
    return [word for argument in typing.get_args(hint) for word in _literals(argument)]


def _takes_words(hint: Any) -> bool:
    if typing.get_origin(hint) is typing.Literal:
        return any(isinstance(word, str) for word in typing.get_args(hint))
    return hint is str or any(_takes_words(argument) for argument in typing.get_args(hint))
