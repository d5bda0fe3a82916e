"""Which blocks can run over which adapters of a live model; asked when a composition is activated."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from adaptrain.composition import Average, BatchSplit, Block, Composition, Parallel, Split, Stack, blocks
from adaptrain.errors import CompositionError, UnsupportedError, listed
from adaptrain.sites.base import Site

RUNS: tuple[type[Block], ...] = (Stack, Split, BatchSplit, Parallel, Average)
"""The blocks that can be activated."""


def refuse(tree: Composition | None, sites: Iterable[Site], methods: Mapping[str, str], model_type: str) -> None:
    """Refuse a composition that has no meaning somewhere in this model.

    Args:
        methods: adapter name → its method.

    Raises:
        UnsupportedError: names the block, the methods, the model and the reason.
    """
    sites = list(sites)
    for block in blocks(tree):
        if isinstance(block, Stack):
            continue
        reason = "" if isinstance(block, RUNS) else "this version does not run it"
        found = block.names
        for site in sites:
            here = tuple(name for name in block.names if name in site.units)
            if not reason and here and (reason := _reason(block, site)):
                reason, found = f"{reason} ({site.point.name})", here
        if reason:
            over = listed(dict.fromkeys(methods[name] for name in found))
            raise UnsupportedError(f"{type(block).__name__} over {over} on {model_type} cannot be activated: {reason}")


def _reason(block: Block, site: Site) -> str:
    """Why a block has no meaning at a site; empty where it has one."""
    kind = site.point.kind
    if isinstance(block, Split) and kind in ("attention", "prompt"):
        return "a prefix or a prompt has no share of the text's positions"
    if isinstance(block, BatchSplit | Parallel) and not site.point.by_row:
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


def check_rows(tree: Composition | None, rows: int) -> None:
    """Refuse a batch that a composition cannot divide.

    Raises:
        CompositionError: the sizes of a BatchSplit do not sum up to its rows.
    """
    if tree is None or isinstance(tree, str):
        return
    shares = [rows] * len(tree.children)
    if isinstance(tree, Parallel):
        shares = [rows // len(tree.children)] * len(tree.children)
    elif isinstance(tree, BatchSplit):
        if sum(tree.sizes) != rows:
            raise CompositionError(f"{tree} divides {sum(tree.sizes)} rows, and the batch has {rows}; correct sizes")
        shares = list(tree.sizes)
    for child, share in zip(tree.children, shares, strict=True):
        check_rows(child, share)
