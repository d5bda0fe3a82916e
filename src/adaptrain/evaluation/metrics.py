"""Metrics by name, computed on this machine with scikit-learn and scipy; nothing is downloaded.

This file knows names, directions and formulas and imports nothing heavy; `evaluation.interface` presents each of them
as a metric of the `evaluate` library. A prediction that is the same for all rows is a legal answer (the trivial
baseline is one): correlations, which would be 0/0, are 0 then.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from adaptrain.errors import ConfigError, listed, unknown

Formula = Callable[[np.ndarray, np.ndarray], float]


@dataclass(frozen=True)
class Metric:
    """A number that says how good predictions are.

    Attributes:
        name: in the registry, and in `task.metric`.
        label: in the head of a table.
        task_type: shape of the tasks that it makes sense for.
        higher_is_better: its direction.
        bounds: least and greatest value; None where there is none.
        scale: what a score is multiplied by to be shown.
        decimals: shown after the point.
        labels: how many labels a task must have; None where it does not matter.
        formula: (predictions, references) → score. For masked words predictions are (rows, 2), the summed loss and the
            right ones of each row, and references their number.
        note: what to know when reading it.
    """

    name: str
    label: str
    task_type: str
    formula: Formula
    higher_is_better: bool = True
    bounds: tuple[float | None, float | None] = (0.0, 1.0)
    scale: float = 100.0
    decimals: int = 1
    labels: int | None = None
    note: str = ""

    def shown(self, score: float) -> str:
        """A score as people read it: 0.5831 is 58.3."""
        return f"{score * self.scale:.{self.decimals}f}"

    def better(self, score: float, than: float) -> bool:
        return score > than if self.higher_is_better else score < than


METRICS: dict[str, Metric] = {}

_ZERO_DIVISION: Any = 0.0
"""F1 where nothing is predicted of a label: 0, and no warning. scikit-learn's types know only the words."""


def register_metric(metric: Metric) -> Metric:
    """Make a metric known by its name."""
    METRICS[metric.name] = metric
    return metric


def get_metric(name: str, task_type: str | None = None) -> Metric:
    """A metric by its name.

    Raises:
        ConfigError: unknown, or not for this shape of task; names the nearest and the possible ones.
    """
    fitting = [metric.name for metric in METRICS.values() if task_type in (None, metric.task_type)]
    if name not in METRICS:
        raise ConfigError(unknown("metric", name, sorted(fitting), "The metrics are"))
    if name not in fitting:
        raise ConfigError(
            f"The metric '{name}' is for {METRICS[name].task_type}, not for {task_type}. "
            f"Metrics for {task_type} are: {listed(sorted(fitting))}"
        )
    return METRICS[name]


def compute(names: Sequence[str], predictions: np.ndarray, references: np.ndarray) -> dict[str, float]:
    """Several metrics of the same predictions, through the `evaluate` interface."""
    from adaptrain.evaluation.interface import load

    scores: dict[str, float] = {}
    for name in dict.fromkeys(names):
        scores |= load(name).compute(predictions=predictions, references=references) or {}
    return {name: float(score) for name, score in scores.items()}


def check_metrics(task_type: str, labels: int, names: Sequence[str]) -> None:
    """Refuse metrics that a task cannot have.

    Args:
        labels: how many the task has.

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
        if metric.labels is not None and metric.labels != labels:
            problems.append(
                f"The metric '{name}' is for {metric.labels} labels, and the task has {labels}; try macro_f1"
            )
    if problems:
        raise ConfigError(problems)


def _accuracy(predictions: np.ndarray, references: np.ndarray) -> float:
    return float(np.mean(predictions == references))


def _mcc(predictions: np.ndarray, references: np.ndarray) -> float:
    from sklearn.metrics import matthews_corrcoef

    if _constant(predictions) or _constant(references):  # scikit-learn says the same, after a warning
        return 0.0
    return float(matthews_corrcoef(references, predictions))


def _f1(predictions: np.ndarray, references: np.ndarray) -> float:
    from sklearn.metrics import f1_score

    return float(f1_score(references, predictions, pos_label=1, average="binary", zero_division=_ZERO_DIVISION))


def _macro_f1(predictions: np.ndarray, references: np.ndarray) -> float:
    from sklearn.metrics import f1_score

    return float(f1_score(references, predictions, average="macro", zero_division=_ZERO_DIVISION))


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


def _loss(predictions: np.ndarray, references: np.ndarray) -> float:
    return float(predictions[:, 0].sum(dtype=np.float64) / references.sum())


def _perplexity(predictions: np.ndarray, references: np.ndarray) -> float:
    return float(np.exp(min(_loss(predictions, references), 700.0)))  # beyond, float64 ends


def _token_accuracy(predictions: np.ndarray, references: np.ndarray) -> float:
    return float(predictions[:, 1].sum(dtype=np.float64) / references.sum())


_ZERO = "0 where all predictions are the same"

register_metric(Metric("accuracy", "accuracy", "classification", _accuracy))
register_metric(Metric("mcc", "MCC", "classification", _mcc, bounds=(-1.0, 1.0), note=_ZERO))
register_metric(Metric("f1", "F1", "classification", _f1, labels=2, note="of the label with index 1"))
register_metric(Metric("macro_f1", "macro F1", "classification", _macro_f1))
register_metric(Metric("pearson", "Pearson", "regression", _pearson, bounds=(-1.0, 1.0), note=_ZERO))
register_metric(Metric("spearman", "Spearman", "regression", _spearman, bounds=(-1.0, 1.0), note=_ZERO))
register_metric(Metric("mse", "MSE", "regression", _mse, False, bounds=(0.0, None), scale=1.0, decimals=3))
register_metric(Metric("mae", "MAE", "regression", _mae, False, bounds=(0.0, None), scale=1.0, decimals=3))
_MASKED = "of masked words; of the same ones whatever the seed"
register_metric(
    Metric("loss", "loss", "masked_lm", _loss, False, bounds=(0.0, None), scale=1.0, decimals=3, note=_MASKED)
)
register_metric(
    Metric(
        "perplexity",
        "perplexity",
        "masked_lm",
        _perplexity,
        False,
        bounds=(1.0, None),
        scale=1.0,
        decimals=2,
        note=f"exp(loss), {_MASKED}",
    )
)
register_metric(Metric("token_accuracy", "token accuracy", "masked_lm", _token_accuracy, note=_MASKED))
