"""Compositions: reading, printing, and looking at trees."""

from __future__ import annotations

import pickle

import pytest

from adaptrain.composition import (
    Average,
    BatchSplit,
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


@pytest.mark.parametrize(
    ("given", "tree"),
    [
        (["a"], "a"),
        (["a", "b"], Stack("a", "b")),
        (("a", "b"), Stack("a", "b")),
        (["a", ["b", "c"]], Stack("a", Fuse("b", "c"))),
        ([["b", "c"]], Fuse("b", "c")),
        (["a", Parallel("b", "c")], Stack("a", Parallel("b", "c"))),
        (["a", "parallel(b, c)"], Stack("a", Parallel("b", "c"))),
        (["a", {"parallel": ["b", "c"]}], Stack("a", Parallel("b", "c"))),
    ],
    ids=str,
)
def test_a_list_is_a_stack_and_a_list_in_it_a_fusion(given, tree):
    """As in the reference library."""
    assert parse(given) == tree


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
        ([], "empty.*None for the base model"),
        (["a", 4], "not 4"),
        ([["a", ["b"]], "c"], "with blocks"),
        (7, "a list of adapter names, not 7"),
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
