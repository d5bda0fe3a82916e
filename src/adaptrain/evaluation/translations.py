"""Metrics of translations, over all rows together, by sacreBLEU (Post 2018): BLEU, chrF, TER.

A prediction is a text, a reference a list of them. Texts are to be as people write them: sacreBLEU cuts them into
words. Its scores are divided by 100; tables multiply again. Its signature belongs beside every number.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from adaptrain.errors import DataError
from adaptrain.evaluation.registry import Metric, register_metric

TOOLS: dict[str, tuple[str, dict[str, Any]]] = {
    "bleu": ("BLEU", {"tokenize": "13a"}),
    "bleu_intl": ("BLEU", {"tokenize": "intl"}),
    "bleu_zh": ("BLEU", {"tokenize": "zh"}),
    "bleu_char": ("BLEU", {"tokenize": "char"}),
    "chrf": ("CHRF", {}),
    "chrf++": ("CHRF", {"word_order": 2}),
    "ter": ("TER", {}),
}
"""Name → sacreBLEU's class and its options. Tokenisers that need more packages or a download are not among them."""


def check_references(references: Sequence[Sequence[str]]) -> None:
    """Raises:
    DataError: a row without a reference.
    """
    for row, texts in enumerate(references, start=1):
        if not texts:
            raise DataError(f"Row {row} has no reference; give at least one, or leave the row out")


def translation_score(name: str, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """A corpus score of sacreBLEU, divided by 100. An empty prediction counts as one; rows may have different numbers
    of references.

    Args:
        name: one of TOOLS.

    Raises:
        DataError: a row without a reference.
    """
    check_references(references)
    score = _tool(name).corpus_score(list(predictions), _streams(references)).score / 100
    return score if name == "ter" else min(score, 1.0)  # exp(log) of a perfect one is a hair above


def translation_signature(name: str, references: Sequence[Sequence[str]]) -> str:
    """sacreBLEU's signature, as `nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:2.6.0`."""
    check_references(references)
    tool = _tool(name)
    counts = {len(texts) for texts in references}
    tool.num_refs = counts.pop() if len(counts) == 1 else -1
    return tool.get_signature().format()


def _tool(name: str) -> Any:
    import sacrebleu

    kind, options = TOOLS[name]
    return getattr(sacrebleu, kind)(**options)


def _streams(references: Sequence[Sequence[str]]) -> list[list[str | None]]:
    """Rows of references → sacreBLEU's streams: the first of every row, the second of every row, …"""
    most = max(len(texts) for texts in references)
    return [[texts[n] if n < len(texts) else None for texts in references] for n in range(most)]


def _formula(name: str) -> Any:
    return lambda predictions, references: translation_score(name, predictions, references)


def _signature(name: str) -> Any:
    return lambda references: translation_signature(name, references)


for _name, _label, _note in (
    ("bleu", "sacreBLEU", "words by the rules of mteval 13a, the default of WMT"),
    ("bleu_intl", "sacreBLEU (intl)", "words by Unicode's classes"),
    ("bleu_zh", "sacreBLEU (zh)", "Chinese characters are words"),
    ("bleu_char", "sacreBLEU (char)", "all characters are words"),
    ("chrf", "chrF", "characters up to 6-grams, β 2"),
    ("chrf++", "chrF++", "chrF with words up to 2-grams"),
    ("ter", "TER", "edits with shifts, by words of the references; case does not count"),
):
    register_metric(
        Metric(
            _name,
            _label,
            ("translation",),
            _formula(_name),
            higher_is_better=_name != "ter",
            bounds=(0.0, None) if _name == "ter" else (0.0, 1.0),
            note=_note,
            rows="text",
            package="sacrebleu",
            extra="text",
            signature=_signature(_name),
        )
    )
