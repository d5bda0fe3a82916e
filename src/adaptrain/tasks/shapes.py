"""The shapes a task can have: what a label is, how logits become a prediction, what a trivial answer would be.

A new shape registers itself under the word that `task.type` says.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from adaptrain.config.schema import TaskConfig
from adaptrain.errors import DataError, listed, nearest
from adaptrain.tasks.masking import UNMASKED

Label = int | float


class Shape(ABC):
    """What differs between the shapes of tasks.

    Attributes:
        type: the word for it in `task.type`.
        label_dtype: of a batch of labels.
        trivial: what the trivial answer is called in tables.
        masks: whether the labels are words of the text itself, masked.
    """

    type: ClassVar[str]
    label_dtype: ClassVar[torch.dtype]
    trivial: ClassVar[str]
    masks: ClassVar[bool] = False

    def answers(self, model: Any, batch: Mapping[str, Tensor]) -> Tensor:
        """What is kept of the model's answers to a batch, (rows, numbers)."""
        return model(**{key: value for key, value in batch.items() if key != "labels"}).logits

    @abstractmethod
    def predictions(self, logits: np.ndarray) -> np.ndarray:
        """(rows, numbers) → one prediction a row."""

    @abstractmethod
    def written(self, label: Label, prediction: Any, logits: np.ndarray, task: TaskConfig) -> dict[str, Any]:
        """One row of a predictions file."""


class LabelledShape(Shape):
    """A shape whose rows have a column of labels, one a row."""

    @abstractmethod
    def outputs(self, task: TaskConfig) -> int:
        """How many logits a row has."""

    @abstractmethod
    def labels(self, values: Sequence[Any], names: Sequence[str] | None, task: TaskConfig, place: str) -> list[Label]:
        """A column of labels as numbers.

        Args:
            values: as they were read.
            names: what a data set with a label map of its own calls the indices, else None.
            place: for messages.

        Raises:
            DataError: names the first row whose label cannot be one.
        """

    @abstractmethod
    def trivial_answer(self, labels: Sequence[Label]) -> Label:
        """What to say always, knowing only the training labels."""

    @abstractmethod
    def word(self, value: Label, task: TaskConfig) -> Any:
        """A label or prediction as people read it."""

    def written(self, label: Label, prediction: Any, logits: np.ndarray, task: TaskConfig) -> dict[str, Any]:
        return {
            "label": self.word(label, task),
            "prediction": self.word(prediction, task),
            "logits": [float(logit) for logit in logits],
        }


class Classification(LabelledShape):
    """One of several labels."""

    type = "classification"
    label_dtype = torch.long
    trivial = "majority class"

    def outputs(self, task: TaskConfig) -> int:
        return len(task.labels)

    def labels(self, values: Sequence[Any], names: Sequence[str] | None, task: TaskConfig, place: str) -> list[Label]:
        known = {name: index for index, name in enumerate(task.labels)}
        # A map whose names are numbers ("1" to "5" for stars) can only be meant by name: as indices the same column
        # would silently shift by one.
        numeric = all(_integer(name) is not None for name in task.labels)
        if names is not None and set(names) == set(known) and not numeric:
            values = [names[value] if _is_index(value, len(names)) else value for value in values]
        found: list[Label] = []
        for row, value in enumerate(values, start=1):
            name = str(int(value)) if numeric and _integer(value) is not None else value
            index = known.get(name) if isinstance(name, str) else None
            if index is None and not numeric and not isinstance(value, bool):
                number = _integer(value)
                index = number if number is not None and 0 <= number < len(known) else None
            if index is None:
                raise DataError(_outside(value, row, place, task))
            found.append(index)
        return found

    def predictions(self, logits: np.ndarray) -> np.ndarray:
        return logits.argmax(-1)

    def trivial_answer(self, labels: Sequence[Label]) -> Label:
        return int(np.bincount(np.asarray(labels, dtype=np.int64)).argmax())

    def word(self, value: Label, task: TaskConfig) -> Any:
        return task.labels[int(value)]


class Regression(LabelledShape):
    """A number."""

    type = "regression"
    label_dtype = torch.float32
    trivial = "mean"

    def outputs(self, task: TaskConfig) -> int:
        return 1

    def labels(self, values: Sequence[Any], names: Sequence[str] | None, task: TaskConfig, place: str) -> list[Label]:
        found: list[Label] = []
        for row, value in enumerate(values, start=1):
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                raise DataError(
                    f"{place}, row {row}: the label in column '{task.columns.label}' is {value!r}; task {task.name} is "
                    "a regression, so a finite number is due"
                )
            found.append(float(value))
        return found

    def predictions(self, logits: np.ndarray) -> np.ndarray:
        return logits[:, 0]

    def trivial_answer(self, labels: Sequence[Label]) -> Label:
        return float(np.mean(labels))

    def word(self, value: Label, task: TaskConfig) -> Any:
        return float(value)


class MaskedLM(Shape):
    """The words of the text itself, some of them masked. Of each row the summed cross-entropy of its masked words is
    kept, and how many of them were the likeliest; its label is how many there are."""

    type = "masked_lm"
    label_dtype = torch.long
    trivial = "unigram"
    masks = True

    def answers(self, model: Any, batch: Mapping[str, Tensor]) -> Tensor:
        labels = batch["labels"]
        chosen = labels != UNMASKED
        logits = model(**batch).logits
        if logits.dim() == 3:  # a head that compares every position with the words
            logits = logits[chosen]
        found = torch.stack(
            [
                F.cross_entropy(logits.float(), labels[chosen], reduction="none"),
                (logits.argmax(-1) == labels[chosen]).float(),
            ],
            -1,
        )
        return found.new_zeros(len(labels), 2).index_add(0, chosen.nonzero()[:, 0], found)

    def predictions(self, logits: np.ndarray) -> np.ndarray:
        return logits

    def written(self, label: Label, prediction: Any, logits: np.ndarray, task: TaskConfig) -> dict[str, Any]:
        return {"masked": int(label), "loss": float(logits[0]) / int(label), "right": int(logits[1])}


SHAPES: dict[str, Shape] = {shape.type: shape for shape in (Classification(), Regression(), MaskedLM())}


def labelled(task: TaskConfig) -> LabelledShape:
    """The shape of a task that has a column of labels."""
    shape = SHAPES[task.type]
    assert isinstance(shape, LabelledShape)
    return shape


def _integer(value: Any) -> int | None:
    """The whole number that a value is, also as text or with a fraction of zero, as tables store it."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return int(number) if math.isfinite(number) and number == int(number) else None


def _is_index(value: Any, count: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < count


def _outside(value: Any, row: int, place: str, task: TaskConfig) -> str:
    named = ", ".join(f"{index} = {name}" for index, name in enumerate(task.labels))
    hint = nearest(value, task.labels) if isinstance(value, str) else ""
    unlabelled = " (on the hub -1 marks a split without labels: choose another in task.splits)" if value == -1 else ""
    return (
        f"{place}, row {row}: the label {value!r} in column '{task.columns.label}' is not in the label map of task "
        f"{task.name}{hint or '.'} Labels are {named or listed(())}{unlabelled}. "
        "Correct the row, or task.labels"
    )
