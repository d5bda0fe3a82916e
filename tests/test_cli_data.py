"""`adaptrain data`: the report, and the exit codes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import tiny_run
from adaptrain.cli.data import _as_task
from adaptrain.cli.main import main
from adaptrain.config.task import ROLES
from adaptrain.tasks.shapes import SHAPES
from tiny_run import write_jsonl

TRAIN = [
    {"id": "a", "remark": "a fine day", "mood": "good"},
    {"id": "b", "remark": "cold soup", "mood": "bad"},
    {"id": "c", "remark": "a fine day", "mood": "bad"},
    {"id": "d", "remark": "cold soup", "mood": "bad"},
    {"id": "e", "remark": "one two three four five six", "mood": "good"},
]
DEV = [{"id": "f", "remark": "a fine day", "mood": "good"}, {"id": "g", "remark": "warm", "mood": "bad"}]
LABEL = "task.columns.label=mood"


@pytest.fixture(autouse=True)
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_jsonl(tmp_path / "own/train.jsonl", TRAIN)
    write_jsonl(tmp_path / "own/dev.jsonl", DEV)
    return tmp_path


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main(["data", *arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def table(out: str, title: str) -> list[list[str]]:
    """The cells of one table, without its title."""
    (found,) = [part for part in out.split("\n\n") if part.startswith(title)]
    return [re.split(r"  +", line.strip()) for line in found.splitlines()[1:]]


def test_a_folder(capsys):
    code, out, err = run(capsys, "own", LABEL)
    assert (code, err) == (0, "")
    assert out.startswith("own  (classification, own)\n")
    assert table(out, "own")[1:] == [["train", "5", "0", "2", "1"], ["validation", "2", "0", "0", "0"]]
    assert table(out, "columns")[1:] == [
        ["text", "remark", "inferred", "text", "a fine day"],
        ["label", "mood", "declared", "text", "good"],
        ["-", "id", "not used"],
    ]
    assert table(out, "labels")[1:] == [["bad", "3", "60.0", "1", "50.0"], ["good", "2", "40.0", "1", "50.0"]]
    assert table(out, "lengths in words")[1:] == [
        ["train", "2", "3", "6", "6", "6", "6"],
        ["validation", "1", "3", "3", "3", "3", "3"],
    ]
    assert table(out, "rows of the second")[1:] == [["train / validation", "1", "1"]]
    assert "note: columns inferred: text = remark\nnote: label map inferred: 0 = bad, 1 = good\n" in out


def test_bad_rows_are_shown_and_end_with_3(capsys, work):
    rows = [*TRAIN, {"id": "h", "remark": " ", "mood": "good"}, {"id": "i", "remark": "x", "mood": None}]
    write_jsonl(work / "own/train.jsonl", rows)
    write_jsonl(work / "own/dev.jsonl", [*DEV, {"id": "j", "remark": "x", "mood": "godo"}])
    code, out, err = run(capsys, "own", LABEL, "task.columns.id=id")
    assert code == 3
    assert table(out, "bad rows")[1:] == [
        ["train", "empty text", "1", "6"],
        ["train", "missing label", "1", "7"],
        ["validation", "label outside the map", "1", "3"],
    ]
    assert "Bad rows: 2 of split 'train', 1 of split 'validation'" in err
    assert "row 6 (h): the text in column 'remark' is empty" in err and "data.bad_rows=skip" in err
    code, again, err = run(capsys, "own", LABEL, "task.columns.id=id", "data.bad_rows=skip")
    assert (code, err, again) == (0, "", out)


def test_a_task_with_its_splits_and_a_models_tokens(capsys, work):
    tiny_run.save_data(work / "mirror")
    tiny_run.save_base(work / "base")
    (work / "task.yaml").write_text(
        "name: mood\ntype: classification\npath: somebody/mood\ncolumns: {text: sentence}\nlabels: [bad, good]\n"
        "metric: mcc\nsplits: {validation: held_out, test: validation, carve: {to: held_out, rows: 30}}\n"
    )
    capsys.readouterr()
    model = [f"model.name={work}/base", "model.package=null", "model.sha256=null"]
    code, out, err = run(capsys, "task=task.yaml", "data.mirror=mirror", *model, "data.max_length=9")
    assert (code, err) == (0, "")
    uses = [row[:3] for row in table(out, "mood")[1:]]
    assert uses == [["train", "trains", "170"], ["held_out", "chooses", "30"], ["validation", "scores", "50"]]
    heads, train, *_ = table(out, f"lengths in tokens of {work}/base")
    assert heads[-2:] == ["over 9", "%"]
    held = {row["sentence"] for row in tiny_run.sentences(200, 0)}
    assert int(train[6]) <= max(len(text.split()) for text in held) + 2 and 0 < int(train[7]) < 170
    assert float(train[8]) == round(100 * int(train[7]) / 170, 1)
    assert "note: not looked at: test\n" in out
    shares = [row[2::2] for row in table(out, "labels")[1:]]
    assert [sum(float(row[column]) for row in shares) for column in range(3)] == pytest.approx([100] * 3, abs=0.11)


def test_a_split_that_is_not_there(capsys, work):
    (work / "own/dev.jsonl").unlink()
    code, out, err = run(capsys, "task=own", "task.path=own", LABEL)
    assert code == 3 and table(out, "own")[1:] == [["train", "trains", "5", "0", "2", "1"]]
    assert "own has no split 'validation'" in err and "task.splits.carve={to: validation, fraction: 0.1}" in err


def test_a_split_without_labels_and_files_that_are_no_split(capsys, work):
    hidden = [row | {"mood": -1} for row in DEV]
    write_jsonl(work / "own/test.jsonl", hidden)
    write_jsonl(work / "own/words.jsonl", [{"word": "fine"}])
    labels = {"good": 1, "bad": 0}
    for name, rows in (("train", TRAIN), ("dev", DEV)):
        write_jsonl(work / f"own/{name}.jsonl", [row | {"mood": labels[row["mood"]]} for row in rows])
    code, out, err = run(capsys, "own", LABEL)
    assert (code, err) == (0, "")
    assert table(out, "own")[1:] == [
        ["train", "5", "0", "2", "1"],
        ["validation", "2", "0", "0", "0"],
        ["test", "2", "0", "0", "0"],
    ]
    assert "note: not looked at: words\nnote: split 'test' has no label of the map\n" in out
    write_jsonl(work / "own/test.jsonl", [*hidden, TRAIN[0] | {"mood": 1}])
    assert run(capsys, "own", LABEL)[0] == 3


def spans(start: int) -> dict[str, Any]:
    answers = {"text": ["soup"], "answer_start": [start]}
    return {"question": "what?", "context": "the soup was cold", "answers": answers}


def choice(label: int, *choices: str) -> dict[str, Any]:
    return {"question": "which?", "choices": choices, "label": label}


@pytest.mark.parametrize(
    ("kind", "rows", "reason"),
    [
        ("question_answering", [spans(4), spans(5)], "answer outside the context"),
        (
            "tagging",
            [{"tokens": ["a", "b"], "tags": ["O", "B-X"]}, {"tokens": ["a"], "tags": []}],
            "not a tag for each token",
        ),
        ("multiple_choice", [choice(1, "a", "b"), choice(0, "", "b")], "choices that are no list of texts"),
        ("translation", [{"document": "x y", "summary": "x"}, {"document": "x y", "summary": ""}], "empty text"),
    ],
)
def test_data_of_other_shapes(kind, rows, reason, capsys, work):
    """With a shape of their own where there is one, else by what each role asks for by itself."""
    file = write_jsonl(work / "rows.jsonl", rows)
    code, out, err = run(capsys, str(file))
    known = kind in SHAPES
    assert code == 3 and out.startswith(f"rows.jsonl  ({kind if known else 'no task'}, ")
    ((split, told, count, numbers),) = table(out, "bad rows")[1:]
    assert (split, count, numbers) == ("train", "1", "2") and (known or told == reason)
    assert "row 2: " in err


def test_roles_that_mean_a_task_where_its_shape_is_known(monkeypatch):
    found = {}
    for kind in ROLES:
        monkeypatch.setitem(SHAPES, kind, SHAPES["masked_lm"])
    asked = {
        "classification": {"text": "text", "text_pair": "text", "label": "text"},
        "regression": {"text": "text", "label": "number"},
        "multilabel": {"text": "text", "label": "list of text"},
        "masked_lm": {"text": "text"},
        "tagging": {"tokens": "list of text", "tags": "list of text"},
        "dependency_parsing": {"tokens": "list of text", "heads": "list of integer", "relations": "list of text"},
        "question_answering": {"question": "text", "context": "text", "answers": "answers"},
        "multiple_choice": {"choices": "list of text", "context": "text", "label": "integer"},
        "translation": {"source": "text", "target": "text"},
        "image_classification": {"image": "image", "label": "class"},
        "speech_recognition": {"audio": "audio", "target": "text"},
    }
    for kind, kinds in asked.items():
        task = _as_task(tiny_run.MOOD, kinds, "dev")
        found[kind] = None if task is None else (task.type, task.splits.train, [*task.problems()])
    assert found == {kind: (kind, "dev", []) for kind in asked}
    columns = dict.fromkeys(("question", "context"), "text")
    assert _as_task(tiny_run.MOOD, columns, "train") is None  # nothing to learn
    assert _as_task(tiny_run.MOOD, {"text": "text", "text_pair": "text"}, "train") is None
    monkeypatch.delitem(SHAPES, "tagging")
    assert _as_task(tiny_run.MOOD, asked["tagging"], "train") is None


def test_several_labels(capsys, work):
    rows = [{"text": "a warm day", "labels": ["fine", "warm"]}, {"text": "cold soup", "labels": []}]
    write_jsonl(work / "m.jsonl", [*rows, {"text": "warm soup", "labels": ["warm"]}])
    code, out, err = run(capsys, "m.jsonl")
    assert (code, err) == (0, "") and "(multilabel, m.jsonl)" in out
    assert [row[:2] for row in table(out, "labels")[1:]] == [["fine", "1"], ["warm", "2"]]
    rows = [{"text": "a warm day", "fine": 1, "warm": 1}, {"text": "cold soup", "fine": 0, "warm": 2}]
    write_jsonl(work / "c.jsonl", rows)
    code, out, err = run(capsys, "c.jsonl", "task.columns.label=[fine,warm]")
    assert code == 3 and "(multilabel, c.jsonl)" in out and "row 2: the labels in the columns fine, warm" in err


def test_numbers_and_texts_alone(capsys, work):
    write_jsonl(work / "n.jsonl", tiny_run.counts(20, 0))
    code, out, _ = run(capsys, "n.jsonl", "task.columns.text=one", "task.columns.text_pair=two")
    assert code == 0 and "(regression, n.jsonl)" in out
    assert table(out, "labels")[0] == ["split", "mean", "deviation", "least", "greatest"]
    (work / "t.txt").write_text("a line\n\nanother line\n")
    code, out, _ = run(capsys, "t.txt")
    assert code == 0 and table(out, "t.txt  (masked_lm")[1:] == [["train", "3", "0", "0", "0"]]


def test_columns_whose_names_say_nothing(capsys, work):
    write_jsonl(work / "p.jsonl", [{"en": "a day", "fr": "un jour"}, {"en": "a day", "fr": "un jour"}])
    code, out, _ = run(capsys, "p.jsonl")
    assert code == 0 and table(out, "p.jsonl")[1:] == [["train", "2", "0", "-", "-"]]
    assert "note: no column has a name that says its role" in out and "task.columns.source=NAME" in out
    code, out, _ = run(capsys, "p.jsonl", "task.columns.source=en", "task.columns.target=fr")
    assert code == 0 and "source  en      declared  text  a day" in out


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, "needs a PATH or task=NAME"),
        (["own", "other"], 2, "takes one PATH, not 2"),
        (["own.yaml"], 2, "own.yaml is no data but says where they are: adaptrain data task=own.yaml"),
        (["own", "task=cola"], 2, "PATH and task=cola both say"),
        (["own", "data.mirror=x"], 2, "data.mirror is for task=NAME"),
        (["own", "task.columns.lable=mood"], 2, "no role 'lable', did you mean 'label'"),
        (["own", "task.columns.label=mood", "task.columns.text=mood"], 2, "is 'mood', which is the column of"),
        (["own", "task.columns.label=moot"], 3, "no column 'moot', did you mean 'mood'"),
        (["nowhere.csv"], 3, "error: nowhere.csv: there is no such file or folder ("),
        (["onw.jsonl"], 3, "did you mean 'own.jsonl'?"),
        (["./nowhere"], 3, "error: ./nowhere: there is no such file or folder ("),
        (["nowhere"], 3, "error: nowhere: there is no such file or folder here, and the data set 'nowhere'"),
        (["sheets"], 3, "sheets/train.xlsx: the ending .xlsx is not read"),
        (["sheets/train.xlsx"], 3, "sheets/train.xlsx: the ending .xlsx is not read"),
        (["task=own", "task.path=sheets"], 3, "sheets/train.xlsx: the ending .xlsx is not read"),
        (["task=own", "task.path=nowhere.csv"], 3, "error: task.path=nowhere.csv: there is no such file or folder ("),
        (["task=cola"], 3, "data.mirror=FOLDER"),
    ],
)
def test_mistakes(arguments, code, message, capsys, work):
    write_jsonl(work / "own.jsonl", TRAIN)
    (work / "sheets").mkdir()
    (work / "sheets/train.xlsx").write_bytes(b"PK")
    found, _, err = run(capsys, *arguments)
    assert (found, message in err) == (code, True), err
