"""What a composition does to a state: the one interpreter of compositions in the program.

A composition is parsed and checked once, when it is activated; evaluating it has nothing left to check but sizes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TypeVar

from adaptrain.composition import (
    BLOCKS,
    Average,
    BatchSplit,
    Composition,
    Fuse,
    MultiTask,
    Parallel,
    Split,
    Stack,
    with_children,
)
from adaptrain.errors import CompositionError
from adaptrain.state import State

S = TypeVar("S", bound=State)


@dataclass(frozen=True, init=False)
class Absent(Stack):
    """What has no unit at a point, where it keeps its share of the state: a stack of nothing, which is the identity.
    Users cannot make it; pruning does.

    Attributes:
        was: as it was written, for messages.
    """

    was: Composition

    def __init__(self, was: Composition) -> None:
        object.__setattr__(self, "children", ())
        object.__setattr__(self, "was", was)

    def __str__(self) -> str:
        return str(Stack(self.was))[len("stack(") : -1]


del BLOCKS["absent"]


def evaluate(tree: Composition, state: S, apply: Callable[[str, S], S], fuse: Callable[[Fuse, S], S]) -> S:
    """Run a composition over a state.

    Args:
        tree: the composition, pruned to the adapters that have a unit here.
        state: what flows at this point; divided and joined along rows and positions.
        apply: one adapter on one state.
        fuse: AdapterFusion of its children; methods that have none raise at activation, not here.

    Raises:
        CompositionError: sizes that do not sum up to what there is to divide.
    """
    if isinstance(tree, str):
        return apply(tree, state)

    def run(child: Composition, piece: S) -> S:
        return evaluate(child, piece, apply, fuse)

    children = tree.children
    match tree:
        case Stack():
            for child in children:
                state = run(child, state)
            return state
        case Parallel():
            pieces = state.split_rows([state.rows // len(children)] * len(children))
            return state.join_rows(list(map(run, children, pieces)))
        case BatchSplit():
            pieces = state.split_rows(tree.shares(state.rows, "rows"))
            return state.join_rows(list(map(run, children, pieces)))
        case MultiTask():
            assert state.tasks is not None  # refused before the forward
            order, counts, back = _sorted(state.tasks, len(children))
            ordered = state.take_rows(order)
            joined = ordered.join_rows(list(map(run, children, ordered.split_rows(counts))))
            return joined.take_rows(back)
        case Split():
            if state.earlier is None:
                pieces = state.split_positions(tree.shares(state.positions, "positions"))
            else:
                windows = tree.windows(state.earlier, state.positions)
                whole = state.split_positions([size for _, size in windows])
                pieces = [replace(piece, earlier=each) for piece, (each, _) in zip(whole, windows, strict=True)]
            return state.join_positions(list(map(run, children, pieces)))
        case Average():
            return state.weigh([run(child, state) for child in children], tree.shares())
        case Fuse():
            return fuse(tree, state)
        case _:
            raise CompositionError(f"{type(tree).__name__} is not a block that can be evaluated")


@lru_cache(maxsize=64)
def _sorted(tasks: tuple[int, ...], children: int) -> tuple[Sequence[int], Sequence[int], Sequence[int]]:
    """The rows in the order of their tasks, how many each task has, and the order that undoes the first."""
    order = sorted(range(len(tasks)), key=tasks.__getitem__)
    return order, [tasks.count(task) for task in range(children)], sorted(range(len(order)), key=order.__getitem__)


def prune(tree: Composition, present: Callable[[str], bool]) -> Composition | None:
    """The composition without the adapters that have no unit at a point; None where nothing is left to do.

    Blocks that give each child a share of the state keep their place for a missing child, so that the shares stay where
    they are. A fusion pays attention to those of its children that are there.
    """
    if isinstance(tree, str):
        return tree if present(tree) else None
    children = [prune(child, present) for child in tree.children]
    kept = [child for child in children if child is not None]
    if not kept:
        return None
    if isinstance(tree, Stack):
        return kept[0] if len(kept) == 1 else Stack(*kept)
    if isinstance(tree, Fuse):
        return Fuse(*kept, name=tree.fusion)
    whole = zip(tree.children, children, strict=True)
    return with_children(tree, [Absent(was) if child is None else child for was, child in whole])


def mirror(tree: Composition) -> Composition:
    """The composition that undoes what this one does: stacks in reverse order."""
    if isinstance(tree, str):
        return tree
    children = [mirror(child) for child in tree.children]
    return with_children(tree, children[::-1] if isinstance(tree, Stack) else children)
