"""The branches of a composition: which rows go through which of its parts, and in what each branch ends."""

from __future__ import annotations

from collections.abc import Sequence

from adaptrain.composition import BatchSplit, Block, Composition, Fuse, MultiTask, Parallel, Stack, with_children

Rows = Sequence[int]
Tasks = Sequence[int] | None


def divide(block: Block, rows: Rows, tasks: Tasks) -> list[tuple[Rows, Tasks]]:
    """The rows that each child of a block gets, and their tasks: all of them where it does not divide rows.

    Raises:
        CompositionError: the sizes of a BatchSplit do not sum up to the rows.
    """
    count = len(block.children)
    if isinstance(block, MultiTask):
        assert tasks is not None
        chosen = [[at for at, task in enumerate(tasks) if task == index] for index in range(count)]
        return [([rows[at] for at in those], [tasks[at] for at in those]) for those in chosen]
    if not isinstance(block, Parallel | BatchSplit):
        return [(rows, tasks)] * count
    sizes = block.shares(len(rows), "rows") if isinstance(block, BatchSplit) else [len(rows) // count] * count
    parts = [slice(sum(sizes[:index]), sum(sizes[: index + 1])) for index in range(count)]
    return [(rows[part], None if tasks is None else tasks[part]) for part in parts]


def ends(tree: Composition) -> list[str | None]:
    """For each branch of rows that a composition ends in, the name that its head has: that of the adapter or the fusion
    it ends in, None for other blocks."""
    match tree:
        case str():
            return [tree]
        case Stack():
            return ends(tree.children[-1])
        case Fuse():
            return [tree.fusion]
        case Parallel() | BatchSplit() | MultiTask():
            return [name for child in tree.children for name in ends(child)]
        case _:
            return [None]


def outlets(tree: Composition, rows: Rows, tasks: Tasks) -> list[list[int]]:
    """The rows that come out of each branch of `ends`.

    Args:
        rows: that go in, as they are numbered in what the model is given, repetitions for Parallel included.
        tasks: of each of these rows, where there is a MultiTask.
    """
    if isinstance(tree, Stack):
        return outlets(tree.children[-1], rows, tasks)
    if not isinstance(tree, Parallel | BatchSplit | MultiTask):
        return [list(rows)]
    shares = zip(tree.children, divide(tree, rows, tasks), strict=True)
    return [found for child, share in shares for found in outlets(child, *share)]


def expanded(tree: Composition | None, times: int) -> Composition | None:
    """The composition over rows each of which stands there `times` times, one behind the other."""
    if times == 1 or not isinstance(tree, Block):
        return tree
    copy = with_children(tree, [child for each in tree.children if (child := expanded(each, times)) is not None])
    if isinstance(copy, BatchSplit):
        return BatchSplit(*copy.children, sizes=[None if size is None else size * times for size in copy.sizes])
    return copy


def put(new: Composition, block: Block, tree: Composition) -> Composition:
    """A composition with something else in the place of one of its blocks, the very object."""
    if tree is block:
        return new
    if isinstance(tree, str):
        return tree
    return with_children(tree, [put(new, block, child) for child in tree.children])
