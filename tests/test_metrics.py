from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import evaluate
import numpy as np
import pytest

from adaptrain.errors import ConfigError, DataError
from adaptrain.evaluation.baseline import Baseline, trivial_baseline
from adaptrain.evaluation.interface import load
from adaptrain.evaluation.metrics import METRICS, check_metrics, compute, get_metric
from adaptrain.tasks.reading import Read
from adaptrain.tasks.rows import Rows

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


@pytest.mark.parametrize("name", [metric.name for metric in METRICS.values() if "classification" in metric.task_types])
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


SETS = np.array([[1, 0, 1], [0, 0, 1], [0, 0, 0], [1, 1, 0]]), np.array([[1, 0, 0], [0, 1, 1], [0, 0, 0], [1, 1, 0]])
SCORED = np.random.default_rng(0).normal(size=(6, 7)), np.array([0, 6, 3, 3, 2, 5])
SPANS = [{"text": text, "no_answer": sure} for text, sure in (("the cat", 0.2), ("", 0.9), ("dogs", 0.4))]
TAGS = [["B-PER", "I-PER", "O"], ["O"], ["B-LOC", "B-LOC"]], [["B-PER", "I-PER", "O"], ["B-LOC"], ["B-LOC", "I-LOC"]]
TREES = [
    {"heads": [2, 0], "relations": ["nsubj", "root"]},
    {"heads": [0], "relations": ["root"]},
    {"heads": [0, 1], "relations": ["root", "punct"]},
]
TEXTS = ["a dog barks", "", "The cat sat. It slept."], [["the dog barks"], ["a man"], ["The cat sat. It left."]]
GIVEN = {
    "label": (P, Y),
    "number": (Q, R),
    "words": (M, N),
    "several labels": SETS,
    "label scores": SCORED,
    "answer": (SPANS, [["cat", "a cat"], [], ["dog"]]),
    "tags": TAGS,
    "tree": (TREES, [TREES[0], TREES[1], {"heads": [0, 1], "relations": ["root", "obj"]}]),
    "text": TEXTS,
}
"""Predictions and references for every kind of rows."""


def given(name: str) -> tuple:
    said, right = GIVEN[METRICS[name].rows]
    if name in ("squad_em", "squad_f1"):  # every question has an answer
        return said[::2], right[::2]
    if name == "entity_f1_bioes":
        return tuple([["S-LOC" if tag == "B-LOC" else "O" for tag in tags] for tags in both] for both in (said, right))
    return said, right


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_is_one_of_the_evaluate_library(name: str) -> None:
    loaded = load(name)
    assert isinstance(loaded, evaluate.Metric)
    said, right = given(name)
    whole = loaded.compute(predictions=said, references=right)
    for part in np.array_split(np.arange(len(right)), 3):
        loaded.add_batch(predictions=[said[row] for row in part], references=[right[row] for row in part])
    assert whole == loaded.compute() and whole is not None and set(whole) == {name}


@pytest.mark.parametrize("name", METRICS)
def test_a_right_answer_is_the_best_and_scores_are_within_their_bounds(name: str) -> None:
    metric = METRICS[name]
    said, right = given(name)
    best = {
        "label scores": lambda: np.eye(7)[right],
        "words": lambda: np.stack([np.zeros(len(right)), right], -1),
        "answer": lambda: [{"text": answers[0] if answers else "", "no_answer": 0.0} for answers in right],
        "text": lambda: [texts[0] for texts in right],
    }.get(metric.rows, lambda: right)()
    least, most = metric.bounds
    top = most if metric.higher_is_better else least
    expected = {"multilabel_samples_f1": 3 / 4}.get(name, top)  # one row has no label at all
    assert compute((name,), best, right)[name] == pytest.approx(expected)
    score = compute((name,), said, right)[name]
    assert least is None or score >= least
    assert most is None or score <= most


def test_no_row_is_no_score() -> None:
    with pytest.raises(DataError, match="no row to score"):
        compute(("accuracy",), np.array([]), np.array([]))


def test_metrics_can_be_combined() -> None:
    both = evaluate.combine([load("accuracy"), load("mcc")])
    assert set(both.compute(predictions=P, references=Y) or {}) == {"accuracy", "mcc"}


def test_bounds_and_directions() -> None:
    lower = "mse mae loss perplexity ter wer wer_normalised cer cer_normalised"
    assert {name for name, metric in METRICS.items() if not metric.higher_is_better} == set(lower.split())
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
    with pytest.raises(ConfigError, match="'top5' is for more than 5 labels, and the task has 5; try top1"):
        check_metrics("image_classification", 5, ("top1", "top5", "accuracy", "macro_f1"))
    check_metrics("image_classification", 6, ("top5",))


def test_a_package_that_is_missing_is_told_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adaptrain.evaluation.metrics.find_spec", lambda name: None if name == "sacrebleu" else name)
    with pytest.raises(ConfigError, match=r"'bleu' needs the package sacrebleu.*pip install 'adaptrain\[text\]'"):
        check_metrics("translation", 0, ("bleu",))
    check_metrics("summarisation", 0, ("rouge1",))


def test_every_package_belongs_to_an_extra_or_to_the_plain_install() -> None:
    pytest.importorskip("tomllib", reason="Python 3.11")
    import tomllib

    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    installs = {"sklearn": "scikit-learn", "rouge_score": "rouge-score"}
    for metric in METRICS.values():
        wanted = project["optional-dependencies"][metric.extra] if metric.extra else project["dependencies"]
        named = installs.get(metric.package, metric.package)
        assert not named or any(line.startswith(f"{named}>=") for line in wanted), metric.name


def test_the_page_has_every_metric() -> None:
    page = (Path(__file__).parents[1] / "docs" / "metrics.md").read_text(encoding="utf-8")
    lines = [line for line in page.splitlines() if line.startswith("| `")]
    told = {name: line for line in lines for name in re.findall(r"`([^`]+)`", line.split("|")[1])}
    assert set(told) == set(METRICS)
    for name, metric in METRICS.items():
        direction, shown, _, signature = (cell.strip("— |") for cell in told[name].split(" | ")[3:])
        least, most = ("" if bound is None else f"{bound:g}" for bound in metric.bounds)
        assert direction == f"{'↑' if metric.higher_is_better else '↓'} {least} to {most or '∞'}", name
        assert shown == metric.shown(0.5), name
        assert bool(signature) == (metric.signature is not None), name


def test_the_two_domains_of_mnli() -> None:
    heading = get_metric("accuracy").heading
    assert heading("validation_matched") == "accuracy m" and heading("validation_mismatched") == "accuracy mm"
    assert heading("validation") == "accuracy"


def test_several_labels_by_hand() -> None:
    # right, only predicted, only real, by label: (2, 0, 0), (1, 0, 1), (1, 1, 0)
    scores = compute([name for name in METRICS if METRICS[name].rows == "several labels"], *SETS)
    assert scores["multilabel_micro_f1"] == pytest.approx(2 * 4 / (2 * 4 + 1 + 1))
    assert scores["multilabel_macro_f1"] == pytest.approx((1 + 2 / 3 + 2 / 3) / 3)
    assert scores["multilabel_samples_f1"] == pytest.approx((2 / 3 + 2 / 3 + 0 + 1) / 4)
    assert scores["subset_accuracy"] == 2 / 4


def test_the_right_label_among_the_best() -> None:
    scores = np.array([[6, 5, 4, 3, 2, 1], [1, 1, 1, 1, 1, 1], [0, 1, 2, 3, 4, 5.0]])
    assert compute(("top1", "top5"), scores, np.array([0, 5, 1])) == {"top1": 1 / 3, "top5": 2 / 3}
    # equal scores: as argmax
    assert compute(("top1",), scores, np.array([1, 0, 5]))["top1"] == np.mean(scores.argmax(-1) == [1, 0, 5])


def test_the_trivial_answer_comes_from_the_training_labels() -> None:
    from tiny_run import MOOD, NUMBER

    def scored(task: Any, train: list[Any], other: list[Any], metrics: tuple[str, ...]) -> Baseline:
        splits = [Read(Rows("s", {"label": labels}, "here", len(labels), "0"), Mock()) for labels in (train, other)]
        return trivial_baseline(task, Mock(), *splits, metrics)

    found = scored(MOOD, [1, 1, 0], [0, 0, 1], ("accuracy", "mcc"))
    assert (found.name, found.answer) == ("majority class", "good")
    assert found.metrics == {"accuracy": pytest.approx(1 / 3), "mcc": 0.0}
    found = scored(NUMBER, [1.0, 2.0, 6.0], [3.0, 5.0], ("mse", "pearson"))
    assert (found.name, found.answer, found.metrics) == ("mean", 3.0, {"mse": 2.0, "pearson": 0.0})
