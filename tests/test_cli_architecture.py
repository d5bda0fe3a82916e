"""A run on a model type that has no table: a family is offered, given, or written down; evaluations need no file."""

from __future__ import annotations

import json
import shutil

import pytest
import yaml

import tiny_run
from adaptrain.cli.main import main
from written_recipe import folders, write_recipe


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """The tiny BERT under the name of a model that computes the same, and has no table of its own: ERNIE."""
    folder = tmp_path_factory.mktemp("tiny")
    base = tiny_run.save_base(folder / "base")
    config = json.loads((base / "config.json").read_text())
    config |= {"model_type": "ernie", "architectures": ["ErnieModel"], "use_task_id": False}
    (base / "config.json").write_text(json.dumps(config))
    return base, tiny_run.save_data(folder / "mirror")


@pytest.fixture(autouse=True)
def work(tmp_path, monkeypatch, shared):
    monkeypatch.chdir(tmp_path)
    return write_recipe(tmp_path, *shared)


FILE = """
like: bert
stacks:
  encoder:
    projections: {mlp.up: intermediate.dense}
"""


def test_a_family_that_fits_is_offered(capsys):
    assert main(["train", "recipe=tiny"]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "There is no architecture for 'ernie', but its modules are named as in bert." in said
    assert "architecture=bert on the command line" in said


@pytest.mark.parametrize("given", ["bert", "./mine.yaml"])
def test_it_trains_and_is_evaluated_with_what_was_given(capsys, work, given):
    (work / "mine.yaml").write_text(FILE)
    assert main(["train", "recipe=tiny", f"architecture={given}"]) == 0
    (folder,) = folders()
    saved = json.loads((folder / "task.json").read_text())
    assert saved["architecture"] == ("bert" if given == "bert" else yaml.safe_load(FILE))
    (work / "mine.yaml").unlink()
    elsewhere = work / "moved"
    shutil.move(folder, elsewhere)
    capsys.readouterr()
    assert main(["eval", str(elsewhere)]) == 0
    assert f"mcc {saved['score']:.8f} is the same as training reported" in capsys.readouterr().out


def test_what_a_file_says_decides_about_the_folder(work, capsys):
    """Two files of one name are two runs."""
    places = []
    for more in ("", "pooling: last\n"):
        (work / "mine.yaml").write_text(FILE + more)
        assert main(["show", "recipe=tiny", "architecture=./mine.yaml"]) == 0
        shown = capsys.readouterr().out
        places.append(next(line for line in shown.splitlines() if line.startswith("# train writes to")))
    assert places[0] != places[1]


def test_mistakes_in_a_file_come_with_all_others(work, capsys):
    (work / "mine.yaml").write_text("like: brt\nstack: {}\n")
    assert main(["train", "recipe=tiny", "architecture=./mine.yaml", "trainer.epoch=3"]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "trainer has no key 'epoch', did you mean 'epochs'?" in said
    assert "architecture (command line): ./mine.yaml: like: There is no model type 'brt', did you mean 'bert'?" in said
    assert "no key 'stack', did you mean 'stacks'?" in said
    for wrong, answer in {
        "./nowhere.yaml": "cannot be read: No such file",
        "brt": "no architecture 'brt', did you mean 'bert'?",
        "3": "give a model type or a YAML file",
    }.items():
        assert main(["train", "recipe=tiny", f"architecture={wrong}"]) == 2
        assert answer in " ".join(capsys.readouterr().err.split()), wrong


def test_a_recipe_can_hold_the_table(work):
    recipe = (work / "recipes" / "tiny.yaml").read_text()
    (work / "recipes" / "tiny.yaml").write_text(recipe + "architecture:\n  like: bert\n")
    assert main(["train", "recipe=tiny", "trainer.max_steps=2"]) == 0
