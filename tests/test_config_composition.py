"""`composition`, `adapters` and `fusion` of a run: what is legal, what it becomes, and every mistake with its place."""

from __future__ import annotations

import pytest
import yaml

from adaptrain.config.compose import compose
from adaptrain.config.composition import complete_members, members_of
from adaptrain.config.render import annotated_yaml
from adaptrain.config.schema import MemberConfig
from adaptrain.config.sweep import plan
from adaptrain.errors import ConfigError
from adaptrain.reporting.folder import run_hash
from adaptrain.training.run import config_yaml

RECIPE = """\
# adaptrain train recipe=mine
defaults:
  - override /task: cola
composition: stack(lang, parallel(cola, mrpc))
adapters:
  lang:
    path: outputs/lang/1234
    leave_out: [0]
  mrpc:
    adapter: seq_bn
    task: mrpc
    seed: 3
    trainer:
      learning_rate: 1e-3
"""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes").mkdir()
    return tmp_path


@pytest.fixture
def write(folder):
    def write(text: str = RECIPE, name: str = "mine") -> str:
        (folder / "recipes" / f"{name}.yaml").write_text(text)
        return f"recipe={name}"

    return write


def problems(*overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        compose(overrides)
    return caught.value.problems


# What it becomes


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


# The command line


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


# Fusion

FUSE = "composition: fuse(a, b)\nadapters:\n  a: {path: x}\n  b: {path: y}\n"


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


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (
            "fusion: dynamik\n",
            "fusion (recipes/mine.yaml:5): is 'dynamik', but one of static, dynamic or a mapping is due, did",
        ),
        (
            "fusion: {temprature: true}\n",
            "fusion.temprature (recipes/mine.yaml:5): method fusion has no key 'temprature', did",
        ),
        ("fusion: {dropout_prob: 2}\n", "fusion.dropout_prob (recipes/mine.yaml:5): is 2.0; it must lie in [0, 1)"),
        (
            "fusion: [2]\n",
            "fusion (recipes/mine.yaml:5): is [2], but one of static, dynamic or a mapping is due",
        ),
    ],
)
def test_a_wrong_fusion(write, more, says):
    (found,) = problems(write(FUSE + more))
    assert found.startswith(says)


# Mistakes


def test_all_mistakes_at_once_with_their_places(write):
    text = (
        RECIPE.replace("leave_out", "leaveout")
        .replace("parallel(cola", "parallel(colla")
        .replace("learning_rate", "learnin_rate")
        .replace("adapter: seq_bn", "adapter: seq_bm")
    )
    found = problems(write(text), "adapters.mrpc.adapter.reduction_factor=0", "adapters.x.path=y", "seed=x")
    expected = (
        "adapters.mrpc.adapter (recipes/mine.yaml:10): there is no adapter 'seq_bm', did you mean 'seq_bn'?",
        "composition (recipes/mine.yaml:4): names 'colla', which is neither the task's name nor in adapters, did you",
        "adapters.lang.leaveout (recipes/mine.yaml:8): adapters.lang has no key 'leaveout', did you mean 'leave_out'?",
        "adapters.mrpc.adapter.reduction_factor (command line): is 0",
        "adapters.mrpc.trainer.learnin_rate (recipes/mine.yaml:14): adapters.mrpc.trainer has no key 'learnin_rate'",
        "adapters.x (command line): the composition does not name it; drop it with '~adapters.x'",
        "seed (command line): is 'x', but a whole number is due",
    )
    for text in expected:
        assert sum(problem.startswith(text) for problem in found) == 1, (text, found)
    assert len(found) == len(expected), found
    assert "did you mean 'cola'; there are: cola (the task), lang, mrpc, x" in "".join(found)


@pytest.mark.parametrize(
    ("composition", "says"),
    [
        ("stack(a, verdict", "at column 6: '(' was never closed"),
        ("stak(a, verdict)", "there is no block 'stak', did you mean 'stack'?"),
        (
            "stack(a, verdct)",
            "names 'verdct', which is neither the task's name nor in adapters, did you mean 'verdict'",
        ),
        (
            "average(a, verdict, weigths=[1, 2])",
            "and is given weigths, did you mean 'weights'?",
        ),
        ("split(a, verdict)", "takes the options sizes, and is given (none)"),
        ("{stak: [a, verdict]}", "did you mean 'stack'?"),
        ("average(a, verdict, weights=[1])", "average: 1 weights for 2 children"),
        ("parallel(stack(a, verdict), verdict)", "has two branches that end in 'verdict'"),
        ("parallel(a, batchsplit(a, verdict, sizes=[1, 1]))", "has parallel and batchsplit; a run can train one"),
        ("average(a, parallel(a, verdict))", "has parallel inside another block"),
        ("stack(parallel(a, verdict), a)", "has parallel inside another block, or before the end of a stack"),
        ("[a, verdict]", "write an expression such as stack(a, b), or a mapping"),
        ("", "the composition is empty"),
    ],
)
def test_a_wrong_composition(write, composition, says):
    written = composition if composition[:1] in ("[", "{") else repr(composition)
    text = f"# one\ncomposition: {written}\nadapters:\n  a: {{}}\n"
    (found,) = problems(write(text))
    assert found.startswith("composition (recipes/mine.yaml:2): ")
    assert says in found


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ("path: x, adapter: lora", "a.adapter: stands beside path: a saved adapter has its own config"),
        ("path: ''", "a.path: is empty; give a folder or a hub id"),
        ("path: '???'", "a.path: is still to be given: adapters.a.path=…"),
        ("revision: main", "a.revision: is of a hub id, and there is no path"),
        ("leave_out: [0]", "a.leave_out: is for a saved adapter; of a fresh one it is a key of adapter"),
        ("path: x, leave_out: [-1]", "a.leave_out: is [-1]; layers count from 0"),
        ("train: maybe", "a.train: is 'maybe', but true or false or null is due"),
        ("r: 4", "a.r: adapters.a has no key 'r'; it belongs to adapters.a.adapter. The keys are: path,"),
        (
            "learning_rate: 1",
            "a.learning_rate: adapters.a has no key 'learning_rate'; it belongs to adapters.a.trainer",
        ),
        ("adapter: {r: 4}", "a.adapter.method: is missing; the methods are:"),
        ("adapter: ./none.yaml", "a.adapter: there is no file ./none.yaml; correct the path"),
        ("adapter: xyz", "a.adapter: there is no adapter 'xyz'."),
        (
            "task: cola",
            "a.task: is for a branch, the last adapter of a child of parallel, batchsplit or multitask; this",
        ),
        ("seed: 1", "a.seed: is for a branch"),
        ("trainer: {epochs: 1}", "a.trainer: is for a branch"),
    ],
)
def test_a_wrong_entry(write, entry, says):
    (found,) = problems(write(f"# one\ncomposition: stack(a, verdict)\nadapters:\n  a: {{{entry}}}\n"))
    assert found.replace(" (recipes/mine.yaml:4)", "").startswith(f"adapters.{says}"), found
    assert "mine.yaml:4" in found


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ("task: colla", "a.task: there is no task 'colla', did you mean 'cola'?"),
        ("task: {name: x}", "a.task.type: is missing"),
        ("seed: -1", "a.seed: is -1; it must lie in [0, 2^32)"),
        ("trainer: fast", "a.trainer: is one value, but a section is due, with the keys: epochs,"),
        ("trainer: {micro_batch_size: 64}", "a.trainer.micro_batch_size: is 64, more than batch_size 32"),
        ("trainer: {device: cuda}", "a.trainer.device: cannot be a branch's own: all branches go through one forward"),
        ("trainer: {epochs: 0}", "a.trainer.epochs: is 0; it must be at least 1"),
    ],
)
def test_a_wrong_branch(write, entry, says):
    found = problems(write(f"composition: parallel(a, verdict)\nadapters:\n  a: {{{entry}}}\n"), "trainer.device=cpu")
    assert any(problem.replace(" (recipes/mine.yaml:3)", "").startswith(f"adapters.{says}") for problem in found), found


def test_what_one_optimiser_cannot_keep_apart(write):
    text = "composition: batchsplit(a, verdict, sizes=[1, 1])\nadapters:\n  a: {seed: 1, trainer: {epochs: 2}}\n"
    found = problems(write(text))
    assert [problem.split(":")[0] for problem in found] == [
        "adapters.a.seed (recipes/mine.yaml",
        "adapters.a.trainer (recipes/mine.yaml",
    ]
    assert all("one optimiser trains all branches of batchsplit" in problem for problem in found)


def test_a_task_of_another_than_the_run_under_its_name(write):
    (found,) = problems(write("composition: parallel(a, verdict)\nadapters: {a: {}, verdict: {task: cola}}\n"))
    assert found.startswith("adapters.verdict.task (recipes/mine.yaml:2): is not the run's task")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("adapters: {b: {path: x}}\n", "adapters.b (recipes/mine.yaml:1): there is no composition that names it"),
        ("adapters: [{path: x}]\n", "adapters (recipes/mine.yaml:1): is no mapping"),
        ("adapters: b\n", "adapters (recipes/mine.yaml:1): is no mapping"),
        ("composition: stack(b, verdict)\nadapters: {b: x}\n", "adapters.b (recipes/mine.yaml:2): is one value, but a"),
        ("adapters: {a.b: {path: x}}\n", "adapters.a.b (recipes/mine.yaml:1): cannot be a name: no dots"),
        ("fusion: dynamic\n", "fusion (recipes/mine.yaml:1): is for a composition with fuse(…), and there is none"),
        ("adaptors: {}\n", "adaptors (recipes/mine.yaml:1): there is no key 'adaptors', did you mean 'adapters'?"),
        ("compositon: stack(a, b)\n", "there is no key 'compositon', did you mean 'composition'?"),
    ],
)
def test_keys_in_the_wrong_place(write, text, says):
    (found,) = problems(write(text))
    assert says in found
