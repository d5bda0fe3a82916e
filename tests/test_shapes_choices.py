"""One of several texts: rows, what is read of them, the head, a run."""

from __future__ import annotations

import dataclasses
import json
import random
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers import BertModel

import tiny_run
from adaptrain import AutoAdapterModel
from adaptrain.cli.main import main
from adaptrain.config.schema import ColumnsConfig, DataConfig, HeadConfig, TaskConfig
from adaptrain.errors import DataError
from adaptrain.evaluation.baseline import trivial_baseline
from adaptrain.evaluation.run import evaluate_folder
from adaptrain.tasks.choosing import ChoiceReader
from adaptrain.tasks.reading import Read
from adaptrain.tasks.rows import Rows, Split, load_rows
from adaptrain.tasks.settle import is_settled, settle_task
from adaptrain.tasks.shapes import SHAPES, Answered
from adaptrain.tasks.shapes.choices import choice_names
from adaptrain.tasks.sources import FolderSource
from adaptrain.training.run import train

CHOICE = SHAPES["multiple_choice"]
TASK = TaskConfig(
    name="mood",
    type="multiple_choice",
    path="somebody/mood",
    columns=ColumnsConfig(context="context", question="question", choices="choices", label="label"),
    labels=("0", "1", "2"),
    metric="accuracy",
)


def moods(count: int, seed: int) -> list[dict[str, Any]]:
    """The right choice has the one good word."""
    chance = random.Random(seed)
    found = []
    for _ in range(count):
        label = chance.randrange(3)
        tail = [chance.choice(tiny_run.GOOD if each == label else tiny_run.BAD) for each in range(3)]
        choices = [" ".join([*chance.choices(tiny_run.PLAIN, k=chance.randint(0, 3)), word]) for word in tail]
        context = " ".join(chance.choices(tiny_run.PLAIN, k=chance.randint(2, 8)))
        found.append({"context": context, "question": "was the host", "choices": choices, "label": label})
    return found


def rows_of(given: list[dict[str, Any]], *roles: str) -> Rows:
    return Rows("dev", {role: [each[role] for each in given] for role in (*roles, "choices", "label")}, "here", 0, "")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_run.save_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def tokenizer(base: Path) -> Any:
    return tiny_run.tokenizer_of(base)


def reader_of(base: Path, tokenizer: Any, **data: Any) -> ChoiceReader:
    return ChoiceReader.of(tokenizer, BertModel.from_pretrained(base), DataConfig(**data), torch.long)


# ---- what is read


@pytest.mark.parametrize(
    ("roles", "expected"),
    [
        (("context", "question"), "[CLS] soup [SEP] was it [UNK] warm [SEP]"),
        (("context",), "[CLS] soup [SEP] warm [SEP]"),
        (("question",), "[CLS] was it [UNK] [SEP] warm [SEP]"),
        ((), "[CLS] warm [SEP]"),
    ],
)
def test_what_is_read_of_a_choice(roles: tuple[str, ...], expected: str, base: Path, tokenizer: Any) -> None:
    given = [{"context": "soup", "question": "was it ?", "choices": ["warm", "very cold"], "label": 1}] * 2
    encoded = reader_of(base, tokenizer).encode(rows_of(given, *roles))
    ids = encoded.features["input_ids"]
    assert encoded.texts == 2 and len(ids) == 4 and len(encoded) == 2
    assert tokenizer.decode(ids[0]) == tokenizer.decode(ids[2]) == expected.replace("it", "[UNK]")
    assert len(ids[1]) == len(ids[0]) + 1 and encoded.lengths == [len(ids[0]) + len(ids[1])] * 2
    second = encoded.features["token_type_ids"][0].tolist()
    assert second == ([0] * ids[0].tolist().index(3) + [0] + [1] * (len(second)))[: len(second)]


def test_the_context_is_cut_first(base: Path, tokenizer: Any) -> None:
    given = [
        {"context": "a the room cook soup walk", "question": "was", "choices": ["warm", "very cold"], "label": 0},
        {"context": "a the", "question": "was", "choices": ["warm", "the a the a the a the"], "label": 0},
        {"context": "a the", "question": "was", "choices": ["warm", "cold"], "label": 1},
    ]
    encoded = reader_of(base, tokenizer, max_length=9).encode(rows_of(given, "context", "question"))
    found = [tokenizer.decode(ids) for ids in encoded.features["input_ids"]]
    assert found == [
        "[CLS] a the room cook [SEP] was warm [SEP]",
        "[CLS] a the room [SEP] was very cold [SEP]",
        "[CLS] a the [SEP] was warm [SEP]",
        "[CLS] a [SEP] was the a the a [SEP]",
        "[CLS] a the [SEP] was warm [SEP]",
        "[CLS] a the [SEP] was cold [SEP]",
    ]
    assert encoded.truncated == 2


def test_batches_the_loss_and_the_answers_by_hand(base: Path, tokenizer: Any) -> None:
    model = AutoAdapterModel.from_pretrained(base)
    model.add_adapter("mood", config="lora")
    assert CHOICE.put_head(model, TASK, HeadConfig(layers=1)) is None
    model.train_adapter("mood")
    torch.manual_seed(0)
    with torch.no_grad():
        for _, parameter in model.trainable_parameters():
            parameter.normal_(std=0.2)
    model.eval()
    reader = reader_of(base, tokenizer)
    rows = rows_of(moods(7, 0), "context", "question")
    encoded = reader.encode(rows)
    batch = reader.collate(encoded, [4, 1, 6])
    assert batch["input_ids"].shape == (9, max(batch["attention_mask"].sum(1).tolist()))
    assert batch["labels"].tolist() == [rows.labels[each] for each in (4, 1, 6)]
    assert tokenizer.decode(batch["input_ids"][5], skip_special_tokens=True).endswith(rows.columns["choices"][1][2])
    with torch.no_grad():
        logits = CHOICE.answers(model, batch, reader)
        loss = float(model(**batch).loss)
        alone = [CHOICE.answers(model, reader.collate(encoded, [each]), reader) for each in (4, 1, 6)]
    assert torch.allclose(logits, torch.cat(alone), atol=1e-5) and logits.shape == (3, 3)
    assert loss == pytest.approx(float(F.cross_entropy(logits, batch["labels"])), rel=1e-5)
    said = Answered(TASK, reader, Read(rows, encoded), list(np.eye(3)[[2, 0, 1, 1, 0, 2, 2]]))
    assert CHOICE.predictions(said).tolist() == [2, 0, 1, 1, 0, 2, 2]
    first = next(CHOICE.written(said))
    assert first == {"label": str(rows.labels[0]), "prediction": "2", "logits": [0, 0, 1]}


def test_the_trivial_answer_is_the_commonest_label(base: Path, tokenizer: Any) -> None:
    reader = reader_of(base, tokenizer)
    made = [Read(rows := rows_of(moods(9, seed)), reader.encode(rows)) for seed in (0, 1)]
    labels = list(made[0].rows.labels)
    commonest = max(range(3), key=labels.count)
    found = trivial_baseline(TASK, reader, *made, ("accuracy",))
    assert (found.name, found.answer) == ("majority choice", str(commonest))
    assert found.metrics["accuracy"] == pytest.approx(list(made[1].rows.labels).count(commonest) / 9)


# ---- rows


GOOD: dict[str, Any] = {"context": "a day", "question": "why", "choices": ["a", "b", "c"], "label": 2}


@pytest.mark.parametrize(
    ("changed", "reason", "message"),
    [
        ({"context": ""}, "empty text", "the context in column 'context' is empty"),
        ({"question": None}, "missing text", "the question in column 'question' is missing"),
        ({"choices": ["a", "b"]}, "another number of choices", "'choices' are 2, and the task has 3: 0, 1, 2"),
        ({"choices": ["a", " ", "c"]}, "choices that are no list of texts", "none of them empty. Correct the row"),
        ({"choices": []}, "choices that are no list of texts", "are []; a list of texts is due"),
        ({"choices": None}, "choices that are no list of texts", "are None; a list of texts is due"),
        ({"label": 3}, "label outside the map", "the label 3 in column 'label' is not in the label map"),
        ({"label": -1}, "label outside the map", "-1 marks a split without labels"),
        ({"label": None}, "missing label", "the label None"),
    ],
)
def test_bad_rows(changed: dict[str, Any], reason: str, message: str, tmp_path: Path) -> None:
    tiny_run.write_jsonl(tmp_path / "dev.jsonl", [GOOD, GOOD | changed])
    with pytest.raises(DataError) as error:
        load_rows(TASK, "dev", FolderSource(tmp_path))
    assert "split 'dev', row 2: the " in str(error.value) and message in str(error.value)
    rows = load_rows(TASK, "dev", FolderSource(tmp_path), "skip")
    assert len(rows) == 1 and rows.bad == {reason: 1}


def settled(folder: Path, rows: list[dict[str, Any]], **columns: Any) -> tuple[TaskConfig, Rows]:
    tiny_run.write_jsonl(folder / "train.jsonl", rows)
    task = dataclasses.replace(TASK, columns=ColumnsConfig(**columns), labels=())
    assert not is_settled(task)
    made = settle_task(task, DataConfig(), FolderSource(folder)).task
    assert is_settled(made)
    return made, load_rows(made, "train", FolderSource(folder))


@pytest.mark.parametrize(
    ("given", "labels", "expected"),
    [
        ([0, 1, 2], ("0", "1", "2"), [0, 1, 2]),
        ([2, 0, 0], ("0", "1", "2"), [2, 0, 0]),  # the training rows have not all of them
        ([1, 3, 2], ("1", "2", "3"), [0, 2, 1]),  # counted from 1
        (["1", "3", "2"], ("1", "2", "3"), [0, 2, 1]),
        ([3, 1, 1], ("1", "2", "3"), [2, 0, 0]),
        (["C", "A", "A"], ("A", "B", "C"), [2, 0, 0]),
    ],
)
def test_what_the_choices_are_called(given: list[Any], labels: Any, expected: list[int], tmp_path: Path) -> None:
    task, rows = settled(tmp_path, [GOOD | {"label": label} for label in given])
    assert (task.labels, list(rows.labels)) == (labels, expected)
    assert task.columns == TASK.columns  # context and question bear these very names


@pytest.mark.parametrize("given", [[1, 2, 2], ["B", "D", "A"], [1, 2, 4], ["a", "b", "c"]])
def test_labels_that_cannot_be_the_choices(given: list[Any], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"row 1 has 3 choices in 'choices', .* in order, in task\.labels"):
        settled(tmp_path, [GOOD | {"label": label} for label in given])


def test_choices_in_columns_and_nothing_is_added_to_what_is_declared(tmp_path: Path) -> None:
    rows = [{"question": "why", "one": "a", "two": "b", "right": "2"}, {"question": "so", "one": "c", "two": "d"}]
    rows[1]["right"] = "1"
    task, found = settled(tmp_path, rows, choices=("one", "two"), label="right")
    assert task.columns.question is None and set(found.columns) == {"choices", "label"}
    assert (found.columns["choices"], found.labels) == ([["a", "b"], ["c", "d"]], [1, 0])


@pytest.mark.parametrize("listed", [False, True])
def test_choices_with_names(listed: bool, tmp_path: Path) -> None:
    def named(label: str, *names: str) -> dict[str, Any]:
        pairs = [{"text": text, "label": name} for text, name in zip("xyz", names, strict=True)]
        choices = pairs if listed else {"text": ["x", "y", "z"], "label": names}
        return {"question": "why", "choices": choices, "answerKey": label}

    given = [named("C", "A", "B", "C"), named("A", "A", "B", "C"), named("B", "A", "B", "C")]
    task, rows = settled(tmp_path, given, question="question", choices="choices", label="answerKey")
    assert (task.labels, rows.labels) == (("A", "B", "C"), [2, 0, 1])
    assert rows.columns["choices"][0] == ["x", "y", "z"]
    tiny_run.write_jsonl(tmp_path / "dev.jsonl", [named("B", "A", "C", "B")])
    with pytest.raises(DataError, match="are called A, C, B; task.labels says A, B, C, in this order"):
        load_rows(task, "dev", FolderSource(tmp_path))


def test_a_map_of_the_columns_own() -> None:
    names = datasets.ClassLabel(names=["left", "right"])
    features = {"choices": datasets.List(datasets.Value("string")), "label": names}
    table = datasets.Dataset.from_dict(
        {"choices": [["a", "b"], ["c", "d"]], "label": [1, 0]}, features=datasets.Features(features)
    )
    task = dataclasses.replace(TASK, columns=ColumnsConfig(choices="choices", label="label"), labels=())
    found = choice_names(Split.of(table, task, "here"))
    assert found == ("left", "right")
    columns = CHOICE.examine(Split.of(table, dataclasses.replace(task, labels=found), "here"))
    assert (columns["label"].values, columns["label"].bad, columns["choices"].bad) == ([1, 0], [], [])


def test_a_look_at_the_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [GOOD, GOOD | {"label": 0}, GOOD | {"choices": ["a", "b c d", "e"]}]
    tiny_run.write_jsonl(tmp_path / "mood/train.jsonl", rows)
    tiny_run.write_jsonl(tmp_path / "mood/validation.jsonl", rows[2:])
    Path("mood.yaml").write_text("name: mood\ntype: multiple_choice\npath: ./mood\nmetric: accuracy\n")
    assert main(["data", "task=./mood.yaml"]) == 0
    out = capsys.readouterr().out
    table = [line.split() for line in out.splitlines()]
    assert ["train", "trains", "3", "0", "1", "1"] in table
    assert ["2", "2", "66.7", "1", "100.0"] in table and ["1", "0", "0.0", "0", "0.0"] in table
    assert ["train", "4", "4", "6", "6", "6", "6"] in table  # words of the longest choice, and of what it is about


# ---- a run


def test_a_run_learns_and_its_folder_evaluates_to_the_same(base: Path, tmp_path: Path) -> None:
    for split, count, seed in (("train", 200, 0), ("dev", 40, 1)):
        tiny_run.write_jsonl(tmp_path / "mirror/mood" / f"{split}.jsonl", moods(count, seed))
    config = tiny_run.run_config(base, tmp_path / "mirror", tmp_path / "out", task=TASK, learning_rate=2e-2)
    result = train(config, display=tiny_run.Recorder())
    line = result.row
    assert line["score"] > 0.8 > line["baseline"]["score"] and line["baseline"]["name"] == "majority choice"
    again = evaluate_folder(result.folder)
    assert again.reproduced and again.metrics == pytest.approx(line["metrics"])
    assert evaluate_folder(result.folder, batch_size=3).score == pytest.approx(again.score)
    lines = [json.loads(each) for each in (result.folder / "predictions.jsonl").read_text().splitlines()]
    assert sum(each["prediction"] == each["label"] for each in lines) / 40 == pytest.approx(line["score"])
    head = json.loads((result.folder / "head_config.json").read_text())["config"]
    assert (head["type"], head["num_choices"]) == ("multiple_choice", 3)
    cached = dataclasses.replace(config, trainer=dataclasses.replace(config.trainer, cache_frozen=True))
    assert [name for name, _ in cached.problems()] == ["trainer.cache_frozen"]
