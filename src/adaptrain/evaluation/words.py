"""Metrics of words that a model completes: masked ones, or each from those before it.

Predictions are (rows, 2), the summed loss and the number of right words of each row; references are the number of
words of each row. Means are over words, not over rows.
"""

from __future__ import annotations

import numpy as np

from adaptrain.evaluation.registry import Metric, register_metric


def _loss(predictions: np.ndarray, references: np.ndarray) -> float:
    return float(predictions[:, 0].sum(dtype=np.float64) / references.sum())


def _perplexity(predictions: np.ndarray, references: np.ndarray) -> float:
    return float(np.exp(min(_loss(predictions, references), 700.0)))  # beyond, float64 ends


def _token_accuracy(predictions: np.ndarray, references: np.ndarray) -> float:
    return float(predictions[:, 1].sum(dtype=np.float64) / references.sum())


_TYPES = ("masked_lm", "causal_lm")
_NOTE = "of tokens that have a loss; masked ones are the same whatever the seed"

register_metric(
    Metric(
        "loss",
        "loss",
        _TYPES,
        _loss,
        False,
        bounds=(0.0, None),
        scale=1.0,
        decimals=3,
        note=_NOTE,
        rows="words",
    )
)
register_metric(
    Metric(
        "perplexity",
        "perplexity",
        _TYPES,
        _perplexity,
        False,
        bounds=(1.0, None),
        scale=1.0,
        decimals=2,
        note=f"exp(loss), {_NOTE}; comparable for one tokenizer only",
        rows="words",
    )
)
register_metric(Metric("token_accuracy", "token accuracy", _TYPES, _token_accuracy, note=_NOTE, rows="words"))
