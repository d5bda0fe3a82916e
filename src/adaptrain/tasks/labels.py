"""The label map of a classification: as declared, as the data say, or from the values of the training split."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import datasets

from adaptrain.errors import DataError, listed

MOST = 256
"""Labels that are inferred; a map with more must be written down."""

TRUTHS = ("false", "true")
"""The label map of truth values."""

_DECLARE = "Write the map down in task.labels"


def infer_labels(values: Sequence[Any], feature: Any, column: str, place: str) -> tuple[str, ...]:
    """The names of the labels in the order of their indices.

    Those of a `ClassLabel`; `false` and `true` of truth values; else the values that occur, words by the alphabet,
    whole numbers by size. Rows without a label do not count.

    Raises:
        DataError: fractions, more than 256 or fewer than two labels, or two that differ in nothing but
            case or blanks.
    """
    if isinstance(feature, datasets.ClassLabel):
        return tuple(str(name) for name in feature.names)
    if isinstance(feature, datasets.Value) and feature.dtype == "bool":
        return TRUTHS
    where = f"{place}: the label map cannot be inferred from column '{column}': "
    found: dict[Any, int] = {}
    for row, value in enumerate(values, start=1):
        if value is None or (isinstance(value, str) and not value.strip()):
            continue
        if isinstance(value, float) and not value.is_integer() and not math.isnan(value):
            raise DataError(f"{where}row {row} has {value!r}, a fraction. For numbers set task.type=regression")
        if isinstance(value, bool) or not isinstance(value, str | int):
            what = "true and false" if isinstance(value, bool) else type(value).__name__
            raise DataError(f"{where}row {row} has {value!r:.60}, and a map is of words or whole numbers, not {what}")
        found.setdefault(value, row)
        if len(found) > MOST:
            raise DataError(f"{where}it has more than {MOST} values in the first {row} rows. {_DECLARE}")
    if len({type(value) for value in found}) > 1:
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
        if isinstance(value, str) and seen.setdefault(value.strip().casefold(), value) != value:
            pair = listed(map(repr, (seen[value.strip().casefold()], value)))
            raise DataError(f"{where}{pair} differ only in case or blanks (row {row}). Make them one")
    return tuple(str(value) for value in sorted(found))


def words_of(value: Any) -> list[Any]:
    """The names in a text, with commas or | between them; a value that is no text has none."""
    return (
        [word.strip() for word in value.replace("|", ",").split(",") if word.strip()] if isinstance(value, str) else []
    )
