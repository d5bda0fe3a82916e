"""Roles of columns and label maps: declared, inferred where there is nothing to choose, refused elsewhere."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import datasets
import pytest

from adaptrain.config.schema import ColumnsConfig, DataConfig, TaskConfig
from adaptrain.errors import DataError
from adaptrain.tasks.columns import free_roles, settle_columns
from adaptrain.tasks.features import is_place, kind_of
from adaptrain.tasks.labels import infer_labels
from adaptrain.tasks.settle import is_settled, settle_task
from tiny_run import write_jsonl

OPEN = TaskConfig(name="own", type="classification", path="./own", metric="accuracy")
TEXT, WHOLE, FRACTION = datasets.Value("string"), datasets.Value("int64"), datasets.Value("float64")
WORDS, PAIR = datasets.List(TEXT), datasets.ClassLabel(names=["no", "yes"])
ANSWERS = {"text": WORDS, "answer_start": datasets.List(WHOLE)}


def task(kind: str = "classification", **columns: Any) -> TaskConfig:
    return dataclasses.replace(OPEN, type=kind, columns=ColumnsConfig(**columns))


def columns(given: TaskConfig, **features: Any) -> dict[str, Any]:
    settled, roles, unused = settle_columns(given, features, "here")
    assert settled.columns.declared() == {role.name: role.column for role in roles}
    assert {*unused} == {*features} - {column for role in roles for column in role.columns}
    return settled.columns.declared()


@pytest.mark.parametrize(
    ("features", "expected"),
    [
        ({"text": TEXT, "label": WHOLE}, {"text": "text", "label": "label"}),
        ({"id": TEXT, "sentence": TEXT, "label": PAIR}, {"text": "sentence", "label": "label"}),
        ({"id": TEXT, "remark": TEXT, "label": WHOLE}, {"text": "remark", "label": "label"}),  # the only one left
        ({"review": TEXT, "stars": WHOLE}, {"text": "review", "label": "stars"}),
        ({"remark": TEXT, "mood": PAIR}, {"text": "remark", "label": "mood"}),  # a ClassLabel says what it is
        ({"text": TEXT, "domain": TEXT, "label": WHOLE}, {"text": "text", "label": "label"}),
        ({"text": TEXT, "label": WHOLE, "score": FRACTION}, {"text": "text", "label": "label"}),  # the role's own name
        (
            {"sentence1": TEXT, "sentence2": TEXT, "label": WHOLE, "idx": WHOLE},
            {"text": "sentence1", "text_pair": "sentence2", "label": "label"},
        ),
        (
            {"premise": TEXT, "hypothesis": TEXT, "gold_label": TEXT},
            {"text": "premise", "text_pair": "hypothesis", "label": "gold_label"},
        ),
    ],
)
def test_what_can_only_be_meant_is_inferred(features: dict[str, Any], expected: dict[str, str]) -> None:
    assert columns(task(), **features) == expected


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (
            {"title": TEXT, "body": TEXT, "label": WHOLE},
            "text can be one of several columns: title, body.*columns.text=title",
        ),
        ({"text": TEXT, "sentence": TEXT, "label": WHOLE}, "text can be one of several columns: text, sentence"),
        ({"text": TEXT, "sentence1": TEXT, "sentence2": TEXT, "label": WHOLE}, "text, sentence1, sentence2"),
        ({"text": TEXT, "category": TEXT, "score": WHOLE}, "label can be one of several columns: category, score"),
        ({"text": TEXT, "a": PAIR, "b": PAIR}, "label can be one of several columns: a, b"),
        ({"text": TEXT, "number": WHOLE}, "no column 'label', nor another.*text, number.*task.columns.label"),
        ({"id": TEXT, "label": WHOLE}, r"no column can be the text. .*id \(text\), label \(integer\)"),
        ({"url": TEXT, "user_id": TEXT, "label": WHOLE}, "no column can be the text"),
        ({"tokens": WORDS, "label": WHOLE}, r"tokens \(list of text\)"),
    ],
)
def test_what_is_ambiguous_is_refused(features: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        columns(task(), **features)


def test_what_is_declared_is_taken_and_nothing_is_added_to_it() -> None:
    both = {"sentence1": TEXT, "sentence2": TEXT, "id": TEXT, "label": WHOLE}
    assert columns(task(text="sentence2"), **both) == {"text": "sentence2", "label": "label"}
    assert columns(task(text="id", label="label", id="sentence1"), **both)["text"] == "id"
    _, roles, unused = settle_columns(task(text="sentence2"), both, "here")
    assert [(role.name, role.declared, role.kind) for role in roles] == [
        ("text", True, "text"),
        ("label", False, "integer"),
    ]
    assert unused == ("sentence1", "id")
    with pytest.raises(DataError, match=r"no column 'sentense1', did you mean 'sentence1'\?.*task.columns.text_pair"):
        columns(task(text="sentence2", text_pair="sentense1"), **both)


def test_texts_alone_and_numbers() -> None:
    assert columns(task("masked_lm"), id=TEXT, remark=TEXT) == {"text": "remark"}
    pair = {"sentence1": TEXT, "sentence2": TEXT}
    with pytest.raises(DataError, match="text can be one of several columns: sentence1, sentence2"):
        columns(task("masked_lm"), **pair)
    assert columns(task("regression"), **pair, score=FRACTION)["label"] == "score"
    with pytest.raises(DataError, match="no column 'label'"):
        columns(task("regression"), **pair, mood=PAIR)


@pytest.mark.parametrize(
    "name", ["id", "ID", "user_id", "productId", "__index_level_0__", "Unnamed: 0", "url", "split"]
)
def test_names_of_places(name: str) -> None:
    assert is_place(name)


@pytest.mark.parametrize("name", ["sentence", "idea", "grid", "covid", "candid", "aid", "text"])
def test_names_that_are_none(name: str) -> None:
    assert not is_place(name)


@pytest.mark.parametrize(
    ("features", "expected"),
    [
        ({"tokens": WORDS, "ner_tags": datasets.List(PAIR)}, {"tokens": "tokens", "tags": "ner_tags"}),
        (
            {"id": TEXT, "context": TEXT, "question": TEXT, "choices": WORDS, "label": WHOLE},
            {"id": "id", "question": "question", "context": "context", "choices": "choices", "label": "label"},
        ),
        (
            {"id": TEXT, "title": TEXT, "context": TEXT, "question": TEXT, "answers": ANSWERS},
            {"question": "question", "context": "context", "answers": "answers"},
        ),
        ({"document": TEXT, "summary": TEXT}, {"source": "document", "target": "summary"}),
        (
            {"question": TEXT, "sentence": TEXT, "label": WHOLE},
            {"text": "question", "text_pair": "sentence", "label": "label"},
        ),
        ({"en": TEXT, "fr": TEXT}, {}),
    ],
)
def test_roles_of_data_without_a_task(features: dict[str, Any], expected: dict[str, str]) -> None:
    given = ColumnsConfig(id="id") if "id" in expected else ColumnsConfig()
    assert {role.name: role.column for role in free_roles(features, given, "here")[0]} == expected


def test_choices_in_several_columns() -> None:
    features = {"question": TEXT, "a": TEXT, "b": TEXT, "label": WHOLE}
    roles, unused = free_roles(features, ColumnsConfig(choices=("a", "b"), question="question"), "here")
    assert roles[1].columns == ("a", "b") and roles[1].kind == "2 columns of text" and unused == ()
    assert ColumnsConfig(choices=["a", "b"]) == ColumnsConfig(choices=("a", "b"))  # pyright: ignore[reportArgumentType]


def test_kinds() -> None:
    kinds = [kind_of(datasets.Value(word)) for word in ("large_string", "uint8", "float32", "bool", "null")]
    assert kinds == ["text", "integer", "number", "true or false", "empty"]
    assert kind_of(datasets.Dataset.from_list([{"x": {}}]).features["x"]) == "mapping of (none)"
    assert kind_of(datasets.Image()) == "image" and kind_of(datasets.Audio()) == "audio"


def test_roles_that_a_type_does_not_have_are_refused() -> None:
    problems = dict(task(text="x", tokens="y").problems())
    assert "task.type=classification has the roles text, label, text_pair, id" in problems["columns.tokens"]
    assert dict(ColumnsConfig(text="x", text_pair="x").problems()) == {
        "text_pair": "is 'x', which is the column of text already"
    }
    assert not list(task(text="x", label="y", id="z").problems())


# ---- label maps


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["b", "a", "b", None, ""], ("a", "b")),
        ([10, 2, 1, None], ("1", "2", "10")),
        (["10", "9"], ("10", "9")),
        ([10.0, 2.0], ("2.0", "10.0")),
    ],
)
def test_labels_from_values(values: list[Any], expected: tuple[str, ...]) -> None:
    assert infer_labels(values, TEXT, "label", "here") == expected


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1, 0.5], "here: .* column 'label': row 2 has 0.5, a fraction.*task.type=regression"),
        ([1.0, float("inf")], "row 2 has inf.*task.type=regression"),
        ([True, False], "row 1 has True, .* not true and false"),
        ([["x"]], "not list"),
        (list(range(300)), "more than 256 values in the first 257 rows.*task.labels"),
        ([1, "x"], r"numbers and words \(row 2 has 'x'\)"),
        ([-1, -1], "every label is -1"),
        ([0, 1, -1], "row 3 has -1, which marks rows without a label"),
        (["x", "x"], "only the value 'x'"),
        ([None], "no value"),
        (["Yes", "yes "], r"'Yes', 'yes ' differ only in case or blanks \(row 2\)"),
    ],
)
def test_labels_that_cannot_be_inferred(values: list[Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        infer_labels(values, TEXT, "label", "here")


def test_a_task_is_settled_by_its_training_split(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "train.jsonl", [{"remark": "x", "label": "up"}, {"remark": "y", "label": "down"}])
    open_task = dataclasses.replace(OPEN, path=str(tmp_path))
    found = settle_task(open_task, DataConfig())
    assert found.task.labels == ("down", "up") and found.task.columns == ColumnsConfig(text="remark", label="label")
    assert found.notes == (
        "columns inferred: text = remark",
        "label map inferred: 0 = down, 1 = up",
    )
    assert (is_settled(open_task), is_settled(found.task)) == (False, True)
    assert settle_task(found.task, DataConfig()).notes == ()
    named = dataclasses.replace(open_task, labels=("up", "down"))
    assert settle_task(named, DataConfig()).task.labels == ("up", "down")
    table = datasets.Dataset.from_dict({"text": ["x"], "label": [1]}, datasets.Features({"text": TEXT, "label": PAIR}))
    (tmp_path / "train.jsonl").unlink()
    table.to_parquet(tmp_path / "train.parquet")
    assert settle_task(open_task, DataConfig()).task.labels == ("no", "yes")


def test_texts_and_numbers_in_one_column_are_the_text_with_bad_rows(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "train.jsonl", [{"text": "x", "label": 0}, {"text": 5, "label": 1}])
    found = settle_task(dataclasses.replace(OPEN, path=str(tmp_path)), DataConfig())
    assert found.roles[0].kind == "mixed" and found.task.columns.text == "text"
