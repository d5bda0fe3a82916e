"""Which blocks can run over which adapters of a live model; asked when a composition is activated."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence

from adaptrain.composition import (
    Average,
    BatchSplit,
    Block,
    Composition,
    Fuse,
    MultiTask,
    Parallel,
    Split,
    Stack,
    blocks,
    last,
)
from adaptrain.errors import CompositionError, UnsupportedError, listed, unknown
from adaptrain.sites.base import Site


def refuse(
    tree: Composition | None,
    sites: Iterable[Site],
    methods: Mapping[str, str],
    fusions: Container[str],
    model_type: str,
) -> None:
    """Refuse a composition that has no meaning somewhere in this model.

    Args:
        methods: adapter name → its method.
        fusions: the names of the model's fusions.

    Raises:
        UnsupportedError: names the block, the methods, the model and the reason.
    """
    sites = list(sites)
    for block in blocks(tree):
        if isinstance(block, Stack):
            continue
        reason, found = _shape(block), block.names
        for site in sites:
            here = tuple(name for name in block.names if name in site.units)
            if not reason and here and (reason := _reason(block, site, fusions)):
                reason, found = f"{reason} ({site.point.name})", here
        if reason:
            over = listed(dict.fromkeys(methods[name] for name in found))
            raise UnsupportedError(f"{type(block).__name__} over {over} on {model_type} cannot be activated: {reason}")


def _shape(block: Block) -> str:
    """Why a block has no meaning over such children, wherever it stands; empty where it has one."""
    if not isinstance(block, Fuse):
        return ""
    for child in block.children:
        if not isinstance(child, str) and not (isinstance(child, Stack) and isinstance(child.children[-1], str)):
            return f"{child} is neither an adapter nor a stack that ends in one"
    return ""


def _reason(block: Block, site: Site, fusions: Container[str]) -> str:
    """Why a block has no meaning at a site; empty where it has one."""
    kind = site.point.kind
    if isinstance(block, Fuse):
        if kind != "sublayer":
            return "AdapterFusion puts together what bottlenecks add to a sublayer, and nothing else"
        lacks = block.fusion in fusions and block.fusion not in site.fusions
        return f"the fusion '{block.fusion}' has no layer there" if lacks else ""
    if isinstance(block, Split) and kind in ("attention", "prompt"):
        return "a prefix or a prompt has no share of the text's positions"
    if isinstance(block, BatchSplit | Parallel | MultiTask) and not site.point.by_row:
        return "the map also reads relative positions, which all rows share"
    if isinstance(block, Average) and kind == "embedding":
        return "the mean of invertible maps has no inverse of its own"
    same = kind == "prompt" or (isinstance(block, Average) and kind == "attention")
    if same and len({_extends(child, site) for child in block.children}) > 1:
        return "its children make the sequence longer by different numbers of positions"
    return ""


def _extends(tree: Composition, site: Site) -> tuple[int, int]:
    """How many positions a composition puts in front and behind the first token."""
    if isinstance(tree, str):
        found = [unit.extends for unit in site.units.get(tree, ())]
        return sum(before for before, _ in found), sum(after for _, after in found)
    parts = [_extends(child, site) for child in tree.children]
    if not isinstance(tree, Stack):
        return parts[0]  # equal, or the inner block has been refused
    return sum(before for before, _ in parts), sum(after for _, after in parts)


def resolve(tree: Composition | None, tasks: Sequence[int | str] | None) -> tuple[int, ...] | None:
    """The task of each row as a number; a name is that of a MultiTask's child, or of the last adapter in it.

    Raises:
        CompositionError: a MultiTask and no tasks, tasks and no MultiTask, or a task that it does not have.
    """
    found = [block for block in blocks(tree) if isinstance(block, MultiTask)]
    if not found:
        if tasks is not None:
            raise CompositionError(f"task_ids are for a multitask(…) block, and {tree or 'none'} is active")
        return None
    if tasks is None:
        raise CompositionError(f"{found[0]} needs task_ids: for each row the number or the name of a child")
    if len({len(block.children) for block in found}) > 1:
        raise CompositionError(f"The blocks {listed(found)} have different numbers of children; task_ids count both")
    children = [last(child) for child in found[0].children]
    names: dict[str, int] = {}
    for block in found:
        for index, child in enumerate(block.children):
            if names.setdefault(last(child), index) != index:
                raise CompositionError(f"'{last(child)}' is child {names[last(child)]} and child {index} of {tree}")
    numbers = []
    for task in tasks:
        if isinstance(task, str) and task not in names:
            raise CompositionError(unknown("task", task, names, f"{found[0]} has"))
        number = names[task] if isinstance(task, str) else int(task)
        if not 0 <= number < len(children):
            raise CompositionError(f"task_ids has {number}; {found[0]} has the tasks 0 … {len(children) - 1}")
        numbers.append(number)
    return tuple(numbers)


def spread(tasks: tuple[int, ...] | None, rows: int, times: int, generating: bool) -> tuple[int, ...] | None:
    """The tasks of rows that have been repeated `times` times for Parallel, and each several times by a beam search.

    Raises:
        CompositionError: there is not one task a row.
    """
    if tasks is None:
        return None
    repeated = tasks * times
    beams = rows // len(repeated) if repeated and generating else 1
    if len(repeated) * beams != rows:
        raise CompositionError(f"task_ids names {len(tasks)} tasks, and the batch has {rows // times} rows")
    return tuple(task for task in repeated for _ in range(beams))


def check_rows(tree: Composition | None, rows: int, tasks: Sequence[int] | None) -> None:
    """Refuse a batch that a composition cannot divide. Rows are only counted where one divides them by number, so that
    a compiled graph serves any number of them otherwise.

    Raises:
        CompositionError: the sizes of a BatchSplit do not sum up to its rows.
    """
    if not isinstance(tree, Block) or not any(isinstance(block, BatchSplit | MultiTask) for block in blocks(tree)):
        return
    sizes, shares = [rows] * len(tree.children), [tasks] * len(tree.children)
    if isinstance(tree, MultiTask):
        assert tasks is not None
        shares = [[task for task in tasks if task == index] for index in range(len(tree.children))]
        sizes = [len(share) for share in shares]
    elif isinstance(tree, Parallel | BatchSplit):
        sizes = tree.shares(rows, "rows") if isinstance(tree, BatchSplit) else [rows // len(sizes)] * len(sizes)
        if tasks is not None:
            shares = [tasks[sum(sizes[:index]) : sum(sizes[: index + 1])] for index in range(len(sizes))]
    for child, size, share in zip(tree.children, sizes, shares, strict=True):
        check_rows(child, size, share)


def check_positions(tree: Composition | None, positions: int) -> None:
    """Refuse a batch whose positions a composition cannot divide.

    Raises:
        CompositionError: the sizes of a Split do not sum up to them.
    """
    if isinstance(tree, Block):
        shares = tree.shares(positions, "positions") if isinstance(tree, Split) else [positions] * len(tree.children)
        for child, share in zip(tree.children, shares, strict=True):
            check_positions(child, share)
