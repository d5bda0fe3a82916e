"""The trivial answer: what somebody would score who saw only the training labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from adaptrain.config.schema import TaskConfig
from adaptrain.evaluation.metrics import compute
from adaptrain.evaluation.trivial import unigram, unigram_rows
from adaptrain.tasks.masking import UNMASKED
from adaptrain.tasks.shapes import SHAPES, Label, labelled
from adaptrain.tasks.text import Encoded, TextReader


@dataclass(frozen=True)
class Baseline:
    """The trivial answer of a task and what it scores.

    Attributes:
        name: `majority class`, `mean` or `unigram`.
        answer: what it says of every row: a label's name, or a number; of masked words the commonest token.
        metrics: its scores on the split that the run reports.
    """

    name: str
    answer: str | float
    metrics: dict[str, float]


def trivial_baseline(
    task: TaskConfig, train_labels: Sequence[Label], labels: Sequence[Label], metrics: Sequence[str]
) -> Baseline:
    """Score the trivial answer of the training labels on other labels."""
    shape = labelled(task)
    answer = shape.trivial_answer(train_labels)
    references = np.asarray(labels)
    scores = compute(metrics, np.full(len(references), answer), references)
    return Baseline(shape.trivial, shape.word(answer, task), scores)


def unigram_baseline(
    task: TaskConfig, reader: TextReader, train: Encoded, rows: Encoded, metrics: Sequence[str]
) -> Baseline:
    """Score masked words by how often each token stands in the training texts (`trivial.unigram`), on the very words
    that a model is scored on."""
    masking = reader.collate.masking
    assert masking is not None  # of a task on masked words
    losses, likely = unigram(np.concatenate([feature["input_ids"] for feature in train.features]), masking.words)
    masked = [masking.masked(feature["input_ids"], row, None)[1] for row, feature in enumerate(rows.features)]
    found = unigram_rows([labels[labels != UNMASKED] for labels in masked], losses, likely)
    scores = compute(metrics, found, np.asarray(rows.labels))
    return Baseline(SHAPES[task.type].trivial, str(reader.tokenizer.convert_ids_to_tokens(likely)), scores)
