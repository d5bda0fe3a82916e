"""Metrics of labels and numbers: classification, several labels a row, ranked labels, regression.

A prediction that is the same for all rows is a legal answer (the trivial baseline is one): correlations, which would
be 0/0, are 0 then.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from adaptrain.evaluation.registry import Metric, register_metric

_ZERO_DIVISION: Any = 0.0
"""F1 where nothing is predicted of a label: 0, and no warning. scikit-learn's types know only the words."""


def _accuracy(predictions: np.ndarray, references: np.ndarray) -> float:
    return float(np.mean(predictions == references))


def _mcc(predictions: np.ndarray, references: np.ndarray) -> float:
    from sklearn.metrics import matthews_corrcoef

    if _constant(predictions) or _constant(references):  # scikit-learn says the same, after a warning
        return 0.0
    return float(matthews_corrcoef(references, predictions))


def _f1(average: str) -> Any:
    """(predictions, references) → F1 by one of scikit-learn's averages, of labels or of rows of 0 and 1."""

    def formula(predictions: np.ndarray, references: np.ndarray) -> float:
        from sklearn.metrics import f1_score

        kind: Any = average
        return float(f1_score(references, predictions, pos_label=1, average=kind, zero_division=_ZERO_DIVISION))

    return formula


def _subset_accuracy(predictions: np.ndarray, references: np.ndarray) -> float:
    return float(np.mean((predictions == references).all(-1)))


def _top(k: int) -> Any:
    """(scores (rows, labels), references) → share of rows with the right label among the k best. Of equal scores the
    label with the lower index comes first, so that k = 1 is the accuracy of `argmax`."""

    def formula(predictions: np.ndarray, references: np.ndarray) -> float:
        order = np.argsort(-predictions, axis=-1, kind="stable")[:, :k]
        return float(np.mean((order == references[:, None]).any(-1)))

    return formula


def _pearson(predictions: np.ndarray, references: np.ndarray) -> float:
    from scipy.stats import pearsonr

    if _constant(predictions) or _constant(references):
        return 0.0
    found: Any = pearsonr(predictions.astype(np.float64), references.astype(np.float64))
    return float(found.statistic)


def _spearman(predictions: np.ndarray, references: np.ndarray) -> float:
    from scipy.stats import spearmanr

    if _constant(predictions) or _constant(references):
        return 0.0
    found: Any = spearmanr(predictions, references)
    return float(found.statistic)


def _mse(predictions: np.ndarray, references: np.ndarray) -> float:
    return float(np.mean((predictions.astype(np.float64) - references.astype(np.float64)) ** 2))


def _mae(predictions: np.ndarray, references: np.ndarray) -> float:
    return float(np.mean(np.abs(predictions.astype(np.float64) - references.astype(np.float64))))


def _constant(values: np.ndarray) -> bool:
    """Constant as far as float32 can tell: what is left then is rounding, and its correlation is noise."""
    spread = float(np.ptp(values)) if len(values) else 0.0
    return len(values) < 2 or spread <= 1e-6 * max(1e-6, float(np.abs(values).max()))


_ZERO = "0 where all predictions are the same"
_LABEL = ("classification",)
_CHOICE = ("classification", "multiple_choice", "image_classification")
_SEVERAL = ("multilabel",)
_NUMBER = ("regression",)
_EMPTY_LABEL = "a label that is in no prediction and no reference counts 0"

register_metric(Metric("accuracy", "accuracy", _CHOICE, _accuracy))
register_metric(Metric("mcc", "MCC", _LABEL, _mcc, bounds=(-1.0, 1.0), note=_ZERO, package="sklearn"))
register_metric(
    Metric("f1", "F1", _LABEL, _f1("binary"), labels=2, note="of the label with index 1", package="sklearn")
)
register_metric(Metric("macro_f1", "macro F1", (*_LABEL, "image_classification"), _f1("macro"), package="sklearn"))
register_metric(Metric("micro_f1", "micro F1", _LABEL, _f1("micro"), note="accuracy", package="sklearn"))

for _name, _label, _average, _note in (
    ("multilabel_micro_f1", "micro F1", "micro", "of all labels of all rows together"),
    ("multilabel_macro_f1", "macro F1", "macro", f"mean over labels; {_EMPTY_LABEL}"),
    ("multilabel_samples_f1", "samples F1", "samples", "mean over rows; one without right and predicted label is 0"),
):
    register_metric(
        Metric(_name, _label, _SEVERAL, _f1(_average), note=_note, rows="several labels", package="sklearn")
    )
register_metric(
    Metric("subset_accuracy", "exact match", _SEVERAL, _subset_accuracy, rows="several labels", note="all labels right")
)

register_metric(Metric("top1", "top-1", ("image_classification",), _top(1), rows="label scores"))
register_metric(Metric("top5", "top-5", ("image_classification",), _top(5), rows="label scores", more_labels_than=5))

for _name, _label, _formula in (("pearson", "Pearson", _pearson), ("spearman", "Spearman", _spearman)):
    register_metric(
        Metric(_name, _label, _NUMBER, _formula, bounds=(-1.0, 1.0), note=_ZERO, rows="number", package="scipy")
    )
for _name, _label, _formula in (("mse", "MSE", _mse), ("mae", "MAE", _mae)):
    register_metric(
        Metric(_name, _label, _NUMBER, _formula, False, bounds=(0.0, None), scale=1.0, decimals=3, rows="number")
    )
