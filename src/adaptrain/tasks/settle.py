"""A task with nothing left open: each column named, the label map written down."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import datasets

from adaptrain.config.schema import DataConfig, TaskConfig
from adaptrain.config.task import MAPPED, ROLES
from adaptrain.errors import DataError
from adaptrain.tasks.columns import Role, settle_columns
from adaptrain.tasks.features import constant_columns
from adaptrain.tasks.hints import constant_notes, hints, inferred_note
from adaptrain.tasks.labels import infer_labels, words_in_lists
from adaptrain.tasks.rows import Split
from adaptrain.tasks.shapes.choices import choice_names
from adaptrain.tasks.sources import Source, locate


@dataclass(frozen=True)
class Settled:
    """What the training split says of a task.

    Attributes:
        task: with every column and label named: what is trained, saved and evaluated.
        roles: its columns, declared and inferred.
        unused: columns that no role has.
        notes: what was inferred, a sentence each.
    """

    task: TaskConfig
    roles: tuple[Role, ...]
    unused: tuple[str, ...]
    notes: tuple[str, ...]


def is_settled(task: TaskConfig) -> bool:
    """Whether nothing of a task is to be inferred, so that its rows need not be read to know it."""
    declared = task.columns.declared()
    needed = ROLES[task.type].needed or (("text",) if "text" in declared else ("source", "target"))
    return all(role in declared for role in needed) and (task.type not in MAPPED or bool(task.labels))


def settle_task(task: TaskConfig, data: DataConfig, source: Source | None = None) -> Settled:
    """Infer what the task leaves open from its training split.

    Raises:
        DataError: the split cannot be read, or more than one answer is possible.
    """
    source = source or locate(task, data)
    table = source.read(task.splits.train)
    place = f"{source.place}, split '{task.splits.train}'"
    constant = constant_columns(table)
    try:
        task, roles, unused = settle_columns(task, table.features, place, constant)
    except DataError as error:
        raise DataError(". ".join([str(error), *hints(table)]), error.key, error.value) from None
    notes = inferred_note({role.name: role.column for role in roles if not role.declared})
    notes += constant_notes(roles, unused, constant)
    if task.type in MAPPED and not task.labels:
        labels = _labels(Split.of(table, task, place), MAPPED[task.type])
        task = dataclasses.replace(task, labels=labels)
        shown = ", ".join(f"{index} = {name}" for index, name in enumerate(labels[:10]))
        notes.append(f"label map inferred: {shown}{f' and {len(labels) - 10} more' if len(labels) > 10 else ''}")
    return Settled(task, roles, unused, tuple(notes))


def _labels(split: Split, role: str) -> tuple[str, ...]:
    """The label map of a role: of a column for each label the columns' names; of lists what is in them."""
    given = split.task.columns.declared()[role]
    if split.task.type == "multiple_choice":
        return choice_names(split)
    if not isinstance(given, str):
        return given
    values, feature = split.values(role), split.feature(role)
    if role in split.lists:
        values = words_in_lists(values, split.task.type == "multilabel", given, split.place)
        while isinstance(feature, datasets.List | datasets.LargeList):
            feature = feature.feature
    return infer_labels(values, feature, given, split.place)
