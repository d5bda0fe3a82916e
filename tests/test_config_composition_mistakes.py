"""`composition`, `adapters` and `fusion` of a run: every mistake, with its place."""

from __future__ import annotations

import pytest

from adaptrain.config.compose import compose
from adaptrain.errors import ConfigError
from composed_recipes import FUSE, RECIPE, recipe_writer


@pytest.fixture(autouse=True)
def write(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return recipe_writer(tmp_path)


def problems(*overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        compose(overrides)
    return caught.value.problems


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
        "seed (command line): is 'x'; it must be a whole number",
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
        ("[a, verdict]", "write an expression such as stack(a, verdict), or a mapping such as {stack: [a, verdict]}"),
        ("[{stack: [a, verdict]}]", "write an expression such as stack(a, b), or a mapping"),
        ("{stack: [[a], verdict]}", "write a list as a block, such as stack(a, b)"),
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
        ("path: x, adapter: lora", "a.adapter: is given together with path: a saved adapter has its own config"),
        ("path: ''", "a.path: is empty; give a folder or a hub id"),
        ("path: '???'", "a.path: has no value yet; set it by adapters.a.path=…"),
        ("revision: main", "a.revision: is of a hub id, and there is no path"),
        ("leave_out: [0]", "a.leave_out: is for a saved adapter; of a fresh one it is a key of adapter"),
        ("path: x, leave_out: [-1]", "a.leave_out: is [-1]; layers count from 0"),
        ("train: maybe", "a.train: is 'maybe'; it must be true or false or null"),
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
        ("trainer: fast", "a.trainer: is one value; it must be a mapping with the keys: epochs,"),
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
        ("adapters: [{path: x}]\n", "adapters (recipes/mine.yaml:1): is not a mapping"),
        ("adapters: b\n", "adapters (recipes/mine.yaml:1): is not a mapping"),
        (
            "composition: stack(b, verdict)\nadapters: {b: x}\n",
            "adapters.b (recipes/mine.yaml:2): is one value",
        ),
        ("adapters: {a.b: {path: x}}\n", "adapters.a.b (recipes/mine.yaml:1): cannot be a name: no dots"),
        ("fusion: dynamic\n", "fusion (recipes/mine.yaml:1): is for a composition with fuse(…), and there is none"),
        ("adaptors: {}\n", "adaptors (recipes/mine.yaml:1): there is no key 'adaptors', did you mean 'adapters'?"),
        ("compositon: stack(a, b)\n", "there is no key 'compositon', did you mean 'composition'?"),
    ],
)
def test_keys_in_the_wrong_place(write, text, says):
    (found,) = problems(write(text))
    assert says in found


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (
            "fusion: dynamik\n",
            "fusion (recipes/mine.yaml:5): is 'dynamik', did you mean 'dynamic'?",
        ),
        (
            "fusion: {temprature: true}\n",
            "fusion.temprature (recipes/mine.yaml:5): method fusion has no key 'temprature', did",
        ),
        ("fusion: {dropout_prob: 2}\n", "fusion.dropout_prob (recipes/mine.yaml:5): is 2.0; it must lie in [0, 1)"),
        (
            "fusion: [2]\n",
            "fusion (recipes/mine.yaml:5): is [2]. It must be one of static, dynamic",
        ),
    ],
)
def test_a_wrong_fusion(write, more, says):
    (found,) = problems(write(FUSE + more))
    assert found.startswith(says)
