"""What is said of columns: one value in every row, usual names that are not used, and what rows could be."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import datasets
import pytest

from adaptrain.config.schema import ColumnsConfig, DataConfig, SplitsConfig, TaskConfig
from adaptrain.errors import DataError
from adaptrain.tasks.asked import asked_rows
from adaptrain.tasks.columns import free_roles
from adaptrain.tasks.features import constant_columns
from adaptrain.tasks.hints import hints, unused_note
from adaptrain.tasks.rows import load_training_rows
from adaptrain.tasks.settle import is_settled, settle_task
from tiny_run import MOOD, write_jsonl

OPEN = TaskConfig(name="own", type="classification", path="./own", metric="accuracy")
COUNT = 5


def rows(**columns: Any) -> list[dict[str, Any]]:
    """Rows of columns: what is no list is the same in every row."""
    return [
        {name: values[number] if isinstance(values, list) else values for name, values in columns.items()}
        for number in range(COUNT)
    ]


TEXTS = [f"text {number}" for number in range(COUNT)]
LABELS = ["up", "down", "up", "down", "up"]

# ---- one value in every row


def test_constant_columns() -> None:
    found = rows(a="x", b=TEXTS, c=1, d=None, e=[1, 1, 1, 1, 2], f=["x", "x", "x", "x", None])
    table = datasets.Dataset.from_list(found)
    assert constant_columns(table) == ("a", "c", "d")
    assert constant_columns(table.select([0, 1])) == ()  # two equal rows say little
    late = datasets.Dataset.from_dict({"a": ["x"] * 2500 + ["y"], "b": ["x"] * 2501, "c": [[1]] * 2501})
    assert constant_columns(late) == ("b",)


@pytest.mark.parametrize(
    ("kind", "columns", "expected"),
    [
        ("classification", {"version": "v", "remark": TEXTS, "label": LABELS}, {"text": "remark", "label": "label"}),
        ("classification", {"comment": "-", "remark": TEXTS, "label": LABELS}, {"text": "remark", "label": "label"}),
        (
            "classification",
            {"text": TEXTS, "score": 1, "mood": "m", "class": LABELS},
            {"text": "text", "label": "class"},
        ),
        ("regression", {"text": TEXTS, "score": [1.5, 2, 3, 4, 5], "rating": 1}, {"text": "text", "label": "score"}),
        ("masked_lm", {"version": "v", "remark": TEXTS}, {"text": "remark"}),
        (
            "summarisation",
            {"input": "", "document": TEXTS, "summary": TEXTS},
            {"source": "document", "target": "summary"},
        ),
        # one of a pair may be a question that is the same everywhere
        (
            "classification",
            {"question": "good?", "passage": TEXTS, "label": LABELS},
            {"text": "question", "text_pair": "passage", "label": "label"},
        ),
        # the role's own name leaves no doubt
        ("classification", {"text": "v", "remark": TEXTS, "label": LABELS}, {"text": "text", "label": "label"}),
    ],
)
def test_no_role_is_guessed_from_a_constant_column(
    kind: str, columns: dict[str, Any], expected: dict[str, str], tmp_path: Path
) -> None:
    write_jsonl(tmp_path / "train.jsonl", rows(**columns))
    task: Any = dataclasses.replace(OPEN, type=kind, path=str(tmp_path))
    settled = settle_task(task, DataConfig())
    assert settled.task.columns.declared() == expected
    same = [name for name, values in columns.items() if not isinstance(values, list) and name != "question"]
    notes = [note for note in settled.notes if "same" in note]
    assert [name for name in same if not any(name in note for note in notes)] == []


@pytest.mark.parametrize(
    ("columns", "fragments"),
    [
        ({"version": "v", "label": LABELS}, ["the text", "version", "task.columns.text"]),
        ({"text": TEXTS, "sentiment": "m"}, ["'label'", "sentiment", "task.columns.label"]),
        ({"text": TEXTS, "label": "m"}, ["'label'", "only the value 'm'"]),
    ],
)
def test_a_constant_column_alone_is_refused(columns: dict[str, Any], fragments: list[str], tmp_path: Path) -> None:
    write_jsonl(tmp_path / "train.jsonl", rows(**columns))
    with pytest.raises(DataError) as caught:
        settle_task(dataclasses.replace(OPEN, path=str(tmp_path)), DataConfig())
    assert [fragment for fragment in fragments if fragment not in str(caught.value)] == []
    declared = {"text": next(iter(columns)), "label": list(columns)[1]}  # what is declared is taken
    task = dataclasses.replace(
        OPEN, path=str(tmp_path), columns=ColumnsConfig(**declared), labels=("m", *sorted(set(LABELS)))
    )
    assert len(load_training_rows(task, DataConfig(), 0)) == COUNT


def test_constant_columns_of_data_without_a_task_and_of_rows_to_predict() -> None:
    table = datasets.Dataset.from_list(rows(version="v", remark=TEXTS, rating=1))
    found, _ = free_roles(table.features, ColumnsConfig(), "here", constant_columns(table))
    assert {role.name: role.column for role in found} == {"text": "remark"}
    task = dataclasses.replace(MOOD, columns=ColumnsConfig(text="sentence", label="label"))
    asked = asked_rows(table, task, "here")
    assert (asked.columns, asked.notes) == ({"text": "remark"}, ("columns inferred: text = remark",))
    for name in ("sentence", "text"):  # that of training, and the role's own
        asked = asked_rows(table.rename_column("remark", name), task, "here")
        assert (asked.columns, asked.notes) == ({"text": name}, ())
    assert asked_rows(table, task, "here", {"text": "version"}).notes == ()


# ---- usual names that are not used


@pytest.mark.parametrize(
    ("kind", "declared", "unused", "told"),
    [
        ("multiple_choice", {"context": "story", "choices": "choices", "label": "label"}, "question", "question"),
        ("multiple_choice", {"question": "question", "choices": "choices", "label": "label"}, "passage", "context"),
        ("classification", {"text": "text", "label": "label"}, "score", None),
        ("classification", {"text": "sentence1", "label": "label"}, "sentence2", "text_pair"),
        ("classification", {"text": "sentence2", "label": "label"}, "sentence1", None),
        ("multilabel", {"text": "text", "label": "labels"}, "category", None),
        ("regression", {"text": "text", "label": "score"}, "rating", None),
        ("question_answering", {"question": "q", "context": "c", "answers": "a"}, "answers", None),
        ("tagging", {"tokens": "tokens", "tags": "pos_tags"}, "ner_tags", None),
        ("dependency_parsing", {"tokens": "tokens", "heads": "head", "relations": "rel"}, "deprel", None),
        ("summarisation", {"source": "body", "target": "summary"}, "document", None),
        ("translation", {"source": "en", "target": "fr"}, "target", None),
        ("causal_lm", {"text": "text"}, "completion", "target"),
        ("masked_lm", {"text": "body"}, "text", None),
        ("image_classification", {"image": "path", "label": "label"}, "image", None),
        ("speech_recognition", {"audio": "clip", "target": "text"}, "transcript", None),
    ],
)
def test_a_usual_name_that_is_not_used_is_told(kind: Any, declared: Any, unused: str, told: str | None) -> None:
    task = dataclasses.replace(OPEN, type=kind, columns=ColumnsConfig(**declared))
    (note,) = unused_note(task, (unused, "id", "idx", "something"))
    assert unused in note and "something" not in note and "id" not in note.split()
    assert (f"task.columns.{told}={unused}" in note) if told else ("task.columns" not in note)
    assert unused_note(task, ("id", "something")) == []


def test_a_question_beside_a_declared_context_is_told_of_a_task_that_leaves_nothing_open(tmp_path: Path) -> None:
    found = rows(story=TEXTS, question=TEXTS, one=TEXTS, two=TEXTS, right=["1", "2", "1", "2", "1"])
    for split in ("train", "dev"):
        write_jsonl(tmp_path / f"{split}.jsonl", found)
    task = TaskConfig(
        name="endings",
        type="multiple_choice",
        path=str(tmp_path),
        columns=ColumnsConfig(context="story", choices=("one", "two"), label="right"),
        labels=("1", "2"),
        metric="accuracy",
        splits=SplitsConfig(validation="dev"),
    )
    assert is_settled(task)
    (note,) = load_training_rows(task, DataConfig(), 0).unused
    assert "question" in note and "task.columns.question=question" in note


# ---- what rows could be


def told(**columns: Any) -> str:
    return " ".join(hints(datasets.Dataset.from_list(rows(**columns))))


@pytest.mark.parametrize("answer", [[True, False, True, False, True], ["yes", "no", "No", "yes", None]])
def test_a_truth_value_for_an_answer(answer: list[Any]) -> None:
    keys = (
        "task.type=classification task.columns.text=question task.columns.text_pair=passage task.columns.label=answer"
    )
    assert keys in told(question=TEXTS, passage=TEXTS, answer=answer)
    assert told(question=TEXTS, answer=answer) == told(question=TEXTS, passage=TEXTS, answer=TEXTS) == ""


@pytest.mark.parametrize(
    ("names", "label", "values", "fragments"),
    [
        ("A B C", "answer", list("ABCAB"), ["'task.columns.choices=[A,B,C]'", "task.columns.label=answer"]),
        ("C B A", "answer", list("ABCAB"), ["'task.columns.choices=[A,B,C]'"]),
        ("answer0 answer1", "label", [0, 1, 0, 1, 0], ["choices=[answer0,answer1]'", "task.columns.label=label"]),
        ("sol1 sol2", "label", [0, 1, 0, 1, 0], ["choices=[sol1,sol2]'"]),
        ("option_a option_b", "correct", list("abaab"), ["'task.labels=[a,b]'", "task.columns.label=correct"]),
        ("optionA optionB", "answer", ["optionA", "optionB"] * 2 + ["optionA"], ["'task.labels=[optionA,optionB]'"]),
        ("A B", "answer", TEXTS, ["'answer' repeats the text", "letter"]),
        ("A B", "answer", list("uvwxy"), ["'answer' has u, v, w", "letter"]),
    ],
)
def test_a_column_for_each_choice(names: str, label: str, values: list[Any], fragments: list[str]) -> None:
    hint = told(question=TEXTS, **dict.fromkeys(names.split(), TEXTS), **{label: values})
    wanted = ["task.type=multiple_choice", "task.columns.question=question", *fragments]
    assert [fragment for fragment in wanted if fragment not in hint] == []


@pytest.mark.parametrize(
    "columns",
    [
        {"A": TEXTS, "answer": ["A"] * COUNT},
        {"A": TEXTS, "C": TEXTS, "answer": ["A"] * COUNT},
        {"A": TEXTS, "B": TEXTS, "mood": LABELS},
        {"text": TEXTS, "label": LABELS},
        {"A": 1, "B": 2, "answer": ["A"] * COUNT},
    ],
)
def test_other_columns_give_no_hint(columns: dict[str, Any]) -> None:
    assert told(**columns) == ""


def test_training_tells_the_hint_too(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "train.jsonl", rows(question=TEXTS, passage=TEXTS, answer=[True, False, True, False, True]))
    with pytest.raises(DataError, match=r"task\.columns\.text_pair=passage task\.columns\.label=answer"):
        settle_task(dataclasses.replace(OPEN, path=str(tmp_path)), DataConfig())
