"""The trivial answer: what somebody would score who saw only the training labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from adaptrain.config.schema import TaskConfig
from adaptrain.evaluation.metrics import compute
from adaptrain.tasks.shapes import SHAPES, Label


@dataclass(frozen=True)
class Baseline:
    """The trivial answer of a task and what it scores.

    Attributes:
        name: `majority class` or `mean`.
        answer: what it says of every row: a label's name, or a number.
        metrics: its scores on the split that the run reports.
    """

    name: str
    answer: str | float
    metrics: dict[str, float]


def trivial_baseline(
    task: TaskConfig, train_labels: Sequence[Label], labels: Sequence[Label], metrics: Sequence[str]
) -> Baseline:
    """Score the trivial answer of the training labels on other labels."""
    shape = SHAPES[task.type]
    answer = shape.trivial_answer(train_labels)
    references = np.asarray(labels)
    scores = compute(metrics, np.full(len(references), answer), references)
    return Baseline(shape.trivial, shape.word(answer, task), scores)
