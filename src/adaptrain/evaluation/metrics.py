"""Metrics by name, computed on this machine; nothing is downloaded.

This file imports nothing heavy: a formula imports its package when it is called, and `evaluation.interface` presents
each metric as one of the `evaluate` library.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

from adaptrain.errors import ConfigError, DataError, listed, unknown

# imported for what they register
from adaptrain.evaluation import answers, entities, labels, summaries, transcripts, translations, trees, words
from adaptrain.evaluation.registry import METRICS, Formula, Metric, register_metric

__all__ = [
    "METRICS",
    "Formula",
    "Metric",
    "check_metrics",
    "compute",
    "get_metric",
    "register_metric",
    "signatures",
]

FORMULAS = (labels, words, answers, entities, trees, summaries, translations, transcripts)
"""Where the formulas are."""


def get_metric(name: str, task_type: str | None = None) -> Metric:
    """A metric by its name.

    Raises:
        ConfigError: unknown, or not for this shape of task; names the nearest and the possible ones.
    """
    fitting = [metric.name for metric in METRICS.values() if task_type is None or task_type in metric.task_types]
    if name not in METRICS:
        raise ConfigError(unknown("metric", name, sorted(fitting), "The metrics are"))
    if name not in fitting:
        raise ConfigError(
            f"The metric '{name}' is for {listed(METRICS[name].task_types)}, not for {task_type}. "
            f"Metrics for {task_type} are: {listed(sorted(fitting))}"
        )
    return METRICS[name]


def compute(names: Sequence[str], predictions: Any, references: Any, scores: Any = None) -> dict[str, float]:
    """Several metrics of the same predictions, through the `evaluate` interface.

    Args:
        scores: of every label for each row, which metrics of ranked labels take in the place of `predictions`.

    Raises:
        DataError: there is no row, or a row for which a metric is not defined.
    """
    from adaptrain.evaluation.interface import load

    if len(references) == 0:
        raise DataError("There is no row to score; give a split that has rows")
    found: dict[str, float] = {}
    for name in dict.fromkeys(names):
        ranked = scores is not None and get_metric(name).rows == "label scores"
        found |= load(name).compute(predictions=scores if ranked else predictions, references=references) or {}
    return {name: float(score) for name, score in found.items()}


def signatures(names: Sequence[str], references: Any) -> dict[str, str]:
    """What must be equal for two scores of a metric to be compared: of sacreBLEU its signature, of others the package,
    its version and what was chosen. Metrics whose name says it all are left out."""
    found = {name: get_metric(name).signature for name in dict.fromkeys(names)}
    return {name: signature(references) for name, signature in found.items() if signature is not None}


def check_metrics(task_type: str, labels: int, names: Sequence[str]) -> None:
    """Refuse metrics that a task cannot have, or that this installation cannot compute.

    Args:
        labels: how many the task has; 0 where that is not known, or it has none.

    Raises:
        ConfigError: every mistake at once.
    """
    problems = []
    for name in dict.fromkeys(names):
        try:
            metric = get_metric(name, task_type)
        except ConfigError as error:
            problems += error.problems
            continue
        if labels and metric.labels is not None and metric.labels != labels:
            problems.append(
                f"The metric '{name}' is for {metric.labels} labels, and the task has {labels}; try macro_f1"
            )
        if labels and labels <= metric.more_labels_than:
            problems.append(
                f"The metric '{name}' is for more than {metric.more_labels_than} labels, and the task has {labels}; "
                "try top1"
            )
        if metric.package and find_spec(metric.package) is None:
            wanted = f"'adaptrain[{metric.extra}]'" if metric.extra else "adaptrain"
            problems.append(
                f"The metric '{name}' needs the package {metric.package}, which is not installed: pip install {wanted}"
            )
    if problems:
        raise ConfigError(problems)
