"""The trivial answer: what somebody would score who saw only the training labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from adaptrain.config.schema import TaskConfig
from adaptrain.evaluation.metrics import compute
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
    """Score masked words by how often each token t stands in the N tokens of the training texts, whatever is around:

        p(t) = (n(t) + 1) / (N + V)                       over the V tokens that are not special

    on the very words that a model is scored on.
    """
    masking = reader.collate.masking
    assert masking is not None  # of a task on masked words
    ids = np.concatenate([feature["input_ids"] for feature in train.features])
    counts = np.bincount(ids[~masking.special[ids]], minlength=len(masking.special)) + 1
    likely, losses = int(counts.argmax()), -np.log(counts / counts[masking.words].sum())
    found = np.zeros((len(rows), 2))
    for row, feature in enumerate(rows.features):
        labels = masking.masked(feature["input_ids"], row, None)[1]
        words = labels[labels != UNMASKED]
        found[row] = losses[words].sum(), (words == likely).sum()
    scores = compute(metrics, found, np.asarray(rows.labels))
    return Baseline(SHAPES[task.type].trivial, str(reader.tokenizer.convert_ids_to_tokens(likely)), scores)
