"""Where the YAML files are found: in a checkout, in a wheel, and in the user's own folder."""

from __future__ import annotations

import pytest

import adaptrain
from adaptrain.cli.candidates import candidates
from adaptrain.cli.main import main
from adaptrain.config import library as module
from adaptrain.config.compose import compose
from adaptrain.config.library import GROUPS, library
from adaptrain.errors import ConfigError


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_checkout_has_its_folders_at_the_top(elsewhere):
    books = library()
    assert (books.conf / "config.yaml").is_file()
    assert len(books.recipes) == 1
    for group in GROUPS:
        assert books.choices(group), group


def test_a_wheel_carries_them_inside_the_package(elsewhere, monkeypatch):
    package = elsewhere / "site-packages" / "adaptrain"
    for group in ("adapter", "model"):
        (package / "_conf" / group).mkdir(parents=True)
    (package / "_recipes").mkdir()
    (package / "_recipes" / "shipped.yaml").write_text("")
    (package / "_conf" / "adapter" / "lora.yaml").write_text("")
    monkeypatch.setattr(adaptrain, "__file__", str(package / "__init__.py"))
    module._shipped.cache_clear()
    try:
        books = library()
        assert books.conf == package / "_conf"
        assert list(books.choices("recipe")) == ["shipped"]
        assert list(books.choices("adapter")) == ["lora"]
        assert books.label(package / "_recipes" / "shipped.yaml") == "recipes/shipped.yaml"
    finally:
        module._shipped.cache_clear()


def test_own_recipes_are_found_and_win(elsewhere):
    (elsewhere / "recipes").mkdir()
    (elsewhere / "recipes" / "mine.yaml").write_text("seed: 7\n")
    (elsewhere / "recipes" / "lora_cola.yaml").write_text("seed: 8\n")
    books = library()
    assert {"mine", "lora_cola", "quickstart"} <= set(books.choices("recipe"))
    assert books.shadowed("lora_cola")
    assert not books.shadowed("mine")
    assert not books.shadowed("quickstart")
    assert compose(["recipe=mine"]).config.seed == 7
    run = compose(["recipe=lora_cola"])
    assert run.config.seed == 8
    assert run.config.task.name == "verdict"  # the whole file is the user's, not laid over the shipped one
    assert str(run.origin("seed")) == "recipes/lora_cola.yaml:1"


def test_the_checkouts_own_folder_counts_once(monkeypatch):
    checkout = library().conf.parent
    monkeypatch.chdir(checkout)
    assert library().recipes == (checkout / "recipes",)


def test_a_path_can_be_chosen_instead_of_a_name(elsewhere):
    (elsewhere / "deep folder").mkdir()
    (elsewhere / "deep folder" / "try.yaml").write_text("defaults:\n  - override /adapter: ./ad.yaml\nseed: 3\n")
    (elsewhere / "ad.yaml").write_text("method: lora\nr: 3\n")
    run = compose(["recipe='./deep folder/try.yaml'"])
    assert run.config.seed == 3
    assert run.config.adapter["r"] == 3
    assert run.config.recipe == "try"
    assert str(run.origin("adapter.r")) == "ad.yaml:2"
    assert str(run.origin("adapter.alpha")) == "default"
    assert compose(["adapter=ad.yaml"]).config.recipe == "ad_verdict"


def test_hidden_files_and_other_files_are_no_choices(elsewhere):
    (elsewhere / "recipes").mkdir()
    for name in (".hidden.yaml", "notes.txt", "old.yaml~"):
        (elsewhere / "recipes" / name).write_text("")
    assert not {".hidden", "notes", "old"} & set(library().choices("recipe"))


@pytest.fixture
def own_conf(elsewhere):
    """A task, a model and an adapter of the user's, the last under the name of a shipped one."""
    for group, name, text in (
        ("task", "mytask.yaml", "# My reviews.\nname: mine\ntype: classification\npath: ./rows\nmetric: accuracy\n"),
        ("model", "mymodel.yml", "# My model.\nname: ./somewhere\n"),
        ("adapter", "lora.yaml", "# My LoRA.\nmethod: lora\nr: 2\n"),
        ("trainer", "slow.yaml", "epochs: 50\n"),
    ):
        (elsewhere / "conf" / group).mkdir(parents=True)
        (elsewhere / "conf" / group / name).write_text(text)
    return elsewhere / "conf"


def test_own_choices_are_found_and_win(own_conf):
    run = compose(["task=mytask", "model=mymodel", "trainer=slow"])
    assert (run.config.task.name, run.config.model.name, run.config.trainer.epochs) == ("mine", "./somewhere", 50)
    assert run.config.recipe == "lora_mytask"
    assert run.config.adapter["r"] == 2
    assert str(run.origin("task.name")) == "./conf/task/mytask.yaml:2"
    assert str(run.origin("adapter.r")) == "./conf/adapter/lora.yaml:3"
    assert str(run.origin("trainer.batch_size")) == "default"
    assert compose(["task=cola"]).config.task.name == "cola"


def test_own_choices_in_a_recipe_and_in_a_composition(own_conf):
    (own_conf.parent / "mine.yaml").write_text("task: mytask\nadapters.b.adapter: lora\ncomposition: stack(b, mine)\n")
    config = compose(["recipe=mine.yaml"]).config
    adapter = config.adapters["b"].adapter
    assert adapter is not None
    assert (config.task.path, adapter["r"]) == ("./rows", 2)


def test_a_mistake_in_an_own_choice_names_its_file(own_conf):
    (own_conf / "task" / "mytask.yaml").write_text("name: mine\ntyp: classification\ndefaults:\n  - cola\n")
    with pytest.raises(ConfigError) as caught:
        compose(["task=mytask"])
    text = str(caught.value)
    assert "task.typ (./conf/task/mytask.yaml:2): task has no key 'typ', did you mean 'type'?" in text
    assert "defaults (./conf/task/mytask.yaml:4): are for recipes" in text


def test_own_choices_are_listed_and_completed(own_conf, capsys):
    assert main(["ls"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum("[yours] My reviews." in line and line.startswith("mytask") for line in lines) == 1
    assert sum("[yours] My model." in line for line in lines) == 1
    assert sum("[yours, hides the shipped one] My LoRA." in line for line in lines) == 1
    assert candidates("adaptrain train task=myt") == ["task=mytask"]
    assert candidates("adaptrain train adapters.b.task=myt") == ["adapters.b.task=mytask"]


def test_the_checkouts_own_conf_counts_once(monkeypatch):
    monkeypatch.chdir(library().conf.parent)
    assert library().own_conf is None
