"""Branches from the command line: trained together, a folder each, evaluated, and in the table."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

import tiny_run
from adaptrain.cli.main import main
from written_recipe import TASK

RECIPE = """\
# adaptrain train recipe=NAME
defaults:
  - override /model: ./model.yaml
  - override /task: ./mood.yaml
  - override /adapter: lora
head: {dropout: 0.0}
data:
  mirror: {mirror}
  max_train: 40
trainer:
  max_steps: 6
  batch_size: 8
  learning_rate: 5e-3
  precision: fp32
  device: cpu
"""
NUMBER = """\
name: number
type: regression
path: somebody/number
columns: {text: one, text_pair: two, label: score}
metric: pearson
"""
BRANCHES = {
    "single": "",
    "apart": """\
composition: parallel(mood, number)
adapters:
  number:
    task: ./number.yaml
    adapter: seq_bn
    seed: 7
    trainer: {max_steps: 9, batch_size: 5, learning_rate: 2e-3}
""",
    "mixed": """\
composition: multitask(mood, number)
adapters:
  number: {task: ./number.yaml}
""",
    "split": """\
composition: batchsplit(mood, number, sizes=[5, None])
adapters:
  number: {task: ./number.yaml}
""",
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A user's folder; the base model has no dropout, so that runs can be compared."""
    folder = tmp_path_factory.mktemp("branches")
    base, mirror = tiny_run.save_base(folder / "base"), tiny_run.save_data(folder / "mirror")
    config = json.loads((base / "config.json").read_text())
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (base / "config.json").write_text(json.dumps(config))
    (folder / "recipes").mkdir()
    (folder / "model.yaml").write_text(f"name: {base}\n")
    (folder / "mood.yaml").write_text(TASK)
    (folder / "number.yaml").write_text(NUMBER)
    for name, more in BRANCHES.items():
        text = RECIPE.replace("{mirror}", str(mirror)) + more
        text = text.replace("adapter: lora", "adapter: mtl_lora") if name == "mixed" else text
        (folder / "recipes" / f"{name}.yaml").write_text(text)
    return folder


@pytest.fixture(autouse=True)
def work(made, monkeypatch):
    monkeypatch.chdir(made)
    return made


def run(capsys, *arguments):
    """Exit code, stdout, stderr."""
    code = main(arguments)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def only(recipe: str) -> Path:
    (folder,) = Path("outputs", recipe).iterdir()
    return folder


def row_of(folder: Path) -> dict:
    return json.loads((folder / "result.json").read_text())


def rows_said(folder: Path) -> list[list[float]]:
    lines = (folder / "predictions.jsonl").read_text().splitlines()
    return [json.loads(line)["logits"] for line in lines]


def test_parallel_branches_are_their_own_runs(capsys):
    code, out, err = run(capsys, "train", "recipe=apart")
    assert (code, err) == (0, "")
    folder = only("apart")
    assert out.startswith("parallel(mood, number): 9 steps\n")  # the longest branch's
    assert "\nnumber  epoch 1  step 8  pearson " in out
    assert "\nmood: MCC " in out and "\nnumber: Pearson " in out
    number = ("task=./number.yaml", "adapter=seq_bn", "seed=7", "trainer.max_steps=9", "trainer.batch_size=5")
    for name, more in (("mood", ()), ("number", (*number, "trainer.learning_rate=2e-3"))):
        assert run(capsys, "train", "recipe=single", f"outputs=alone/{name}", *more)[0] == 0
        (alone,) = Path("alone", name, "single").iterdir()
        branch = folder / "branches" / name
        for file in ("adapter.safetensors", "head.safetensors"):
            mine, theirs = load_file(branch / file), load_file(alone / file)
            assert mine.keys() == theirs.keys()
            assert max((mine[key] - theirs[key]).abs().max().item() for key in mine) < 1e-5
        for said, expected in zip(rows_said(branch), rows_said(alone), strict=True):
            assert said == pytest.approx(expected, abs=1e-4)
        mine, theirs = row_of(branch), row_of(alone)
        assert (mine.pop("branch"), mine.pop("trained_in")) == (name, "parallel(mood, number)")
        assert mine.keys() == theirs.keys()
        same = ("method", "adapter", "task", "seed", "settings", "adapter_parameters", "head_parameters", "steps")
        assert [mine[key] for key in same] == [theirs[key] for key in same]
        assert yaml.safe_load((branch / "config.yaml").read_text())["seed"] == mine["seed"]
    events = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert {event.get("branch") for event in events if event["event"] == "evaluation"} == {"mood", "number"}

    found = {name: row_of(folder / "branches" / name)["score"] for name in ("mood", "number")}
    code, out, err = run(capsys, "eval", str(folder))
    assert (code, err) == (0, "")
    for name, score in found.items():
        assert re.search(rf"^{name}: \w+ {score:.8f} is the same as training reported$", out, re.MULTILINE)
        assert "is the same as training reported" in run(capsys, "eval", str(folder / "branches" / name))[1]
    assert run(capsys, "eval", str(folder), "composition=mood")[0] == 2
    code, out, err = run(capsys, "table", "outputs/apart", "--format", "csv")
    assert (code, err) == (0, "")
    assert [line.split(",")[0] for line in out.splitlines()[3:]] == ["seq_bn", "lora"]
    code, out, _ = run(capsys, "train", "recipe=apart")
    assert code == 0 and f"finished before: {folder}" in out and "number: Pearson" in out


def test_several_tasks_have_one_optimiser(capsys):
    for recipe, epoch in (("mixed", 0.6), ("split", 0.43)):  # of 80 rows by 8; of 40 rows by 3
        code, out, err = run(capsys, "train", f"recipe={recipe}")
        assert (code, err) == (0, "")
        folder = only(recipe)
        rows = {name: row_of(folder / "branches" / name) for name in ("mood", "number")}
        word = "multitask(mood, number)" if recipe == "mixed" else "batchsplit(mood, number, sizes=[5, None])"
        assert {row["method"] for row in rows.values()} == {word}
        assert {row["steps"] for row in rows.values()} == {6}
        assert f"\nepoch {epoch}  step 6  mean " in out
        code, out, err = run(capsys, "eval", str(folder))
        assert (code, err, out.count("is the same as")) == (0, "", 2)
    own = [load_file(only("mixed") / "branches" / name / "adapter.safetensors") for name in ("mood", "number")]
    shared = {key: bool((own[0][key] == own[1][key]).all()) for key in own[0]}
    assert {key.rpartition(".")[2] for key, same in shared.items() if not same} == {"values"}
    assert all(same for key, same in shared.items() if key.endswith((".A", ".B")))
    assert all(own[0][key].abs().sum() > 0 for key in own[0] if key.endswith(".B"))  # it has been trained
    assert "share A and B" in "".join(json.loads((only("mixed") / "run.json").read_text())["notes"])
    lines = run(capsys, "table", "outputs/mixed", "--format", "csv")[1].splitlines()
    assert [line.split(",")[0] for line in lines[3:]] == ['"multitask(mood'] * 2


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (
            ("recipe=apart", "composition=parallel(stack(x, mood), stack(x, number))", "adapters.x.adapter=lora"),
            "adapters.x: stands in the branches mood, number of parallel(stack(x, mood), stack(x, number))",
        ),
        (("recipe=split", "composition=batchsplit(mood, number, sizes=[9, 1])"), "trainer.batch_size=8"),
        (("recipe=split", "composition=batchsplit(mood, number, sizes=[8, None])"), "has no rows of 'number'"),
        (("recipe=mixed", "adapters.number.task.metric=mse"), "a lower score is better for number (mse) alone"),
        (("recipe=apart", "adapters.number.task.metric=mcc"), "adapters.number.task"),
    ],
)
def test_what_is_refused_leaves_nothing(capsys, arguments, says):
    code, _, err = run(capsys, "train", *arguments, "outputs=refused")
    assert (code, says in err) == (2, True), err
    assert not Path("refused").exists()


def test_several_processes_are_refused(monkeypatch):
    from adaptrain.config.compose import compose
    from adaptrain.errors import UnsupportedError
    from adaptrain.training import branch_prepare

    class Two:
        num_processes = 2

    found = branch_prepare.find_hardware("cpu", "fp32", False)
    monkeypatch.setattr(branch_prepare, "find_hardware", lambda *_: type(found)(found.device, found.precision, Two()))
    monkeypatch.setattr(branch_prepare, "load_model", lambda *_: pytest.fail("a model was loaded"))
    with pytest.raises(UnsupportedError, match="branches train in one process, and there are 2"):
        branch_prepare.prepare_branches(compose(["recipe=apart"]).config)


@pytest.mark.parametrize(
    "tree",
    ["parallel(stack(x, mood), number)", "parallel(mood, fuse(x, number))", "multitask(mood, average(x, number))"],
)
def test_a_branch_may_be_a_composition(capsys, tree):
    recipe = "apart" if tree.startswith("parallel") else "mixed"
    more = ("adapters.x.adapter=seq_bn", "adapter=seq_bn", "trainer.max_steps=2", f"outputs=inner/{len(tree)}")
    code, _, err = run(capsys, "train", f"recipe={recipe}", f"composition={tree}", *more)
    assert (code, err) == (0, "")
    (folder,) = Path("inner", str(len(tree)), recipe).iterdir()
    whole = json.loads((folder / "composition.json").read_text())
    assert (whole["composition"], whole["active_heads"]) == (tree, ["mood", "number"])
    inside = "mood" if "stack" in tree else "number"
    own = json.loads((folder / "branches" / inside / "composition.json").read_text())
    assert f"{own['composition']}, " in tree or f" {own['composition']})" in tree
    assert own["active_heads"] == inside
    code, out, err = run(capsys, "eval", str(folder))
    assert (code, err, out.count("is the same as")) == (0, "", 2)


def test_cells_on_one_task(capsys):
    cells = ("composition=parallel(slow, fast)", "~adapters.number", "adapters.slow.trainer.learning_rate=1e-6")
    more = ("adapters.fast.trainer.learning_rate=1e-2", "trainer.max_steps=5", "outputs=cells")
    code, _, err = run(capsys, "train", "recipe=apart", *cells, *more)
    assert (code, err) == (0, "")
    (folder,) = Path("cells/apart").iterdir()
    rows = [row_of(folder / "branches" / name) for name in ("slow", "fast")]
    assert [(row["task"], row["method"], row["seed"]) for row in rows] == [("mood", "lora", 42)] * 2
    assert [row["settings"]["trainer.learning_rate"] for row in rows] == [1e-6, 1e-2]
    assert run(capsys, "eval", str(folder))[1].count("is the same as") == 2
    lines = run(capsys, "table", "cells", "--format", "csv")[1].splitlines()[2:]
    assert sorted(line.split(",")[0] for line in lines) == ["lora (learning_rate=0.01)", "lora (learning_rate=1e-06)"]
