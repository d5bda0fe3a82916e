"""Our metrics as metrics of the `evaluate` library. Importing this file imports that library, which takes seconds."""

from __future__ import annotations

from typing import Any

import datasets
import evaluate
import numpy as np

from adaptrain.evaluation.metrics import Metric, get_metric

_INT, _FLOAT, _TEXT = (datasets.Value(kind) for kind in ("int64", "float64", "string"))
_TREE = {"heads": datasets.List(_INT), "relations": datasets.List(_TEXT)}

FEATURES: dict[str, tuple[Any, Any]] = {
    "label": (_INT, _INT),
    "several labels": (datasets.List(_INT), datasets.List(_INT)),
    "label scores": (datasets.List(_FLOAT), _INT),
    "number": (_FLOAT, _FLOAT),
    "words": (datasets.List(_FLOAT, length=2), _INT),
    "answer": ({"text": _TEXT, "no_answer": _FLOAT}, datasets.List(_TEXT)),
    "tags": (datasets.List(_TEXT), datasets.List(_TEXT)),
    "tree": (_TREE, _TREE),
    "text": (_TEXT, datasets.List(_TEXT)),
}
"""What one prediction and one reference are, by `Metric.rows`."""

ARRAYS = frozenset(("label", "several labels", "label scores", "number", "words"))
"""Rows that formulas get as arrays; the others they get as lists."""


class LocalMetric(evaluate.Metric):
    """One of our metrics with `compute`, `add` and `add_batch`, and usable in `evaluate.combine`.

    Args:
        metric: which one.
    """

    def __init__(self, metric: Metric, **options: Any) -> None:
        self.metric = metric
        super().__init__(keep_in_memory=True, **options)

    def _info(self) -> evaluate.MetricInfo:
        predictions, references = FEATURES[self.metric.rows]
        return evaluate.MetricInfo(
            description=f"{self.metric.label}. {self.metric.note}",
            citation="",
            inputs_description=f"predictions, references: one a row; rows are {self.metric.rows}.",
            features=datasets.Features({"predictions": predictions, "references": references}),
        )

    def _compute(self, *, predictions: Any = None, references: Any = None, **_: Any) -> dict[str, float]:
        if self.metric.rows in ARRAYS:
            predictions, references = np.asarray(predictions), np.asarray(references)
        return {self.metric.name: self.metric.formula(predictions, references)}


def load(name: str) -> LocalMetric:
    """The metric of a name; like `evaluate.load`, but nothing is fetched.

    Raises:
        ConfigError: unknown name.
    """
    return LocalMetric(get_metric(name))
