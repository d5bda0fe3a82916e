"""Metrics of summaries: ROUGE (Lin 2004), by rouge-score.

A prediction is a text, a reference a list of them; of several the best counts, for each metric by itself. Scores are
F1 and the plain mean over rows. rouge-score's own aggregator draws 1000 bootstrap samples and gives the median of
their means: the same but for noise, which a table of seeds has no use for.

ROUGE-L takes a text as one sentence. ROUGE-Lsum takes the sentences one by one, which it finds by newlines. A text
without one is split by `sentences`: the usual tool for that, NLTK's punkt, downloads its model.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from typing import Any

from adaptrain.evaluation.registry import Metric, register_metric
from adaptrain.evaluation.translations import check_references

_END = re.compile(r"(?<=[.!?])[\"'”’)\]]*\s+(?=[\"'“‘(\[]*[^\W_a-z])")
_EMPTY_LINE = re.compile(r"\n\s*\n")
_ABBREVIATED = re.compile(
    r"(?:\b(?:mr|mrs|ms|dr|prof|st|sen|rep|gov|gen|col|lt|sgt|capt|jr|sr|vs|fig|eq|e\.g|i\.e|cf|al|etc|approx)"
    r"|\b[^\W\d_])\.$",
    re.IGNORECASE,
)


def sentences(text: str) -> list[str]:
    """A text cut after . ! or ? (and closing quotes) before a blank and what may begin a sentence, unless a common
    abbreviation or a single letter ends there; and at empty lines. A single newline is a blank: documents are wrapped.

    >>> sentences("Dr. A. Smith came. He left at 5 p.m. on Monday!")
    ['Dr. A. Smith came.', 'He left at 5 p.m. on Monday!']
    """
    found: list[str] = []
    for paragraph in _EMPTY_LINE.split(text):
        start = 0
        for end in _END.finditer(paragraph):
            if not _ABBREVIATED.search(paragraph[start : end.start()]):
                found.append(paragraph[start : end.end()])
                start = end.end()
        found.append(paragraph[start:])
    return [" ".join(part.split()) for part in found if part.strip()]


def lines(text: str) -> str:
    """A summary as ROUGE-Lsum takes it, one sentence a line: as it is where it has lines, else by `sentences`."""
    return text if "\n" in text.strip() else "\n".join(sentences(text))


@cache
def _scorer(kind: str, stemmer: bool) -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer([kind], use_stemmer=stemmer)


def rouge(
    predictions: Sequence[str], references: Sequence[Sequence[str]], kind: str, stemmer: bool = False
) -> list[float]:
    """F1 of each row. An empty text scores 0.

    Args:
        kind: `rouge1` to `rouge9`, `rougeL` or `rougeLsum`.
        stemmer: compare the stems (Porter) of words of more than three letters, as published tables mostly do.

    Raises:
        DataError: a row without a reference.
    """
    check_references(references)
    scorer = _scorer(kind, stemmer)
    if kind == "rougeLsum":
        predictions = [lines(text) for text in predictions]
        references = [[lines(text) for text in texts] for texts in references]
    return [
        float(scorer.score_multi(right, said)[kind].fmeasure)
        for said, right in zip(predictions, references, strict=True)
    ]


def _formula(kind: str, stemmer: bool) -> Any:
    def formula(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
        found = rouge(predictions, references, kind, stemmer)
        return sum(found) / len(found)

    return formula


def _signature(kind: str, stemmer: bool) -> Any:
    def signature(_: Any) -> str:
        import importlib.metadata

        split = "|split:newline or rule" if kind == "rougeLsum" else ""
        version = importlib.metadata.version("rouge-score")
        return f"F1|mean|stemmer:{'yes' if stemmer else 'no'}{split}|rouge-score:{version}"

    return signature


for _kind, _label in (("rouge1", "R-1"), ("rouge2", "R-2"), ("rougeL", "R-L"), ("rougeLsum", "R-Lsum")):
    for _stemmer in (False, True):
        register_metric(
            Metric(
                f"{_kind}_stemmed" if _stemmer else _kind,
                f"{_label} (stems)" if _stemmer else _label,
                ("summarisation",),
                _formula(_kind, _stemmer),
                decimals=2,
                note="Porter's stems are compared" if _stemmer else "words are compared as they are",
                rows="text",
                package="rouge_score",
                extra="text",
                signature=_signature(_kind, _stemmer),
            )
        )
