"""`composition`, `adapters` and `fusion` of a run: what they become, what the command line says, and what is hashed."""

from __future__ import annotations

import pytest
import yaml

from adaptrain.config.compose import compose
from adaptrain.config.composition import complete_members, members_of
from adaptrain.config.render import annotated_yaml
from adaptrain.config.schema import MemberConfig
from adaptrain.config.sweep import plan
from adaptrain.reporting.folder import run_hash
from adaptrain.training.run import config_yaml
from composed_recipes import FUSE, RECIPE, recipe_writer


@pytest.fixture(autouse=True)
def write(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return recipe_writer(tmp_path)


# ---- what it becomes


def test_an_entry_is_completed_from_the_run_and_knows_its_lines(write):
    run = compose([write(), "trainer.epochs=7"])
    lang, mrpc = run.config.adapters["lang"], run.config.adapters["mrpc"]
    assert lang == MemberConfig(path="outputs/lang/1234", leave_out=(0,), train=False)
    assert (mrpc.train, mrpc.seed) == (True, 3)
    assert mrpc.adapter is not None and mrpc.task is not None and mrpc.trainer is not None
    assert (mrpc.adapter["method"], mrpc.adapter["reduction_factor"]) == ("bottleneck", 16.0)
    assert (mrpc.task.name, mrpc.task.metric) == ("mrpc", "f1")
    assert (mrpc.trainer.learning_rate, mrpc.trainer.epochs) == (1e-3, 7)
    for key, place in {
        "composition": "recipes/mine.yaml:4",
        "adapters.lang.path": "recipes/mine.yaml:7",
        "adapters.mrpc.trainer.learning_rate": "recipes/mine.yaml:14",
        "adapters.mrpc.trainer.epochs": "command line",
        "adapters.mrpc.trainer.warmup": str(run.origin("trainer.warmup")),
        "adapters.mrpc.train": "default",
    }.items():
        assert str(run.origin(key)) == place
    assert str(run.origin("adapters.mrpc.adapter.reduction_factor")).startswith("conf/adapter/seq_bn.yaml:")
    assert str(run.origin("adapters.mrpc.task.metric")).startswith("conf/task/mrpc.yaml:")


def test_a_fresh_one_without_a_config_is_like_the_runs(write):
    text = "composition: average(b, verdict)\nadapters:\n  b:\n"
    run = compose([write(text), "adapter=seq_bn", "adapter.reduction_factor=2"])
    assert run.config.adapters["b"] == MemberConfig(adapter=run.config.adapter, train=True)
    assert str(run.origin("adapters.b.adapter.reduction_factor")) == "command line"
    assert compose([write(text), "adapters.b.train=false"]).config.adapters["b"].train is False


def test_branches_of_one_optimiser_have_tasks_only(write):
    config = compose(
        [write("composition: batchsplit(a, verdict, sizes=[1, 2])\nadapters:\n  a: {task: cola}\n")]
    ).config
    entry = config.adapters["a"]
    assert entry.task is not None and (entry.task.name, entry.seed, entry.trainer) == ("cola", None, None)
    plain = compose([write("composition: parallel(a, b)\nadapters: {a: {}, b: {}}\n")]).config
    assert plain.adapters["a"].task == plain.task
    assert plain.adapters["b"].trainer == plain.trainer


def test_an_entry_may_take_the_place_of_the_tasks_own_adapter():
    entry = ["adapters.verdict={path: x, train: true}"]
    run, named = compose(entry), compose([*entry, "composition=verdict"])
    assert run_hash(run.config) == run_hash(named.config) != run_hash(compose([]).config)
    assert members_of(run.config) == {"verdict": MemberConfig(path="x", train=True)}
    assert compose(["adapters.verdict.adapter=seq_bn"]).config.adapters["verdict"].train is True


def test_members_are_all_that_the_composition_names(write):
    config = compose([write()]).config
    assert list(members := members_of(config)) == ["lang", "cola", "mrpc"]
    assert members["cola"] == MemberConfig(
        adapter=config.adapter, train=True, task=config.task, seed=config.seed, trainer=config.trainer
    )
    assert members["mrpc"] == config.adapters["mrpc"]
    assert complete_members(config) == config
    alone = compose([]).config
    assert members_of(alone) == {"verdict": MemberConfig(adapter=alone.adapter, train=True)}


def test_a_run_without_compositions_says_nothing_of_them():
    bare, named = compose([]), compose(["composition=verdict"])
    assert run_hash(bare.config) == run_hash(named.config) == run_hash(compose(["composition=null"]).config)
    assert not {"composition", "adapters", "fusion"} & yaml.safe_load(config_yaml(bare.config)).keys()
    assert "\ncomposition:" not in annotated_yaml(bare)


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("composition={stack: [lang, {parallel: [cola, mrpc]}]}",),
        ("composition=stack(lang,parallel('cola',mrpc))",),
        ("adapters.lang.train=false", "adapters.mrpc.trainer.epochs=3"),
        ("composition=stack(lang, parallel(${task.name}, mrpc))",),
    ],
)
def test_the_hash_is_of_what_is_run(write, overrides):
    assert run_hash(compose([write(), *overrides]).config) == run_hash(compose([write()]).config)
    assert run_hash(compose([write(), "adapters.mrpc.seed=4", *overrides]).config) != run_hash(
        compose([write()]).config
    )


def test_an_adapter_section_that_nothing_has_is_not_in_the_hash(write):
    text = "composition: average(a, b)\nadapters:\n  a: {path: x}\n  b: {path: y}\n"
    assert run_hash(compose([write(text)]).config) == run_hash(compose([write(text), "adapter=seq_bn"]).config)
    first = compose([write(text.replace("b)", "b, verdict)"))]).config
    assert run_hash(first) != run_hash(compose(["recipe=mine", "adapter=seq_bn"]).config)


@pytest.mark.parametrize("change", [(), ("composition={stack: [lang, {parallel: [cola, mrpc]}]}",)])
def test_a_written_config_can_be_read_again(write, change):
    run = compose([write(), *change])
    for text in (config_yaml(run.config), annotated_yaml(run)):
        values = yaml.safe_load(text)
        assert values["composition"] == run.config.composition
        del values["recipe"]
        again = compose([write(yaml.safe_dump(values), "again")])
        assert run_hash(again.config) == run_hash(run.config)
        assert again.config.adapters == run.config.adapters


def test_the_composition_is_printed_as_written(write):
    written = "stack( lang,parallel(cola ,mrpc) )"
    run = compose([write(), f"composition={written}"])
    assert run.config.composition == written
    assert f"composition: {written} " in annotated_yaml(run)
    mapping = "composition:\n  stack:\n    - lang\n    - parallel: [cola, mrpc]\n"
    run = compose([write(RECIPE.replace("composition: stack(lang, parallel(cola, mrpc))\n", mapping))])
    assert run.config.composition == {"stack": ["lang", {"parallel": ["cola", "mrpc"]}]}
    assert str(run.origin("composition")) == "recipes/mine.yaml:5"
    assert "\ncomposition:\n  stack: [lang, {parallel: [cola, mrpc]}]" in annotated_yaml(run)


def test_a_choice_replaces_what_another_file_said(write):
    write("composition: {stack: [b, verdict]}\nadapters:\n  b: {adapter: {method: lora, r: 2}, task: '???'}\n", "base")
    child = "defaults:\n  - base\ncomposition: {average: [b, verdict]}\nadapters:\n  b: {adapter: seq_bn, task: null}\n"
    run = compose([write(child), "adapters.b.adapter.reduction_factor=4"])
    assert run.config.composition == {"average": ["b", "verdict"]}
    adapter = run.config.adapters["b"].adapter
    assert adapter is not None and (adapter["method"], adapter["reduction_factor"], "r" in adapter) == (
        "bottleneck",
        4.0,
        False,
    )


# ---- the command line


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("composition=stack(a, verdict)", "stack(a, verdict)"),
        ("+composition=stack(a,verdict)", "stack(a,verdict)"),
        ("composition='stack(a, verdict)'", "stack(a, verdict)"),
        ("composition=stack('a', \"verdict\")", "stack('a', \"verdict\")"),
        ("composition=average(a, verdict, weights=[1, 2])", "average(a, verdict, weights=[1, 2])"),
        ("composition={stack: [a, verdict]}", {"stack": ["a", "verdict"]}),
        ("composition={average: [a, verdict], weights: [1, 2]}", {"average": ["a", "verdict"], "weights": [1, 2]}),
        ("composition=stack (a, verdict)", "stack (a, verdict)"),
    ],
)
def test_an_expression_needs_no_second_quotes(argument, expected):
    assert compose([argument, "adapters.a.path=outputs/x/1234"]).config.composition == expected


def test_entries_are_set_and_dropped(write):
    run = compose([write(), "~adapters.lang", "composition=parallel(cola, mrpc)", "adapters.mrpc.task=rte"])
    entry = run.config.adapters["mrpc"]
    assert list(run.config.adapters) == ["mrpc"]
    assert entry.task is not None and entry.task.name == "rte"
    run = compose(["composition=parallel(b, verdict)", "adapters.b={adapter: seq_bn, trainer: {epochs: 2}}"])
    entry = run.config.adapters["b"]
    assert entry.adapter is not None and entry.adapter["method"] == "bottleneck"
    assert entry.trainer is not None and entry.trainer.epochs == 2


def test_a_sweep_is_cut_at_the_outer_commas():
    words = "composition=average(a,verdict),stack(a, verdict),{stack: [verdict, a]}"
    runs = plan([words, "adapters.a.adapter=lora,seq_bn", "adapters.a.adapter.dropout=0"]).runs
    assert [(run.config.composition, (run.config.adapters["a"].adapter or {})["method"]) for run in runs] == [
        (composition, method)
        for composition in ("average(a,verdict)", "stack(a, verdict)", {"stack": ["verdict", "a"]})
        for method in ("lora", "bottleneck")
    ]


# ---- fusion


@pytest.mark.parametrize(
    ("more", "temperature", "value"),
    [
        ("", False, True),
        ("fusion: dynamic\n", False, True),
        ("fusion: static\n", False, False),
        ("fusion: {temperature: true}\n", True, True),
    ],
)
def test_a_fusion_is_completed(write, more, temperature, value):
    run = compose([write(FUSE + more)])
    fusion = run.config.fusion
    assert isinstance(fusion, dict)
    assert (fusion["temperature"], fusion["value"], "method" in fusion) == (temperature, value, False)
    assert complete_members(run.config).fusion == fusion
    again = yaml.safe_load(config_yaml(run.config))
    del again["recipe"]
    assert run_hash(compose([write(yaml.safe_dump(again), "again")]).config) == run_hash(run.config)


def test_equal_fusions_are_equal_runs(write):
    hashes = [run_hash(compose([write(FUSE), *more]).config) for more in ((), ("fusion=dynamic",), ("fusion=static",))]
    assert hashes[0] == hashes[1] != hashes[2]
