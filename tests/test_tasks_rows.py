from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import datasets
import pytest

from adaptrain.config.schema import ColumnsConfig, DataConfig
from adaptrain.errors import DataError
from adaptrain.tasks.rows import load_evaluation_rows, load_rows, load_training_rows
from adaptrain.tasks.settle import settle_task
from adaptrain.tasks.shapes.classes import class_index
from adaptrain.tasks.sources import FolderSource
from tiny_run import MOOD, NUMBER, write_jsonl

MANY = [{"sentence": f"day {number}", "label": number % 2} for number in range(20)]


def load(tmp_path: Path, rows: list[dict[str, Any]], task=MOOD):
    write_jsonl(tmp_path / "train.jsonl", rows)
    return load_rows(task, "train", FolderSource(tmp_path))


def test_rows_in_their_roles(tmp_path: Path) -> None:
    given = [("x", "good"), (" y ", 0), ("z", 1)]
    rows = load(tmp_path, [{"sentence": text, "label": label} for text, label in given])
    assert (rows.texts, rows.pairs, rows.labels) == (["x", " y ", "z"], None, [1, 0, 1])
    assert (rows.found, len(rows), rows.bad) == (3, 3, {})
    pairs = load(tmp_path, [{"one": "x", "two": "y", "score": 2}], NUMBER)
    assert (pairs.texts, pairs.pairs, pairs.labels) == (["x"], ["y"], [2.0])


def test_limits(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "mood/train.jsonl", MANY)
    write_jsonl(tmp_path / "mood/dev.jsonl", MANY)
    data = DataConfig(mirror=str(tmp_path), max_train=5, max_eval=4)
    first, again, other = (load_training_rows(MOOD, data, seed) for seed in (1, 1, 2))
    assert first.texts == again.texts != other.texts and len(first) == 5 and first.found == 20
    known = {row["sentence"]: row["label"] for row in MANY}
    assert [known[text] for text in first.texts] == first.labels
    assert load_evaluation_rows(MOOD, data, "dev").texts == [f"day {number}" for number in range(4)]
    everything = load_training_rows(MOOD, DataConfig(mirror=str(tmp_path), max_train=99), 1)
    assert everything.texts == [row["sentence"] for row in MANY]
    assert first.fingerprint == everything.fingerprint


def test_the_fingerprint_is_of_rows_in_their_roles(tmp_path: Path) -> None:
    one = load(tmp_path, MANY).fingerprint
    assert len(one) == 64 and one == load(tmp_path, [row | {"id": 3} for row in MANY]).fingerprint
    assert one == load(tmp_path, [row | {"label": ("bad", "good")[row["label"]]} for row in MANY]).fingerprint
    assert one != load(tmp_path, MANY[::-1]).fingerprint
    assert one != load(tmp_path, [{**MANY[0], "label": 1}, *MANY[1:]]).fingerprint


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [{"sentense": "x", "label": 1}],
            r"no column 'sentence', did you mean 'sentense'\? The columns are: sentense, label. .*task.columns.text",
        ),
        ([{"sentence": "x"}], "no column 'label'.*task.columns.label"),
        (
            [{"sentence": "x", "label": 1}, {"sentence": 5, "label": 1}],
            "row 2: the text in column 'sentence' is 5, which is not text but int",
        ),
        ([{"sentence": "x", "label": 1}, {"label": 1}], "row 2: the text in column 'sentence' is missing"),
        ([{"sentence": "x", "label": 1}, {"sentence": None, "label": 1}], "row 2: .*missing"),
        ([{"sentence": 1, "label": 1}], "row 1: the text .* is 1, which is not text"),
        (
            [{"sentence": "x", "label": 2}],
            r"row 1: the label 2 in column 'label' is not in the label map of task mood. Labels are 0 = bad, 1 = good",
        ),
        ([{"sentence": "x", "label": "god"}], "the label 'god' .*did you mean 'good'"),
        ([{"sentence": "x", "label": -1}], "marks a split without labels"),
        ([{"sentence": "x", "label": 0.5}], "the label 0.5"),
        ([{"sentence": "x", "label": True}], "the label True"),
        ([{"sentence": "x", "label": None}], "the label None"),
    ],
)
def test_wrong_rows_are_named(rows: list[dict[str, Any]], message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message) as caught:
        load(tmp_path, rows)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("label", ["3", None, float("inf"), True])
def test_a_regression_needs_numbers(label: Any, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="row 1: the label in column 'score' .*finite number"):
        load(tmp_path, [{"one": "x", "two": "y", "score": label}], NUMBER)


def test_labels_by_index_and_by_name() -> None:
    given = [0, 1, "bad", "good", 1.0, "1"]
    assert [class_index(each, None, MOOD, "here") for each in given] == [0, 1, 0, 1, 1, 1]


def test_labels_that_are_numbers_are_meant_by_name() -> None:
    stars = dataclasses.replace(MOOD, labels=("1", "2", "3"))
    assert [class_index(each, None, stars, "here") for each in (1, "2", 3.0)] == [0, 1, 2]
    with pytest.raises(DataError, match="here: the label 0"):
        class_index(0, None, stars, "here")


def test_a_label_map_of_the_data_in_another_order_is_followed_by_name(tmp_path: Path) -> None:
    for names, expected in ((["good", "bad"], [1, 0]), (["no", "yes"], [0, 1])):
        features = {"sentence": datasets.Value("string"), "label": datasets.ClassLabel(names=names)}
        table = datasets.Dataset.from_dict({"sentence": ["x", "y"], "label": [0, 1]}, datasets.Features(features))
        table.to_parquet(tmp_path / "train.parquet")
        assert load_rows(MOOD, "train", FolderSource(tmp_path)).labels == expected


# ---- bad rows


MIXED = [
    {"sentence": "x", "label": 1},
    {"sentence": " ", "label": 0},
    {"sentence": None, "label": 0},
    {"sentence": "y", "label": 7},
    {"sentence": "z", "label": None},
    {"sentence": "", "label": 9},
    {"sentence": "w", "label": 0},
]


def test_bad_rows_are_refused_with_their_count(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        load(tmp_path, MIXED)
    told = str(caught.value)
    assert "split 'train', row 2: the text in column 'sentence' is empty" in told
    assert "5 of 7 rows are bad: 2 empty text, 1 missing text, 1 label outside the map, 1 missing label" in told
    assert "data.bad_rows=skip" in told


def test_bad_rows_are_left_out_and_counted(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "mood/train.jsonl", MIXED)
    rows = load_training_rows(MOOD, DataConfig(mirror=str(tmp_path), bad_rows="skip"), 1)
    assert (rows.texts, rows.labels, rows.found) == (["x", "w"], [1, 0], 7)
    assert rows.bad == {"empty text": 2, "missing text": 1, "label outside the map": 1, "missing label": 1}
    write_jsonl(tmp_path / "mood/dev.jsonl", MIXED[1:3])
    with pytest.raises(DataError, match="all 2 rows are bad: 1 empty text, 1 missing text"):
        load_evaluation_rows(MOOD, DataConfig(mirror=str(tmp_path), bad_rows="skip"), "dev")


def test_a_row_is_named_by_its_id(tmp_path: Path) -> None:
    task = dataclasses.replace(MOOD, columns=dataclasses.replace(MOOD.columns, id="key"))
    rows = [{"key": "a7", "sentence": "x", "label": 1}, {"key": "a8", "sentence": "y", "label": 3}]
    with pytest.raises(DataError, match=r"row 2 \(a8\): the label 3 in column 'label'"):
        load(tmp_path, rows, task)
    rows[1] |= {"sentence": ""}
    with pytest.raises(DataError, match=r"row 2 \(a8\): the text in column 'sentence' is empty"):
        load(tmp_path, rows, task)


def test_one_blank_text_of_a_pair_is_enough(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="row 1: the text_pair in column 'two' is empty"):
        load(tmp_path, [{"one": "x", "two": "\t", "score": 2}], NUMBER)


def test_texts_of_several_columns_are_joined(tmp_path: Path) -> None:
    task = dataclasses.replace(NUMBER, columns=ColumnsConfig(text=("word", "one"), text_pair="two", label="score"))
    row = {"word": "bank", "one": "by the river", "two": "of money", "score": 1}
    assert load(tmp_path, [row], task).texts == ["bank by the river"]
    with pytest.raises(DataError, match=r"row 1: the text in column 'one' is empty"):
        load(tmp_path, [row | {"one": " "}], task)
    with pytest.raises(DataError, match=r"no column 'word', did you mean 'words'"):
        load(tmp_path, [{"words": "x", "one": "y", "two": "z", "score": 1}], task)


def test_truth_values_are_labels_of_a_map_that_says_so(tmp_path: Path) -> None:
    rows = [{"sentence": "x", "label": True}, {"sentence": "y", "label": False}]
    assert load(tmp_path, rows, dataclasses.replace(MOOD, labels=("False", "True"))).labels == [1, 0]
    open_map = dataclasses.replace(MOOD, labels=())
    write_jsonl(tmp_path / "mood/train.jsonl", rows)
    assert settle_task(open_map, DataConfig(mirror=str(tmp_path))).task.labels == ("false", "true")
