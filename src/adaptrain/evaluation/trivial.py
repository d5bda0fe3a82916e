"""Trivial answers: what somebody would say who saw only the training labels, or only the input's surface.

They are given in the form that the metrics of the task take, one for each row.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from adaptrain.errors import DataError
from adaptrain.evaluation.summaries import sentences


def majority(labels: Sequence[int]) -> int:
    """The commonest label; of equally common ones the least."""
    return int(np.bincount(np.asarray(_some(labels), dtype=np.int64)).argmax())


def mean(values: Sequence[float]) -> float:
    """The mean of the training numbers."""
    return float(np.mean(_some(values)))


def label_shares(labels: Sequence[int], count: int) -> np.ndarray:
    """How common each of `count` labels is, (count): scores for every row, whose best k are the k commonest labels."""
    return np.bincount(np.asarray(_some(labels), dtype=np.int64), minlength=count) / len(labels)


def majority_labels(rows: Sequence[Sequence[int]]) -> np.ndarray:
    """(rows, labels) of 0 and 1 → the labels that at least half of the rows have; where there are none, the commonest
    alone, since F1 of nothing is 0."""
    shares = np.asarray(_some(rows), dtype=np.float64).mean(0)
    chosen = shares >= 0.5
    if not chosen.any():
        chosen[shares.argmax()] = True
    return chosen.astype(np.int64)


def unigram(ids: np.ndarray, words: np.ndarray) -> tuple[np.ndarray, int]:
    """How often each token t stands in the N tokens of the training texts, whatever is around:

        p(t) = (n(t) + 1) / (N + V)                       over the V tokens that are not special

    Args:
        ids: tokens of the training texts; special ones among them do not count.
        words: the V tokens that are not special.

    Returns:
        −log p(t) by token, infinite for special ones; the commonest token.
    """
    counts = np.bincount(ids, minlength=int(words.max()) + 1)[words] + 1
    losses = np.full(max(int(ids.max(initial=0)), int(words.max())) + 1, np.inf)
    losses[words] = -np.log(counts / counts.sum())
    return losses, int(words[counts.argmax()])


def unigram_rows(rows: Sequence[np.ndarray], losses: np.ndarray, likely: int) -> np.ndarray:
    """Score texts by `unigram`: (summed loss, right tokens) of each row, (rows, 2).

    Args:
        rows: of each row the tokens that have a loss.
        losses, likely: of `unigram`.
    """
    found = np.zeros((len(rows), 2))
    for row, tokens in enumerate(rows):
        found[row] = losses[tokens].sum(), (tokens == likely).sum()
    return found


def no_answer(rows: int) -> list[dict[str, Any]]:
    """The empty answer to every question: all of the unanswerable ones are right."""
    return [{"text": "", "no_answer": 1.0} for _ in range(rows)]


def silence(rows: int) -> list[str]:
    """The empty transcript: every word is a deletion, so the error rates are 1."""
    return [""] * rows


def common_tag(sentences: Iterable[Sequence[str]]) -> str:
    """The commonest tag over words, `O` where entities are tagged; of equally common ones the first in the alphabet."""
    counts = Counter(tag for tags in sentences for tag in tags)
    _some(counts)
    return min(counts, key=lambda tag: (-counts[tag], tag))


def same_tags(lengths: Sequence[int], tag: str) -> list[list[str]]:
    """One tag for every word of sentences of these lengths."""
    return [[tag] * length for length in lengths]


def previous_word(lengths: Sequence[int], relation: str) -> list[dict[str, list[Any]]]:
    """Trees in which every word hangs on the one before it, by one relation; the first word is the root.

    Args:
        relation: the commonest in training (`common_tag` finds it).
    """
    return [
        {"heads": list(range(length)), "relations": ["root" if word == 0 else relation for word in range(length)]}
        for length in lengths
    ]


def lead(documents: Sequence[str], count: int = 1) -> list[str]:
    """The first sentences of each document as its summary, one a line: lead-k."""
    return ["\n".join(sentences(document)[:count]) for document in documents]


def copy(sources: Sequence[str]) -> list[str]:
    """The source as its own translation: names, numbers and punctuation are right."""
    return list(sources)


def _some(values: Any) -> Any:
    if not len(values):
        raise DataError("There is no training row to take a trivial answer from; give a training split that has rows")
    return values
