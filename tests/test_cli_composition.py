"""Compositions from the command line: trained, saved as one folder, evaluated, and evaluated with another member."""

from __future__ import annotations

import json
import shutil
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
  - override /task: ./task.yaml
  - override /adapter: seq_bn
data:
  mirror: {mirror}
trainer:
  max_steps: 20
  batch_size: 16
  learning_rate: 5e-3
  precision: fp32
  device: cpu
"""
FUSE = """\
composition: fuse(first, second)
adapters:
  first: {path: outputs/one}
  second: {path: outputs/two}
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A user's folder in which the recipes `one` and `two` have been run."""
    folder = tmp_path_factory.mktemp("composed")
    base, mirror = tiny_run.save_base(folder / "base"), tiny_run.save_data(folder / "mirror")
    (folder / "recipes").mkdir()
    (folder / "model.yaml").write_text(f"name: {base}\n")
    (folder / "task.yaml").write_text(TASK)
    for name, more in (("one", "seed: 1\n"), ("two", "seed: 2\n"), ("fused", FUSE), ("mine", "")):
        (folder / "recipes" / f"{name}.yaml").write_text(RECIPE.format(mirror=mirror) + more)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name in ("one", "two"):
            assert main(["train", f"recipe={name}"]) == 0
    return folder


@pytest.fixture(autouse=True)
def work(trained, monkeypatch):
    """That folder, without what other tests have left there."""
    monkeypatch.chdir(trained)
    for name in ("fused", "mine"):
        shutil.rmtree(trained / "outputs" / name, ignore_errors=True)
    return trained


def run(capsys, *arguments):
    """Exit code, stdout, stderr."""
    code = main(arguments)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def only(recipe: str) -> Path:
    (folder,) = Path("outputs", recipe).iterdir()
    return folder


def tensors(folder: Path):
    return load_file(folder / "adapter.safetensors")


def test_a_fusion_of_saved_adapters_trains_and_is_whole(capsys, work, tmp_path, monkeypatch):
    capsys.readouterr()
    code, out, err = run(capsys, "train", "recipe=fused")
    assert (code, err) == (0, "")
    folder = only("fused")
    row = json.loads((folder / "result.json").read_text())
    assert row["method"] == "fuse(first, second)"
    layers, size = 2, 32
    assert row["adapter_parameters"] == layers * (
        3 * size * size + 2 * size
    )  # one fusion a layer: W_q, W_k, W_v, b_q, b_k
    assert row["head_parameters"] == size * size + size + 2 * size + 2
    for name, source in (("first", "one"), ("second", "two")):  # frozen, and copied
        kept, before = tensors(folder / "adapters" / name), tensors(only(source))
        assert kept.keys() == before.keys()
        assert all(bool((kept[key] == before[key]).all()) for key in kept)
    sources = json.loads((folder / "run.json").read_text())["adapters"]
    assert [(source["name"], source["place"]) for source in sources] == [
        ("first", str(only("one"))),
        ("second", str(only("two"))),
    ]
    assert len({source["fingerprint"] for source in sources}) == 2
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["composition"] == "fuse(first, second)"
    assert config["adapters"]["first"]["path"] == "outputs/one"
    assert config["fusion"]["value"] is True

    shutil.move(work / folder, tmp_path / "kept")
    monkeypatch.chdir(tmp_path)  # away from the recipes and the saved adapters
    code, out, err = run(capsys, "eval", "kept")
    assert (code, err) == (0, "")
    assert f"mcc {row['score']:.8f} is the same as training reported" in out


def test_a_member_that_trains_and_one_that_does_not(capsys):
    code, _, err = run(
        capsys,
        *("train", "recipe=mine", "composition=stack(first, mood, second)", "adapters.first.path=outputs/one"),
        *(f"adapters.second.path={only('two')}", "adapters.second.train=true", "adapter=lora"),
    )
    assert (code, err) == (0, "")
    folder = only("mine")
    same = {}
    for name, source in (("first", "one"), ("second", "two")):
        kept, before = tensors(folder / "adapters" / name), tensors(only(source))
        same[name] = all(bool((kept[key] == before[key]).all()) for key in kept)
    assert same == {"first": True, "second": False}
    lora = tensors(folder / "adapters" / "mood")
    assert any(bool((tensor != 0).any()) for key, tensor in lora.items() if key.endswith("B"))  # B starts at zero
    row = json.loads((folder / "result.json").read_text())
    numbers = sum(t.numel() for t in lora.values()) + sum(t.numel() for t in tensors(only("two")).values())
    assert row["adapter_parameters"] == numbers
    assert "is the same as training reported" in run(capsys, "eval", str(folder))[1]
    assert "stack(first, mood, second)" in run(capsys, "table", "outputs")[1]


def test_layers_of_a_member_are_left_out(capsys):
    arguments = ("recipe=mine", "composition=stack(first, mood)", "adapters.first.path=outputs/one")
    assert run(capsys, "train", *arguments, "adapters.first.leave_out=[0]", "trainer.max_steps=2")[0] == 0
    kept = tensors(only("mine") / "adapters" / "first").keys()
    assert {key.split(".")[1] for key in kept} == {"1"}
    assert "is the same as training reported" in run(capsys, "eval", str(only("mine")))[1]
    code, _, err = run(capsys, "train", *arguments, "adapters.first.leave_out=[7]")
    assert code == 2
    assert err.startswith("error: adapters.first: leave_out")


def test_a_saved_adapter_goes_on_under_the_tasks_name(capsys):
    entry = ("adapters.mood.path=outputs/one", "adapters.mood.train=true")
    assert run(capsys, "train", "recipe=mine", *entry)[0] == 0
    before, after = tensors(only("one")), tensors(only("mine") / "adapters" / "mood")
    assert before.keys() == after.keys()
    assert not any(bool((before[key] == after[key]).all()) for key in before)
    assert "is the same as training reported" in run(capsys, "eval", str(only("mine")))[1]


def test_another_member_at_evaluation(capsys):
    arguments = ("composition=stack(first, mood)", "adapters.first.path=outputs/one")
    assert run(capsys, "train", "recipe=mine", *arguments)[0] == 0
    folder = str(only("mine"))
    trained = run(capsys, "eval", folder)[1].splitlines()[2]
    code, out, err = run(capsys, "eval", folder, "composition=stack(other, mood)", "adapters.other.path=outputs/two")
    assert code == 0
    assert err == ("note: this is stack(other, mood), other from outputs/two; what was trained is stack(first, mood)\n")
    assert out.splitlines()[2] != trained
    assert "training reported" not in out
    in_place = run(capsys, "eval", folder, "adapters.first.path=outputs/two")[1]
    assert in_place == out
    same = run(capsys, "eval", folder, "composition=stack(x, mood)", "adapters.x.path=outputs/one")[1]
    assert same.splitlines()[2] == trained
    alone = run(capsys, "eval", str(only("one")), "composition=stack(x, mood)", "adapters.x.path=outputs/two")
    assert "what was trained is mood" in alone[2]


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (
            ("composition=stack(other, mood)",),
            2,
            "stack(other, mood): There is no adapter 'other'. The model has: mood",
        ),
        (("adapters.x.path=outputs/two",), 2, "mood does not name 'x', which adapters.x.path is given for"),
        (
            ("composition=stak(x, mood)",),
            2,
            "composition (command line): there is no block 'stak', did you mean 'stack'",
        ),
        (("adapters.x.adapter=lora",), 2, "adapters.x.adapter (command line): is for training; the keys of an adapter"),
        (("adapters.mood.path=nowhere/x",), 3, "adapters.mood.path=nowhere/x: "),
    ],
)
def test_what_eval_refuses(capsys, arguments, code, says):
    found, _, err = run(capsys, "eval", str(only("one")), *arguments)
    assert (found, says in err) == (code, True), err


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("adapters.first.path=outputs",), 3, "adapters.first.path=outputs: holds neither an adapter"),
        (("adapters.first.path=./no",), 3, "adapters.first.path=./no: there is no such folder ("),
        (("adapters.first.path=outputs/no",), 3, "adapters.first.path=outputs/no: there is no such folder ("),
        (
            ("composition=parallel(stack(mood, first), stack(mood, second))",),
            2,
            "adapters.mood: stands in the branches first, second of parallel(stack(mood, first), stack(mood, second))",
        ),
        (
            ("composition=fuse(mood, second)", "~adapters.first", "adapter=lora"),
            2,
            "cannot be fused",
        ),
        (
            ("composition=stack(mood, second)", "~adapters.first", "adapter=full"),
            2,
            "adapters.mood: full trains the base model's own weights, which all adapters of stack(mood, second) share",
        ),
    ],
)
def test_what_train_refuses(capsys, arguments, code, says):
    found, _, err = run(capsys, "train", "recipe=fused", *arguments)
    assert (found, says in err) == (code, True), err
    assert not Path("outputs/fused").exists()


def test_a_recipes_folder_stands_for_its_only_run(capsys, work):
    twin = Path("outputs/two/other")
    shutil.copytree(only("two"), twin)
    try:
        code, _, err = run(capsys, "train", "recipe=fused")
        assert code == 3
        assert "adapters.second.path=outputs/two: holds 2 runs; name one of: " in err
    finally:
        shutil.rmtree(twin)
