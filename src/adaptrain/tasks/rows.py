"""The rows of one split, checked: texts that are text, labels that are in the map."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np

from adaptrain.config.schema import DataConfig, TaskConfig
from adaptrain.errors import DataError, listed, nearest
from adaptrain.tasks.bad_rows import EMPTY, Bad, Column, check_texts, counted, first_of_each, in_words, refused
from adaptrain.tasks.columns import settle_columns
from adaptrain.tasks.features import feature_of, names_of
from adaptrain.tasks.hints import unused_note
from adaptrain.tasks.lists import parse_list
from adaptrain.tasks.shapes import SHAPES
from adaptrain.tasks.sources import Source, home_of, locate

LISTS = ("choices", "answers", "tokens", "tags", "heads", "relations")
"""Roles whose rows have lists, in every task that has them."""


@dataclass(frozen=True)
class Rows:
    """What a task needs of one split.

    Attributes:
        split: its name, as configured.
        columns: role → one value a row. A label is an index of the label map, or what else its shape makes of it.
        place: where the rows came from.
        found: rows of the whole split; fewer are used where `data.max_train` or `data.max_eval` says so.
        fingerprint: sha256 over all rows of the split, in order, in the roles they play.
        bad: rows left out, by reason.
        sizes: role → how large its value is, one a row, where that is not its tokens: pixels, seconds.
        unused: what a person should know of columns that are not read, a sentence each.
    """

    split: str
    columns: Mapping[str, Sequence[Any]]
    place: str
    found: int
    fingerprint: str
    bad: Mapping[str, int] = field(default_factory=dict)
    sizes: Mapping[str, Sequence[float]] = field(default_factory=dict)
    unused: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    @property
    def texts(self) -> Sequence[str]:
        """The first text of each row."""
        return self.columns["text"]

    @property
    def pairs(self) -> Sequence[str] | None:
        """The text that it is read with; None for a task on single texts."""
        return self.columns.get("text_pair")

    @property
    def labels(self) -> Sequence[Any]:
        """One a row; none for a task that has no labels, and for rows that nobody has labelled."""
        return self.columns.get("label", ())


class Picked(Sequence[Any]):
    """Some values of a sequence that is computed when asked for, in any order."""

    def __init__(self, values: Sequence[Any], indices: Sequence[int]) -> None:
        self.values, self.indices = values, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self.values[each] for each in self.indices[index]]
        return self.values[self.indices[index]]


@dataclass(frozen=True)
class Split:
    """A split as it was read, with the roles of its columns: what a shape looks at.

    Attributes:
        table: its rows.
        task: with every column named.
        place: source and split, for messages.
        names: what each row is called in messages; None where it has a number alone.
        home: the folder that relative paths in the rows start from; None for where the program runs.
    """

    table: datasets.Dataset
    task: TaskConfig
    place: str
    names: Sequence[Any] | None = None
    home: Path | None = None

    @classmethod
    def of(cls, table: datasets.Dataset, task: TaskConfig, place: str, home: Path | None = None) -> Split:
        """
        Raises:
            DataError: there is no column of the names.
        """
        split = cls(table, task, place, home=home)
        return split if task.columns.id is None else replace(split, names=split.values("id"))

    def where(self, row: int) -> str:
        """A row in words.

        Args:
            row: from 1.
        """
        return f"{self.place}, row {row}{'' if self.names is None else f' ({self.names[row - 1]})'}"

    def column(self, role: str) -> str:
        """What the column of a role is called."""
        given = self.task.columns.declared()[role]
        return given if isinstance(given, str) else ", ".join(given)

    def has(self, role: str) -> bool:
        """Whether a column plays a role."""
        return role in self.task.columns.declared()

    def values(self, role: str) -> list[Any]:
        """The values of a role, as they were read; of several columns the list of theirs. A list that is written as
        text is a list where the role needs one.

        Raises:
            DataError: there is no such column.
        """
        given = self.task.columns.declared()[role]
        if not isinstance(given, str):
            return [list(row) for row in zip(*(self._one(column, role) for column in given), strict=True)]
        values = self._one(given, role)
        return [parse_list(value) for value in values] if role in self.lists else values

    @property
    def lists(self) -> tuple[str, ...]:
        """The roles whose rows have lists."""
        return (*LISTS, "label") if self.task.type == "multilabel" else LISTS

    def feature(self, role: str) -> Any:
        """What `datasets` says of the column of a role; of several the first."""
        given = self.task.columns.declared()[role]
        return feature_of(given if isinstance(given, str) else given[0], self.table.features)

    def texts(self, role: str) -> Column:
        """A column of texts; of several, their texts joined by blanks. Each of them must be one."""
        given = self.task.columns.declared()[role]
        if isinstance(given, str):
            return check_texts(self.values(role), given, role, self.where)
        parts = [check_texts(self._one(column, role), column, role, self.where) for column in given]
        joined = [" ".join(map(str, texts)) for texts in zip(*(part.values for part in parts), strict=True)]
        return Column(joined, first_of_each(parts))

    def _one(self, column: str, role: str) -> list[Any]:
        self.check(column, role)
        if column in self.table.column_names:
            return list(self.table[column][:])
        first, *path = column.split(".")
        return [_under(value, path) for value in self.table[first][:]]

    def check(self, column: str, role: str) -> None:
        """
        Raises:
            DataError: there is no such column.
        """
        if feature_of(column, self.table.features) is None:
            known = names_of(self.table.features)
            raise DataError(
                f"{self.place}: there is no column '{column}'{nearest(column, known) or '.'} The columns are: "
                f"{listed(known)}. Name one in task.columns.{role}",
                f"columns.{role}",
                column,
            )


def _under(value: Any, path: Sequence[str]) -> Any:
    """What mappings within each other have under a path of names; None where one is missing."""
    for name in path:
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def load_training_rows(task: TaskConfig, data: DataConfig, seed: int, source: Source | None = None) -> Rows:
    """The training split; with `data.max_train` a sample of it that depends on the seed alone."""
    rows = load_rows(task, task.splits.train, source or locate(task, data), data.bad_rows)
    if data.max_train is None or data.max_train >= len(rows):
        return rows
    return selected(rows, np.random.default_rng(seed).permutation(len(rows))[: data.max_train].tolist())


def load_evaluation_rows(task: TaskConfig, data: DataConfig, split: str, source: Source | None = None) -> Rows:
    """A split to evaluate on; with `data.max_eval` its first rows."""
    rows = load_rows(task, split, source or locate(task, data), data.bad_rows)
    if data.max_eval is None or data.max_eval >= len(rows):
        return rows
    return selected(rows, range(data.max_eval))


def load_rows(task: TaskConfig, split: str, source: Source, bad_rows: str = "error") -> Rows:
    """All rows of a split, but bad ones.

    Args:
        bad_rows: `error` refuses a split that has a bad row, `skip` leaves those out. Where words of the text are to be
            masked, blank texts are left out anyway: they end paragraphs.

    Raises:
        DataError: the split is missing or empty, a column is missing or not the only one that could be meant; a row is
            bad: a text is not text or is empty, a label is not in the map.
    """
    table = source.read(split)
    place = f"{source.place}, split '{split}'"
    task, _, unused = settle_columns(task, table.features, place)
    columns, bad = examine(table, task, place, home_of(source.place, split))
    refusable = [each for each in bad if each.reason != EMPTY] if SHAPES[task.type].blank_lines else bad
    if refusable and bad_rows == "error":
        raise refused(refusable, len(table))
    counts = counted(bad)
    if len(bad) == len(table):
        told = "texts are empty" if set(counts) == {EMPTY} else f"rows are bad: {in_words(counts)}"
        raise DataError(f"{place}: all {len(table)} {told}")
    out = {each.row - 1 for each in bad}
    kept = [row for row in range(len(table)) if row not in out]
    return Rows(
        split,
        {role: picked(column.values, kept) for role, column in columns.items()},
        source.place,
        len(table),
        _fingerprint([picked(column.marks or column.values, kept) for column in columns.values()]),
        bad=counts,
        sizes=sizes_of(columns, kept),
        unused=tuple(unused_note(task, unused)),
    )


def sizes_of(columns: Mapping[str, Column], kept: Sequence[int]) -> dict[str, Sequence[float]]:
    """Role → the sizes of its values in some rows, of roles that have sizes."""
    return {role: picked(column.sizes, kept) for role, column in columns.items() if column.sizes is not None}


def examine(
    table: datasets.Dataset, task: TaskConfig, place: str, home: Path | None = None
) -> tuple[dict[str, Column], list[Bad]]:
    """Look at every row of a split.

    Args:
        task: with every column named.
        home: the folder that relative paths in the rows start from.

    Returns:
        Role → its column; each bad row once.

    Raises:
        DataError: a column is missing, or there is no label map.
    """
    columns = SHAPES[task.type].examine(Split.of(table, task, place, home))
    return columns, first_of_each(list(columns.values()))


def selected(rows: Rows, indices: Sequence[int]) -> Rows:
    """Some of the rows, in this order."""
    columns, sizes = (
        {role: picked(values, indices) for role, values in each.items()} for each in (rows.columns, rows.sizes)
    )
    return replace(rows, columns=columns, sizes=sizes)


def picked(values: Sequence[Any], indices: Sequence[int]) -> Sequence[Any]:
    """Some values in this order; those that are computed when asked for are left to be."""
    if len(indices) == len(values) and isinstance(indices, range):
        return values
    return [values[index] for index in indices] if isinstance(values, list) else Picked(values, indices)


def _fingerprint(columns: Sequence[Sequence[Any]]) -> str:
    digest = hashlib.sha256()
    for row in zip(*columns, strict=True):
        digest.update(json.dumps(row, ensure_ascii=False, separators=(",", ":")).encode())
        digest.update(b"\n")
    return digest.hexdigest()
