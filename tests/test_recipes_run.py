"""Every shipped recipe trains two steps on a tiny model, and its folder evaluates to the number it reported. A recipe
that goes on from saved adapters gets those that the recipes it names have made."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

import tiny_media
import tiny_run
import tiny_writers
from adaptrain.cli.main import main
from adaptrain.config.compose import compose
from adaptrain.config.library import library
from adaptrain.config.schema import TaskConfig

RECIPES = library().choices("recipe")
COMPOSED = [name for name, file in RECIPES.items() if re.search(r"^composition:", file.read_text(), re.MULTILINE)]
METHODS = [name for name in RECIPES if name not in COMPOSED]

TWO_STEPS = ("trainer.max_steps=2", "trainer.precision=fp32", "trainer.device=cpu", "trainer.batch_size=4")


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with a tiny base and a mirror that has rows of every task."""
    folder = tmp_path_factory.mktemp("recipes")
    tiny_run.save_base(folder / "base")
    for kind in WRITERS.values():
        tiny_writers.save_writer(folder / kind, kind)
    tiny_media.save_vit(folder / "vit")
    tiny_media.save_whisper(folder / "whisper")
    for name in library().choices("task"):
        task = compose([f"task={name}"]).config.task
        carved = task.splits.carve and task.splits.carve.to
        for split in {task.splits.train, task.splits.validation, task.splits.test} - {None, carved}:
            tiny_run.write_jsonl(folder / "mirror" / task.name / f"{split}.jsonl", rows(task, 24))
    for language in ("en", "fr"):
        texts = "".join(f"{row['sentence']}\n" for row in tiny_run.sentences(24, 3))
        for split in ("train", "validation"):
            (folder / "corpus" / language).mkdir(parents=True, exist_ok=True)
            (folder / "corpus" / language / f"{split}.txt").write_text(texts)
    return folder


WRITERS = {"lora_xsum": "bart", "lora_wmt16_en_ro": "t5", "lora_causal_lm": "llama", "lora_instruction": "llama"}
"""Recipe → the tiny model that it trains, where that must write."""


def texts_of(task: TaskConfig, count: int) -> list[dict[str, Any]]:
    """Rows of texts that are gone on with, and of sources and targets; columns may lie in mappings."""
    made = tiny_writers.summaries(count, 0)
    pieces = {"text": "document", "source": "document", "target": "summary", "id": "summary"}
    rows: list[dict[str, Any]] = [{} for _ in made]
    for role, column in task.columns.declared().items():
        assert isinstance(column, str)
        outer, _, inner = column.partition(".")
        for row, each in zip(rows, made, strict=True):
            value = each[pieces[role]]
            row.update({outer: row.get(outer, {}) | {inner: value}} if inner else {outer: value})
    return rows


MEDIA = {"lora_mnist": "vit", "lora_speech": "whisper"}
"""Recipe → the tiny model that it trains, where that reads no texts."""


def seen_and_heard(task: TaskConfig, count: int) -> list[dict[str, Any]]:
    """Rows of images, and of recordings."""
    if task.type == "image_classification":
        keys = task.columns.image or "image", task.columns.label or "label"
        values = [(tiny_media.picture(row % 2, row).tolist(), row % 2) for row in range(count)]
    else:
        keys = task.columns.audio or "audio", task.columns.target or "text"
        words = ["low" if row % 2 else "high" for row in range(count)]
        tones = [tiny_media.tone(word, 0.1, 8000, row).tolist() for row, word in enumerate(words)]
        values = [({"array": tone, "sampling_rate": 8000}, word) for tone, word in zip(tones, words, strict=True)]
    return [dict(zip(keys, each, strict=True)) for each in values]


def rows(task: TaskConfig, count: int) -> list[dict[str, Any]]:
    if task.type in ("image_classification", "speech_recognition"):
        return seen_and_heard(task, count)
    if task.type in ("causal_lm", "summarisation", "translation"):
        return texts_of(task, count)
    if task.type == "question_answering":
        return spans(task, count)
    if task.type in SEVERAL:
        return several(task, count)
    chance = random.Random(0)
    if task.type == "multiple_choice":
        return choices(task, count, chance)
    given = [column for column in (task.columns.text, task.columns.text_pair) if column is not None]
    columns = [name for column in given for name in ((column,) if isinstance(column, str) else column)]
    found = []
    for index in range(count):
        row: dict[str, Any] = {column: " ".join(chance.choices(tiny_run.PLAIN, k=5)) for column in columns}
        row[str(task.columns.label)] = index % len(task.labels) if task.labels else float(index % 5)
        found.append(row)
    return found


def spans(task: TaskConfig, count: int) -> list[dict[str, Any]]:
    """Every third question has no answer."""
    columns, found = task.columns, []
    for index, row in enumerate(tiny_run.sentences(count, 0)):
        word = row["sentence"].split()[-1]
        answers = {"text": [word], "answer_start": [row["sentence"].rindex(word)]}
        if index % 3 == 0 and "squad_v2" in task.metric:
            answers = {"text": [], "answer_start": []}
        found.append({columns.question: "was it very", columns.context: row["sentence"], columns.answers: answers})
    return found


def choices(task: TaskConfig, count: int, chance: random.Random) -> list[dict[str, Any]]:
    columns, found = task.columns, []
    for index in range(count):
        texts = chance.choices(tiny_run.PLAIN, k=len(task.labels))
        row: dict[str, Any] = {each: "a day" for each in (columns.context, columns.question) if each is not None}
        row[columns.label] = task.labels[index % len(task.labels)]
        many = isinstance(columns.choices, tuple)
        row |= dict(zip(columns.choices, texts, strict=True)) if many else {columns.choices: texts}
        found.append(row)
    return found


SEVERAL = ("tagging", "dependency_parsing", "multilabel")
"""Shapes with several labels a row: one for each word, or any number for the text."""


def several(task: TaskConfig, count: int) -> list[dict[str, Any]]:
    chance, columns = random.Random(0), task.columns
    found = []
    for index in range(count):
        words = chance.choices(tiny_run.PLAIN, k=5)
        names = [(task.labels or ("root", "mod"))[(index + word) % len(task.labels or "ab")] for word in range(5)]
        made = {
            columns.text: " ".join(words),
            columns.label: sorted(set(names[: index % 3])),
            columns.tokens: words,
            columns.tags: names,
            columns.heads: [str(word) for word in range(5)],
            columns.relations: names,
        }
        found.append({column: value for column, value in made.items() if isinstance(column, str)})
    return found


def overrides(name: str, place: Path) -> list[str]:
    """What makes a recipe small: its base, its rows, its steps."""
    values: Mapping[str, Any] = yaml.safe_load(RECIPES[name].read_text(encoding="utf-8"))
    changed = [f"model.name={place}/base", "model.package=null", "model.sha256=null", f"data.mirror={place}/mirror"]
    changed += list(TWO_STEPS)
    if name in MEDIA:
        changed[0] = f"model.name={place}/{MEDIA[name]}"
        changed += ["task.generation.max_new_tokens=5" if name == "lora_speech" else "task.splits.carve.rows=6"]
    if name in WRITERS:
        changed[0] = f"model.name={place}/{WRITERS[name]}"
        changed += ["data.max_length=60", "data.max_target_length=20", "data.max_eval=5"]
        changed += [] if "causal" in name or "instruction" in name else ["task.generation.max_new_tokens=5"]
    branches = [key for key, entry in (values.get("adapters") or {}).items() if "trainer" in (entry or {})]
    changed += [f"adapters.{branch}.{step}" for branch in branches for step in TWO_STEPS[::3]]
    if "batchsplit" in str(values.get("composition")):  # its sizes sum up to its own
        changed.remove("trainer.batch_size=4")
    if name == "madx_language":
        changed = [each for each in changed if not each.startswith("data.mirror")]
        changed += ["task.name=en", f"task.path={place}/corpus/en", "outputs=outputs/en"]
    if compose([f"recipe={name}"]).config.adapter.get("phm_dim", 1) > 1 and not branches:
        changed.append("adapter.reduction_factor=8")  # phm_dim divides 32 / 8
    if compose([f"recipe={name}"]).config.task.splits.carve is not None:
        changed.append("task.splits.carve.rows=8")
    if name.startswith("adapterdrop"):  # of two layers
        found = compose([f"recipe={name}"]).config
        changed += ["adapter.leave_out=[0]"] if found.adapter["leave_out"] else ["trainer.adapter_drop=1"]
    return changed


def trained(name: str, place: Path) -> Path:
    """The folder of a recipe's run; those that it goes on from are trained first."""
    outputs = place / "outputs" / ("en" if name == "madx_language" else "") / name
    if not outputs.exists():
        values = yaml.safe_load(RECIPES[name].read_text(encoding="utf-8"))
        for entry in (values.get("adapters") or {}).values():
            if source := (entry or {}).get("path"):
                trained(Path(source).name, place)
        assert main(["train", f"recipe={name}", *overrides(name, place)]) == 0
    (folder,) = outputs.iterdir()
    return folder


@pytest.mark.parametrize("name", [*COMPOSED, *METHODS])
def test_a_recipe_runs(name, place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    folder = trained(name, place)
    if name in COMPOSED or name in METHODS[::8]:
        capsys.readouterr()
        assert main(["eval", str(folder)]) == 0
        told = capsys.readouterr().out
        assert "is the same as training reported" in told
