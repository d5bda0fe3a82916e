"""Rows that a trained model is asked about: what it should say of them is not known, and not looked at."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import datasets

from adaptrain.config.schema import ColumnsConfig, TaskConfig
from adaptrain.config.task import SAID
from adaptrain.errors import DataError, listed, nearest
from adaptrain.tasks.bad_rows import Bad
from adaptrain.tasks.columns import KINDS, NAMES, infer_role, infer_texts, of_role
from adaptrain.tasks.features import constant_columns, feature_of, kind_of, names_of
from adaptrain.tasks.hints import inferred_note
from adaptrain.tasks.rows import Rows, examine, picked, sizes_of

Given = Mapping[str, str | tuple[str, ...]]


@dataclass(frozen=True)
class Asked:
    """Rows of a file, told apart.

    Attributes:
        rows: those that a model can be asked about.
        places: of each its number in the file, from 0.
        bad: the others.
        columns: role → the column that was read.
        notes: what a person should know of the columns.
    """

    rows: Rows
    places: Sequence[int]
    bad: Sequence[Bad]
    columns: Given
    notes: tuple[str, ...] = ()


def roles_read(task: TaskConfig) -> tuple[str, ...]:
    """The roles of what the model of a task reads.

    Args:
        task: as trained, with every column named.
    """
    return tuple(role for role in task.columns.declared() if role not in (*said_roles(task), "id"))


def said_roles(task: TaskConfig) -> tuple[str, ...]:
    """The roles of what it should say. A causal language model is asked how likely all words are, a target's too."""
    return () if task.type == "causal_lm" else SAID


def asked_rows(
    table: datasets.Dataset, task: TaskConfig, place: str, given: Given | None = None, home: Path | None = None
) -> Asked:
    """The rows of a table, as far as a model reads them.

    Args:
        task: as trained.
        place: of the table, for messages.
        given: role → its column here, where that is not to be found out.
        home: the folder that relative paths in the rows start from; None for where the program runs.

    Raises:
        DataError: a role has no column, or several that could be meant.
    """
    given, trained = given or {}, task.columns.declared()
    columns = asked_columns(task, table.features, place, given, constant_columns(table))
    inferred = {role: name for role, name in columns.items() if role not in given and name != trained.get(role)}
    known: dict[str, Any] = {**columns, **({"id": name} if (name := id_column(task, table.features)) else {})}
    found, bad = examine(table, replace(task, columns=ColumnsConfig(**known)), place, home)
    out = {each.row - 1 for each in bad}
    kept = [row for row in range(len(table)) if row not in out]
    values = {role: picked(column.values, kept) for role, column in found.items()}
    rows = Rows("", values, place, len(table), "", sizes=sizes_of(found, kept))
    return Asked(rows, kept, bad, columns, tuple(inferred_note(inferred)))


def id_column(task: TaskConfig, features: Mapping[str, Any]) -> str | None:
    """The column that says what a row is called: that of training, or one with a usual name."""
    names = [name for name in (task.columns.id, *NAMES["id"]) if name is not None]
    return next((name for name in names if name in features and kind_of(features[name]) in KINDS["id"]), None)


def asked_columns(
    task: TaskConfig, features: Mapping[str, Any], place: str, given: Given, constant: Collection[str] = ()
) -> dict[str, Any]:
    """The column of each role that the model reads: the one that is given, or else that of training, or else one that
    bears the role's name, or else the only one that can be meant (`docs/data.md`).

    Args:
        constant: columns that have one value in every row.

    Raises:
        DataError: a column that is given is not there; a role has no column, or several that could be meant.
    """
    trained, wanted = task.columns.declared(), roles_read(task)
    for role, column in given.items():
        if role not in wanted:
            raise DataError(
                f"task.columns.{role}={column}: task {task.name} reads no {role}"
                f"{nearest(role, wanted) or '.'} It reads: {listed(wanted)}"
            )
        if missing := [name for name in of_role(column) if not _there(name, features)]:
            raise DataError(
                f"{place}: there is no column '{missing[0]}'{nearest(missing[0], names_of(features)) or '.'} "
                f"The columns are: {listed(names_of(features))}. Name one in task.columns.{role}"
            )
    found: dict[str, Any] = dict(given)
    for named in (trained, {role: role for role in wanted}):
        for role in wanted:
            taken = {name for column in found.values() for name in of_role(column)}
            columns = [name for name in of_role(named[role]) if name not in taken and _there(name, features)]
            if role not in found and len(columns) == len(of_role(named[role])):
                found[role] = named[role]
    said = {name for role in said_roles(task) for name in (role, *of_role(trained.get(role, ())))}
    left = {name: feature for name, feature in features.items() if name not in said}
    if "text" in wanted and "text" not in found:
        bare = replace(task, columns=ColumnsConfig())
        inferred = infer_texts(bare, left, found, place, constant)
        if "text_pair" in inferred and "text_pair" not in wanted:
            raise DataError(
                f"{place}: task {task.name} reads one text, and there are two: {listed(inferred.values())}. "
                f"Say which: task.columns.text={inferred['text']}"
            )
        found |= inferred
    for role in wanted:
        if role in found:
            continue
        if role == "text_pair":
            raise DataError(
                f"{place}: task {task.name} reads a text_pair with the text '{found['text']}', and no column is that. "
                f"The columns are: {listed(features)}. Name one in task.columns.text_pair"
            )
        found[role] = infer_role(role, KINDS[role], left, found, place, constant=constant)
    return found


def _there(name: str, features: Mapping[str, Any]) -> bool:
    return feature_of(name, features) is not None
