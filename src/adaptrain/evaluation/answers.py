"""Metrics of answers that are spans of a text, as SQuAD's own scripts compute them.

A prediction is `{"text": …, "no_answer": …}`: the span, empty where the model refuses, and how sure it is that there
is no answer: a probability, or any number that grows with it. A reference is the list of right answers, empty where
there is none. A score is that of the best right answer. Rajpurkar et al. 2016 (v1.1), 2018 (v2.0).
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from adaptrain.errors import DataError
from adaptrain.evaluation.registry import Metric, register_metric

Answer = Mapping[str, Any]

_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalised(text: str) -> str:
    """Lower case, without ASCII punctuation, then without the articles a, an, the, with single spaces.

    >>> normalised("The  U.S. Navy's")
    'us navys'
    """
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact(prediction: str, answer: str) -> float:
    """1 where both are equal once normalised, else 0."""
    return float(normalised(prediction) == normalised(answer))


def overlap(prediction: str, answer: str, agree_on_nothing: bool = True) -> float:
    """F1 of the bags of normalised words, 2·|common| / (|prediction| + |answer|).

    Args:
        agree_on_nothing: two empty bags score 1, as in v2; in v1.1 they score 0.
    """
    said, right = normalised(prediction).split(), normalised(answer).split()
    if not said or not right:
        return float(agree_on_nothing and said == right)
    common = sum((Counter(said) & Counter(right)).values())
    return 2 * common / (len(said) + len(right))


def squad_v1(predictions: Sequence[Answer], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """`exact` and `f1` of SQuAD v1.1, where every question has an answer. `no_answer` is not looked at.

    Raises:
        DataError: a row without a right answer.
    """
    for row, answers in enumerate(references, start=1):
        if not answers:
            raise DataError(f"Row {row} has no right answer, which SQuAD v1.1 does not know; use squad_v2_f1")
    pairs = [(said["text"], answers) for said, answers in zip(predictions, references, strict=True)]
    return {
        "exact": float(np.mean([max(exact(said, one) for one in answers) for said, answers in pairs])),
        "f1": float(np.mean([max(overlap(said, one, False) for one in answers) for said, answers in pairs])),
    }


@dataclass(frozen=True)
class Rows:
    """What each row of SQuAD v2 scores where its span is taken, (rows).

    Attributes:
        exact, f1: of the span.
        answerable: whether there is a right answer.
        spoken: whether the span is not empty.
        no_answer: how sure the model is that there is no answer.
    """

    exact: np.ndarray
    f1: np.ndarray
    answerable: np.ndarray
    spoken: np.ndarray
    no_answer: np.ndarray


def squad_rows(predictions: Sequence[Answer], references: Sequence[Sequence[str]]) -> Rows:
    """Score every row. Right answers of which nothing is left when normalised are passed over, as in the script."""
    golds = [[answer for answer in answers if normalised(answer)] or [""] for answers in references]
    pairs = [(said["text"], answers) for said, answers in zip(predictions, golds, strict=True)]
    return Rows(
        np.array([max(exact(said, one) for one in answers) for said, answers in pairs]),
        np.array([max(overlap(said, one) for one in answers) for said, answers in pairs]),
        np.array([len(answers) > 0 for answers in references]),
        np.array([said != "" for said, _ in pairs]),
        np.array([said["no_answer"] for said in predictions], dtype=np.float64),
    )


def best_threshold(rows: Rows, of: str) -> tuple[float, float]:
    """The threshold above which `no_answer` should mean an empty answer, and the score it gives.

    All thresholds that lie at a row's `no_answer` are tried, and one below them all; of equally good ones the least is
    taken. Rows of one and the same `no_answer` stand or fall together: the script may cut between them and report a
    score that no threshold reaches.

    Args:
        of: `exact` or `f1`.

    Returns:
        (score, threshold). Choose on one split and report on another: on the same one it is an upper bound.
    """
    score = getattr(rows, of)
    gain = np.where(rows.answerable, score, -rows.spoken.astype(float))
    order = np.argsort(rows.no_answer, kind="stable")
    levels, ends = np.unique(rows.no_answer[order], return_index=True)
    ends = np.append(ends[1:], len(order))
    totals = np.cumsum(gain[order])[ends - 1]
    # the script's threshold for refusing all; below it where `no_answer` is no probability
    start = 0.0 if levels[0] > 0 else float(np.nextafter(levels[0], -np.inf))
    best = int(totals.argmax())
    refused = float((~rows.answerable).sum())
    if totals[best] <= 0:
        return refused / len(score), start
    return (refused + float(totals[best])) / len(score), float(levels[best])


def squad_v2(
    predictions: Sequence[Answer], references: Sequence[Sequence[str]], threshold: float = 1.0
) -> dict[str, float]:
    """All that the v2 script reports, under its names, from 0 to 1.

    Args:
        threshold: of `no_answer`, above which the answer counts as empty. At 1, the script's, probabilities never do.

    Returns:
        `exact`, `f1`, `total`; these of the answerable rows (`HasAns_…`) and of the others (`NoAns_…`), where there
        are any; `best_exact`, `best_exact_thresh`, `best_f1`, `best_f1_thresh`.
    """
    rows = squad_rows(predictions, references)
    refused = rows.no_answer > threshold
    scores = {of: np.where(refused, ~rows.answerable, getattr(rows, of)).astype(float) for of in ("exact", "f1")}
    found: dict[str, float] = {}
    everything = np.ones(len(refused), dtype=bool)
    for prefix, chosen in (("", everything), ("HasAns_", rows.answerable), ("NoAns_", ~rows.answerable)):
        if chosen.any():
            found |= {f"{prefix}{of}": float(score[chosen].mean()) for of, score in scores.items()}
            found[f"{prefix}total"] = float(chosen.sum())
    for of in scores:
        found[f"best_{of}"], found[f"best_{of}_thresh"] = best_threshold(rows, of)
    return found


def _v1(key: str) -> Any:
    return lambda predictions, references: squad_v1(predictions, references)[key]


def _v2(key: str) -> Any:
    def formula(predictions: Sequence[Answer], references: Sequence[Sequence[str]]) -> float:
        found = squad_v2(predictions, references)
        if key not in found:
            kind = "answerable" if key.startswith("HasAns") else "unanswerable"
            raise DataError(f"No row is {kind}, so {key} is not defined; leave this metric out")
        return found[key]

    return formula


_QA = ("question_answering",)
_BEST = "with the threshold of no_answer that is best on these very rows: an upper bound"

for _key, _label in (("exact", "EM"), ("f1", "F1")):
    _short = "em" if _key == "exact" else _key
    register_metric(Metric(f"squad_{_short}", _label, _QA, _v1(_key), rows="answer", note="SQuAD v1.1"))
    for _prefix, _word, _note in (
        ("", "", "SQuAD v2; `no_answer` above 1 refuses"),
        ("has_answer_", "HasAns ", "of answerable rows"),
        ("no_answer_", "NoAns ", "of unanswerable rows"),
        ("best_", "best ", _BEST),
    ):
        _official = {"": "", "has_answer_": "HasAns_", "no_answer_": "NoAns_", "best_": "best_"}[_prefix]
        register_metric(
            Metric(
                f"squad_v2_{_prefix}{_short}",
                f"{_word}{_label}",
                _QA,
                _v2(f"{_official}{_key}"),
                rows="answer",
                note=_note,
            )
        )
