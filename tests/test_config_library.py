"""Where the YAML files are found: in a checkout, in a wheel, and in the user's own folder."""

from __future__ import annotations

import pytest

import adaptrain
from adaptrain.config import library as module
from adaptrain.config.compose import compose
from adaptrain.config.library import GROUPS, library


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
    for name in (".hidden.yaml", "notes.txt", "old.yaml~", "old.yml"):
        (elsewhere / "recipes" / name).write_text("")
    assert not {".hidden", "notes", "old"} & set(library().choices("recipe"))
