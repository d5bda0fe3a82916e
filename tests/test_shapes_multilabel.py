"""Several labels a text: how they are written down, bad rows, answers, the loss, a run, the survey."""

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

from adaptrain import AutoAdapterModel
from adaptrain.config.schema import ColumnsConfig, DataConfig, HeadConfig, SplitsConfig, TaskConfig
from adaptrain.errors import DataError
from adaptrain.evaluation.predict import predict
from adaptrain.evaluation.run import evaluate_folder
from adaptrain.tasks.reading import Read
from adaptrain.tasks.rows import load_rows
from adaptrain.tasks.settle import settle_task
from adaptrain.tasks.shapes import SHAPES
from adaptrain.tasks.sources import FolderSource
from adaptrain.tasks.survey import survey, words
from adaptrain.training.precision import find_hardware
from adaptrain.training.run import train
from matrix import randomise
from tiny_run import BAD, GOOD, PLAIN, Recorder, run_config, save_base, save_splits, tokenizer_of, write_jsonl

LABELS = ("good", "bad", "long")
TASK = TaskConfig(
    name="moods",
    type="multilabel",
    path="somebody/moods",
    columns=ColumnsConfig(text="text", label="labels"),
    labels=LABELS,
    metric="multilabel_micro_f1",
    extra_metrics=("multilabel_macro_f1", "multilabel_samples_f1", "subset_accuracy"),
    splits=SplitsConfig(test="test"),
)


def texts(count: int, seed: int) -> list[dict[str, Any]]:
    """What the words of a text are: a good one, a bad one, both, none; and whether there are many."""
    chance = random.Random(seed)
    rows = []
    for _ in range(count):
        good, bad, long = (chance.random() < share for share in (0.6, 0.4, 0.3))
        found = chance.choices(PLAIN, k=12 if long else 3)
        found += [chance.choice(GOOD)] * good + [chance.choice(BAD)] * bad
        chance.shuffle(found)
        labels = [name for name, there in zip(LABELS, (good, bad, long), strict=True) if there]
        rows.append({"text": " ".join(found), "labels": labels})
    return rows


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def mirror(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mirror")
    save_splits(folder / "moods", texts, train=160, dev=20, test=30)
    return folder


def load(folder: Path, rows: list[dict[str, Any]], policy: str = "error", **changes: Any) -> Any:
    write_jsonl(folder / "train.jsonl", rows)
    return load_rows(dataclasses.replace(TASK, **changes), "train", FolderSource(folder), policy)


@pytest.mark.parametrize(
    "written",
    [
        [["long", "good"], ["bad"], []],
        [[2, 0], [1], []],
        ["good, long", "bad", ""],
        ["long|good", "bad", " "],
        [[True, False, True], [False, True, False], [False, False, False]],
    ],
    ids=["names", "indices", "commas", "bars", "truths"],
)
def test_labels_are_written_in_several_ways(written: list[Any], tmp_path: Path) -> None:
    rows = load(tmp_path, [{"text": "a day", "labels": each} for each in written])
    assert list(rows.labels) == [[1, 0, 1], [0, 1, 0], [0, 0, 0]]


def test_a_column_for_each_label(tmp_path: Path) -> None:
    rows = [
        {"text": "a day", "good": 1, "bad": 0, "long": 1},
        {"text": "a room", "good": 0, "bad": 1, "long": 0},
    ]
    columns = ColumnsConfig(text="text", label=LABELS)
    assert list(load(tmp_path, rows, columns=columns).labels) == [[1, 0, 1], [0, 1, 0]]
    open_ = dataclasses.replace(TASK, columns=columns, labels=(), path=str(tmp_path))
    assert settle_task(open_, DataConfig()).task.labels == LABELS
    truths = [{key: bool(each) if key != "text" else each for key, each in row.items()} for row in rows]
    assert list(load(tmp_path, truths, columns=columns).labels) == [[1, 0, 1], [0, 1, 0]]
    with pytest.raises(DataError, match=r"row 2: the labels in the columns good, bad, long are \[0, 2, 0\]; a 0 or 1"):
        load(tmp_path, [rows[0], rows[1] | {"bad": 2}], columns=columns)
    with pytest.raises(DataError, match=r"task\.columns\.label names 3 columns, and task\.labels 2 labels"):
        load(tmp_path, rows, columns=columns, labels=("good", "bad"))


def test_lists_of_a_label_map_of_the_datas_own(tmp_path: Path) -> None:
    features = datasets.Features(
        {
            "text": datasets.Value("string"),
            "labels": datasets.List(datasets.ClassLabel(names=["long", "bad", "good"])),
        }
    )
    table = datasets.Dataset.from_dict({"text": ["a day", "a room"], "labels": [[0, 2], []]}, features=features)
    table.to_parquet(tmp_path / "train.parquet")
    open_ = dataclasses.replace(TASK, labels=(), path=str(tmp_path))
    assert settle_task(open_, DataConfig()).task.labels == ("long", "bad", "good")
    assert list(load_rows(TASK, "train", FolderSource(tmp_path)).labels) == [[1, 0, 1], [0, 0, 0]]  # by name


@pytest.mark.parametrize("written", [["good", "bad", "good, bad"], [["good"], ["bad"], []]])
def test_the_map_is_inferred_from_what_is_in_lists_and_texts(written: list[Any], tmp_path: Path) -> None:
    write_jsonl(tmp_path / "train.jsonl", [{"text": "a day", "labels": each} for each in written])
    settled = settle_task(dataclasses.replace(TASK, labels=(), path=str(tmp_path)), DataConfig())
    assert settled.task.labels == ("bad", "good")


@pytest.mark.parametrize(
    ("value", "reason", "said"),
    [
        (["good", "lnog"], "label outside the map", r"row 2: the label 'lnog' in column 'labels' is not in .* 'long'"),
        (None, "missing label", r"row 2: the labels in column 'labels' are None; .* a list of them is due"),
        (["good", "good"], "label outside the map", r"row 2: .* \['good', 'good'\], where one stands twice"),
    ],
)
def test_bad_rows_are_refused_with_their_row_or_left_out_and_counted(
    value: Any, reason: str, said: str, tmp_path: Path
) -> None:
    rows = [{"text": "a day", "labels": each} for each in (["good"], value, ["bad"])]
    with pytest.raises(DataError, match=said):
        load(tmp_path, rows)
    found = load(tmp_path, rows, "skip")
    assert found.bad == {reason: 1} and list(found.labels) == [[1, 0, 0], [0, 1, 0]]


def test_lists_of_zeros_and_ones_are_never_taken_for_indices(tmp_path: Path) -> None:
    rows = [{"text": "a day", "labels": each} for each in ([0, 1, 0], [1, 0, 0])]
    with pytest.raises(DataError, match=r"row 1: .* where one stands twice\. Numbers are indices .* true and false"):
        load(tmp_path, rows)
    two = [{"text": "a day", "labels": each} for each in ([0, 1], [1, 0])]
    with pytest.raises(DataError, match="every list in column 'labels' is 0 and 1"):
        load(tmp_path, two, labels=("good", "bad"))
    indices = [*two, {"text": "a day", "labels": [1]}]
    assert list(load(tmp_path, indices, labels=("good", "bad")).labels) == [[1, 1], [1, 1], [0, 1]]
    with pytest.raises(DataError, match="says 2 times true or false, and task moods has 3 labels"):
        load(tmp_path, [{"text": "a day", "labels": [True, False]}])


def test_answers_and_the_loss_by_hand(base: Path, mirror: Path) -> None:
    model: Any = AutoAdapterModel.from_pretrained(base)
    model.add_adapter("moods", "seq_bn")
    shape = SHAPES["multilabel"]
    shape.put_head(model, TASK, HeadConfig())
    model.train_adapter("moods")
    for part in (model.get_adapter("moods"), model.heads):
        randomise(part, 0.3, 4)
    model.eval()
    tokenizer = tokenizer_of(base)
    reader = shape.reader(tokenizer, model.base_model, TASK, DataConfig())
    rows = load_rows(TASK, "test", FolderSource(mirror / "moods"))
    read, hardware = Read(rows, reader.encode(rows)), find_hardware("cpu", "fp32", False)
    found = predict(model, reader, read, TASK, 7, hardware)
    for size in (1, 40):
        assert predict(model, reader, read, TASK, size, hardware).scores() == found.scores()
    said = []
    for text in rows.texts:
        with torch.no_grad():
            said.append((model(**tokenizer(text, return_tensors="pt")).logits[0].double().sigmoid() > 0.5).tolist())
    right = np.asarray(rows.labels, dtype=bool)
    both, either = int((right & said).sum()), int(right.sum() + np.sum(said))
    assert found.scores()["multilabel_micro_f1"] == pytest.approx(2 * both / either)
    assert found.scores()["subset_accuracy"] == pytest.approx((right == np.asarray(said)).all(1).mean())
    assert 0 < both < either / 2
    first = next(found.rows())
    assert first["label"] == [name for name, there in zip(LABELS, right[0], strict=True) if there]
    assert first["prediction"] == [name for name, there in zip(LABELS, said[0], strict=True) if there]
    batch = reader.collate(read.encoded, [3, 0, 5])
    assert batch["labels"].dtype == torch.float32 and batch["labels"].shape == (3, 3)
    with torch.no_grad():
        shares = model(**{**batch, "labels": None}).logits.double().sigmoid()
        wanted = -(batch["labels"] * shares.log() + (1 - batch["labels"]) * (1 - shares).log()).mean()
        assert float(model(**batch).loss) == pytest.approx(float(wanted), rel=1e-5)


def test_a_run_learns_and_its_folder_evaluates_to_the_same(base: Path, mirror: Path, tmp_path: Path) -> None:
    result = train(run_config(base, mirror, tmp_path, task=TASK, epochs=8, learning_rate=1e-2), display=Recorder())
    row = result.row
    assert (row["baseline"]["name"], row["baseline"]["answer"]) == ("commonest labels", "good")
    assert row["score"] == row["metrics"]["multilabel_micro_f1"] > row["baseline"]["score"] + 0.1
    again = evaluate_folder(result.folder)
    assert again.reproduced and again.metrics == pytest.approx(row["metrics"])
    lines = [json.loads(line) for line in (result.folder / "predictions.jsonl").read_text().splitlines()]
    right = np.mean([line["label"] == line["prediction"] for line in lines])
    assert right == pytest.approx(row["metrics"]["subset_accuracy"])


def test_the_survey_counts_every_label(mirror: Path) -> None:
    source = FolderSource(mirror / "moods")
    settled = settle_task(dataclasses.replace(TASK, path=str(mirror / "moods")), DataConfig(), source)
    (found,) = survey(source, {"train": "trains"}, settled.roles, words, settled.task).splits
    labels = [name for row in texts(160, 0) for name in row["labels"]]
    assert found.balance == {name: labels.count(name) for name in LABELS} and not found.bad
