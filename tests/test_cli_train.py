"""From the command line to results and back: train, eval, table, eject-prefix, and sweeps."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
import yaml

import tiny_run
from adaptrain.cli.main import main
from written_recipe import folders, write_recipe


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    return tiny_run.save_base(folder / "base"), tiny_run.save_data(folder / "mirror")


@pytest.fixture(autouse=True)
def work(tmp_path, monkeypatch, shared):
    """A user's folder with a model, a task and a recipe of his own."""
    monkeypatch.chdir(tmp_path)
    return write_recipe(tmp_path, *shared)


def run(capsys, *arguments):
    """Exit code, stdout, stderr."""
    code = main(arguments)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_train_then_eval_with_nothing_else_given(capsys, work, monkeypatch):
    code, out, err = run(capsys, "train", "recipe=tiny")
    assert (code, err) == (0, "")
    (folder,) = folders()
    assert f"saved: {folder}" in out
    assert out.endswith(f"next:  adaptrain eval {folder}\n")
    assert "majority class" in out
    row = json.loads((folder / "result.json").read_text())
    assert row["score"] > 0.8

    manifest = json.loads((folder / "run.json").read_text())
    assert manifest["command"] == ["adaptrain", "train", "recipe=tiny"]
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["trainer"]["learning_rate"] == 5e-3
    assert re.search(r"learning_rate: 0\.005 +# recipes/tiny\.yaml:10", (folder / "origins.yaml").read_text())

    code, out, err = run(capsys, "train", f"recipe={folder}/config.yaml")  # the run's own config names the same run
    assert (code, err) == (0, "")
    assert f"{folder} (force=true" in out
    assert folders() == [folder]

    (work / "elsewhere").mkdir()
    monkeypatch.chdir(work / "elsewhere")  # no recipe, no model.yaml, no task.yaml here
    code, out, err = run(capsys, "eval", f"../{folder}")
    assert (code, err) == (0, "")
    assert f"mcc {row['score']:.8f} is the same as training reported" in out
    assert re.search(r"accuracy +\d+\.\d +[01]\.\d{8}", out)
    assert run(capsys, "eval", f"adapter=../{folder}")[1] == out


def test_eval_of_another_split(capsys):
    assert run(capsys, "train", "recipe=tiny", "trainer.epochs=1")[0] == 0
    code, out, _ = run(capsys, "eval", str(folders()[0]), "split=test", "trainer.eval_batch_size=7")
    assert code == 0
    assert "mood, split 'test', 40 rows" in out
    assert "training reported" not in out


def test_a_finished_run_is_not_repeated_without_force(capsys):
    run(capsys, "train", "recipe=tiny", "trainer.epochs=1")
    stamp = (folders()[0] / "run.json").stat().st_mtime_ns
    code, out, _ = run(capsys, "train", "recipe=tiny", "trainer.epochs=1")
    assert code == 0
    assert f"finished before: {folders()[0]} (force=true trains it again)" in out
    assert (folders()[0] / "run.json").stat().st_mtime_ns == stamp
    assert "saved:" in run(capsys, "train", "recipe=tiny", "trainer.epochs=1", "force=true")[1]
    assert (folders()[0] / "run.json").stat().st_mtime_ns != stamp
    assert len(folders()) == 1


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("data.mirror=./nowhere", "data.mirror=./nowhere: there is no such folder"),
        ("model.name=./nowhere", "model.name=./nowhere: there is no such folder"),
        ("task.columns.text=sentense", "did you mean 'sentence'?"),
        ("task.splits.validation=valdation", "has no split 'valdation'"),
        ("task.labels=[bad,good,fair]", None),
    ],
)
def test_missing_things_are_exit_code_3_and_leave_nothing(capsys, override, says):
    code, _, err = run(capsys, "train", "recipe=tiny", "trainer.max_steps=1", override)
    if says is None:  # a third label is legal: the map may know more than the data
        assert code == 0
        return
    assert code == 3
    assert says in err
    assert err.count("\n") == 1
    assert not Path("outputs").exists()


def test_table(capsys, monkeypatch):
    run(capsys, "train", "recipe=tiny", "trainer.max_steps=2")
    code, out, _ = run(capsys, "table")
    assert code == 0
    assert "majority class" in out
    code, out, _ = run(capsys, "table", "outputs", "--format", "md")
    assert code == 0
    assert out.startswith("| method | base model |")
    assert run(capsys, "table", "outputs/", "--format=csv")[1].startswith("method,base_model,")
    code, _, err = run(capsys, "table", "nowhere")
    assert code == 3
    assert "There is no folder nowhere" in err


def test_eject_prefix(capsys):
    run(capsys, "train", "recipe=tiny", "adapter=prefix_tuning", "adapter.prefix_length=4", "trainer.epochs=1")
    (folder,) = folders()
    code, out, err = run(capsys, "eject-prefix", str(folder), "out=flat")
    assert (code, err) == (0, "")
    before, after = (int(match.replace(",", "")) for match in re.findall(r"([\d,]+) bytes", out))
    assert after < before / 10
    assert "saved   flat" in out
    first, second = (run(capsys, "eval", str(path))[1] for path in (folder, "flat"))
    assert first == second
    code, _, err = run(capsys, "eject-prefix", "flat")
    assert code == 2
    assert "flat prefix already" in err


def test_eval_of_what_is_no_run(capsys, work):
    code, _, err = run(capsys, "eval", "recipes")
    assert code == 3
    assert err.count("\n") == 1


# Sweeps


def test_a_sweep_trains_every_cell_and_sums_up(capsys):
    arguments = ("train", "-m", "recipe=tiny", "adapter=lora,none", "seed=1,2", "trainer.max_steps=2")
    code, out, err = run(capsys, *arguments)
    assert (code, err) == (0, "")
    assert len(folders()) == 4
    assert "[1/4] adapter=lora seed=1" in out
    assert "[4/4] adapter=none seed=2" in out
    assert "4 runs, 0 failed" in out
    assert out.endswith("next:  adaptrain table outputs\n")
    assert sorted(path.name for path in Path("outputs").iterdir()) == ["tiny"]
    assert sorted(path.name for path in Path.cwd().iterdir()) == ["model.yaml", "outputs", "recipes", "task.yaml"]
    manifests = [json.loads((folder / "run.json").read_text()) for folder in folders()]
    assert {tuple(manifest["command"][2:]) for manifest in manifests} == {
        ("recipe=tiny", "trainer.max_steps=2", f"adapter={adapter}", f"seed={seed}")
        for adapter in ("lora", "none")
        for seed in (1, 2)
    }
    again = run(capsys, *arguments)[1]
    assert len(re.findall(r"seed=\d +finished before +mcc", again)) == 4


def test_a_cell_is_the_single_run(capsys):
    """A sweep must not change a run: same folder name, same score."""
    run(capsys, "train", "recipe=tiny", "seed=2", "trainer.max_steps=3", "outputs=alone")
    run(capsys, "train", "-m", "recipe=tiny", "seed=1,2", "trainer.max_steps=3", "outputs=swept")
    (alone,) = Path("alone/tiny").iterdir()
    swept = Path("swept/tiny") / alone.name
    assert (swept / "predictions.jsonl").read_text() == (alone / "predictions.jsonl").read_text()


def test_a_cell_that_fails_does_not_stop_the_others(capsys, shared):
    base, _ = shared
    arguments = ("train", "-m", "recipe=tiny", f"model.name=./nowhere,{base}", "trainer.max_steps=2")
    code, out, err = run(capsys, *arguments)
    assert code == 3
    assert (
        err
        == "error: model.name=./nowhere: there is no such folder ("
        + str(Path("nowhere").absolute())
        + "); correct the path\n"
    )
    assert "2 runs, 1 failed" in out
    assert len(folders()) == 1


def test_nothing_starts_before_all_cells_are_right(capsys):
    code, out, err = run(capsys, "train", "-m", "recipe=tiny", "seed=1,2,x", "trainer.epochs=0,1")
    assert code == 2
    assert out == ""
    assert err.splitlines() == [
        "error: trainer.epochs (command line): is 0; it must be at least 1",
        "error: seed (command line): is 'x'; it must be a whole number",
    ]
    assert not Path("outputs").exists()


def test_cells_that_are_the_same_run_are_refused(capsys):
    code, _, err = run(capsys, "train", "-m", "recipe=tiny", "seed=1,1")
    assert code == 2
    assert "the cells 'seed=1' and 'seed=1' are the same run" in err


def test_outputs_that_cannot_be_written_are_exit_code_3(capsys):
    for arguments in (("train", "recipe=tiny"), ("train", "-m", "recipe=tiny", "seed=1,2")):
        code, _, err = run(capsys, *arguments, "trainer.max_steps=1", "outputs=task.yaml/x")
        assert code == 3
        assert re.search(r"error: Cannot write task\.yaml/x.*outputs=", err)
        assert err.count("\n") == 1


def test_a_sweep_without_several_values_is_one_run(capsys):
    code, out, _ = run(capsys, "train", "--multirun", "recipe=tiny", "trainer.max_steps=1")
    assert code == 0
    assert "1 run, 0 failed" in out


def test_a_bug_in_a_cell_is_told_as_one(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setitem(sys.modules, "adaptrain.training.run", None)  # importing it raises ImportError
    code, out, err = run(capsys, "train", "-m", "recipe=tiny", "seed=1,2")
    assert code == 1
    assert err.count("this is a bug in adaptrain") == 2
    assert "2 runs, 2 failed" in out
