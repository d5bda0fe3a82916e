"""What a metric is, and the register of them. The formulas stand in the modules beside this one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Formula = Callable[[Any, Any], float]


@dataclass(frozen=True)
class Metric:
    """A number that says how good predictions are.

    Attributes:
        name: in the registry, and in `task.metric`.
        label: in the head of a table.
        task_types: shapes of the tasks that it makes sense for.
        formula: (predictions, references) → score.
        higher_is_better: its direction.
        bounds: least and greatest value; None where there is none.
        scale: what a score is multiplied by to be shown.
        decimals: shown after the point.
        labels: how many labels a task must have; None where it does not matter.
        more_labels_than: how many labels a task must exceed.
        note: what to know when reading it.
        rows: what one prediction and one reference are: a key of `interface.FEATURES`.
        package: what computes it, as `import` calls it; empty where the formula is all there is.
        extra: of adaptrain, which installs the package; empty where the plain install has it.
        signature: references → what must be equal for two scores to be compared; None where the name says it.
    """

    name: str
    label: str
    task_types: tuple[str, ...]
    formula: Formula
    higher_is_better: bool = True
    bounds: tuple[float | None, float | None] = (0.0, 1.0)
    scale: float = 100.0
    decimals: int = 1
    labels: int | None = None
    more_labels_than: int = 0
    note: str = ""
    rows: str = "label"
    package: str = ""
    extra: str = ""
    signature: Callable[[Any], str] | None = None

    def shown(self, score: float) -> str:
        """A score as people read it: 0.5831 is 58.3."""
        return f"{score * self.scale:.{self.decimals}f}"

    def better(self, score: float, than: float) -> bool:
        return score > than if self.higher_is_better else score < than

    def heading(self, split: str) -> str:
        """The label with what GLUE calls MNLI's two splits: m for matched domains, mm for mismatched ones.

        >>> METRICS["accuracy"].heading("validation_mismatched")
        'accuracy mm'
        """
        for ending, mark in (("_mismatched", "mm"), ("_matched", "m")):
            if split.endswith(ending):
                return f"{self.label} {mark}"
        return self.label


METRICS: dict[str, Metric] = {}


def register_metric(metric: Metric) -> Metric:
    """Make a metric known by its name."""
    METRICS[metric.name] = metric
    return metric
