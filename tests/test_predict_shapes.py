"""Rows that nobody has labelled, of every shape: predictions are those that training wrote for the labelled ones."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

import tiny_media
import tiny_run
from adaptrain.cli.main import main
from adaptrain.config.schema import ColumnsConfig, GenerationConfig, TaskConfig
from adaptrain.config.task import ROLES, SAID
from adaptrain.evaluation.asked import predict_file
from adaptrain.tasks.asked import roles_read
from adaptrain.tasks.shapes import SHAPES
from adaptrain.training.run import train
from tiny_run import BAD, GOOD, write_jsonl
from tiny_writers import save_writer, tales, translations


def words(count: int, seed: int) -> list[dict[str, Any]]:
    """Sentences that bear every label there is to give to words and texts."""
    rows = []
    for row in tiny_run.sentences(count, seed):
        tokens = row["sentence"].split()
        mood = ("bad", "good")[row["label"]]
        telling = next(word for word in tokens if word in GOOD + BAD)
        place = row["sentence"].index(telling)
        rows.append(
            {
                "tokens": tokens,
                "tags": [f"B-{mood}" if word == telling else "O" for word in tokens],
                "heads": list(range(len(tokens))),
                "relations": ["root", *(["dep"] * (len(tokens) - 1))],
                "question": "what was very",
                "context": row["sentence"],
                "answers": {"text": [telling], "answer_start": [place]},
                "choices": ["warm day", "cold day"] if row["label"] else ["cold day", "warm day"],
                "label": 0,
            }
        )
    for number, row in enumerate(rows):
        if number % 2:
            row["choices"], row["label"] = row["choices"][::-1], 1
    return rows


def task(kind: str, metric: str, columns: tuple[str, ...], **more: Any) -> TaskConfig:
    named: dict[str, Any] = {name: name for name in columns}
    return TaskConfig(
        **{"name": kind, "type": kind, "path": "somebody/words", "columns": ColumnsConfig(**named), "metric": metric}
        | more
    )


TASKS = {
    each.type: each
    for each in (
        task("tagging", "entity_f1", ("tokens", "tags"), labels=("B-bad", "B-good", "O")),
        task("dependency_parsing", "uas", ("tokens", "heads", "relations"), labels=("dep", "root")),
        task("question_answering", "squad_f1", ("question", "context", "answers")),
        task("multiple_choice", "accuracy", ("context", "choices", "label"), labels=("0", "1")),
        task("translation", "chrf", (), generation=GenerationConfig(max_new_tokens=6)),
        task("causal_lm", "perplexity", ("text",)),
        task("image_classification", "accuracy", ("image", "label"), labels=("0", "1")),
    )
}
TASKS["translation"] = dataclasses.replace(
    TASKS["translation"], columns=ColumnsConfig(source="translation.en", target="translation.fr")
)


@pytest.fixture(scope="module", params=TASKS)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TaskConfig]:
    """A run of a task, and in its folder `dev.jsonl`, the rows that it reported on."""
    given, place = TASKS[request.param], tmp_path_factory.mktemp(request.param)
    if given.type in ("translation", "causal_lm"):
        base = save_writer(place / "base", "gpt2")
        make: Any = translations if given.type == "translation" else tales
    elif given.type == "image_classification":
        base, make = tiny_media.save_vit(place / "base"), None
    else:
        base, make = tiny_run.save_base(place / "base"), words
    for seed, (split, count) in enumerate((("train", 24), ("dev", 10))):
        rows = (
            make(count, seed)
            if make
            else tiny_media.save_pictures(place / f"mirror/{given.name}/{split}", count, seed=seed)
        )
        write_jsonl(place / f"mirror/{given.name}" / f"{split}.jsonl", rows)
    config = tiny_run.run_config(
        base, place / "mirror", place / "out", task=given, epochs=1, data={"max_length": 20, "stride": 6}
    )
    return train(config, display=tiny_run.Recorder()).folder, given


def test_unlabelled_rows_have_the_predictions_of_labelled_ones(made, tmp_path, capsys, monkeypatch):
    folder, given = made
    source = folder.parents[2] / "mirror" / given.name / "dev.jsonl"
    rows = [json.loads(line) for line in source.read_text().splitlines()]
    for row in rows:
        for role in () if given.type == "causal_lm" else SAID:
            row.pop(role, None)
        if given.type == "translation":
            row["translation"].pop("fr")
    file = write_jsonl((source.parent if given.type == "image_classification" else tmp_path) / "new.jsonl", rows)
    answers = predict_file(folder, file)
    expected = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    if given.type == "causal_lm":
        found = [{key: row[key] for key in ("tokens", "loss", "right")} for row in answers.rows]
        wanted = [{key: row[key] for key in ("tokens", "loss", "right")} for row in expected]
    elif given.type == "dependency_parsing":
        found = [{key: row[key] for key in ("heads", "relations")} for row in answers.rows]
        wanted = [row["prediction"] for row in expected]
    else:
        found, wanted = [row["prediction"] for row in answers.rows], [row["prediction"] for row in expected]
    assert found == wanted and answers.bad == 0
    monkeypatch.chdir(tmp_path)
    assert main(["predict", str(folder), "--input", str(file), "--output", "out.csv"]) == 0
    assert (tmp_path / "out.csv").read_text().count('"prediction"') == (
        given.type not in ("causal_lm", "dependency_parsing")
    )


def test_every_type_of_task_reads_something():
    for kind, shape in SHAPES.items():
        columns: dict[str, Any] = {role: role for role in ROLES[kind].needed}
        assert kind == "causal_lm" or roles_read(task(kind, "accuracy", tuple(columns))), shape


def test_rows_by_their_roles(made, capsys):
    folder, given = made
    typed = {
        "tagging": ["tokens=our host was kind"],
        "question_answering": ["question=what was cold", "context=the soup was cold"],
        "multiple_choice": ["context=a warm room", "choices=warm day|cold day"],
    }
    if given.type not in typed:
        return
    assert main(["predict", str(folder), *typed[given.type]]) == 0
    (row,) = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    if given.type == "tagging":
        assert row["tokens"] == ["our", "host", "was", "kind"] and len(row["prediction"]) == 4
    assert main(["predict", str(folder), "--text", "a"]) == 2
    assert f'give {roles_read(given)[0]}="…"' in capsys.readouterr().err
