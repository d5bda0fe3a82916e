"""One of several texts is the right one."""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import datasets
import numpy as np

from adaptrain.config.schema import DataConfig, HeadConfig, TaskConfig
from adaptrain.errors import DataError, listed
from adaptrain.evaluation import trivial
from adaptrain.tasks.bad_rows import CHOICES, COUNT, Bad, Column
from adaptrain.tasks.choosing import ChoiceReader
from adaptrain.tasks.labels import infer_labels
from adaptrain.tasks.reading import Read, Reader
from adaptrain.tasks.shapes.base import Trivial, register_shape
from adaptrain.tasks.shapes.classes import Classification, need_labels

if TYPE_CHECKING:
    from adaptrain.tasks.rows import Split


@register_shape
class MultipleChoice(Classification):
    """One of several texts. The labels are what the choices are called in the label column, in their order."""

    type = "multiple_choice"
    in_branch: ClassVar[bool] = False

    def examine(self, split: Split) -> dict[str, Column]:
        need_labels(split)
        columns = {role: split.texts(role) for role in ("context", "question") if split.has(role)}
        return columns | {"choices": _choices(split), "label": self.labels(split)}

    def put_head(self, model: Any, task: TaskConfig, head: HeadConfig) -> str | None:
        model.add_multiple_choice_head(
            task.name,
            num_choices=len(task.labels),
            layers=head.layers or self.layers,
            dropout=head.dropout,
            id2label=dict(enumerate(task.labels)),
        )
        return None

    def reader(self, processor: Any, model: Any, task: TaskConfig, data: DataConfig) -> Reader:
        return ChoiceReader.of(processor, model, data, self.label_dtype)

    def trivial(self, task: TaskConfig, reader: Reader, train: Read, scored: Read) -> Trivial:
        answer = trivial.majority(train.rows.labels)
        return Trivial("majority choice", self.word(answer, task), np.full(len(scored.rows), answer))


def choice_names(split: Split) -> tuple[str, ...]:
    """What the choices are called in the label column, in order: numbers from 0 or from 1, letters from A, whichever
    alone has all that stands there; or the names of the column's own map.

    Raises:
        DataError: none of them, or two.
    """
    count = len(texts_of_choices(split.values("choices")[0]) or ())
    feature = split.feature("label")
    known = infer_labels(split.values("label"), feature, split.column("label"), split.place)
    if isinstance(feature, datasets.ClassLabel) and len(known) == count:
        return known
    ways = [[str(start + number) for number in range(count)] for start in (0, 1)]
    ways += [list(string.ascii_uppercase[:count])]
    near = [way for way in ways if set(known) <= set(way)]
    if len(near) != 1:
        raise DataError(
            f"{split.place}: row 1 has {count} choices in '{split.column('choices')}', and column "
            f"'{split.column('label')}' has the labels {listed(known[:10])}. Say what each choice is called there, in "
            "order, in task.labels"
        )
    return tuple(near[0])


def texts_of_choices(value: Any) -> Sequence[Any] | None:
    """The choices of a row: a list, or the texts of a mapping of texts and their names."""
    found = value.get("text") if isinstance(value, Mapping) else value
    return found if isinstance(found, list | tuple) else None


def _choices(split: Split) -> Column:
    """The column of choices: of each row as many texts as the task has labels, in their order."""
    column, labels = split.column("choices"), split.task.labels
    found: list[Any] = []
    bad = []
    for row, value in enumerate(split.values("choices"), start=1):
        texts, told = texts_of_choices(value), ""
        reason = CHOICES
        if texts is None or not texts or not all(isinstance(text, str) and text.strip() for text in texts):
            told = f"are {value!r:.80}; a list of texts is due, none of them empty. Correct the row"
        elif len(texts) != len(labels):
            reason = COUNT
            told = f"are {len(texts)}, and the task has {len(labels)}: {listed(labels)} (task.labels)"
        elif isinstance(value, Mapping) and tuple(map(str, value.get("label") or labels)) != labels:
            told = f"are called {listed(value['label'])}; task.labels says {listed(labels)}, in this order"
        found.append(None if told else list(texts or ()))
        if told:
            bad.append(Bad(row, reason, f"{split.where(row)}: the choices in column '{column}' {told}"))
    return Column(found, bad)
