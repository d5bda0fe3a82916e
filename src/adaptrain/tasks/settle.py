"""A task with nothing left open: each column named, the label map written down."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from adaptrain.config.schema import DataConfig, TaskConfig
from adaptrain.tasks.columns import Role, settle_columns
from adaptrain.tasks.labels import infer_labels
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
    columns = task.columns
    if columns.text is None:
        return False
    if task.type == "masked_lm":
        return True
    return columns.label is not None and (task.type != "classification" or bool(task.labels))


def settle_task(task: TaskConfig, data: DataConfig, source: Source | None = None) -> Settled:
    """Infer what the task leaves open from its training split.

    Raises:
        DataError: the split cannot be read, or more than one answer is possible.
    """
    source = source or locate(task, data)
    table = source.read(task.splits.train)
    place = f"{source.place}, split '{task.splits.train}'"
    task, roles, unused = settle_columns(task, table.features, place)
    inferred = [f"{role.name} = {', '.join(role.columns)}" for role in roles if not role.declared]
    notes = [f"columns inferred: {'; '.join(inferred)}"] if inferred else []
    if task.type == "classification" and not task.labels:
        column = task.columns.label
        assert column is not None
        labels = infer_labels(list(table[column][:]), table.features[column], column, place)
        task = dataclasses.replace(task, labels=labels)
        shown = ", ".join(f"{index} = {name}" for index, name in enumerate(labels[:10]))
        notes.append(f"label map inferred: {shown}{f' and {len(labels) - 10} more' if len(labels) > 10 else ''}")
    return Settled(task, roles, unused, tuple(notes))
