"""Our metrics as metrics of the `evaluate` library. Importing this file imports that library, which takes seconds."""

from __future__ import annotations

from typing import Any

import datasets
import evaluate
import numpy as np

from adaptrain.evaluation.metrics import Metric, get_metric

_ONE = {kind: datasets.Value(kind) for kind in ("int64", "float64")}
_FEATURES = {
    "classification": {"predictions": _ONE["int64"], "references": _ONE["int64"]},
    "regression": {"predictions": _ONE["float64"], "references": _ONE["float64"]},
    "masked_lm": {"predictions": datasets.List(_ONE["float64"], length=2), "references": _ONE["int64"]},
}


class LocalMetric(evaluate.Metric):
    """One of our metrics with `compute`, `add` and `add_batch`, and usable in `evaluate.combine`.

    Args:
        metric: which one.
    """

    def __init__(self, metric: Metric, **options: Any) -> None:
        self.metric = metric
        super().__init__(keep_in_memory=True, **options)

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=f"{self.metric.label}. {self.metric.note}",
            citation="",
            inputs_description="predictions, references: one value a row; two predictions a row of masked words.",
            features=datasets.Features(_FEATURES[self.metric.task_type]),
        )

    def _compute(self, *, predictions: Any = None, references: Any = None, **_: Any) -> dict[str, float]:
        return {self.metric.name: self.metric.formula(np.asarray(predictions), np.asarray(references))}


def load(name: str) -> LocalMetric:
    """The metric of a name; like `evaluate.load`, but nothing is fetched.

    Raises:
        ConfigError: unknown name.
    """
    return LocalMetric(get_metric(name))
