"""Metrics of tags, one a word: entities as CoNLL-2000's and CoNLL-2003's script counts them, by seqeval.

Predictions and references are lists of tags, one list a sentence. An entity is right when its first word, its last
word and its type are. F1 = 2·right / (predicted + real) over all entities of all types (micro). Without any predicted
and any real entity it is 0, as in the script.

By default tags are read as the script reads them: a word inside an entity that nothing began begins one, so that IOB1,
IOB2 and BIOES are all read right. Strictly, an entity that its scheme does not allow counts as none.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from adaptrain.errors import DataError, listed
from adaptrain.evaluation.registry import Metric, register_metric

Tags = Sequence[Sequence[str]]

SCHEMES = {"iob1": "IOB1", "iob2": "IOB2", "bioes": "IOBES"}
"""Scheme → seqeval's class. IOB1 writes B- only between neighbours of one type, IOB2 at every beginning; BIOES also
marks the end (E-) and entities of a single word (S-)."""

_TAG = {"": re.compile(r"O|[BIES](-.+)?"), "iob1": re.compile(r"O|[BI](-.+)?"), "bioes": re.compile(r"O|[BIES](-.+)?")}
_TAG["iob2"] = _TAG["iob1"]


def entity_scores(predictions: Tags, references: Tags, scheme: str | None = None) -> dict[str, float]:
    """`precision`, `recall` and `f1` of entities.

    Args:
        scheme: strictly by one of SCHEMES; None reads as the CoNLL script does.

    Raises:
        DataError: a sentence with more or fewer tags than words, or a tag that is none of the scheme.
    """
    from seqeval import scheme as schemes
    from seqeval.metrics import f1_score, precision_score, recall_score

    _check(predictions, references, scheme or "")
    chosen: dict[str, Any] = {"average": "micro", "zero_division": 0}
    if scheme is not None:
        chosen |= {"mode": "strict", "scheme": getattr(schemes, SCHEMES[scheme])}
    right, said = [list(tags) for tags in references], [list(tags) for tags in predictions]
    formulas: dict[str, Any] = {"precision": precision_score, "recall": recall_score, "f1": f1_score}
    return {name: float(formula(right, said, **chosen)) for name, formula in formulas.items()}


def tag_accuracy(predictions: Tags, references: Tags) -> float:
    """Share of words whose tag is right; of part-of-speech tags too.

    Raises:
        DataError: a sentence with more or fewer tags than words.
    """
    _check(predictions, references, None)
    pairs = [pair for both in zip(predictions, references, strict=True) for pair in zip(*both, strict=True)]
    if not pairs:
        raise DataError("There is no word to score; give a split whose sentences have words")
    return sum(said == right for said, right in pairs) / len(pairs)


def _check(predictions: Tags, references: Tags, scheme: str | None) -> None:
    for row, (said, right) in enumerate(zip(predictions, references, strict=True), start=1):
        if len(said) != len(right):
            raise DataError(f"Row {row} has {len(right)} words and {len(said)} predicted tags; give one tag a word")
    if scheme is None:
        return
    for kind, sentences in (("predicted ", predictions), ("", references)):
        for tag in sorted({tag for tags in sentences for tag in tags}):
            if not _TAG[scheme].fullmatch(tag):
                named = scheme.upper() or "IOB1, IOB2 or BIOES"
                letters = ["O", "B-…", "I-…", *(() if scheme.startswith("iob") else ("E-…", "S-…"))]
                raise DataError(
                    f"The {kind}tag {tag!r} is no entity in {named}. Tags are {listed(letters)}. "
                    "For tags that are no entities use tag_accuracy"
                )


def _formula(key: str, scheme: str | None = None) -> Any:
    return lambda predictions, references: entity_scores(predictions, references, scheme)[key]


def _signature(mode: str) -> Any:
    def signature(_: Any) -> str:
        import importlib.metadata

        return f"average:micro|mode:{mode}|seqeval:{importlib.metadata.version('seqeval')}"

    return signature


_TYPES = ("tagging",)
for _key in ("f1", "precision", "recall"):
    register_metric(
        Metric(
            f"entity_{_key}",
            f"entity {'F1' if _key == 'f1' else _key}",
            _TYPES,
            _formula(_key),
            decimals=2,
            note="as the CoNLL script reads tags",
            rows="tags",
            package="seqeval",
            extra="text",
            signature=_signature("default"),
        )
    )
for _scheme in SCHEMES:
    register_metric(
        Metric(
            f"entity_f1_{_scheme}",
            f"entity F1 ({_scheme.upper()})",
            _TYPES,
            _formula("f1", _scheme),
            decimals=2,
            note=f"strict: what {_scheme.upper()} does not allow is no entity",
            rows="tags",
            package="seqeval",
            extra="text",
            signature=_signature(f"strict|scheme:{_scheme}"),
        )
    )
register_metric(
    Metric("tag_accuracy", "tag accuracy", _TYPES, tag_accuracy, decimals=2, rows="tags", note="over words")
)
