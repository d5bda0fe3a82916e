"""Metrics of transcripts, over all rows together, by jiwer:

    WER = (substitutions + deletions + insertions) / words of the references          CER: the same of characters

A prediction is a text, a reference a list of exactly one. Without words in a reference the rate is not defined.
Long wrong predictions bring it above 1.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import Any

from adaptrain.errors import DataError
from adaptrain.evaluation.registry import Metric, register_metric

_APOSTROPHES = str.maketrans(dict.fromkeys("’‘ʼ`´", "'"))
_WITHIN = re.compile(r"(?<=\w)'(?=\w)")
_MARK = "\ue000"  # of a private use: in no text


def plain(text: str) -> str:
    """NFKC, lower case, punctuation and symbols as blanks but for apostrophes within a word, single blanks. Numbers
    and contractions stay as they are.

    >>> plain("“It’s 5 o'clock,” — he said.")
    "it's 5 o'clock he said"
    """
    text = unicodedata.normalize("NFKC", text.translate(_APOSTROPHES)).lower()
    text = _WITHIN.sub(_MARK, text)
    text = "".join(" " if unicodedata.category(char)[0] in "PS" else char for char in text)
    return " ".join(text.replace(_MARK, "'").split())


def error_rate(
    predictions: Sequence[str], references: Sequence[Sequence[str]], characters: bool = False, normalise: bool = False
) -> float:
    """WER or CER.

    Args:
        characters: of characters, blanks between words among them, instead of words.
        normalise: compare both sides as `plain` writes them; else as they are, case and punctuation counting.

    Raises:
        DataError: a row whose reference has no word, or that has not exactly one reference.
    """
    import jiwer

    rate = jiwer.cer if characters else jiwer.wer
    write = plain if normalise else str
    right = [write(_only(texts, row)) for row, texts in enumerate(references, start=1)]
    for row, text in enumerate(right, start=1):
        if not text.strip():
            raise DataError(
                f"Row {row}: the reference {references[row - 1][0]!r} has no word"
                f"{' once normalised' if normalise else ''}, so its error rate is not defined; leave the row out"
            )
    return float(rate(right, [write(text) for text in predictions]))


def _only(texts: Sequence[str], row: int) -> str:
    if len(texts) != 1:
        raise DataError(f"Row {row} has {len(texts)} references; an error rate is of exactly one")
    return texts[0]


def _formula(characters: bool, normalise: bool) -> Any:
    return lambda predictions, references: error_rate(predictions, references, characters, normalise)


def _signature(normalise: bool) -> Any:
    def signature(_: Any) -> str:
        import importlib.metadata

        text = "NFKC, lower, no punctuation" if normalise else "as it is"
        return f"text:{text}|jiwer:{importlib.metadata.version('jiwer')}"

    return signature


for _characters, _name in ((False, "wer"), (True, "cer")):
    for _normalise in (False, True):
        register_metric(
            Metric(
                f"{_name}_normalised" if _normalise else _name,
                f"{_name.upper()} (norm.)" if _normalise else _name.upper(),
                ("speech_recognition",),
                _formula(_characters, _normalise),
                False,
                bounds=(0.0, None),
                note="without case and punctuation" if _normalise else "case and punctuation count",
                rows="text",
                package="jiwer",
                extra="speech",
                signature=_signature(_normalise),
            )
        )
