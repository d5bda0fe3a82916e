"""The trivial answer and what it scores: what a model must beat."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from adaptrain.config.schema import TaskConfig
from adaptrain.evaluation.metrics import compute
from adaptrain.tasks.reading import Read, Reader
from adaptrain.tasks.shapes import SHAPES


@dataclass(frozen=True)
class Baseline:
    """The trivial answer of a task and what it scores.

    Attributes:
        name: of the way: `majority class`, `mean`, `unigram`, ….
        answer: what it says of every row (a label's name, a number), or how it makes its answers.
        metrics: its scores on the split that the run reports.
    """

    name: str
    answer: str | float
    metrics: dict[str, float]


def trivial_baseline(task: TaskConfig, reader: Reader, train: Read, scored: Read, metrics: Sequence[str]) -> Baseline:
    """Score the trivial answer of the training rows on other rows."""
    shape = SHAPES[task.type]
    found = shape.trivial(task, reader, train, scored)
    scores = compute(metrics, found.predictions, shape.references(task, scored), found.scores)
    return Baseline(found.name, found.answer, scores)
