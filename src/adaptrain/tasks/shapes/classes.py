"""One answer to a text, or to two that are read together: a class, several classes at once, a number."""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import datasets
import numpy as np
import torch

from adaptrain.config.schema import DataConfig, HeadConfig, TaskConfig
from adaptrain.errors import DataError, listed, nearest
from adaptrain.evaluation import trivial
from adaptrain.tasks.bad_rows import Column, check_each, label_reason
from adaptrain.tasks.labels import TRUTHS, numbers_in, words_of
from adaptrain.tasks.lists import WRITE, is_bracketed
from adaptrain.tasks.reading import Read, Reader
from adaptrain.tasks.shapes.base import Answered, Shape, Trivial, register_shape
from adaptrain.tasks.text import text_reader

if TYPE_CHECKING:
    from adaptrain.tasks.rows import Split

_DIGITS = re.compile("0|[1-9][0-9]{0,8}", re.ASCII)
"""An index that is written as text."""

_LARGEST = float(np.finfo(np.float32).max)
"""Labels of a regression are float32 in a batch."""


class Labelled(Shape):
    """A shape whose rows have one label each."""

    in_branch = True

    @abstractmethod
    def label(self, value: Any, names: Sequence[str] | None, task: TaskConfig, place: str) -> Any:
        """A label as numbers.

        Args:
            value: as it was read.
            names: what a data set with a label map of its own calls the indices, else None.
            place: of the row, for messages.

        Raises:
            DataError: it cannot be one.
        """

    @abstractmethod
    def word(self, value: Any, task: TaskConfig) -> Any:
        """A label or prediction as people read it."""

    @abstractmethod
    def outputs(self, task: TaskConfig) -> int:
        """How many logits a row has."""

    def labels(self, split: Split) -> Column:
        """The column of labels."""
        task = split.task
        names = class_names(split.feature("label"))
        return check_each(
            split.values("label"),
            lambda value, place: self.label(value, names, task, place),
            split.where,
            label_reason,
        )

    def examine(self, split: Split) -> dict[str, Column]:
        columns = {"text": split.texts("text")}
        if split.has("text_pair"):
            columns["text_pair"] = split.texts("text_pair")
        return columns | {"label": self.labels(split)} if split.has("label") else columns

    def put_head(self, model: Any, task: TaskConfig, head: HeadConfig) -> str | None:
        model.add_classification_head(
            task.name,
            num_labels=self.outputs(task),
            layers=head.layers or self.layers,
            dropout=head.dropout,
            id2label=dict(enumerate(task.labels)) or None,
        )
        return None

    def reader(self, processor: Any, model: Any, task: TaskConfig, data: DataConfig) -> Reader:
        return text_reader(processor, model, data, task.columns.text_pair is not None, self.label_dtype)

    def references(self, task: TaskConfig, read: Read) -> np.ndarray:
        return np.asarray(read.rows.labels)

    def written(self, said: Answered) -> Iterator[dict[str, Any]]:
        for label, prediction, logits in zip(said.read.rows.labels, self.predictions(said), said.answers, strict=True):
            yield {
                "label": self.word(label, said.task),
                "prediction": self.word(prediction, said.task),
                "logits": [float(logit) for logit in logits],
            }


@register_shape
class Classification(Labelled):
    """One of several labels."""

    type = "classification"

    def outputs(self, task: TaskConfig) -> int:
        return len(task.labels)

    def labels(self, split: Split) -> Column:
        need_labels(split)
        return super().labels(split)

    def label(self, value: Any, names: Sequence[str] | None, task: TaskConfig, place: str) -> int:
        return class_index(value, names, task, place)

    def predictions(self, said: Answered) -> np.ndarray:
        return said.logits.argmax(-1)

    def word(self, value: Any, task: TaskConfig) -> Any:
        return task.labels[int(value)]

    def said(self, answered: Answered) -> Iterator[dict[str, Any]]:
        """With the softmax of the logits: not calibrated, a model may be surer than it is right."""
        logits = answered.logits.astype(np.float64)
        odds = np.exp(logits - logits.max(-1, keepdims=True))
        for row in odds / odds.sum(-1, keepdims=True):
            best = int(row.argmax())
            named = dict(zip(answered.task.labels, row.tolist(), strict=True))
            yield {"prediction": answered.task.labels[best], "probability": float(row[best]), "probabilities": named}

    def trivial(self, task: TaskConfig, reader: Reader, train: Read, scored: Read) -> Trivial:
        answer = trivial.majority(train.rows.labels)
        return Trivial("majority class", self.word(answer, task), np.full(len(scored.rows), answer))


@register_shape
class MultiLabel(Labelled):
    """Any number of several labels, those whose logit is above 0: more likely there than not."""

    type = "multilabel"
    label_dtype = torch.float32
    in_branch = False

    def outputs(self, task: TaskConfig) -> int:
        return len(task.labels)

    def labels(self, split: Split) -> Column:
        """
        Raises:
            DataError: also where lists of 0 and 1 can mean two things.
        """
        need_labels(split)
        task = split.task
        if isinstance(task.columns.label, tuple):
            if len(task.columns.label) != len(task.labels):
                raise DataError(
                    f"{split.place}: task.columns.label names {len(task.columns.label)} columns, and task.labels "
                    f"{len(task.labels)} labels; there is a column for each, in the order of the map"
                )
            return check_each(split.values("label"), _truths(split), split.where, label_reason)
        if len(task.labels) == 2 and class_names(split.feature("label")) is None:
            pairs = [value for value in split.values("label") if value]
            if pairs and all(_is_zero_and_one(value) for value in pairs):
                raise DataError(
                    f"{split.place}: every list in column '{task.columns.label}' is 0 and 1. As indices, which they "
                    "are read as, every row has both labels; if they say of each label whether it is there, write "
                    "true and false"
                )
        return super().labels(split)

    def label(self, value: Any, names: Sequence[str] | None, task: TaskConfig, place: str) -> list[int]:
        """A list of names or indices, the names in a text with commas or | between them, or a list of true and false,
        one for each label. A list of 0 and 1 is one of indices."""
        if isinstance(value, str):
            words = [value] if value in task.labels else words_of(value)
            if is_bracketed(value) and not set(words) <= set(task.labels):
                raise DataError(
                    f"{place}: the labels in column '{task.columns.label}' are the text {value!r:.60}, which looks "
                    f"like a list and cannot be read as one. {WRITE}"
                )
            value = words
        if value is None or not isinstance(value, list | tuple):
            raise DataError(
                f"{place}: the labels in column '{task.columns.label}' are {value!r:.60}; task {task.name} has several "
                "labels a row, so a list of them is due, which may be empty"
            )
        if value and all(isinstance(each, bool) for each in value):
            if len(value) != len(task.labels):
                raise DataError(
                    f"{place}: column '{task.columns.label}' says {len(value)} times true or false, and task "
                    f"{task.name} has {len(task.labels)} labels. Give one for each, in the order of task.labels"
                )
            return [int(each) for each in value]
        found = [class_index(each, names, task, place) for each in value]
        if len(set(found)) < len(found):
            raise DataError(
                f"{place}: the labels in column '{task.columns.label}' are {value!r:.60}, where one stands twice. "
                "Numbers are indices of labels; to say of each label whether it is there, write true and false"
            )
        return label_truths(found, len(task.labels))

    def put_head(self, model: Any, task: TaskConfig, head: HeadConfig) -> str | None:
        model.add_classification_head(
            task.name,
            num_labels=len(task.labels),
            layers=head.layers or self.layers,
            dropout=head.dropout,
            id2label=dict(enumerate(task.labels)),
            multilabel=True,
        )
        return None

    def predictions(self, said: Answered) -> np.ndarray:
        return (said.logits > 0).astype(np.int64)

    def word(self, value: Any, task: TaskConfig) -> list[str]:
        return [name for name, there in zip(task.labels, value, strict=True) if there]

    def said(self, answered: Answered) -> Iterator[dict[str, Any]]:
        """With the logistic function of each logit."""
        logits = answered.logits.astype(np.float64)
        for truths, row in zip(self.predictions(answered), np.exp(-np.logaddexp(0, -logits)), strict=True):
            named = dict(zip(answered.task.labels, row.tolist(), strict=True))
            yield {"prediction": self.word(truths, answered.task), "probabilities": named}

    def trivial(self, task: TaskConfig, reader: Reader, train: Read, scored: Read) -> Trivial:
        answer = trivial.majority_labels(train.rows.labels)
        name = "commonest labels"
        return Trivial(name, ", ".join(self.word(answer, task)), np.tile(answer, (len(scored.rows), 1)))


@register_shape
class Regression(Labelled):
    """A number."""

    type = "regression"
    label_dtype = torch.float32

    def outputs(self, task: TaskConfig) -> int:
        return 1

    def label(self, value: Any, names: Sequence[str] | None, task: TaskConfig, place: str) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= _LARGEST:
            raise DataError(
                f"{place}: the label in column '{task.columns.label}' is {value!r:.60}; task {task.name} is a "
                "regression, which needs a finite number of at most 3.4e38 for each row. Correct the row, or task.type"
            )
        return float(value)

    def predictions(self, said: Answered) -> np.ndarray:
        return said.logits[:, 0]

    def word(self, value: Any, task: TaskConfig) -> float:
        return float(value)

    def trivial(self, task: TaskConfig, reader: Reader, train: Read, scored: Read) -> Trivial:
        answer = trivial.mean(train.rows.labels)
        return Trivial("mean", answer, np.full(len(scored.rows), answer))


def class_names(feature: Any) -> Sequence[str] | None:
    """What a data set calls the indices of a column, or of the lists in it."""
    while isinstance(feature, datasets.List | datasets.LargeList):
        feature = feature.feature
    return feature.names if isinstance(feature, datasets.ClassLabel) else None


def need_labels(split: Split) -> None:
    """Refuse a task without a label map.

    Raises:
        DataError: it has none.
    """
    if not split.task.labels:
        raise DataError(f"{split.place}: task {split.task.name} has no label map; write it down in task.labels")


def class_index(value: Any, names: Sequence[str] | None, task: TaskConfig, place: str, role: str = "label") -> int:
    """A label of the map as its index: its name, or its index.

    Args:
        names: what a data set with a label map of its own calls the indices, else None.
        place: of the row, for messages.

    Raises:
        DataError: it is not in the map.
    """
    known = {name: index for index, name in enumerate(task.labels)}
    numbers = numbers_in(task.labels)
    if names is not None and _is_index(value, len(names)):  # the index of a class, whatever the classes are called
        shared = set(names) & set(known)
        if len(shared) == len(set(names) | set(known)) or (numbers and shared):
            value = names[value]
        elif value < len(known):
            return value
    index = None
    if isinstance(value, str):
        index = known.get(value)
        if index is None and not numbers and _DIGITS.fullmatch(value):
            index = int(value) if int(value) < len(known) else None
    elif isinstance(value, bool):
        index = int(value) if tuple(name.casefold() for name in task.labels) == TRUTHS else None
    elif isinstance(value, int | float):
        found = numbers.get(Decimal(str(value)), ())
        if len(found) > 1:
            raise DataError(
                f"{place}: the label in column '{task.columns.declared().get(role)}' is the number {value!r}, which "
                f"{listed(repr(task.labels[each]) for each in found)} in task.labels all are. Write labels as text, in "
                "jsonl or parquet"
            )
        index = found[0] if found else None
        if not numbers and value in range(len(known)):
            index = int(value)
    if index is None:
        raise DataError(_outside(value, place, task, role, bool(numbers)))
    return index


def label_truths(indices: Sequence[int], count: int) -> list[int]:
    """For each of `count` labels whether it is among some: 1 or 0."""
    found = [0] * count
    for index in indices:
        found[index] = 1
    return found


def _truths(split: Split) -> Any:
    """A truth for each label, of as many columns."""

    def convert(value: Any, place: str) -> list[int]:
        if any(not isinstance(each, bool | int | float) or each not in (0, 1) for each in value):
            raise DataError(
                f"{place}: the labels in the columns {split.column('label')} are {value!r:.80}; a 0 or 1 is due in each"
            )
        return [int(each) for each in value]

    return convert


def _is_zero_and_one(value: Any) -> bool:
    return isinstance(value, list) and value in ([0, 1], [1, 0]) and not any(isinstance(each, bool) for each in value)


def _is_index(value: Any, count: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < count


def _outside(value: Any, place: str, task: TaskConfig, role: str, numeric: bool) -> str:
    named = ", ".join(f"{index} = {name}" for index, name in enumerate(task.labels))
    hint = nearest(value, task.labels) if isinstance(value, str) else ""
    remark = " (on the hub -1 marks a split without labels: choose another in task.splits)" if value == -1 else ""
    if numeric and not remark and isinstance(value, int | float):
        remark = " (names in the map are numbers, so a number in a row means a name, not an index)"
    column = task.columns.declared().get(role)
    return (
        f"{place}: the label {value!r} in column '{column}' is not in the label map of task "
        f"{task.name}{hint or '.'} Labels are {named or listed(())}{remark}. "
        "Correct the row, or task.labels"
    )
