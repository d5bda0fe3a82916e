"""Questions whose answers stand in a text, or nowhere."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from torch import Tensor

from adaptrain.config.schema import DataConfig, HeadConfig, TaskConfig
from adaptrain.evaluation import trivial
from adaptrain.evaluation.answers import best_threshold, overlap, squad_rows
from adaptrain.tasks.bad_rows import ANSWER, NO_LABEL, Bad, Column
from adaptrain.tasks.reading import Read, Reader
from adaptrain.tasks.shapes.base import Answered, Shape, Trivial, register_shape
from adaptrain.tasks.windows import WindowReader

if TYPE_CHECKING:
    from adaptrain.tasks.rows import Split

LONGEST = 30
"""Tokens that an answer may have, as in the scripts of BERT and of transformers."""

THRESHOLD = "no_answer_threshold"
"""What `calibrate` finds."""


@register_shape
class QuestionAnswering(Shape):
    """The answer to a question, cut out of a text; or that there is none.

    Over all windows of a row, with the scores s to be the first and e to be the last token of the answer,

        span = max s[i] + e[j]    over tokens i ≤ j < i + 30 of the context that are not blank, and over windows
        null = min s[c] + e[c]    over windows, c the position that stands for no answer
        no_answer = 2 σ(null − span − t)                 refused above 1: where null − span > t

    as BERT's script for SQuAD v2 does; it looks at the best 20 starts and ends alone, here all are compared. The
    threshold t is 0, or what `calibrate` finds on the split that chooses.
    """

    type = "question_answering"
    layers: ClassVar[int | None] = 1

    def examine(self, split: Split) -> dict[str, Column]:
        columns = {role: split.texts(role) for role in ("question", "context")}
        return columns | {"answers": _answers(split, columns["context"])} if split.has("answers") else columns

    def put_head(self, model: Any, task: TaskConfig, head: HeadConfig) -> str | None:
        model.add_qa_head(task.name, layers=head.layers or 1, dropout=head.dropout)
        return None

    def reader(self, processor: Any, model: Any, task: TaskConfig, data: DataConfig) -> Reader:
        return WindowReader.of(processor, model, data)

    def answers(self, model: Any, batch: Mapping[str, Tensor], reader: Reader) -> Sequence[np.ndarray]:
        """Of each window (2, tokens): the scores of each token to be the answer's first, and its last."""
        made = model(**{key: value for key, value in batch.items() if key != "labels"}).logits
        found = made.float().cpu().numpy().transpose(0, 2, 1)  # (windows, 2, positions)
        lengths = batch["attention_mask"].sum(-1).tolist()
        return [scores[:, :length].copy() for scores, length in zip(found, lengths, strict=True)]

    def predictions(self, said: Answered) -> list[dict[str, Any]]:
        texts, doubt = spans(said)
        surplus = doubt - said.settings.get(THRESHOLD, 0.0)
        sure = 2 * _sigmoid(surplus)
        return [{"text": text, "no_answer": float(each)} for text, each in zip(texts, sure, strict=True)]

    def references(self, task: TaskConfig, read: Read) -> list[list[str]]:
        return [list(answers["text"]) for answers in read.rows.columns["answers"]]

    def written(self, said: Answered) -> Iterator[dict[str, Any]]:
        """As `said`, beside the right answers."""
        for right, answer in zip(self.references(said.task, said.read), self.said(said), strict=True):
            yield {"label": right, **answer}

    def said(self, answered: Answered) -> Iterator[dict[str, Any]]:
        """`prediction` is empty where the metrics take it for a refusal, which `no_answer` above 1 is; where they know
        none, every question has an answer and `no_answer` is left out."""
        refuses = may_refuse(answered.task)
        for answer in self.predictions(answered):
            refused = refuses and answer["no_answer"] > 1
            more = {"no_answer": answer["no_answer"]} if refuses else {}
            yield {"prediction": "" if refused else answer["text"]} | more

    def calibrate(self, said: Answered) -> dict[str, float]:
        """The threshold of null − span with the best F1, where there are unanswerable questions."""
        references = self.references(said.task, said.read)
        if all(references):
            return {}
        texts, doubt = spans(said)
        rows = [{"text": text, "no_answer": each} for text, each in zip(texts, doubt, strict=True)]
        return {THRESHOLD: best_threshold(squad_rows(rows, references), "f1")[1]}

    def trivial(self, task: TaskConfig, reader: Reader, train: Read, scored: Read) -> Trivial:
        """The empty answer, or the first words of the context, as many as the median answer of the training rows has;
        whichever has the better F1 on the training rows. Of equal ones the words."""
        references = self.references(task, train)
        counts = [len(answers[0].split()) for answers in references if answers]
        empty = 1 - len(counts) / len(references)
        count = max(1, int(np.median(counts))) if counts else 1
        lead = [" ".join(context.split()[:count]) for context in train.rows.columns["context"]]
        scores = [
            max(overlap(said, answer) for answer in answers) if answers else 0.0
            for said, answers in zip(lead, references, strict=True)
        ]
        if empty > np.mean(scores):
            return Trivial("empty answer", "", trivial.no_answer(len(scored.rows)))
        contexts = scored.rows.columns["context"]
        found = [{"text": " ".join(context.split()[:count]), "no_answer": 0.0} for context in contexts]
        return Trivial("first words", f"the first {count} of the context", found)


def may_refuse(task: TaskConfig) -> bool:
    """Whether the metrics of a task know the empty answer."""
    return any(name.startswith("squad_v2") for name in (task.metric, *task.extra_metrics))


def spans(said: Answered) -> tuple[list[str], np.ndarray]:
    """Of each row the text of the best span, and null − span, (rows)."""
    features, contexts = said.read.encoded.features, said.read.rows.columns["context"]
    best = np.full(len(contexts), -np.inf)
    null = np.full(len(contexts), np.inf)
    texts = [""] * len(contexts)
    for example, row in enumerate(said.read.encoded.origin or ()):
        scores = np.asarray(said.answers[example], dtype=np.float64)
        null[row] = min(null[row], scores[:, features["null"][example]].sum())
        begins, ends = features["begins"][example], features["ends"][example]
        first = int(features["first"][example])
        inside = np.where(begins < ends, scores[:, first : first + len(begins)], -np.inf)
        score, start, end = best_span(*inside)
        if score > best[row]:
            best[row], texts[row] = score, contexts[row][begins[start] : ends[end]]
    return texts, null - best


def best_span(starts: np.ndarray, ends: np.ndarray, longest: int = LONGEST) -> tuple[float, int, int]:
    """max starts[i] + ends[j] over i ≤ j < i + longest, and i and j; of equal ones the shortest, then the first."""
    best = -np.inf, 0, 0
    for more in range(min(longest, len(starts))):
        sums = starts[: len(starts) - more] + ends[more:]
        at = int(sums.argmax())
        if sums[at] > best[0]:
            best = float(sums[at]), at, at + more
    return best


def as_answers(value: Any) -> dict[str, list[Any]] | None:
    """The right answers to a question: `{"text": […], "answer_start": […]}`, as it is or from a list of
    `{"text": …, "answer_start": …}`; None where it is neither."""
    if isinstance(value, list) and all(isinstance(each, Mapping) for each in value):
        return {key: [each.get(key) for each in value] for key in ("text", "answer_start")}
    if not isinstance(value, Mapping):
        return None
    found = {key: value.get(key) for key in ("text", "answer_start")}
    lists = {key: list(each) for key, each in found.items() if isinstance(each, list | tuple)}
    return lists if len(lists) == len(found) else None


def wrong_answers(answers: Mapping[str, Sequence[Any]], context: str) -> str:
    """What is wrong with right answers, as the end of a sentence; empty where nothing is."""
    texts, starts = answers["text"], answers["answer_start"]
    if len(texts) != len(starts):
        return f"{len(texts)} texts and {len(starts)} values of answer_start; one of each is due for an answer"
    for text, start in zip(texts, starts, strict=True):
        if not isinstance(text, str) or not text.strip():
            return f"the text {text!r:.60}, which is {'empty' if isinstance(text, str) else 'no text'}"
        if isinstance(start, bool) or not isinstance(start, int):
            return f"answer_start={start!r:.60} for {text!r:.60}; a whole number is due"
        if start < 0 or context[start : start + len(text)] != text:
            where = _elsewhere(text, start, context)
            return f"{text!r:.60}, which does not stand at character {start} of the context{where}"
    return ""


def _elsewhere(text: str, start: int, context: str) -> str:
    """Where a text stands that does not stand where it should: the place that is nearest."""
    places = [at for at in range(len(context)) if context.startswith(text, at)]
    return f"; it stands at {min(places, key=lambda at: abs(at - start))}" if places else ", nor elsewhere in it"


def _answers(split: Split, contexts: Column) -> Column:
    """The column of right answers; an empty list where there are none."""
    column = split.column("answers")
    broken = {each.row for each in contexts.bad}
    found: list[Any] = []
    bad = []
    for row, value in enumerate(split.values("answers"), start=1):
        answers, reason, told = as_answers(value), ANSWER, ""
        if value is None:
            reason, told = NO_LABEL, "are missing; an empty list says that there is no answer"
        elif answers is None:
            told = f"are {value!r:.60}; lists of text and answer_start are due"
        elif row not in broken and (wrong := wrong_answers(answers, contexts.values[row - 1])):
            told = f"have {wrong}. Correct the row"
        found.append(None if told else answers)
        if told:
            bad.append(Bad(row, reason, f"{split.where(row)}: the answers in column '{column}' {told}"))
    return Column(found, bad)


def _sigmoid(values: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(−x)), without an overflow."""
    return np.exp(-np.logaddexp(0.0, -values))
