"""Keys that belong together: what an override takes away with it, and that the run says so."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

import tiny_run
from adaptrain.cli.main import main
from adaptrain.config.belonging import MEMBER, MODEL, TASK
from adaptrain.config.compose import compose
from adaptrain.config.run import Run
from adaptrain.config.schema import MemberConfig, ModelConfig, TaskConfig
from adaptrain.config.sweep import plan
from adaptrain.errors import ConfigError, DataError
from written_recipe import folders, write_recipe

A, B = "a" * 64, "b" * 64
MINE = f"""\
name: somebody/first
revision: "1"
package: carrier:model
sha256: {A}
attention: eager
quantize: bnb_8bit
"""
ROWS = """\
name: mine
type: classification
path: somebody/rows
subset: first
revision: "7"
columns: {text: body, label: stars}
labels: [bad, good]
metric: accuracy
extra_metrics: [mcc]
splits: {validation: held, carve: {to: held, rows: 10}}
"""


@pytest.fixture(autouse=True)
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes").mkdir()
    (tmp_path / "mine.yaml").write_text(MINE)
    (tmp_path / "rows.yaml").write_text(ROWS)
    return tmp_path


def value(run: Run, dotted: str) -> Any:
    found: Any = run.config
    for part in dotted.split("."):
        found = found[part] if isinstance(found, dict) else getattr(found, part)
    return found


def told(run: Run, *words: str) -> bool:
    return any(all(word in note for word in words) for note in run.notes)


def by_command_line(chosen: dict[str, str], changes: dict[str, Any]) -> Run:
    return compose([*(f"{g}={c}" for g, c in chosen.items()), *(f"{k}={json.dumps(v)}" for k, v in changes.items())])


def by_recipe(chosen: dict[str, str], changes: dict[str, Any]) -> Run:
    write("laid", chosen, changes)
    return compose(["recipe=laid"])


def by_recipe_over_recipe(chosen: dict[str, str], changes: dict[str, Any]) -> Run:
    write("under", chosen, {})
    write("over", "under", changes)
    return compose(["recipe=over"])


def by_command_line_over_recipe(chosen: dict[str, str], changes: dict[str, Any]) -> Run:
    write("under", chosen, {})
    return compose(["recipe=under", *(f"{key}={json.dumps(each)}" for key, each in changes.items())])


def by_section(chosen: dict[str, str], changes: dict[str, Any]) -> Run:
    """`model={name: x}`, one argument for all."""
    sections: dict[str, Any] = {}
    for key, each in changes.items():
        place = sections
        *names, last = key.split(".")
        for name in names:
            place = place.setdefault(name, {})
        place[last] = each
    written = [f"{group}={in_grammar(section)}" for group, section in sections.items()]
    return compose([*(f"{g}={c}" for g, c in chosen.items()), *written])


def by_sweep(chosen: dict[str, str], changes: dict[str, Any]) -> Run:
    sweep = plan(
        ["seed=1,2", *(f"{g}={c}" for g, c in chosen.items()), *(f"{k}={json.dumps(v)}" for k, v in changes.items())]
    )
    return sweep.runs[1]


def in_grammar(value: Any) -> str:
    """A value as Hydra reads it."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {in_grammar(each)}" for key, each in value.items()) + "}"
    return json.dumps(value)


PLACES = [by_command_line, by_recipe, by_recipe_over_recipe, by_command_line_over_recipe, by_section, by_sweep]


def write(name: str, under: dict[str, str] | str, changes: dict[str, Any]) -> None:
    """A recipe that chooses, or lies over another, and sets keys."""
    defaults: list[Any] = [under] if isinstance(under, str) else [{f"override /{g}": c} for g, c in under.items()]
    values: dict[str, Any] = {"defaults": defaults}
    for key, each in changes.items():
        place = values
        *sections, last = key.split(".")
        for section in sections:
            place = place.setdefault(section, {})
        place[last] = each
    Path("recipes", f"{name}.yaml").write_text(yaml.safe_dump(values))


CASES = {
    "another name": (
        {"model.name": "somebody/second"},
        {"revision": None, "package": None, "sha256": None},
    ),
    "another revision": ({"model.revision": "2"}, {"package": None, "sha256": None}),
    "another package": ({"model.package": "other:model"}, {"sha256": None, "revision": "1"}),
    "a name and its sum": ({"model.name": "somebody/second", "model.sha256": B}, {"sha256": B, "package": None}),
    "the same name": ({"model.name": "somebody/first"}, {"revision": "1", "package": "carrier:model", "sha256": A}),
    "the same revision": ({"model.revision": 1}, {"revision": "1", "package": "carrier:model", "sha256": A}),
    "something else": ({"model.attention": "sdpa"}, {"package": "carrier:model", "sha256": A}),
    "other rows": (
        {"task.path": "./other"},
        {"subset": None, "revision": None, "labels": ("bad", "good"), "columns.text": "body", "splits.carve.rows": 10},
    ),
    "other rows and their subset": ({"task.path": "a/b", "task.subset": "c"}, {"subset": "c", "revision": None}),
    "another subset": ({"task.subset": "second"}, {"labels": (), "revision": "7", "columns.label": "stars"}),
    "a subset and its labels": ({"task.subset": "second", "task.labels": ["x", "y"]}, {"labels": ("x", "y")}),
    "another type": (
        {"task.type": "regression", "task.metric": "pearson"},
        {"labels": (), "extra_metrics": (), "columns.text": "body", "columns.label": "stars", "subset": "first"},
    ),
    "a type without these roles": (
        {"task.type": "tagging", "task.metric": "tag_accuracy", "task.columns.tags": "tags"},
        {"columns.text": None, "columns.label": None, "columns.tags": "tags", "labels": ("bad", "good")},
    ),
    "another split to choose on": ({"task.splits.validation": "dev"}, {"splits.carve": None}),
    "another split to score": ({"task.splits.test": "test"}, {"splits.carve.rows": 10}),
    "a fraction for a number": ({"task.splits.carve.fraction": 0.5}, {"splits.carve.rows": None}),
}


TYPICAL = ("a name and its sum", "a type without these roles")


@pytest.mark.parametrize(
    ("case", "place"), [(case, place) for case in CASES for place in (PLACES if case in TYPICAL else PLACES[:1])]
)
def test_a_choice_that_is_overridden_loses_what_belongs_to_it(case: str, place: Any) -> None:
    changes, expected = CASES[case]
    group = next(iter(changes)).partition(".")[0]
    chosen = {"model": "./mine.yaml", "task": "./rows.yaml"}
    before, after = compose([f"{g}={c}" for g, c in chosen.items()]), place(chosen, changes)
    for key, wanted in expected.items():
        assert value(after, f"{group}.{key}") == wanted, key
    for key in ("model.attention", "model.quantize", "task.name"):  # belong to nothing
        assert key in changes or value(after, key) == value(before, key)
    for key, wanted in expected.items():
        was = value(before, f"{group}.{key}") if key != "splits.carve" else "carve"
        gone = wanted in (None, ()) and was not in (None, ())
        heads = [note.partition(" not used")[0] for note in after.notes if " not used" in note]
        assert any(f"{group}.{key}" in head and ".yaml:" in head for head in heads) == gone, (key, after.notes)


def test_the_other_group_is_not_touched() -> None:
    run = compose(["model=./mine.yaml", "task=./rows.yaml", "task.path=./other"])
    assert run.config.model == compose(["model=./mine.yaml"]).config.model


@pytest.mark.parametrize("order", list(itertools.permutations(["model=minilm", "model.name=x/y", f"model.sha256={A}"])))
def test_the_order_on_the_command_line_does_not_matter(order: tuple[str, ...]) -> None:
    model = compose(order).config.model
    assert (model.name, model.package, model.sha256) == ("x/y", None, A)


@pytest.mark.parametrize("also", [["~model.package"], ["model.package=null", "model.sha256=null"]])
def test_what_is_gone_already_can_be_dropped_too(also: list[str]) -> None:
    model = compose(["model=minilm", "model.name=x/y", *also]).config.model
    assert (model.package, model.sha256) == (None, None)


def test_the_first_example() -> None:
    """The model that is named is the model that trains."""
    run = compose(["model.name=google-bert/bert-base-uncased"])
    assert run.config.model == compose(["model=bert_base"]).config.model
    assert told(run, "model.package", "model.sha256", "conf/model/minilm.yaml:", "(command line)")


def test_the_cells_of_a_sweep_over_names() -> None:
    runs = plan(["model=minilm", "model.name=x/y,sentence-transformers/all-MiniLM-L6-v2"]).runs
    assert [run.config.model.package is None for run in runs] == [True, False]


MEMBERS = """\
defaults: [override /task: ./rows.yaml]
composition: parallel(mine, other)
adapters:
  other: {path: somebody/adapter, revision: v1, train: true, task: ./rows.yaml}
"""


def test_the_adapters_of_a_composition() -> None:
    Path("recipes/both.yaml").write_text(
        MEMBERS.replace("[override /task: ./rows.yaml]", "[{override /task: ./rows.yaml}]")
    )
    name = ["adapters.other.task.name=other"]
    before = compose(["recipe=both", *name]).config.adapters["other"]
    assert before.revision == "v1" and before.task is not None and before.task.subset == "first"
    run = compose(["recipe=both", *name, "adapters.other.path=else/where", "adapters.other.task.path=./mine"])
    after = run.config.adapters["other"]
    assert after.revision is None and after.task is not None and after.task.subset is None
    assert after.task.labels == before.task.labels
    assert told(run, "adapters.other.revision", "recipes/both.yaml:")
    assert told(run, "adapters.other.task.subset", "rows.yaml:")
    assert run.config.task.subset == "first"
    again = compose(["recipe=both", "adapters.other.task=cola"]).config.adapters["other"]
    assert again.task == compose(["task=cola"]).config.task  # a choice is whole


def test_a_text_or_a_source_and_a_target() -> None:
    run = compose(["task=own_text", "task.columns.source=q", "task.columns.target=a"])
    assert run.config.task.columns.declared() == {"source": "q", "target": "a"}
    run = compose(["task=own_pairs", "task.columns.text=t"])
    assert run.config.task.columns.declared() == {"text": "t"}


def test_what_cannot_be_guessed_is_refused_with_its_place() -> None:
    with pytest.raises(ConfigError) as caught:
        compose(["task=./rows.yaml", "task.type=regression"])
    (problem,) = caught.value.problems
    assert "task.metric (rows.yaml:8)" in problem and "regression" in problem


def test_a_subset_under_another_ones_name_is_told() -> None:
    run = compose(["task=mrpc", "task.subset=rte"])
    assert told(run, "task.name", "mrpc", "task.subset")
    assert not told(compose(["task=mrpc", "task.subset=rte", "task.name=rte"]), "set task.name")


@pytest.mark.parametrize("rules", [(ModelConfig, MODEL), (TaskConfig, TASK), (MemberConfig, MEMBER)])
def test_every_rule_is_of_keys_that_there_are(rules: tuple[type, Any]) -> None:
    kind, table = rules
    known = {each.name for each in dataclasses.fields(kind)}
    for rule in table:
        assert {key.partition(".")[0] for key in (rule.key, *rule.of)} <= known
        assert rule.key not in rule.of


# Where it is told


def test_show_and_the_runs_folder_tell_it(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    base, mirror = tiny_run.save_base(tmp_path / "base"), tiny_run.save_data(tmp_path / "mirror")
    (tmp_path / "recipes").rmdir()
    write_recipe(tmp_path, base, mirror)
    (tmp_path / "model.yaml").write_text(f"name: somebody/else\npackage: carrier:model\nsha256: {A}\n")
    command = ["recipe=tiny", f"model.name={base}", "trainer.max_steps=1"]
    assert main(["show", *command]) == 0
    assert "# note: model.package (model.yaml:2), model.sha256 (model.yaml:3)" in capsys.readouterr().out
    assert main(["train", *command]) == 0
    assert "model.package (model.yaml:2)" in capsys.readouterr().out
    (folder,) = folders()
    assert "model.package (model.yaml:2)" in " ".join(json.loads((folder / "run.json").read_text())["notes"])
    origins = (folder / "origins.yaml").read_text()
    assert "# note: model.package" in origins
    assert yaml.safe_load(origins)["model"]["package"] is None
    assert json.loads((folder / "adapter_config.json").read_text())["base_model"]["hidden_size"] == 32


# Rows of somebody else, under the keys of a task that is there


OTHER = {
    "columns": ({"text": "x", "stars": 1}, "task.columns.text", "rows.yaml:6"),
    "labels": ({"body": "x", "stars": "fine"}, "task.labels", "rows.yaml:7"),
    "splits": ({"body": "x", "stars": 1}, "task.splits.validation", "rows.yaml:10"),
}


@pytest.mark.parametrize("kind", OTHER)
@pytest.mark.parametrize("verb", ["train", "data"])
def test_an_error_about_other_rows_says_where_the_key_was_set(kind: str, verb: str, capsys, work: Path) -> None:
    row, key, place = OTHER[kind]
    (work / "rows.yaml").write_text(ROWS.replace("held, carve: {to: held, rows: 10}", "held"))
    tiny_run.write_jsonl(work / "data/train.jsonl", [row] * 4)
    if kind != "splits":
        tiny_run.write_jsonl(work / "data/held.jsonl", [row] * 4)
    assert main([verb, "task=./rows.yaml", "task.path=./data"]) == 3
    err = capsys.readouterr().err
    assert f"{key} is set in {place}" in err and err.count("\n") == 1


def test_a_key_that_nobody_set_has_no_place() -> None:
    run = compose(["task=own"])
    with pytest.raises(DataError) as caught, run.explaining():
        raise DataError("There is no split 'validation'", "splits", "validation")
    assert str(caught.value) == "There is no split 'validation'"


# A mirror comes before the path of a task


@pytest.mark.parametrize(
    ("recipe", "command", "refused"),
    [
        ({"data.mirror": "mirror"}, [], False),
        ({"data.mirror": "mirror"}, ["task.path=./data"], True),
        ({"data.mirror": "mirror"}, ["task.path=a/b"], True),
        ({"data.mirror": "mirror"}, ["task.subset=second"], True),
        ({"data.mirror": "mirror"}, ["task.subset=second", "task.name=another"], False),
        ({"data.mirror": "mirror"}, ["task.path=./data", "data.mirror=null"], False),
        ({}, ["task.path=./data", "data.mirror=mirror"], True),
        ({}, ["task.path=a/b", "task.subset=c", "data.mirror=mirror"], False),
        ({"task.path": "./data"}, ["data.mirror=mirror"], False),
        ({"data.mirror": "elsewhere"}, ["task.path=./data"], False),
    ],
)
def test_rows_that_a_mirror_would_hide_are_refused(recipe, command, refused, work: Path) -> None:
    (work / "mirror/mine").mkdir(parents=True)
    write("r", {"task": "./rows.yaml"}, recipe)
    if not refused:
        compose(["recipe=r", *command])
        return
    with pytest.raises(ConfigError) as caught:
        compose(["recipe=r", *command])
    (problem,) = caught.value.problems
    assert problem.startswith(f"{command[0].partition('=')[0]} (command line)") and "data.mirror" in problem
