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
    for name in library().choices("task"):
        task = compose([f"task={name}"]).config.task
        for split in {task.splits.train, task.splits.validation, task.splits.test} - {None}:
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


def rows(task: TaskConfig, count: int) -> list[dict[str, Any]]:
    if task.type in SEVERAL:
        return several(task, count)
    if task.type in ("causal_lm", "summarisation", "translation"):
        return texts_of(task, count)
    chance = random.Random(0)
    given = [column for column in (task.columns.text, task.columns.text_pair) if column is not None]
    columns = [name for column in given for name in ((column,) if isinstance(column, str) else column)]
    found = []
    for index in range(count):
        row: dict[str, Any] = {column: " ".join(chance.choices(tiny_run.PLAIN, k=5)) for column in columns}
        row[str(task.columns.label)] = index % len(task.labels) if task.labels else float(index % 5)
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
