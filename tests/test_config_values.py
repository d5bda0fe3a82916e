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
        (1.5, int, "is 1.5, but a whole number is due"),
        (3.0, int, "is 3.0, but a whole number is due"),
        (True, int, "is true, but a whole number is due"),
        ("abc", int, "is 'abc', but a whole number is due"),
        ("abc", float, "is 'abc', but a finite number is due"),
        (True, float, "is true, but a finite number is due"),
        ("nan", float, "is 'nan', but a finite number is due"),
        (float("inf"), float, "is inf, but a finite number is due"),
        (1, bool, "is 1, but true or false is due"),
        ("yes", bool, "is 'yes', but true or false is due"),
        (
            False,
            str,
            "is false, but a word is due; YAML reads yes, no, on, off as true and false: put the word in quotes",
        ),
        (2024, str, "is 2024, but a word is due; put it in quotes"),
        (None, str, "is null, but a word is due"),
        (None, int, "is null, but a whole number is due"),
        ("liner", SCHEDULE, "is 'liner', but one of linear, cosine is due, did you mean 'linear'?"),
        ("x", tuple[str, ...], "is 'x', but a list (each item a word) is due"),
        ([False, True], tuple[str, ...], "is false, but a word is due; YAML reads"),
        ([1], int, "is [1], but a whole number is due"),
        ({"a": 1}, float, "is {a: 1}, but a finite number is due"),
        ({"a": "b"}, FACTOR, "is {a: 'b'}, but a finite number or a mapping (each value a finite number) is due"),
        ("x", int | None, "is 'x', but a whole number or null is due"),
        (10**400, float, "but a finite number is due"),
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
