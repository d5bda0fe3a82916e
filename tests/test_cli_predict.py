"""`adaptrain predict`: rows without labels, of files and of the command line; what is written, and the exit codes."""

from __future__ import annotations

import csv
import gzip
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tiny_run
from adaptrain.cli import screen
from adaptrain.cli.main import main
from adaptrain.config.schema import ColumnsConfig, TaskConfig
from adaptrain.errors import DataError, UsageError
from adaptrain.evaluation.asked import predict_rows
from adaptrain.evaluation.run import evaluate_folder
from adaptrain.training.run import train
from tiny_run import MOOD, NUMBER, Recorder, run_config, write_jsonl

SEVERAL = TaskConfig(
    name="several",
    type="multilabel",
    path="somebody/several",
    columns=ColumnsConfig(text="sentence", label="label"),
    labels=("kind", "cold", "warm"),
    metric="multilabel_micro_f1",
)
MASKED = TaskConfig(
    name="words",
    type="masked_lm",
    path="somebody/words",
    columns=ColumnsConfig(text="sentence"),
    metric="perplexity",
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model, data, and a run of each task."""
    place = tmp_path_factory.mktemp("predict")
    base, mirror = tiny_run.save_base(place / "base"), tiny_run.save_data(place / "mirror")
    for split, count in (("train", 40), ("dev", 10)):
        rows = tiny_run.sentences(count, 5)
        names = [[name for name in SEVERAL.labels if name in row["sentence"].split()] for row in rows]
        rows = [row | {"label": label} for row, label in zip(rows, names, strict=True)]
        write_jsonl(mirror / "several" / f"{split}.jsonl", rows)
        write_jsonl(mirror / "words" / f"{split}.jsonl", [{"sentence": row["sentence"]} for row in rows])
    for task in (MOOD, NUMBER, SEVERAL, MASKED):
        made = train(run_config(base, mirror, place / "out", task=task, epochs=1), display=Recorder())
        made.folder.rename(place / task.name)
    return place


@pytest.fixture(autouse=True)
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(capsys: pytest.CaptureFixture[str], *arguments: Any) -> tuple[int, str, str]:
    code = main(["predict", *map(str, arguments)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def read_csv(file: Path) -> list[dict[str, str]]:
    with file.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def saved_predictions(folder: Path) -> list[dict[str, Any]]:
    return lines((folder / "predictions.jsonl").read_text(encoding="utf-8"))


def softmax(logits: list[float]) -> np.ndarray:
    odds = np.exp(np.asarray(logits) - max(logits))
    return odds / odds.sum()


# ---- end to end


def adaptrain(*arguments: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "adaptrain", *map(str, arguments)], capture_output=True, text=True)


def test_a_file_from_the_shell(place, work):
    rows = [{"sentence": row["sentence"]} for row in tiny_run.sentences(50, 1)]  # the split that training reported
    write_jsonl(work / "new.jsonl", rows)
    done = adaptrain("predict", place / "mood", "--input", "new.jsonl", "--output", "said.csv")
    assert (done.returncode, done.stderr) == (0, "") and done.stdout == "saved: said.csv (50 rows)\n"
    found, expected = read_csv(work / "said.csv"), saved_predictions(place / "mood")
    assert list(found[0]) == ["row", "prediction", "probability", "probabilities.bad", "probabilities.good"]
    assert [row["row"] for row in found] == [str(number) for number in range(1, 51)]
    assert [row["prediction"] for row in found] == [row["prediction"] for row in expected]
    odds = np.array([softmax(row["logits"]) for row in expected])
    shares = [[float(row[f"probabilities.{name}"]) for name in MOOD.labels] for row in found]
    np.testing.assert_allclose(shares, odds, rtol=1e-12)
    np.testing.assert_allclose([float(row["probability"]) for row in found], odds.max(-1), rtol=1e-12)
    assert sorted(path.name for path in work.iterdir()) == ["new.jsonl", "said.csv"]


def test_texts_of_the_command_line(capsys, place):
    code, out, err = run(capsys, place / "mood", "--text", "a bright day", "--text", "we = host, a cold\nsoup")
    assert (code, err) == (0, "")
    assert [(row["row"], row["text"]) for row in lines(out)] == [(1, "a bright day"), (2, "we = host, a cold\nsoup")]
    assert all(row["prediction"] in MOOD.labels for row in lines(out))


# ---- every shape


@pytest.mark.parametrize("task", [MOOD, NUMBER, SEVERAL, MASKED], ids=lambda task: task.name)
def test_what_eval_says(capsys, place, task):
    split = task.splits.reported if task is NUMBER else "dev"
    code, out, _ = run(capsys, place / task.name, "--input", place / "mirror" / task.name / f"{split}.jsonl")
    expected = evaluate_folder(place / task.name, mirror=str(place / "mirror")).predictions.rows()
    found = lines(out)
    assert code == 0 and "label" not in found[0]
    key = "loss" if task is MASKED else "prediction"
    assert [row[key] for row in found] == [row[key] for row in expected]


def test_several_labels_and_how_likely_each_is(capsys, place):
    _, out, _ = run(capsys, place / "several", "--text", "the room was kind and warm")
    (row,) = lines(out)
    shares = row["probabilities"]
    assert list(shares) == list(SEVERAL.labels) and all(0 < share < 1 for share in shares.values())
    assert row["prediction"] == [name for name, share in shares.items() if share > 0.5]
    assert sum(shares.values()) != pytest.approx(1)


def test_a_pair(capsys, place):
    code, out, _ = run(
        *(capsys, place / "number", "--text", "a day", "--text-pair", "the 7"),
        *("--text=our host", "--text-pair=the 2"),
    )
    assert code == 0 and [list(row) for row in lines(out)] == [["row", "text", "text_pair", "prediction"]] * 2
    typed = [row["prediction"] for row in lines(out)]
    code, out, _ = run(capsys, place / "number", "text=a day", "text_pair=the 7")
    assert code == 0 and lines(out)[0]["prediction"] == pytest.approx(typed[0], abs=1e-6)
    rows = predict_rows(place / "number", [{"text": "our host", "text_pair": "the 2"}]).rows
    assert rows[0]["prediction"] == pytest.approx(typed[1], abs=1e-6)


def test_a_branch_of_several(capsys, place, work):
    folder = work / "many"
    (folder / "branches" / "mood").mkdir(parents=True)
    (folder / "branches" / "number").mkdir()
    (folder / "result.json").write_text('{"branches": {"mood": {}, "number": {}}}')
    code, _, err = run(capsys, folder, "--text", "a")
    assert code == 3 and f"name one of them: {folder}/branches/mood, {folder}/branches/number" in err


# ---- files


def test_a_csv_goes_round(capsys, place, work):
    texts = ['a "warm" day, and\nsoup', "a day\rwas ünïcode 🙂", " the room", "='1+1'", "host;cold"]
    with (work / "new.csv").open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows([["uid", "sentence", "label"], *([f"n{i}", t, ""] for i, t in enumerate(texts))])
    for ending in ("csv", "jsonl"):
        code, out, err = run(
            capsys, place / "mood", "--input", "new.csv", "--output", f"out.{ending}", "--keep", "sentence,label"
        )
        assert (code, err, out) == (0, "", f"saved: out.{ending} (5 rows)\n")
    written = read_csv(work / "out.csv")
    assert [row["sentence"] for row in written] == texts
    assert [row["uid"] for row in written] == ["n0", "n1", "n2", "n3", "n4"]
    again = lines((work / "out.jsonl").read_text(encoding="utf-8"))
    assert [row["sentence"] for row in again] == texts
    assert [row["probability"] for row in again] == [float(row["probability"]) for row in written]
    # what was written can be read and predicted again, as any reader of CSV has it
    code, out, _ = run(capsys, place / "mood", "--input", "out.csv", "--keep", "sentence")
    assert code == 0 and [row["sentence"] for row in lines(out)] == texts
    assert [row["probability"] for row in lines(out)] == [row["probability"] for row in again]


def test_every_format(capsys, place, work):
    (work / "a.txt").write_text("a warm day\ncold soup\n")
    (work / "a.tsv").write_text("text\na warm day\ncold soup\n")
    with gzip.open(work / "a.jsonl.gz", "wt") as stream:
        stream.write('{"body": "a warm day"}\n{"body": "cold soup"}\n')
    found = []
    for name in ("a.txt", "a.tsv", "a.jsonl.gz"):
        code, out, err = run(capsys, place / "mood", "--input", name)
        note = "note: columns inferred: text = body\n" if name == "a.jsonl.gz" else ""  # as train and data tell it
        assert (code, err) == (0, note)
        found.append(out)
    assert found[0] == found[1] == found[2]


def test_columns(capsys, place, work):
    two = {"body": "a warm day", "title": "soup"}
    write_jsonl(work / "two.jsonl", [two])
    code, _, err = run(capsys, place / "mood", "--input", "two.jsonl")
    assert code == 3 and "the text can be one of several columns: body, title" in err
    assert "task.columns.text=body" in err
    code, out, _ = run(capsys, place / "mood", "--input", "two.jsonl", "task.columns.text=body", "--keep=all")
    assert code == 0 and lines(out)[0] | two == lines(out)[0]
    code, _, err = run(capsys, place / "mood", "--input", "two.jsonl", "task.columns.text=titel")
    assert code == 3 and "did you mean 'title'?" in err
    code, _, err = run(capsys, place / "mood", "--input", "two.jsonl", "task.columns.tokens=title")
    assert code == 3 and "task mood reads no tokens" in err and "It reads: text" in err
    write_jsonl(work / "pair.jsonl", [{"premise": "a", "hypothesis": "b"}])
    code, _, err = run(capsys, place / "mood", "--input", "pair.jsonl")
    assert code == 3 and "reads one text, and there are two: premise, hypothesis" in err
    code, out, _ = run(capsys, place / "number", "--input", "pair.jsonl")
    assert code == 0 and list(lines(out)[0]) == ["row", "prediction"]
    write_jsonl(work / "one.jsonl", [{"one": "a", "score": 1.0}])
    code, _, err = run(capsys, place / "number", "--input", "one.jsonl")
    assert code == 3 and "reads a text_pair with the text 'one', and no column is that" in err
    write_jsonl(work / "none.jsonl", [{"label": 1, "size": 2}])
    code, _, err = run(capsys, place / "mood", "--input", "none.jsonl")
    assert code == 3 and "no column can be the text" in err


def test_a_label_is_not_taken_for_the_text(capsys, place, work):
    """The only other column of words: an unlabelled file and a labelled one are read alike."""
    rows = [{"body": "a warm day", "label": "whatever"}, {"body": "cold soup", "label": None}]
    write_jsonl(work / "new.jsonl", rows)
    code, out, _ = run(capsys, place / "mood", "--input", "new.jsonl", "--keep", "label")
    assert code == 0 and [row["label"] for row in lines(out)] == ["whatever", None]


# ---- what is wrong


def test_bad_rows(capsys, place, work):
    rows = [{"text": text} for text in ("a warm day", "  ", None, "cold soup")]
    write_jsonl(work / "new.jsonl", rows)
    code, out, err = run(capsys, place / "mood", "--input", "new.jsonl", "--output", "out.csv")
    assert (code, out) == (3, "") and not (work / "out.csv").exists()
    assert "new.jsonl, row 2: the text in column 'text' is empty" in err and "2 of 4 rows are bad" in err
    assert "--skip-bad" in err
    code, out, err = run(capsys, place / "mood", "--input", "new.jsonl", "--output", "out.csv", "--skip-bad")
    assert code == 0 and err == "note: 2 of 4 rows have an error instead of a prediction\n"
    found = read_csv(work / "out.csv")
    assert [row["row"] for row in found] == ["1", "2", "3", "4"]
    assert [bool(row["prediction"]) for row in found] == [True, False, False, True]
    assert [bool(row["error"]) for row in found] == [False, True, True, False]
    code, out, _ = run(capsys, place / "mood", "--text", "a warm day", "--text", "cold soup")
    alone = [row["probability"] for row in lines(out)]
    assert [float(found[number]["probability"]) for number in (0, 3)] == alone
    write_jsonl(work / "all.jsonl", rows[1:3])
    code, out, _ = run(capsys, place / "mood", "--input", "all.jsonl", "--skip-bad")
    assert code == 0 and [list(row) for row in lines(out)] == [["row", "error"]] * 2
    code, _, err = run(capsys, place / "mood", "--text", " ")
    assert code == 3 and "what was given, row 1: the text in column 'text' is empty" in err


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        ((), 2, "needs a PATH"),
        (("{mood}",), 2, "needs rows: --input FILE, or --text"),
        (("{mood}", "--input", "new.jsonl", "--text", "a"), 2, "--input and --text both say"),
        (("{mood}", "--text"), 2, "--text needs a value"),
        (("{mood}", "--text", "a", "--text-pair", "b"), 2, "this one reads one"),
        (("{number}", "--text", "a"), 2, "1 --text and 0 --text-pair"),
        (("{number}", "text=a"), 2, "reads text and text_pair, and there is no text_pair"),
        (("{mood}", "question=a"), 2, "reads no 'question'"),
        (("{mood}", "--text", "a", "--keep", "b"), 2, "--keep is for --input"),
        (("{mood}", "--text", "a", "--force"), 2, "--force is for --output"),
        (("{mood}", "--text", "a", "task.columns.text=b"), 2, "is for --input"),
        (("{mood}", "--text", "a", "--outptu", "b"), 2, "did you mean '--output'?"),
        (("{mood}", "--text", "a", "trainer.devise=cpu"), 2, "did you mean 'trainer.device'?"),
        (("{mood}", "--text", "a", "trainer.precision=fp23"), 2, "did you mean 'fp32'?"),
        (("{mood}", "--text", "a", "--output", "out.xls"), 2, "must end in one of .csv, .jsonl"),
        (("{mood}", "--text", "a", "--output", "no/out.csv"), 3, "there is no folder no"),
        (("{mood}", "--text", "a", "--output", "new.jsonl"), 3, "is there already; name another file, or give --force"),
        (("{mood}", "--input", "new.jsonl", "--output", "new.jsonl", "--force"), 2, "is the file of --input"),
        (("{mood}", "--input", "new.jsonl", "--keep", "txet"), 3, "did you mean 'text'?"),
        (("{mood}", "--input", "gone.csv"), 3, "gone.csv cannot be read: No such file"),
        (("{mood}", "--input", "empty.csv"), 3, "empty.csv is empty"),
        (("{mood}", "--input", "heads.csv"), 3, "heads.csv has no rows"),
        (("{mood}", "--input", "new.doc"), 3, "the ending .doc is not read"),
        (("nowhere", "--text", "a"), 3, "There is no folder nowhere"),
    ],
)
def test_mistakes(capsys, place, work, arguments, code, told):
    write_jsonl(work / "new.jsonl", [{"text": "a warm day"}])
    (work / "empty.csv").touch()
    (work / "heads.csv").write_text("text\n")
    (work / "new.doc").write_text("a")
    before = sorted(path.name for path in work.iterdir())
    found = [each.format(mood=place / "mood", number=place / "number") for each in arguments]
    result = run(capsys, *found)
    assert (result[0], result[1]) == (code, "") and told in result[2]
    assert sorted(path.name for path in work.iterdir()) == before


def test_force_replaces(capsys, place, work):
    (work / "out.jsonl").write_text("old")
    code, _, _ = run(capsys, place / "mood", "--text", "a warm day", "--output", "out.jsonl", "--force")
    assert code == 0 and lines((work / "out.jsonl").read_text())[0]["text"] == "a warm day"


def test_a_column_that_would_stand_twice(capsys, place, work):
    write_jsonl(work / "new.jsonl", [{"text": "a warm day", "prediction": "mine", "row": 7}])
    for name in ("prediction", "row"):
        code, _, err = run(capsys, place / "mood", "--input", "new.jsonl", "--keep", name)
        assert code == 3 and f"the column '{name}' would stand twice" in err


def test_long_rows_are_told(capsys, place, work):
    write_jsonl(work / "new.jsonl", [{"text": "day " * 60}, {"text": "day"}])
    code, _, err = run(capsys, place / "mood", "--input", "new.jsonl")
    assert code == 0 and err == "note: 1 of 2 rows were cut to 40 tokens\n"


def test_rows_need_every_role(place):
    with pytest.raises(UsageError, match="reads no 'txt', did you mean 'text'"):
        predict_rows(place / "mood", [{"txt": "a"}])
    with pytest.raises(DataError, match="no row to predict"):
        predict_rows(place / "mood", [])


# ---- the screen


def test_a_terminal_gets_a_table(capsys, place, monkeypatch):
    monkeypatch.setattr(screen, "styled", lambda text, style, stream: text)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    code, out, _ = run(capsys, place / "mood", "--text", "a bright\nday", "--text", "cold " * 30)
    title, heads, first, second = out.splitlines()
    assert (code, title) == (0, "mood") and heads.split() == ["row", "text", "prediction", "probability", "bad", "good"]
    assert (
        first.split()[:4] == ["1", "a", "bright", "day"] and "…" in second and len(first.split()[-1]) == len("0.1234")
    )
