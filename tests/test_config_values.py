"""Values made to fit a type, or refused in words that say what would."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import pytest

from adaptrain.config.values import Misfit, convert, shown, words

SCHEDULE = Literal["linear", "cosine"]
SCALING = float | Literal["learned", "channel"]
RESIDUAL = bool | Literal["post_add"]
FACTOR = float | Mapping[str, float]


@pytest.mark.parametrize(
    ("value", "hint", "expected"),
    [
        (3, int, 3),
        (3, float, 3.0),
        ("1e-4", float, 1e-4),
        ("3", float, 3.0),
        (True, bool, True),
        ("x", str, "x"),
        (None, int | None, None),
        (3, int | None, 3),
        ("linear", SCHEDULE, "linear"),
        ("learned", SCALING, "learned"),
        (2, SCALING, 2.0),
        ("0.5", SCALING, 0.5),
        (True, RESIDUAL, True),
        ("post_add", RESIDUAL, "post_add"),
        (16, FACTOR, 16.0),
        ({"0": 8, "default": 16}, FACTOR, {"0": 8.0, "default": 16.0}),
        ([], tuple[str, ...], ()),
        (["q", "v"], tuple[Literal["q", "k", "v"], ...], ("q", "v")),
        ({"any": 1}, Any, {"any": 1}),
    ],
)
def test_what_fits(value, hint, expected):
    found = convert(value, hint)
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("value", "hint", "says"),
    [
        (1.5, int, "is 1.5; it must be a whole number"),
        (3.0, int, "is 3.0; it must be a whole number"),
        (True, int, "is true; it must be a whole number"),
        ("abc", int, "is 'abc'; it must be a whole number"),
        ("abc", float, "is 'abc'; it must be a finite number"),
        (True, float, "is true; it must be a finite number"),
        ("nan", float, "is 'nan'; it must be a finite number"),
        (float("inf"), float, "is inf; it must be a finite number"),
        (1, bool, "is 1; it must be true or false"),
        ("yes", bool, "is 'yes'; it must be true or false"),
        (
            False,
            str,
            "is false; it must be a string; YAML reads yes, no, on, off as true and false: put it in quotes",
        ),
        (2024, str, "is 2024; it must be a string; put it in quotes"),
        (None, str, "is null; it must be a string"),
        (None, int, "is null; it must be a whole number"),
        ("liner", SCHEDULE, "is 'liner', did you mean 'linear'? It must be one of linear, cosine"),
        ("x", tuple[str, ...], "is 'x'; it must be a list (each item a string)"),
        ([False, True], tuple[str, ...], "is false; it must be a string; YAML reads"),
        ([1], int, "is [1]; it must be a whole number"),
        ({"a": 1}, float, "is {a: 1}; it must be a finite number"),
        ({"a": "b"}, FACTOR, "is {a: 'b'}; it must be a finite number or a mapping (each value a finite number)"),
        ("x", int | None, "is 'x'; it must be a whole number or null"),
        (10**400, float, "it must be a finite number"),
    ],
)
def test_what_does_not(value, hint, says):
    with pytest.raises(Misfit) as caught:
        convert(value, hint)
    assert says in str(caught.value)


def test_words_and_values_as_people_write_them():
    assert words(SCALING) == "a finite number or one of learned, channel"
    assert words(RESIDUAL) == "true or false or post_add"
    assert shown([True, None, "a", 1.0]) == "[true, null, 'a', 1.0]"
