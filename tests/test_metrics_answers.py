"""SQuAD's scores against values worked out by hand from its scripts' definitions."""

from __future__ import annotations

import numpy as np
import pytest

from adaptrain.errors import DataError
from adaptrain.evaluation.answers import best_threshold, exact, normalised, overlap, squad_rows, squad_v1, squad_v2
from adaptrain.evaluation.metrics import compute
from adaptrain.evaluation.trivial import no_answer


def said(*answers: tuple[str, float]) -> list[dict]:
    return [{"text": text, "no_answer": sure} for text, sure in answers]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The  Cat,\n a-dog!", "cat adog"),  # punctuation goes before the articles: a-dog is one word
        ("Theatre an", "theatre"),
        ("A", ""),
        ("«été»", "«été»"),  # only ASCII's punctuation
        ("U.S.", "us"),
    ],
)
def test_answers_are_normalised_as_in_the_script(text: str, expected: str) -> None:
    assert normalised(text) == expected


def test_an_answer_by_hand() -> None:
    assert exact("The cat!", "cat") == 1 and exact("cats", "cat") == 0
    # common: big, cat of (big, big, cat) and (big, black, cat)
    assert overlap("big big cat", "a big black cat") == pytest.approx(2 * 2 / (3 + 3))
    assert overlap("dog", "cat") == 0
    assert overlap("the", "") == 1 and overlap("the", "cat") == 0
    assert overlap("the", "a", agree_on_nothing=False) == 0 and exact("the", "a") == 1


def test_the_best_of_several_answers_counts() -> None:
    found = squad_v1(said(("1976", 0), ("in Paris, France", 0)), [["1976"], ["Paris", "Paris, France"]])
    assert found == {"exact": 0.5, "f1": pytest.approx((1 + 4 / 5) / 2)}
    with pytest.raises(DataError, match="Row 2 has no right answer.*squad_v2_f1"):
        squad_v1(said(("a", 0), ("b", 0)), [["a"], []])


def test_the_parts_of_v2() -> None:
    predictions = said(("1976", 0.0), ("the", 0.1), ("a cat", 0.2), ("", 0.9), ("dog", 0.3), ("dog", 1.5))
    references = [["1976"], [], ["black cat", "The"], ["house"], [], []]
    found = squad_v2(predictions, references)
    # rows: right; "the" is as good as nothing; half right; nothing said; wrongly said; refused above 1
    f1 = [1, 1, 2 / 3, 0, 0, 1]
    assert found["exact"] == pytest.approx((1 + 1 + 0 + 0 + 0 + 1) / 6) and found["f1"] == pytest.approx(sum(f1) / 6)
    assert found["HasAns_exact"] == pytest.approx(1 / 3) and found["HasAns_f1"] == pytest.approx((1 + 2 / 3) / 3)
    assert found["NoAns_exact"] == found["NoAns_f1"] == pytest.approx(2 / 3)
    assert (found["total"], found["HasAns_total"], found["NoAns_total"]) == (6, 3, 3)
    # refusing all: 3. Up to 0.0: 4. Up to 0.1 ("the" is said): 3. Up to 0.2: 3.67. Never better again.
    assert found["best_f1"] == pytest.approx(4 / 6) and found["best_f1_thresh"] == 0.0
    names = ("squad_v2_em", "squad_v2_best_f1", "squad_v2_has_answer_f1", "squad_v2_no_answer_em")
    assert list(compute(names, predictions, references).values()) == [
        found[key] for key in ("exact", "best_f1", "HasAns_f1", "NoAns_exact")
    ]


def test_the_example_of_the_evaluate_library() -> None:
    found = squad_v2(said(("1976", 0.0)), [["1976"]])
    parts = {f"{part}{of}": 1.0 for part in ("", "HasAns_", "best_") for of in ("exact", "f1")}
    assert found == parts | {"total": 1, "HasAns_total": 1, "best_exact_thresh": 0.0, "best_f1_thresh": 0.0}
    with pytest.raises(DataError, match="No row is unanswerable"):
        compute(("squad_v2_no_answer_f1",), said(("1976", 0.0)), [["1976"]])


@pytest.mark.parametrize("shift", [0.0, -5.0])
@pytest.mark.parametrize("seed", range(4))
def test_the_threshold_is_the_best_there_is(seed: int, shift: float) -> None:
    """Every threshold is tried by brute force; with equal values, and with differences of scores instead of
    probabilities."""
    chance = np.random.default_rng(seed)
    sure = chance.integers(1, 9, size=30) / 10 + shift
    words = [["", "cat", "dog"][n] for n in chance.integers(0, 3, size=30)]
    references = [[[], ["cat"], ["dog", "black dog"]][n] for n in chance.integers(0, 3, size=30)]
    predictions = said(*zip(words, sure.tolist(), strict=True))
    score, threshold = best_threshold(squad_rows(predictions, references), "f1")
    tried = {cut: squad_v2(predictions, references, cut)["f1"] for cut in (sure.min() - 1, *sure)}
    assert score == pytest.approx(max(tried.values()))
    assert squad_v2(predictions, references, threshold)["f1"] == pytest.approx(score)


def test_nothing_to_answer_at_all() -> None:
    references = [[], [], []]
    found = squad_v2(no_answer(3), references)
    assert found["exact"] == found["f1"] == found["NoAns_f1"] == found["best_f1"] == 1 and "HasAns_f1" not in found
    wrong = squad_v2(said(("a cat", 0.4), ("dog", 0.5), ("", 0.6)), references)
    assert wrong["exact"] == pytest.approx(1 / 3)
    assert (wrong["best_exact"], wrong["best_exact_thresh"]) == (1.0, 0.0)  # refuse all


def test_the_empty_answer_scores_what_is_unanswerable() -> None:
    assert squad_v2(no_answer(4), [["a b"], [], ["c"], []])["f1"] == 0.5
