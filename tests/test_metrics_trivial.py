from __future__ import annotations

import numpy as np
import pytest

from adaptrain.errors import DataError
from adaptrain.evaluation import trivial
from adaptrain.evaluation.metrics import compute


def test_labels_and_numbers() -> None:
    assert trivial.majority([2, 0, 2, 0, 1]) == 0 and trivial.mean([1, 2, 6]) == 3
    shares = trivial.label_shares([5, 5, 0, 1, 1, 1], 7)
    assert shares.tolist() == pytest.approx([1 / 6, 3 / 6, 0, 0, 0, 2 / 6, 0])
    # the five commonest: 1, 5, 0, then 2 and 3 by their index
    assert compute(("top1", "top5"), np.tile(shares, (4, 1)), np.array([1, 5, 3, 4])) == {"top1": 0.25, "top5": 0.75}
    assert trivial.majority_labels([[1, 0, 1], [1, 0, 0]]).tolist() == [1, 0, 1]
    assert trivial.majority_labels([[1, 0, 0], [0, 1, 0], [0, 1, 0], [0, 0, 0], [0, 0, 0]]).tolist() == [0, 1, 0]


def test_words_by_how_often_they_stand() -> None:
    losses, likely = trivial.unigram(np.array([0, 4, 4, 7, 4, 0]), np.array([4, 6, 7]))  # 0 is special, 5 unused
    assert likely == 4
    assert np.exp(-losses[[4, 6, 7]]).tolist() == pytest.approx([4 / 7, 1 / 7, 2 / 7])
    rows = trivial.unigram_rows([np.array([4, 7]), np.array([6])], losses, likely)
    assert rows.tolist() == [[pytest.approx(-np.log(8 / 49)), 1], [pytest.approx(np.log(7)), 0]]
    assert compute(("perplexity",), rows, np.array([2, 1]))["perplexity"] == pytest.approx((7 * 49 / 8) ** (1 / 3))


def test_tags_and_trees() -> None:
    tag = trivial.common_tag([["B-PER", "O", "O"], ["B-PER"], []])
    assert tag == "B-PER"  # the first in the alphabet of two
    assert trivial.common_tag([["B-PER", "O", "O"]]) == "O"
    right = [["O", "B-PER"], ["O"]]
    answer = trivial.same_tags([2, 1], "O")
    assert compute(("entity_f1", "tag_accuracy"), answer, right) == {
        "entity_f1": 0,
        "tag_accuracy": pytest.approx(2 / 3),
    }
    trees = trivial.previous_word([3, 1], "nmod")
    assert trees == [
        {"heads": [0, 1, 2], "relations": ["root", "nmod", "nmod"]},
        {"heads": [0], "relations": ["root"]},
    ]


def test_texts() -> None:
    documents = ["A dog barks. A cat sleeps. It rains.", "One", ""]
    assert trivial.lead(documents) == ["A dog barks.", "One", ""]
    assert trivial.lead(documents, 2) == ["A dog barks.\nA cat sleeps.", "One", ""]
    assert trivial.copy(("Berlin 1989",)) == ["Berlin 1989"]
    assert compute(("wer", "cer"), trivial.silence(2), [["a b"], ["c"]]) == {"wer": 1, "cer": 1}


@pytest.mark.parametrize("answer", [trivial.majority, trivial.mean, trivial.majority_labels, trivial.common_tag])
def test_nothing_to_learn_from(answer) -> None:
    with pytest.raises(DataError, match="no training row"):
        answer([])
