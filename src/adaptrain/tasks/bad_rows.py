"""Rows that nothing should be trained or scored on: found, named and counted by reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from adaptrain.config.schema import TaskConfig
from adaptrain.errors import DataError
from adaptrain.tasks.shapes import Label, LabelledShape

MISSING, TYPE, EMPTY = "missing text", "text of another type", "empty text"
NO_LABEL, LABEL = "missing label", "label outside the map"


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
    """A column's values; `None` stands where a row is bad.

    Attributes:
        values: one a row.
        bad: in order.
    """

    values: list[Any]
    bad: list[Bad]


def check_texts(values: Sequence[Any], column: str, role: str, place: str, names: Sequence[Any] | None) -> Column:
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
        where = f"{place}, row {row}{'' if names is None else f' ({names[row - 1]})'}"
        cure = "Correct the row" if reason == EMPTY else f"Correct the row, or task.columns.{role}"
        bad.append(Bad(row, reason, f"{where}: the {role} in column '{column}' is {what}. {cure}"))
    return Column(list(values), bad)


def check_labels(
    values: Sequence[Any],
    classes: Sequence[str] | None,
    task: TaskConfig,
    shape: LabelledShape,
    place: str,
    names: Sequence[Any] | None,
) -> Column:
    """A column of labels as the shape's numbers.

    Args:
        classes: names of a label map of the data's own.
    """
    try:
        return Column(list(shape.labels(values, classes, task, place)), [])
    except DataError:
        pass
    known: dict[tuple[type, Any], Label | DataError] = {}
    found: list[Label | None] = []
    bad = []
    for row, value in enumerate(values, start=1):
        key = (type(value), repr(value))
        if key not in known:
            try:
                known[key] = shape.labels([value], classes, task, place)[0]
            except DataError as error:
                known[key] = error
        label = known[key]
        found.append(None if isinstance(label, DataError) else label)
        if isinstance(label, DataError):
            where = f"{place}, row {row}{'' if names is None else f' ({names[row - 1]})'}:"
            told = str(label).replace(f"{place}, row 1:", where, 1)
            bad.append(Bad(row, NO_LABEL if value is None or value == "" else LABEL, told))
    return Column(found, bad)


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
    return DataError(f"{told}; data.bad_rows=skip leaves {'it' if len(bad) == 1 else 'them'} out")
