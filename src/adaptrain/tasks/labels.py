"""The label map of a classification: as declared, as the data say, or from the values of the training split."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Mapping, Sequence
from contextlib import suppress
from decimal import Decimal, InvalidOperation
from functools import lru_cache
from typing import Any

import datasets

from adaptrain.errors import DataError, listed
from adaptrain.tasks.bad_rows import is_gap
from adaptrain.tasks.lists import WRITE, is_bracketed

MOST = 256
"""Labels that are inferred; a map with more must be written down."""

TRUTHS = ("false", "true")
"""The label map of truth values."""

_DECLARE = "Write the map down in task.labels"


def infer_labels(values: Sequence[Any], feature: Any, column: str, place: str) -> tuple[str, ...]:
    """The names of the labels in the order of their indices.

    Those of a `ClassLabel`; `false` and `true` of truth values; else the values that occur, words by the alphabet,
    whole numbers by size. A text is a word, whatever it looks like: "1.0" and "1" are two. Rows without a label do not
    count.

    Raises:
        DataError: fractions, more than 256 or fewer than two labels, or two that differ in nothing but case, blanks or
            how Unicode writes a letter.
    """
    if isinstance(feature, datasets.ClassLabel):
        return tuple(str(name) for name in feature.names)
    if isinstance(feature, datasets.Value) and feature.dtype == "bool":
        return TRUTHS
    where = f"{place}: the label map cannot be inferred from column '{column}': "
    found: dict[Any, int] = {}
    for row, value in enumerate(values, start=1):
        if is_gap(value) or (isinstance(value, str) and not value.strip()):
            continue
        if isinstance(value, float) and not value.is_integer():
            what = "a fraction" if math.isfinite(value) else "no number that can be a label"
            raise DataError(
                f"{where}row {row} has {value!r}, {what}. For numbers set task.type=regression; for words that look "
                "like numbers write the map down in task.labels"
            )
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            what = "true and false" if isinstance(value, bool) else type(value).__name__
            raise DataError(f"{where}row {row} has {value!r:.60}, and a map is of words or whole numbers, not {what}")
        found.setdefault(value, row)
        if len(found) > MOST:
            raise DataError(f"{where}it has more than {MOST} values in the first {row} rows. {_DECLARE}")
    if len({isinstance(value, str) for value in found}) > 1:
        word = next(value for value in found if isinstance(value, str))
        raise DataError(f"{where}there are numbers and words (row {found[word]} has {word!r}). {_DECLARE}")
    if set(found) == {-1}:
        raise DataError(f"{where}every label is -1, which marks a split without labels; choose another split")
    if -1 in found and 0 in found:
        raise DataError(f"{where}row {found[-1]} has -1, which marks rows without a label. {_DECLARE}")
    if len(found) < 2:
        raise DataError(f"{where}it has {f'only the value {next(iter(found))!r}' if found else 'no value'}. {_DECLARE}")
    seen: dict[str, Any] = {}
    for value, row in found.items():
        if isinstance(value, str) and seen.setdefault(key := _folded(value), value) != value:
            pair = listed(map(repr, (seen[key], value)))
            spelt = value.strip().casefold() == seen[key].strip().casefold()
            what = "case or blanks" if spelt else "how Unicode writes a letter"
            raise DataError(f"{where}{pair} differ only in {what} (row {row}). Make them one")
    return tuple(str(value) for value in sorted(found))


def _folded(word: str) -> str:
    return unicodedata.normalize("NFC", word).strip().casefold()


def words_of(value: Any) -> list[Any]:
    """The names in a text, with commas or | between them; a value that is no text has none."""
    return (
        [word.strip() for word in value.replace("|", ",").split(",") if word.strip()] if isinstance(value, str) else []
    )


def words_in_lists(values: Sequence[Any], several: bool, column: str, place: str) -> list[Any]:
    """The labels in a column of lists.

    Args:
        several: whether a text stands for the names in it, as for tasks with several labels a row; else a row with a
            text has no labels, and is found to be bad when its split is read.

    Raises:
        DataError: a text looks like a list and cannot be read as one, so that its names cannot be told apart.
    """
    words: list[Any] = []
    for row, value in enumerate(values, start=1):
        if isinstance(value, list | tuple):
            words += value
        elif several and is_bracketed(value):
            raise DataError(
                f"{place}, row {row}: the label map cannot be inferred from column '{column}': {value!r:.60} looks "
                f"like a list and cannot be read as one. {WRITE}"
            )
        elif several:
            words += words_of(value)
    return words


@lru_cache(maxsize=64)
def numbers_in(labels: tuple[str, ...]) -> Mapping[Decimal, tuple[int, ...]]:
    """The numbers among the names of a label map → the indices of the labels that have them for names: "3", "1.0",
    "007", "1e3". In a map with one of them a number in a row can only be meant by name: as an index the same column
    would silently shift by one.

    >>> numbers_in(("1", "two", "1.0"))
    {Decimal('1'): (0, 2)}
    """
    numbers: dict[Decimal, tuple[int, ...]] = {}
    for index, name in enumerate(labels):
        with suppress(InvalidOperation):
            number = Decimal(name)
            if number.is_finite():
                numbers[number] = (*numbers.get(number, ()), index)
    return numbers
