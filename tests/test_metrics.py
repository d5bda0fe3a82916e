from __future__ import annotations

import evaluate
import numpy as np
import pytest

from adaptrain.errors import ConfigError
from adaptrain.evaluation.baseline import trivial_baseline
from adaptrain.evaluation.interface import load
from adaptrain.evaluation.metrics import METRICS, check_metrics, compute, get_metric

Y = np.array([1, 0, 1, 1, 0, 1, 0, 0])
P = np.array([1, 0, 0, 1, 1, 1, 0, 1])
R = np.array([0.0, 1.5, 2.0, 4.5, 5.0])
Q = np.array([0.5, 1.0, 2.5, 3.0, 6.0])

M = np.array([[6.0, 1.0], [2.0, 2.0], [0.5, 0.0], [3.5, 1.0], [4.0, 0.0]])  # summed loss, right ones
N = np.array([3, 2, 1, 1, 1])  # masked words


def test_masked_words_by_hand() -> None:
    """Means over words, not over rows."""
    scores = compute(("loss", "perplexity", "token_accuracy"), M, N)
    assert scores["loss"] == pytest.approx(16 / 8)
    assert scores["perplexity"] == pytest.approx(np.exp(2))
    assert scores["token_accuracy"] == pytest.approx(4 / 8)
    assert np.isfinite(compute(("perplexity",), M * 1e4, N)["perplexity"])


def test_classification_by_hand() -> None:
    # true positives 3, false positives 2, false negatives 1, true negatives 2
    scores = compute(("accuracy", "mcc", "f1", "macro_f1"), P, Y)
    assert scores["accuracy"] == 5 / 8
    assert scores["f1"] == pytest.approx(2 * 3 / (2 * 3 + 2 + 1))
    assert scores["macro_f1"] == pytest.approx((2 / 3 + 4 / 7) / 2)
    assert scores["mcc"] == pytest.approx((3 * 2 - 2 * 1) / (5 * 4 * 4 * 3) ** 0.5)


def test_regression_by_hand() -> None:
    scores = compute(("pearson", "spearman", "mse", "mae"), Q, R)
    assert scores["pearson"] == pytest.approx(float(np.corrcoef(Q, R)[0, 1]))
    assert scores["spearman"] == pytest.approx(1.0)
    assert scores["mse"] == pytest.approx(float(np.mean((Q - R) ** 2)))
    assert scores["mae"] == pytest.approx(float(np.mean(np.abs(Q - R))))


def test_spearman_of_ties() -> None:
    scores = compute(("spearman",), np.array([1.0, 1.0, 2.0, 3.0]), np.array([1.0, 2.0, 3.0, 3.0]))
    ranks = np.array([1.5, 1.5, 3, 4]), np.array([1, 2, 3.5, 3.5])
    assert scores["spearman"] == pytest.approx(float(np.corrcoef(*ranks)[0, 1]))


@pytest.mark.parametrize("name", [metric.name for metric in METRICS.values() if metric.task_type == "classification"])
@pytest.mark.parametrize("constant", [0, 1])
def test_one_answer_for_all_rows_is_scored_without_a_warning(name: str, constant: int) -> None:
    score = compute((name,), np.full(8, constant), Y)[name]
    assert np.isfinite(score)
    assert compute((name,), np.full(8, constant), np.full(8, constant))[name] in (0.0, 1.0)
    if name == "mcc":
        assert score == 0.0


@pytest.mark.parametrize("name", ["pearson", "spearman"])
def test_correlation_with_a_constant_is_zero(name: str) -> None:
    assert compute((name,), np.full(5, 2.5), R)[name] == 0.0
    # what float32 makes of a constant is no correlation either
    nearly = np.float32(2.5) + np.array([0, 1, 0, 1, 0], dtype=np.float32) * np.float32(2.4e-7)
    assert compute((name,), nearly, R)[name] == 0.0
    assert compute((name,), np.array([1.0]), np.array([2.0]))[name] == 0.0


def test_every_metric_is_one_of_the_evaluate_library() -> None:
    for name, metric in METRICS.items():
        loaded = load(name)
        assert isinstance(loaded, evaluate.Metric)
        given = {"classification": (P, Y), "regression": (Q, R), "masked_lm": (M, N)}[metric.task_type]
        whole = loaded.compute(predictions=given[0], references=given[1])
        for part in np.array_split(np.arange(len(given[0])), 3):
            loaded.add_batch(predictions=given[0][part], references=given[1][part])
        assert whole == loaded.compute() and whole is not None and set(whole) == {name}


def test_metrics_can_be_combined() -> None:
    both = evaluate.combine([load("accuracy"), load("mcc")])
    assert set(both.compute(predictions=P, references=Y) or {}) == {"accuracy", "mcc"}


def test_bounds_and_directions() -> None:
    falling = [name for name, metric in METRICS.items() if not metric.higher_is_better]
    assert falling == ["mse", "mae", "loss", "perplexity"]
    assert get_metric("mcc").bounds == (-1.0, 1.0)
    assert get_metric("mcc").shown(0.5831) == "58.3" and get_metric("mse").shown(0.5831) == "0.583"
    assert get_metric("mse").better(0.1, than=0.2) and get_metric("mcc").better(0.2, than=0.1)


def test_every_mistake_is_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        check_metrics("classification", 3, ("acuracy", "pearson", "f1", "mcc"))
    acuracy, pearson, f1 = caught.value.problems
    assert "did you mean 'accuracy'?" in acuracy
    assert "is for regression, not for classification" in pearson and "macro_f1" in pearson
    assert "is for 2 labels, and the task has 3" in f1
    check_metrics("classification", 2, ("f1",))


def test_the_trivial_answer_comes_from_the_training_labels() -> None:
    from tiny_run import MOOD, NUMBER

    found = trivial_baseline(MOOD, [1, 1, 0], [0, 0, 1], ("accuracy", "mcc"))
    assert (found.name, found.answer) == ("majority class", "good")
    assert found.metrics == {"accuracy": pytest.approx(1 / 3), "mcc": 0.0}
    found = trivial_baseline(NUMBER, [1.0, 2.0, 6.0], [3.0, 5.0], ("mse", "pearson"))
    assert (found.name, found.answer, found.metrics) == ("mean", 3.0, {"mse": 2.0, "pearson": 0.0})
