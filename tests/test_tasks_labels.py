"""Labels as rows have them: words that look like numbers, numbers, gaps; and lists that are written as text."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import datasets
import pytest

from adaptrain.cli.main import main
from adaptrain.config.schema import ColumnsConfig, DataConfig, SplitsConfig, TaskConfig
from adaptrain.errors import DataError
from adaptrain.evaluation.asked import predict_rows
from adaptrain.evaluation.run import evaluate_folder
from adaptrain.tasks.labels import infer_labels
from adaptrain.tasks.lists import parse_list
from adaptrain.tasks.rows import load_rows
from adaptrain.tasks.settle import settle_task
from adaptrain.tasks.shapes.classes import class_index
from adaptrain.tasks.sources import FolderSource
from adaptrain.training.run import train
from tiny_run import BAD, GOOD, MOOD, NUMBER, Recorder, run_config, save_base, write_jsonl

WORDS = {
    "fractions": ("1.0", "2.0"),
    "zeros": ("001", "007"),
    "powers": ("1e3", "1e4"),
    "versions": ("1.10", "1.1"),
    "arabic": ("١", "٢"),
    "underscores": ("1_0", "2_0"),
    "no numbers": ("inf", "nan"),
    "one of each": ("1.0", "other"),
    "equal numbers": ("1", "1.0"),
    "truths": ("False", "True"),
}
"""Two labels that are words, though Python reads most of them as numbers."""

WRITTEN: dict[str, Any] = {
    "classification": lambda word: {"text": "a day", "label": word},
    "multilabel": lambda word: {"text": "a day", "label": [word]},
    "tagging": lambda word: {"tokens": ["a"], "tags": [word]},
    "dependency_parsing": lambda word: {"tokens": ["a"], "heads": [0], "relations": [word]},
}
"""Type of a task → a row with a label."""

MAPPED = {"classification": "label", "multilabel": "label", "tagging": "tags", "dependency_parsing": "relations"}


def task_of(kind: Any, folder: Path, labels: tuple[str, ...] = ()) -> TaskConfig:
    columns = ColumnsConfig(**{role: role for role in WRITTEN[kind]("x")})
    return TaskConfig(name="t", type=kind, path=str(folder), columns=columns, labels=labels, metric="accuracy")


def chosen(kind: str, values: Any) -> list[int]:
    """The index of the one label of each row."""
    flat = [value.index(1) if kind == "multilabel" else value for value in values]
    return [value[0] if isinstance(value, list) else value for value in flat]


@pytest.mark.parametrize("kind", WRITTEN)
@pytest.mark.parametrize("words", WORDS.values(), ids=WORDS)
def test_a_text_is_a_word_whatever_it_looks_like(kind: str, words: tuple[str, str], tmp_path: Path) -> None:
    write_jsonl(tmp_path / "train.jsonl", [WRITTEN[kind](word) for word in (*words, words[0])])
    inferred = settle_task(task_of(kind, tmp_path), DataConfig()).task
    assert sorted(inferred.labels) == sorted(words)
    for labels in (inferred.labels, words, words[::-1]):
        rows = load_rows(task_of(kind, tmp_path, labels), "train", FolderSource(tmp_path))
        found = [labels[index] for index in chosen(kind, rows.columns[MAPPED[kind]])]
        assert found == [*words, words[0]]
    write_jsonl(tmp_path / "train.jsonl", [WRITTEN[kind]("1.00")])
    with pytest.raises(DataError, match=r"'1\.00' .* is not in the label map"):
        load_rows(task_of(kind, tmp_path, words), "train", FolderSource(tmp_path))


@pytest.mark.parametrize(
    ("labels", "value", "index"),
    [
        (("bad", "good"), 1, 1),
        (("bad", "good"), 1.0, 1),
        (("bad", "good"), "1", 1),
        (("bad", "good"), "1.0", None),
        (("bad", "good"), "01", None),
        (("bad", "good"), "١", None),
        (("bad", "good"), "9" * 5000, None),
        (("bad", "good"), 2, None),
        (("bad", "good"), float("nan"), None),
        (("bad", "good"), float("inf"), None),
        (("1", "2", "3"), 1, 0),
        (("1", "2", "3"), 1.0, 0),
        (("1", "2", "3"), 0, None),
        (("1.0", "2.0"), 2, 1),
        (("1.0", "2.0"), 2.0, 1),
        (("1.0", "2.0"), "2", None),
        (("0.5", "1.5"), 1.5, 1),
        (("1", "2", "other"), 1, 0),
        (("1", "2", "other"), 0, None),
        (("01", "02"), 1, 0),
        (("1e3", "1e4"), 1000.0, 0),
        (("1.10", "1.1"), 1.1, None),
        (("1", "1.0"), 1, None),
        (("9007199254740993", "9007199254740992"), 9007199254740993, 0),
        (("nan", "inf"), 1, 1),
        (("nan", "inf"), float("nan"), None),
    ],
)
def test_what_a_value_means_in_a_label_map(labels: tuple[str, ...], value: Any, index: int | None) -> None:
    task = dataclasses.replace(MOOD, labels=labels)
    if index is None:
        with pytest.raises(DataError, match="here: the label .*task.labels"):
            class_index(value, None, task, "here")
    else:
        assert class_index(value, None, task, "here") == index


@pytest.mark.parametrize(
    ("names", "labels", "expected"),
    [
        (("1", "2", "3"), ("1", "2", "3"), [0, 1, 2]),
        (("3", "1", "2"), ("1", "2", "3"), [2, 0, 1]),
        (("0", "1", "2"), ("1", "2"), [None, 0, 1]),
        (("a", "b"), ("1", "2"), [0, 1]),
        (("no", "yes"), ("yes", "no"), [1, 0]),
    ],
)
def test_the_index_of_a_class_is_one_also_where_the_classes_have_numbers_for_names(
    names: tuple[str, ...], labels: tuple[str, ...], expected: list[int | None]
) -> None:
    task = dataclasses.replace(MOOD, labels=labels)
    for value, index in enumerate(expected):
        if index is None:
            with pytest.raises(DataError, match="task.labels"):
                class_index(value, names, task, "here")
        else:
            assert class_index(value, names, task, "here") == index


def test_a_map_of_numbers_with_a_gap_is_the_same_with_and_without_it(tmp_path: Path) -> None:
    """Whole numbers are fractions in a table with a gap, and text in a CSV file with one."""
    value = datasets.Value("string")
    assert infer_labels([2.0, float("nan"), 1.0], value, "label", "here") == ("1.0", "2.0")
    for rows in ('"a day",2.0\n"a day",1.0\n', '"a day",1.0\n"a day",\n"a day",2.0\n', '"a day",2\n"a day",1\n'):
        (tmp_path / "train.csv").write_text(f"sentence,label\n{rows}")
        task = dataclasses.replace(MOOD, labels=("1.0", "2.0"))
        found = load_rows(task, "train", FolderSource(tmp_path), "skip")
        assert sorted(found.labels) == [0, 1] and set(found.bad) <= {"missing label"}


def test_letters_that_look_the_same_are_not_two_labels() -> None:
    with pytest.raises(DataError, match=r"Unicode .*\(row 2\)"):
        infer_labels(["caf\u00e9", "cafe\u0301"], datasets.Value("string"), "label", "here")


def test_a_number_that_is_too_large_for_a_batch_is_refused(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "train.jsonl", [{"one": "x", "two": "y", "score": 1e300}])
    with pytest.raises(DataError, match="row 1: .*score.* finite number"):
        load_rows(NUMBER, "train", FolderSource(tmp_path))


def test_training_evaluation_prediction_and_data_have_the_same_words(tmp_path: Path, capsys: Any) -> None:
    base, words = save_base(tmp_path / "base"), ("007", "1.0")
    rows = [{"sentence": f"the {word}", "label": words[kind]} for kind, side in enumerate((BAD, GOOD)) for word in side]
    for split in ("train", "validation"):
        write_jsonl(tmp_path / f"rows/{split}.jsonl", rows * 3)
    columns = ColumnsConfig(text="sentence", label="label")
    task = dataclasses.replace(MOOD, path=str(tmp_path / "rows"), columns=columns, labels=(), splits=SplitsConfig())
    task = settle_task(task, DataConfig()).task
    config = run_config(base, tmp_path, tmp_path / "outputs", task=task, data={"mirror": None}, epochs=4)
    result = train(config, origins_yaml="", command=("adaptrain", "train"), display=Recorder())
    evaluated = evaluate_folder(result.folder)
    assert evaluated.reproduced and evaluated.score > 0.9
    said = [predict_rows(result.folder, [{"text": row["sentence"]}]).rows[0] for row in (rows[0], rows[-1])]
    assert [each["prediction"] for each in said] == list(words) and set(said[0]["probabilities"]) == set(words)
    written = [json.loads(line) for line in (result.folder / "predictions.jsonl").read_text().splitlines()]
    assert {each["label"] for each in written} == set(words)
    assert main(["data", str(tmp_path / "rows"), "task.type=classification", "task.columns.text=sentence"]) == 0
    printed = capsys.readouterr().out
    assert all(word in printed for word in words)


# ---- lists that are written as text


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("[1, 2]", [1, 2]),
        ("['a', 'b']", ["a", "b"]),
        ('["a", "b"]', ["a", "b"]),
        (" [] ", []),
        ("[True, False]", [True, False]),
        ("{'text': ['a'], 'answer_start': [0]}", {"text": ["a"], "answer_start": [0]}),
    ],
)
def test_a_list_in_a_text(text: str, value: Any) -> None:
    assert parse_list(text) == value


@pytest.mark.parametrize(
    "text",
    [
        "['a' 'b']",
        "['a'\n 'b']",
        "[1 2]",
        "[a, b]",
        "[",
        "[" * 3000 + "]" * 3000,
        "[__import__('os').getcwd()]",
        "{'a', 'b'}",
        "a day",
        "",
    ],
)
def test_what_cannot_be_read_stays_a_text(text: str) -> None:
    assert parse_list(text) == text


LISTED: dict[str, tuple[dict[str, Any], str]] = {
    "multilabel": ({"text": "a day", "label": ["x", "y"]}, "label"),
    "tagging": ({"tokens": ["a", "day"], "tags": ["x", "y"]}, "tags"),
    "dependency_parsing": ({"tokens": ["a", "day"], "heads": [2, 0], "relations": ["x", "y"]}, "heads"),
    "multiple_choice": ({"choices": ["a", "day"], "label": "x"}, "choices"),
    "question_answering": (
        {"question": "who", "context": "the cook", "answers": {"text": ["cook"], "answer_start": [4]}},
        "answers",
    ),
}
"""Type of a task → a row, and a role whose value is a list."""


@pytest.mark.parametrize("kind", LISTED)
@pytest.mark.parametrize("write", [json.dumps, str], ids=["json", "python"])
def test_a_list_that_is_written_as_text_is_that_list(kind: Any, write: Any, tmp_path: Path) -> None:
    row, role = LISTED[kind]
    labels = () if kind == "question_answering" else ("x", "y")
    task = TaskConfig(
        name="t", type=kind, path="p", metric="m", labels=labels, columns=ColumnsConfig(**{role: role for role in row})
    )
    write_jsonl(tmp_path / "train.jsonl", [row, row])
    right = load_rows(task, "train", FolderSource(tmp_path)).columns
    texts = {key: value if isinstance(value, str) else write(value) for key, value in row.items()}
    write_jsonl(tmp_path / "train.jsonl", [texts, texts])
    rows = load_rows(task, "train", FolderSource(tmp_path))
    assert {key: list(value) for key, value in rows.columns.items()} == {k: list(v) for k, v in right.items()}
    if kind in ("multilabel", "tagging"):
        settled = settle_task(dataclasses.replace(task, labels=(), path=str(tmp_path)), DataConfig())
        assert settled.task.labels == ("x", "y")
    write_jsonl(tmp_path / "train.jsonl", [texts, texts | {role: "[x y]"}])
    with pytest.raises(DataError, match=rf"row 2: .*'{role}'.*\[x y\]"):
        load_rows(task, "train", FolderSource(tmp_path))


def test_a_map_is_not_inferred_from_lists_that_cannot_be_read(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "train.jsonl", [{"text": "a day", "label": text} for text in ("x|y", "['x' 'y']")])
    with pytest.raises(DataError, match=r"row 2: .*'label'.*JSON"):
        settle_task(task_of("multilabel", tmp_path), DataConfig())


def test_a_target_is_a_text_also_where_it_looks_like_a_list(tmp_path: Path) -> None:
    task = TaskConfig(
        name="t", type="translation", path="p", metric="m", columns=ColumnsConfig(source="source", target="target")
    )
    write_jsonl(tmp_path / "train.jsonl", [{"source": "a day", "target": '["a", "b"]'}])
    assert load_rows(task, "train", FolderSource(tmp_path)).columns["target"] == [['["a", "b"]']]


def test_lists_of_true_and_false_are_no_indices(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "train.jsonl", [{"text": "a day", "label": each} for each in ([True, False], [False, True])])
    rows = load_rows(task_of("multilabel", tmp_path, ("x", "y")), "train", FolderSource(tmp_path))
    assert list(rows.labels) == [[1, 0], [0, 1]]
