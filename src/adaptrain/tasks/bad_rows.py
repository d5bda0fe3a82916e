"""Rows that nothing should be trained or scored on: found, named and counted by reason."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from adaptrain.errors import DataError

MISSING, TYPE, EMPTY = "missing text", "text of another type", "empty text"
NO_LABEL, LABEL = "missing label", "label outside the map"
ANSWER, CHOICES = "answer outside the context", "choices that are no list of texts"
COUNT = "another number of choices"


@dataclass(frozen=True)
class Bad:
    """One row and the first thing that is wrong with it.

    Attributes:
        row: number in its split, from 1.
        reason: one of the words above, to count by.
        told: the whole sentence, with split, row and value.
    """

    row: int
    reason: str
    told: str


@dataclass(frozen=True)
class Column:
    """A column's values, checked.

    Attributes:
        values: one a row. Where a row is bad, it stands there as it was read, a label as None.
        bad: in order.
        marks: what a value is known by, one a row, where it is neither text nor numbers.
        sizes: how large a value is, one a row, where that is not its tokens: pixels, seconds.
    """

    values: Sequence[Any]
    bad: Sequence[Bad] = ()
    marks: Sequence[str] | None = None
    sizes: Sequence[float] | None = None


Where = Callable[[int], str]
"""Number of a row, from 1 → where it is, for a message."""


def check_texts(values: Sequence[Any], column: str, role: str, where: Where) -> Column:
    """A column of texts: each is text, and not blank."""
    bad = []
    for row, value in enumerate(values, start=1):
        if isinstance(value, str):
            if value.strip():
                continue
            reason, what = EMPTY, "empty"
        elif value is None:
            reason, what = MISSING, "missing"
        else:
            reason, what = TYPE, f"{value!r:.60}, which is not text but {type(value).__name__}"
        cure = "Correct the row" if reason == EMPTY else f"Correct the row, or task.columns.{role}"
        bad.append(Bad(row, reason, f"{where(row)}: the {role} in column '{column}' is {what}. {cure}"))
    return Column(list(values), bad)


def check_each(
    values: Sequence[Any], convert: Callable[[Any, str], Any], where: Where, reason: Callable[[Any], str]
) -> Column:
    """A column of values that are converted one by one; equal ones are converted once.

    Args:
        convert: value, place → what it stands for; raises DataError with a message that begins with the place.
        reason: a value that was refused → what to count it by.
    """
    known: dict[tuple[type, str], Any] = {}
    found: list[Any] = []
    bad = []
    for row, value in enumerate(values, start=1):
        key = (type(value), repr(value))
        if key not in known:
            try:
                known[key] = convert(value, _HERE)
            except DataError as error:
                known[key] = error
        made = known[key]
        found.append(None if isinstance(made, DataError) else made)
        if isinstance(made, DataError):
            bad.append(Bad(row, reason(value), str(made).replace(_HERE, where(row), 1)))
    return Column(found, bad)


_HERE = "\0"
"""Stands for the place in a message until the row is known."""


def label_reason(value: Any) -> str:
    """What a refused label is counted by."""
    return NO_LABEL if value in ("", []) or is_gap(value) else LABEL


def is_gap(value: Any) -> bool:
    """Whether a table has nothing where a value should be: NaN stands for that in a column of fractions."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def first_of_each(columns: Sequence[Column]) -> list[Bad]:
    """The bad rows of several columns, each once, in order."""
    found: dict[int, Bad] = {}
    for column in columns:
        for bad in column.bad:
            found.setdefault(bad.row, bad)
    return [found[row] for row in sorted(found)]


def counted(bad: Sequence[Bad]) -> dict[str, int]:
    """Reason → rows."""
    return dict(Counter(each.reason for each in bad))


def in_words(counts: Mapping[str, int]) -> str:
    """`3 empty text, 1 missing label`."""
    return ", ".join(f"{count} {reason}" for reason, count in counts.items())


def refused(bad: Sequence[Bad], rows: int) -> DataError:
    """The error of a split that has bad rows: the first of them, and how many there are."""
    told = bad[0].told
    if len(bad) > 1:
        told += f". {len(bad)} of {rows} rows are bad: {in_words(counted(bad))}"
    message = f"{told}; data.bad_rows=skip leaves {'it' if len(bad) == 1 else 'them'} out"
    return DataError(message, "labels" if bad[0].reason == LABEL else None)
