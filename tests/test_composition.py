"""Compositions: reading, printing, pruning, and the evaluator over a toy state."""

from __future__ import annotations

import pickle
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from adaptrain.branches import ends, outlets
from adaptrain.composition import (
    Average,
    BatchSplit,
    Block,
    Fuse,
    MultiTask,
    Parallel,
    Split,
    Stack,
    blocks,
    check_adapters,
    names,
    parse,
    width,
)
from adaptrain.errors import CompositionError
from adaptrain.evaluator import evaluate, mirror, prune
from adaptrain.state import State

TREES = [
    "a",
    Stack("a", "b"),
    Stack("a", "b", "a"),
    Fuse("a", "b"),
    Fuse("a", "b", name="mine"),
    Fuse("a"),
    Split("a", "b", sizes=[3, 0]),
    Split("a", "b", sizes=[3, None]),
    MultiTask("a", Stack("b", "c")),
    BatchSplit("a", "b", "c", sizes=[1, 2, 3]),
    Parallel("a", "b"),
    Average("a", "b"),
    Average("a", "b", weights=[0.25, 0.75]),
    Stack("lang", Parallel("sst2", Stack("mrpc", Average("x", "y")))),
    Stack("en.wiki", "de,at", "a b", "1st", "ünïcode", "it's", 'say "x"', "f(x)"),
]


# ---- reading and printing


@pytest.mark.parametrize("tree", TREES, ids=str)
def test_what_is_printed_is_read_back(tree):
    assert parse(str(tree)) == tree
    assert parse(tree) == tree


@pytest.mark.parametrize(
    ("text", "tree"),
    [
        ("a", "a"),
        ("  a ", "a"),
        ("'a'", "a"),
        ('"a b"', "a b"),
        ("en.wiki", "en.wiki"),
        ("1st", "1st"),
        ("stack(a, b)", Stack("a", "b")),
        ("Stack(a,b)", Stack("a", "b")),
        ("BatchSplit(a, b, sizes=[1, 2])", BatchSplit("a", "b", sizes=[1, 2])),
        ("batchsplit(a, b, sizes=(1, 2))", BatchSplit("a", "b", sizes=[1, 2])),
        ("stack('en.wiki', \"x\")", Stack("en.wiki", "x")),
        ("stack(a,\n  parallel(b, c))", Stack("a", Parallel("b", "c"))),
        ("average(a, b, weights=[1, 3])", Average("a", "b", weights=[1, 3])),
        ("fuse(a, b, name='f')", Fuse("a", "b", name="f")),
        ("split(a, b, sizes=[1, null])", Split("a", "b", sizes=[1, None])),
        ("average(a, b, weights=[2, 1])", Average("a", "b", weights=[2, 1])),
        (None, None),
        ({"stack": ["a", {"parallel": ["b", "c"]}]}, Stack("a", Parallel("b", "c"))),
        ({"split": ["a", "b"], "sizes": [8, 4]}, Split("a", "b", sizes=[8, 4])),
        ({"Average": ["a", "b"], "weights": [1, 1]}, Average("a", "b", weights=[1, 1])),
        ({"stack": ["en.wiki", "f(x)"]}, Stack("en.wiki", "f(x)")),
    ],
    ids=str,
)
def test_reading(text, tree):
    assert parse(text) == tree


@pytest.mark.parametrize(
    ("tree", "simple"),
    [
        ("stack(a)", "a"),
        (Stack(Stack("a")), "a"),
        (Parallel("a"), "a"),
        (Average("a"), "a"),
        (Split("a", sizes=[4]), "a"),
        (Stack(Parallel("a"), "b"), Stack("a", "b")),
        (Fuse("a"), Fuse("a")),  # a fusion of one still attends
        ({"stack": [{"parallel": ["a"]}, "b"]}, Stack("a", "b")),
    ],
    ids=str,
)
def test_a_block_of_one_child_is_that_child(tree, simple):
    assert parse(tree) == simple


@pytest.mark.parametrize("word", ["is", "as", "or", "in", "None", "True", "class", "lambda"])
def test_names_that_are_words_of_python_are_printed_readably(word):
    """Icelandic, Assamese and Odia are is, as and or."""
    assert parse(str(Stack(word, "b"))) == Stack(word, "b")


@pytest.mark.parametrize("name", ["e\u0301", "\ufb01nnish"], ids=["accent", "ligature"])
def test_names_in_another_normal_form_are_printed_readably(name):
    assert parse(str(Stack(name, "b"))) == Stack(name, "b")


def test_weights_that_do_not_sum_to_one_are_printed_readably():
    tree = Average("a", "b", weights=[1, 1], normalize_weights=False)
    assert parse(str(tree)) == tree


def test_uneven_weights_are_printed_readably():
    tree = Average("a", "b", "c", weights=[0.8450547127448372, 0.09631780018695946, 0.6623200231252581])
    assert parse(str(tree)) == tree


def test_weights_are_printed_as_they_were_written():
    assert str(parse("average(a, b, weights=[2, 1])")) == "average(a, b, weights=[2, 1])"


def test_one_child_with_a_weight_keeps_it():
    tree = Average("a", weights=[0.5], normalize_weights=False)
    out = evaluate(parse(tree), Toy(torch.ones(1, 1, 1), ("",)), lambda name, state: state, lambda *_: None)
    assert out.h.item() == 0.5


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("", "The composition is empty"),
        ("   ", "The composition is empty"),
        ("stack(a", r"Cannot read the composition 'stack\(a' at column"),
        ("stack(a b)", "names that are not plain words need quotes"),
        ("stak(a, b)", r"There is no block 'stak', did you mean 'stack'\?.*split"),
        ("stack()", r"Stack\(\) has no adapter; name at least one"),
        ("stack(a, 3)", "'3' in 'stack\\(a, 3\\)' is neither an adapter name nor a block"),
        ("stack(a, x.y)", "'x.y' .* is neither"),
        ("stack(a, [b])", r"'\[b\]' .* is neither"),
        ("split(a, b)", "split\\(\\) takes the options sizes, and is given"),
        ("stack(a, b, sizes=[1, 2])", "stack\\(\\) takes the options \\(none\\), and is given sizes"),
        ("split(a, b, sizes=[1])", r"Split: sizes is \[1\]; give one for each of the 2 children"),
        (
            "batchsplit(a, b, sizes=[1, -2])",
            r"BatchSplit: sizes are whole numbers from 0 up, or None for the rest, not \[1, -2\]",
        ),
        ("split(a, b, sizes=[1.5, 2])", "whole numbers"),
        ("split(a, b, sizes=n)", "plain numbers, lists or words"),
        ("average(a, b, weights=[1])", "Average: 1 weights for 2 children"),
        ("average(a, b, weights=[1, -1])", "the weights sum to 0; give normalize_weights=False"),
        (["a", "b"], "expression or a mapping"),
        (7, "expression or a mapping, not 7"),
        ({}, "A block is one of stack, fuse, split, batchsplit, parallel, average, multitask"),
        ({"stak": ["a"]}, "A block is one of .*'stak'"),
        ({"stack": ["a"], "parallel": ["b"]}, "A block is one of"),
        ({"stack": "a"}, "stack: needs a list of children, not 'a'"),
        ({"stack": ["a", 4]}, "children are adapter names or blocks"),
        ({"stack": ["a", "b"], "size": 3}, "takes the options \\(none\\), and is given size"),
    ],
    ids=str,
)
def test_what_cannot_be_read_is_refused_with_the_reason(given, message):
    with pytest.raises(CompositionError, match=message):
        parse(given)


@pytest.mark.parametrize("block", [Stack, Fuse, Parallel, Average])
def test_blocks_need_children_that_are_names_or_blocks(block):
    with pytest.raises(CompositionError, match=rf"{block.__name__}\(\) has no adapter"):
        block()
    with pytest.raises(CompositionError, match=rf"{block.__name__}\(None, …\): children are"):
        block(None)


def test_blocks_are_values():
    tree = Stack("a", Average("b", "c", weights=[1, 3]))
    assert tree == Stack("a", Average("b", "c", weights=[1, 3])) != Stack("a", Average("b", "c", weights=[3, 1]))
    assert Stack("a", "b") != Parallel("a", "b")
    assert len({tree, Stack("a", Average("b", "c", weights=[1, 3])), Stack("a")}) == 2
    assert pickle.loads(pickle.dumps(tree)) == tree
    with pytest.raises(AttributeError):
        tree.children = ()  # type: ignore[misc]


# ---- looking at trees


def test_names_and_blocks():
    tree = Stack("a", Parallel("b", Stack("a", "c")))
    assert tree.names == names(tree) == ("a", "b", "c")
    assert names("x") == ("x",)
    assert names(None) == ()
    assert [block.word for block in blocks(tree)] == ["stack", "parallel", "stack"]
    assert list(blocks("x")) == list(blocks(None)) == []


@pytest.mark.parametrize(
    ("tree", "copies"),
    [
        (None, 1),
        ("a", 1),
        (Stack("a", "b"), 1),
        (BatchSplit("a", "b", sizes=[1, 1]), 1),
        (Parallel("a", "b", "c"), 3),
        (Stack("a", Parallel("b", "c")), 2),
        (Stack(Parallel("a", "b"), Parallel("c", "d")), 2),
        (Parallel(Parallel("a", "b"), "c"), 4),
        (Parallel("a", Stack("b", Parallel("c", "d", "e"))), 6),
    ],
    ids=str,
)
def test_width_is_how_often_the_inputs_are_repeated(tree, copies):
    assert width(tree) == copies


def test_check_names_the_unknown_adapter_its_place_and_the_nearest():
    check_adapters(Stack("a", "b"), ["a", "b"])
    check_adapters(None, [])
    with pytest.raises(CompositionError, match=r"stack\(a, sst\).*'sst', did you mean 'sst2'\?.*a, sst2"):
        check_adapters(Stack("a", "sst"), ["a", "sst2"])
    with pytest.raises(CompositionError, match=r"no adapter 'x'.*The model has: \(none\)"):
        check_adapters("x", [])


@pytest.mark.parametrize(
    ("tree", "present", "left"),
    [
        ("a", "", None),
        ("a", "a", "a"),
        (Stack("a", "b"), "b", "b"),
        (Stack("a", "b", "c"), "ac", Stack("a", "c")),
        (Stack("a", "b"), "", None),
        (Stack("a", Stack("b", "c")), "a", "a"),
        (Parallel("a", "b"), "", None),
        (Stack("x", Parallel("a", "b")), "x", "x"),
    ],
    ids=str,
)
def test_prune_leaves_what_has_a_unit(tree, present, left):
    assert prune(tree, lambda name: name in present) == left


# ---- the evaluator


@dataclass(frozen=True)
class Toy(State):
    """h (rows, positions, 1), and the trace of adapters that every application must keep in order."""

    h: Tensor
    trace: tuple[str, ...] = ()


FACTORS = {"a": 2.0, "b": 3.0, "c": 5.0}


def apply(name: str, state: Toy) -> Toy:
    """An affine map, so that order matters."""
    return replace(state, h=FACTORS[name] * state.h + len(name), trace=(*state.trace, name))


def fuse(tree: Fuse, state: Toy) -> Toy:
    return replace(state, h=state.h + sum(evaluate(child, state, apply, fuse).h for child in tree.children))


def ran(tree, rows: int = 4, positions: int = 6) -> tuple[Tensor, Tensor]:
    h = torch.arange(float(rows * positions)).view(rows, positions, 1)
    return h, evaluate(tree, Toy(h), apply, fuse).h


def a(h: Tensor) -> Tensor:
    return 2 * h + 1


def b(h: Tensor) -> Tensor:
    return 3 * h + 1


def c(h: Tensor) -> Tensor:
    return 5 * h + 1


@pytest.mark.parametrize(
    ("tree", "expected"),
    [
        ("a", a),
        (Stack("a"), a),
        (Stack("a", "b"), lambda h: b(a(h))),
        (Stack("b", "a"), lambda h: a(b(h))),
        (Stack("a", Stack("b", "c")), lambda h: c(b(a(h)))),
        (Parallel("a", "b"), lambda h: torch.cat([a(h[:2]), b(h[2:])])),
        (Stack("c", Parallel("a", "b")), lambda h: torch.cat([a(c(h[:2])), b(c(h[2:]))])),
        (Stack(Parallel("a", "b"), "c"), lambda h: torch.cat([c(a(h[:2])), c(b(h[2:]))])),
        (
            Parallel(Parallel("a", "b"), "c"),
            lambda h: torch.cat([a(h[:1]), b(h[1:2]), c(h[2:])]),
        ),
        (BatchSplit("a", "b", sizes=[1, 3]), lambda h: torch.cat([a(h[:1]), b(h[1:])])),
        (BatchSplit("a", "b", "c", sizes=[0, 3, 1]), lambda h: torch.cat([b(h[:3]), c(h[3:])])),
        (Split("a", "b", sizes=[2, 4]), lambda h: torch.cat([a(h[:, :2]), b(h[:, 2:])], 1)),
        (Split("a", "b", sizes=[6, 0]), a),
        (Split("a", "b", sizes=[2, None]), lambda h: torch.cat([a(h[:, :2]), b(h[:, 2:])], 1)),
        (BatchSplit("a", "b", "c", sizes=[1, None, 1]), lambda h: torch.cat([a(h[:1]), b(h[1:3]), c(h[3:])])),
        (
            Split("a", BatchSplit("b", "c", sizes=[2, 2]), sizes=[1, 5]),
            lambda h: torch.cat([a(h[:, :1]), torch.cat([b(h[:2, 1:]), c(h[2:, 1:])])], 1),
        ),
        (Average("a", "b"), lambda h: (a(h) + b(h)) / 2),
        (Average("a", "a"), a),
        (Average("a", "b", weights=[1, 0]), a),
        (Average("a", "b", weights=[1, 3]), lambda h: 0.25 * a(h) + 0.75 * b(h)),
        (Average("a", "b", weights=[1, -2], normalize_weights=False), lambda h: a(h) - 2 * b(h)),
        (Average(Stack("a", "b"), "c"), lambda h: (b(a(h)) + c(h)) / 2),
        (Fuse("a", "b"), lambda h: h + a(h) + b(h)),
        (Stack("c", Fuse("a", Stack("a", "b"))), lambda h: c(h) + a(c(h)) + b(a(c(h)))),
        (
            Parallel(Average("a", "b"), Split("a", "c", sizes=[3, 3])),
            lambda h: torch.cat([(a(h[:2]) + b(h[:2])) / 2, torch.cat([a(h[2:, :3]), c(h[2:, 3:])], 1)]),
        ),
    ],
    ids=lambda value: None if callable(value) else str(value),
)
def test_evaluation(tree, expected):
    h, out = ran(tree)
    assert torch.allclose(out, expected(h), rtol=1e-6)


@pytest.mark.parametrize("tasks", [(0, 1, 1, 0), (1, 1, 1, 1), (2, 0, 2, 1), (0, 0, 2, 2)])
def test_each_row_goes_through_its_own_task(tasks):
    h = torch.arange(24.0).view(4, 6, 1)
    whole = evaluate(MultiTask("a", Stack("a", "b"), "c"), Toy(h, tasks=tasks), apply, fuse)
    rows = [(a, lambda x: b(a(x)), c)[task](row) for task, row in zip(tasks, h, strict=True)]
    assert torch.equal(whole.h, torch.stack(rows)) and whole.tasks == tasks


def test_tasks_follow_their_rows():
    """Through repeats and shares: a multitask inside other blocks sees the tasks of its own rows."""
    h, tasks = torch.arange(24.0).view(4, 6, 1), (1, 0, 0, 1)
    tree = Parallel(MultiTask("a", "b"), Stack("c", BatchSplit(MultiTask("b", "c"), "a", sizes=[1, 1])))
    out = evaluate(tree, Toy(h, tasks=tasks), apply, fuse).h
    assert torch.equal(out, torch.stack([b(h[0]), a(h[1]), b(c(h[2])), a(c(h[3]))]))
    assert ends(tree) == ["a", "b", "b", "c", "a"]
    assert outlets(tree, range(4), tasks) == [[1], [0], [2], [], [3]]


def test_heads_follow_the_ends():
    assert ends("a") == ends(Stack("x", "a")) == ["a"]
    assert ends(Stack("x", Fuse("a", Stack("y", "b")))) == ["a,b"] and ends(Fuse("a", "b", name="f")) == ["f"]
    assert ends(Average("a", "b")) == ends(Split("a", "b", sizes=[1, None])) == [None]
    assert ends(Stack(Parallel("a", "b"), Parallel("c", "d"))) == ["c", "d"]
    assert ends(Stack(Parallel("a", "b"), "c")) == ["c"]
    assert outlets(Stack(Parallel("a", "b"), "c"), range(4), None) == [[0, 1, 2, 3]]
    assert outlets(Parallel("a", BatchSplit("b", "c", sizes=[None, 2])), range(6), None) == [[0, 1, 2], [3], [4, 5]]


def test_what_is_undone_is_undone_in_reverse():
    assert mirror(Stack("a", Parallel(Stack("b", "c"), "d"))) == Stack(Parallel(Stack("c", "b"), "d"), "a")


def test_a_fusion_keeps_its_name_when_children_are_missing():
    pruned = prune(Fuse("a", Stack("x", "b"), "c"), lambda name: name in "ab")
    assert pruned == Fuse("a", "b", name="a,b,c")


def test_a_stack_keeps_what_is_not_a_tensor():
    out = evaluate(Stack("a", "b"), Toy(torch.ones(1, 1, 1)), apply, fuse)
    assert out.trace == ("a", "b")


@pytest.mark.parametrize(
    ("tree", "expected"),
    [
        (Parallel("a", "b"), lambda h: torch.cat([a(h[:2]), h[2:]])),
        (Split("b", "a", sizes=[2, 4]), lambda h: torch.cat([h[:, :2], a(h[:, 2:])], 1)),
        (BatchSplit("b", "a", sizes=[3, 1]), lambda h: torch.cat([h[:3], a(h[3:])])),
        (Average("a", "b", weights=[1, 3]), lambda h: 0.25 * a(h) + 0.75 * h),
        (Stack("b", "a"), a),
        (Parallel(Stack("b", "c"), "a"), lambda h: torch.cat([h[:2], a(h[2:])])),
    ],
    ids=lambda value: None if callable(value) else str(value),
)
def test_an_adapter_without_a_unit_passes_its_share_on(tree, expected):
    h, out = ran(prune(tree, lambda name: name == "a"))
    assert torch.equal(out, expected(h))


def test_an_unknown_block_is_refused():
    class Strange(Block):
        pass

    from adaptrain.composition import BLOCKS

    del BLOCKS["strange"]
    with pytest.raises(CompositionError, match="Strange is not a block"):
        ran(Strange("a"))
