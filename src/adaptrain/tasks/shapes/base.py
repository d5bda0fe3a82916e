"""What differs between the shapes of tasks, in one place a shape."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor

from adaptrain.config.schema import DataConfig, HeadConfig, TaskConfig
from adaptrain.errors import ConfigError
from adaptrain.tasks.bad_rows import Column
from adaptrain.tasks.reading import Read, Reader

if TYPE_CHECKING:
    from adaptrain.auto import OwnHead
    from adaptrain.tasks.rows import Split


@dataclass(frozen=True)
class Answered:
    """What a model says of a split.

    Attributes:
        task: of the rows.
        reader: that made examples of the rows.
        read: the split.
        answers: what `Shape.answers` keeps of each example, in order.
        settings: what `Shape.calibrate` has found on another split.
    """

    task: TaskConfig
    reader: Reader
    read: Read
    answers: Sequence[np.ndarray]
    settings: Mapping[str, float] = field(default_factory=dict)

    @property
    def logits(self) -> np.ndarray:
        """The answers, (examples, …), where all have one shape."""
        return np.stack(self.answers)


@dataclass(frozen=True)
class Trivial:
    """What somebody would say who saw only the training labels, or only the surface of the input.

    Attributes:
        name: of the way: `majority class`.
        answer: what it says of every row, or how it makes its answers.
        predictions: one a row, as the metrics take them.
        scores: the same as `Shape.label_scores`.
    """

    name: str
    answer: str | float
    predictions: Sequence[Any] | np.ndarray
    scores: np.ndarray | None = None


class Shape(ABC):
    """A shape that a task can have: its columns, its head, what a model answers and what that means.

    A model is also asked about rows that nobody has labelled (`adaptrain predict`). Columns of the roles in
    `config.task.SAID` are then not there, and a shape gets along without them:

    - `examine` looks at such a role only where `split.has(role)`, and checks it against what is read only then;
    - its reader's `encode` leaves out the features that are made of a role which `rows.columns` does not have, and
      `weights` with them; a collator leaves out names that rows do not have;
    - `answers` and `said` need no label; `references`, `written`, `calibrate` and `trivial` may.

    Attributes:
        type: the word for it in `task.type`.
        reads: what the base model must read.
        layers: maps of a fresh head, where it has a choice.
        label_dtype: of a batch of labels.
        in_branch: whether a branch of a composition may have it.
        blank_lines: whether blank texts are left out whatever `data.bad_rows` says.
        same_inputs: whether an example is the same in every epoch.
        writes: whether the model is asked to write, so that `task.generation` is read.
    """

    type: ClassVar[str]
    reads: ClassVar[Literal["texts", "images", "sound"]] = "texts"
    layers: ClassVar[int | None] = 2
    label_dtype: ClassVar[torch.dtype] = torch.long
    in_branch: ClassVar[bool] = False
    blank_lines: ClassVar[bool] = False
    same_inputs: ClassVar[bool] = True
    writes: ClassVar[bool] = False

    # ---- rows

    @abstractmethod
    def examine(self, split: Split) -> dict[str, Column]:
        """Role → its column, checked. What is bad is said of the column that is wrong. Of what a model should say only
        what is there (`split.has`).

        Raises:
            DataError: a column is missing, or there is no label map.
        """

    # ---- the model

    def own_head(self, config: Any) -> OwnHead | None:
        """The kind of the checkpoint's own head that is used, where it has one.

        Args:
            config: of the base model.
        """
        return None

    @abstractmethod
    def put_head(self, model: Any, task: TaskConfig, head: HeadConfig) -> str | None:
        """Give the model the head of the task, under the task's name.

        Returns:
            What a person should know of the choice, or None where there was none.

        Raises:
            ConfigError: keys of the head that the one it gets does not have.
            UnsupportedError: the base model cannot have such a head.
        """

    @abstractmethod
    def reader(self, processor: Any, model: Any, task: TaskConfig, data: DataConfig) -> Reader:
        """How this task is read for this base model.

        Raises:
            ConfigError: a key that does not go with the model.
        """

    # ---- what the model says

    def answers(self, model: Any, batch: Mapping[str, Tensor], reader: Reader) -> Tensor | Sequence[np.ndarray]:
        """What is kept of the model's answers to a batch, one for each example."""
        return model(**{key: value for key, value in batch.items() if key != "labels"}).logits

    @abstractmethod
    def predictions(self, said: Answered) -> Sequence[Any] | np.ndarray:
        """One prediction a row, as the metrics take them."""

    def label_scores(self, said: Answered) -> np.ndarray | None:
        """How much speaks for each label, (rows, labels), for metrics of ranked labels; None where labels have no
        ranks."""
        return None

    @abstractmethod
    def references(self, task: TaskConfig, read: Read) -> Sequence[Any] | np.ndarray:
        """What is right, one a row, as the metrics take it."""

    @abstractmethod
    def written(self, said: Answered) -> Iterator[dict[str, Any]]:
        """The rows of a predictions file."""

    def said(self, answered: Answered) -> Iterator[dict[str, Any]]:
        """What the model says of each row, without labels: the prediction, and how sure it is where that is known."""
        for prediction in self.predictions(answered):
            value = plain(prediction)
            if not isinstance(value, dict):
                yield {"prediction": value}
            elif "text" in value:
                yield {"prediction": value["text"]} | {key: each for key, each in value.items() if key != "text"}
            else:
                yield value

    def calibrate(self, said: Answered) -> dict[str, float]:
        """What is chosen on the split that chooses, to be used on the one that is scored."""
        return {}

    @abstractmethod
    def trivial(self, task: TaskConfig, reader: Reader, train: Read, scored: Read) -> Trivial:
        """The trivial answer to a split."""


SHAPES: dict[str, Shape] = {}


_Shape = TypeVar("_Shape", bound=Shape)


def register_shape(shape: type[_Shape]) -> type[_Shape]:
    """Make a shape known under its word."""
    SHAPES[shape.type] = shape()
    return shape


def plain(value: Any) -> Any:
    """A value as JSON has it: numbers of NumPy and torch become Python's, arrays lists."""
    if isinstance(value, np.ndarray | np.generic | Tensor):
        return value.tolist()
    if isinstance(value, Mapping):
        return {key: plain(each) for key, each in value.items()}
    return [plain(each) for each in value] if isinstance(value, list | tuple) else value


def only_layers(head: HeadConfig, what: str) -> None:
    """Refuse keys of a head that the checkpoint's own does not have.

    Raises:
        ConfigError: one of them is set.
    """
    problems = [
        f"head.{key}={value}: {what}, which is used as it is; leave head.{key} out"
        for key, value in (("layers", head.layers), ("dropout", head.dropout))
        if value is not None
    ]
    if problems:
        raise ConfigError(problems)
