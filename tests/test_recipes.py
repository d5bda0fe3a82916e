"""Every file of `conf/` and `recipes/` runs as it lies."""

from __future__ import annotations

import dataclasses
import re
import shlex

import pytest
import yaml

from adaptrain.config.compose import compose
from adaptrain.config.library import GROUPS, library
from adaptrain.config.schema import TrainerConfig

BOOKS = library()
RECIPES = BOOKS.choices("recipe")
PUBLISHED = re.compile(r"(et al\.|& \w+) 20\d\d|Not a published run")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", RECIPES)
def test_the_first_line_is_the_command_and_it_composes(name):
    first, *rest = RECIPES[name].read_text(encoding="utf-8").splitlines()
    assert first == f"# adaptrain train recipe={name}"
    command = shlex.split(first.removeprefix("# "))
    run = compose(command[2:])
    assert run.config.recipe == name
    comment = " ".join(line for line in rest if line.startswith("#"))
    assert PUBLISHED.search(comment), "say which paper published it, or that none did"


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_a_diff(name):
    """What a recipe sets differs from what would hold without it: otherwise it says nothing."""
    values = yaml.safe_load(RECIPES[name].read_text(encoding="utf-8"))
    choices = [
        f"{key.removeprefix('override /')}={value}" for entry in values.pop("defaults") for key, value in entry.items()
    ]
    without, with_it = compose(choices), compose([f"recipe={name}"])
    set_by_recipe = [key for key, origin in with_it.origins.items() if origin.place == BOOKS.label(RECIPES[name])]
    assert set_by_recipe
    before, after = dataclasses.asdict(without.config), dataclasses.asdict(with_it.config)
    same = [key for key in set_by_recipe if _at(before, key) == _at(after, key) and key not in CITED]
    same = [key for key in same if ".configs." not in key]  # a list is replaced as a whole
    assert not same


CITED = {"trainer.batch_size", "trainer.learning_rate", "trainer.epochs", "trainer.max_grad_norm"}
"""May equal the default: a reader looks for them in the recipe."""


def _at(values, dotted):
    for key in dotted.split("."):
        values = values[int(key)] if isinstance(values, list) else values.get(key)
        if values is None:
            return None
    return values


@pytest.mark.parametrize("group", [group for group in GROUPS if group != "recipe"])
def test_every_choice_composes(group):
    for name, file in BOOKS.choices(group).items():
        run = compose([f"{group}={name}"])
        assert run.choices[group] == name
        assert file.read_text(encoding="utf-8").startswith("# "), f"{file} does not say what it is"


def test_the_default_trainer_has_every_key_with_its_default():
    values = yaml.safe_load(BOOKS.choices("trainer")["default"].read_text(encoding="utf-8"))
    assert values == dataclasses.asdict(TrainerConfig())


def test_the_published_lora_run():
    """Hu et al. 2021, table 9, RoBERTa base on CoLA."""
    config = compose(["recipe=lora_cola"]).config
    trainer = config.trainer
    assert config.model.name == "FacebookAI/roberta-base"
    assert (config.task.path, config.task.subset, config.task.metric) == ("nyu-mll/glue", "cola", "mcc")
    assert (config.adapter["r"], config.adapter["alpha"], config.adapter["attn_matrices"]) == (8, 8.0, ["q", "v"])
    assert (trainer.batch_size, trainer.epochs, trainer.learning_rate) == (32, 80, 4e-4)
    assert (trainer.schedule, trainer.warmup, config.data.max_length) == ("linear", 0.06, 512)


def test_the_quickstart_needs_no_hub():
    config = compose(["recipe=quickstart"]).config
    assert config.model.package is not None
    assert config.task.path.startswith("package:")


def test_nothing_that_ships_names_a_place_outside():
    for folder in (BOOKS.conf, *BOOKS.recipes):
        for file in folder.rglob("*"):
            if file.is_file():
                assert file.suffix == ".yaml"
                text = file.read_text(encoding="utf-8")
                assert "../" not in text
                assert "/home/" not in text
                assert not [line for line in text.splitlines() if len(line) > 120]
