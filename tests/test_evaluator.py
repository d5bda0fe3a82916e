"""The evaluator over a toy state: what each block computes, which rows end where, and what pruning leaves."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from adaptrain.branches import ends, outlets
from adaptrain.composition import Average, BatchSplit, Block, Fuse, MultiTask, Parallel, Split, Stack, parse
from adaptrain.errors import CompositionError
from adaptrain.evaluator import evaluate, mirror, prune
from adaptrain.state import State


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


# ---- what a block computes


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


def test_one_child_with_a_weight_keeps_it():
    tree = Average("a", weights=[0.5], normalize_weights=False)
    out = evaluate(parse(tree), Toy(torch.ones(1, 1, 1), ("",)), lambda name, state: state, lambda *_: None)
    assert out.h.item() == 0.5


def test_a_stack_keeps_what_is_not_a_tensor():
    out = evaluate(Stack("a", "b"), Toy(torch.ones(1, 1, 1)), apply, fuse)
    assert out.trace == ("a", "b")


def test_an_unknown_block_is_refused():
    class Strange(Block):
        pass

    from adaptrain.composition import BLOCKS

    del BLOCKS["strange"]
    with pytest.raises(CompositionError, match="Strange is not a block"):
        ran(Strange("a"))


def test_what_is_undone_is_undone_in_reverse():
    assert mirror(Stack("a", Parallel(Stack("b", "c"), "d"))) == Stack(Parallel(Stack("c", "b"), "d"), "a")


# ---- rows, their tasks and their ends


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


# ---- pruning


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


def test_a_fusion_keeps_its_name_when_children_are_missing():
    pruned = prune(Fuse("a", Stack("x", "b"), "c"), lambda name: name in "ab")
    assert pruned == Fuse("a", "b", name="a,b,c")


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
