"""`adaptrain data` checks rows as their type of task does, in files as the tasks publish them."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

import tiny_media
from adaptrain.config.task import ROLES
from test_cli_data import run, table
from tiny_run import write_jsonl

TREE = "1\tIt\tit\tPRON\tPRP\t_\t2\tnsubj\t_\t_\n2\truns\trun\tVERB\tVBZ\t_\t0\troot\t_\t_\n"
ASKED = [
    {"id": str(number), "question": f"What {number}?", "answers": [{"text": "soup", "answer_start": 4}]}
    for number in range(4)
]
SQUAD = {
    "version": "1.1",
    "data": [{"title": "Soup", "paragraphs": [{"context": "The soup was cold.", "qas": ASKED}]}],
}
NAMES = "-DOCSTART- -X- -X- O\n\nEU NNP B-NP B-ORG\n"
CHUNKS = "EU NNP B-NP\nsays VBZ B-VP\n\n"
TREEBANK = ("en-ud-train.conllu", "en-ud-dev.conllu", "en-ud-test.conllu")
SPLITS = ("train", "validation", "test")


@pytest.fixture(autouse=True)
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


# ---- the files of the pages of tasks


@pytest.mark.parametrize(
    ("files", "arguments", "kind", "counts"),
    [
        (
            {"train-v1.1.json": json.dumps(SQUAD), "dev-v1.1.json": json.dumps(SQUAD, indent=1)},
            ["task=squad"],
            "question_answering",
            {"train": "4", "validation": "4"},
        ),
        (
            dict.fromkeys(("train.txt", "valid.txt", "test.txt"), NAMES),
            ["task=conll2003"],
            "tagging",
            dict.fromkeys(SPLITS, "1"),
        ),
        (
            {"train.conll": CHUNKS * 20, "test.conll": CHUNKS},
            ["task=conll2000", "task.columns.tags=tags"],
            "tagging",
            {"train": "18", "validation": "2", "test": "1"},
        ),
        (dict.fromkeys(TREEBANK, TREE), ["task=ud_en_ewt"], "dependency_parsing", dict.fromkeys(SPLITS, "1")),
        (dict.fromkeys(TREEBANK, TREE), ["task=ud_en_ewt_pos"], "tagging", dict.fromkeys(SPLITS, "1")),
    ],
)
def test_a_shipped_task_reads_its_own_files(files, arguments, kind, counts, capsys, work):
    (work / "own").mkdir()
    for name, content in files.items():
        (work / "own" / name).write_text(content)
    code, out, err = run(capsys, *arguments, "task.path=own")
    assert (code, err) == (0, "")
    report = out[out.index(f"{arguments[0].removeprefix('task=')}  (") :]  # notes on the overrides may stand before it
    found = {row[0]: (row[2], row[3]) for row in table(report, arguments[0].removeprefix("task="))[1:]}
    assert f"({kind}, own)" in out and found == {split: (count, "0") for split, count in counts.items()}


# ---- types that are inferred


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("a.conllu", TREE, "dependency_parsing"),
        ("a.conll", "a\tO\nb\tB-X\n", "tagging"),
        ("a.json", json.dumps(SQUAD), "question_answering"),
        ("a.jsonl", json.dumps({"tokens": ["a", "b"], "tags": ["O", "X"], "text": "a b"}), "tagging"),
        (
            "a.jsonl",
            "".join(
                json.dumps({"question": "q", "source": "web", "choices": ["x", "y"], "label": label}) + "\n"
                for label in (0, 1)
            ),
            "multiple_choice",
        ),
    ],
)
def test_a_type_is_inferred_beside_columns_that_it_does_not_use(name, content, kind, capsys, work):
    (work / name).write_text(content)
    code, out, err = run(capsys, name)
    assert (code, err) == (0, "") and out.startswith(f"{name}  ({kind}, ")


def test_declared_roles_choose_among_types(capsys, work):
    (work / "a.conllu").write_text(TREE)
    for arguments in (["task.columns.tags=upos"], ["task.type=tagging", "task.columns.tags=upos"]):
        code, out, err = run(capsys, "a.conllu", *arguments)
        assert (code, err) == (0, "") and out.startswith("a.conllu  (tagging, ")


def test_speech_as_its_own_page_shows_it(capsys, work):
    (row,) = tiny_media.save_tones(work / "prompts/wav", 1)
    rows = [{"audio": row["audio"], "text": "please"}, {"audio": "wav/gone.wav", "text": "thank you"}]
    write_jsonl(work / "prompts/train.jsonl", rows)
    code, out, err = run(capsys, "prompts")
    assert code == 3 and out.startswith("prompts  (speech_recognition, prompts)")
    assert table(out, "bad rows")[1:] == [["train", "missing sound file", "1", "2"]] and "row 2" in err
    write_jsonl(work / "prompts/train.jsonl", rows[:1])
    assert run(capsys, "prompts")[0] == 0
    write_jsonl(work / "prompts/train.jsonl", [row | {"label": "calm"} for row in rows])  # no transcript, perhaps
    assert run(capsys, "prompts")[1].startswith("prompts  (no task, prompts)")


# ---- what is not known is not counted

ASK = [{"question": "q", "passage": "p", "answer": number % 2 == 0} for number in range(4)]
SPEAK = [{"en": "a day", "fr": "un jour"}] * 4


@pytest.mark.parametrize(
    ("rows", "arguments", "counts"),
    [
        (SPEAK, [], ["-", "-"]),
        (SPEAK, ["task.columns.source=en", "task.columns.target=fr"], ["3", "0"]),
        (ASK, [], ["3", "-"]),
        (
            ASK,
            ["task.columns.text=question", "task.columns.text_pair=passage", "task.columns.label=answer"],
            ["3", "1"],
        ),
    ],
)
def test_repeated_and_conflicting_rows_are_counted_where_roles_are_known(rows, arguments, counts, capsys, work):
    for split in ("train", "dev"):
        write_jsonl(work / f"own/{split}.jsonl", rows)
    code, out, err = run(capsys, "own", *arguments)
    assert (code, err) == (0, "")
    assert [row[3:] for row in table(out, "own")[1:]] == [counts] * 2
    shared = re.findall(r"train / validation +(\S+) +(\S+)", out)
    assert [row[0] for row in shared] == ([] if counts[0] == "-" else ["4"])
    assert [row[1] == "-" for row in shared] == ([] if counts[0] == "-" else [counts[1] == "-"])
    assert ("not counted" in out) == ("-" in counts)


# ---- keys to paste, and types that are given


def boolq(number: int) -> str:
    return json.dumps({"question": f"q{number}", "title": "t", "answer": number % 2 == 0, "passage": "p"})


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("boolq.jsonl", "".join(f"{boolq(number)}\n" for number in range(6))),
        ("exam.csv", "question,A,B,C,answer\n" + "".join(f"q{n},x{n},y{n},z,{'ABC'[n % 3]}\n" for n in range(6))),
        ("exam.csv", "question,option_a,option_b,answer\n" + "".join(f"q{n},x,y,{'ab'[n % 2]}\n" for n in range(6))),
    ],
)
def test_the_keys_of_a_hint_can_be_pasted(name, content, capsys, work):
    (work / name).write_text(content)
    code, out, err = run(capsys, name)
    assert (code, err) == (0, "") and "(no task, " in out
    (line,) = [line for line in out.splitlines() if "task.type=" in line]
    keys = shlex.split(line[line.index("task.type=") :])
    code, out, err = run(capsys, name, *keys)
    assert (code, err) == (0, "") and f"({keys[0].removeprefix('task.type=')}, " in out
    assert table(out, name)[1:] == [["train", "6", "0", "0", "0"]]


def test_every_type_can_be_given_with_a_path(capsys, work):
    """The metrics of `task=own` need not fit."""
    (work / "a.csv").write_text("nothing,else\n1,2\n3,4\n")
    for kind in ROLES:
        code, _, err = run(capsys, "a.csv", f"task.type={kind}")
        assert code == 3 and "a.csv, split 'train'" in err and "nothing" in err, kind


def test_a_column_that_is_not_used_is_told(capsys, work):
    rows: list[dict[str, Any]] = [{"text": f"t{n}", "label": n % 2, "score": n, "v": "1"} for n in range(4)]
    write_jsonl(work / "a.jsonl", rows)
    code, out, _ = run(capsys, "a.jsonl")
    assert code == 0 and "note: columns not used: score (the label is label)\n" in out
    code, out, _ = run(capsys, "a.jsonl", "task.columns.text=text", "task.columns.label=score")
    assert code == 0 and "not used: label (the label is score)" in out
