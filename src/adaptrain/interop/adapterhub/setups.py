"""The library's set-ups: a composition with all that belongs to it.

adapter_setup.json     {"adapter_setup": {"type", "children", "kwargs"}, "head_setup", "version"}
<adapter>/             an adapter folder each, and the head of that name beside it
<fusion>/              a fusion folder each
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

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
    names,
)
from adaptrain.errors import AdaptrainError, CheckpointError, listed, unknown
from adaptrain.files import read_json
from adaptrain.interop.adapterhub.families import family_of
from adaptrain.interop.adapterhub.family import Family
from adaptrain.interop.adapterhub.fusions import FUSION_CONFIG
from adaptrain.methods import BnConfig, LoRAConfig, MethodConfig, PrefixTuningConfig

SETUP_CONFIG = "adapter_setup.json"
_BLOCKS: dict[str, type[Block]] = {
    kind.__name__: kind for kind in (Stack, Fuse, Split, BatchSplit, Parallel, Average, MultiTask)
}
_SIZES = {Split: "splits", BatchSplit: "batch_sizes"}
_SHAPE = ("original_ln_before", "original_ln_after", "residual_before_ln", "is_parallel")
"""What the library reads of one bottleneck for all that stand side by side."""

_PLACES = (
    "mh_adapter",
    "output_adapter",
    "cross_adapter",
    "selfattn_lora",
    "intermediate_lora",
    "output_lora",
    "attn_matrices",
    "leave_out",
)
"""What decides where an adapter acts; the first three are a bottleneck's."""


@dataclass(frozen=True)
class ForeignSetup:
    """A set-up folder in our terms.

    Attributes:
        tree: as the library wrote it, blocks of one child too.
        adapters, fusions, heads: name → folder.
        active: the heads that were active.
    """

    tree: Composition
    adapters: dict[str, Path]
    fusions: dict[str, Path]
    heads: dict[str, Path]
    active: str | tuple[str, ...] | None


def recognises_setup(folder: Path) -> bool:
    """Whether the folder holds one of the library's set-ups."""
    return (folder / SETUP_CONFIG).exists()


def read_setup(folder: Path) -> ForeignSetup:
    """Read what a folder holds, without its tensors.

    A fusion's own name is not in the file: it is that of the folder whose fusion is over the same adapters. An average
    of N children is 1/N of the weighted sum there, and has weights of that size here.

    Raises:
        CheckpointError: unreadable, or a folder that it names is not there.
    """
    file = folder / SETUP_CONFIG
    values = read_json(file)
    fusions: dict[str, Path] = {}
    try:
        tree = _tree(folder, values["adapter_setup"], fusions)
        heads, active = _heads(values.get("head_setup"))
    except AdaptrainError as error:
        raise CheckpointError(f"{file}: {error}") from None
    except (AttributeError, KeyError, IndexError, TypeError, ValueError) as error:
        raise CheckpointError(f"{file} is not a set-up as AdapterHub writes it: {error!r}") from None
    adapters = {name: _inside(folder, name) for name in names(tree)}
    return ForeignSetup(tree, adapters, fusions, {name: _inside(folder, name) for name in heads}, active)


def _tree(folder: Path, values: Mapping[str, Any], fusions: dict[str, Path]) -> Composition:
    kind, children = str(values["type"]), values["children"]
    if kind == "single":
        return str(children[0])
    if kind not in _BLOCKS:
        raise CheckpointError(unknown("block of the library", kind, _BLOCKS, "Known are"))
    block, own = _BLOCKS[kind], [_tree(folder, child, fusions) for child in children]
    options = values.get("kwargs") or {}
    if block is Fuse:
        name = _fusion(folder, tuple(last(child) for child in own))
        fusions[name] = folder / name
        return Fuse(*own, name=name)
    if block is Average:
        weights = options["weights"]
        return Average(*own, weights=[weight / len(own) for weight in weights], normalize_weights=False)
    if block in _SIZES:
        return block(*own, sizes=options[_SIZES[block]])  # type: ignore[call-arg]
    return block(*own)


def _fusion(folder: Path, members: tuple[str, ...]) -> str:
    """The name of the one fusion in the folder that is over these adapters."""
    found = []
    for path in sorted(folder.glob(f"*/{FUSION_CONFIG}")):
        values = read_json(path)
        over = values.get("adapter_names") or str(values.get("name", path.parent.name)).split(",")
        if tuple(over) == members:
            found.append(path.parent.name)
    if len(found) == 1:
        return found[0]
    said = f"several, {listed(map(repr, found))}, and the file does not say which" if found else "none"
    raise CheckpointError(f"a fusion of {listed(map(repr, members))} is part of the set-up, and the folder has {said}")


def _heads(setup: Any) -> tuple[tuple[str, ...], str | tuple[str, ...] | None]:
    """The names of the heads, and which are active. True is the head of the library's model class, which is not ours
    to place."""
    if setup is None or isinstance(setup, bool):
        return (), None
    if isinstance(setup, str):
        return (setup,), setup
    if isinstance(setup, Mapping):
        setup = [child["children"][0] for child in setup["children"]]
    return tuple(dict.fromkeys(map(str, setup))), tuple(map(str, setup))


def _inside(folder: Path, name: str) -> Path:
    found = folder / name
    if found.resolve().parent != folder.resolve():
        raise CheckpointError(f"{folder / SETUP_CONFIG}: {name} is not a folder inside it")
    return found


def check_setup(where: Path, tree: Composition, configs: Mapping[str, MethodConfig], model: PreTrainedModel) -> None:
    """Refuse a composition that the library computes by another formula than ours.

    Args:
        tree: as it was written; the library does not simplify it.
        configs: of all adapters of the composition.

    Raises:
        CheckpointError: says which block, and what the library does there.
    """
    for reason in _differences(tree, configs, family_of(model)):
        raise CheckpointError(f"{where}: {reason}")


def _differences(tree: Composition, configs: Mapping[str, MethodConfig], family: Family) -> Iterator[str]:
    if len(names(tree)) > 1:
        yield from _only_first(tree, configs)
    for block in blocks(tree):
        after_attention = any(config.mh_adapter for config in _bottlenecks(block, configs))
        if family.exchanged and after_attention and isinstance(block, Stack | Fuse) and len(names(block)) > 1:
            yield f"{block}: on this family the library takes the residual for the attention's output (mh_adapter)"
        if isinstance(block, Stack):
            yield from _in_stack(block, configs)
        else:
            yield from _side_by_side(block, configs)
        if isinstance(block, Fuse):
            yield from _fused(block, configs)
        if isinstance(block, Average):
            yield from _averaged(block, configs)


def _only_first(tree: Composition, configs: Mapping[str, MethodConfig]) -> Iterator[str]:
    """Units at the embeddings and after layers: the library has those of the first adapter only, for all rows."""
    first = tree
    while isinstance(first, Stack):
        first = first.children[0]
    for name in names(tree):
        for config in configs[name].members():
            if config.method in ("prompt_tuning", "reft"):
                yield f"{tree}: of several adapters the library applies prompts and ReFT of the first only, to all rows"
            if isinstance(config, BnConfig) and config.inv_adapter is not None and name != first:
                yield (
                    f"{tree}: '{name}' has an invertible adapter, and of several adapters the library applies that of "
                    "the first only, to all rows"
                )


def _in_stack(block: Stack, configs: Mapping[str, MethodConfig]) -> Iterator[str]:
    children = [list(_bottlenecks(child, configs)) for child in block.children]
    if sum(map(bool, children)) > 1 and any(config.is_parallel for child in children for config in child):
        yield f"{block}: in a stack with a parallel bottleneck the library loses a part of the sum"
    lora = [child for child in block.children if any(isinstance(each, LoRAConfig) for each in _members(child, configs))]
    if len(lora) > 1 and any(_adds(config) for config in _members(block, configs)):
        yield f"{block}: the library nests a stack of LoRAs, B₂ A₂ (B₁ A₁ x), where their deltas add up here"


def _side_by_side(block: Block, configs: Mapping[str, MethodConfig]) -> Iterator[str]:
    bottlenecks = list(_bottlenecks(block, configs))
    for place, key in product(_PLACES[:3], _SHAPE):
        if len({getattr(config, key) for config in bottlenecks if getattr(config, place)}) > 1:
            yield f"{block}: its adapters differ in {key}, and the library takes that of one of them for all"
    nested = isinstance(block, MultiTask) or any(isinstance(child, Block) for child in block.children)
    if nested and any(config.original_ln_before for config in bottlenecks):
        yield f"{block}: the library adds the residual and applies the norm (original_ln_before) twice there"
    lengths = {_prefix_length(configs[name]) for name in names(block)}
    if len(lengths) > 1:
        yield f"{block}: its prefixes differ in length, and the library attends to what it pads them with"


def _fused(block: Fuse, configs: Mapping[str, MethodConfig]) -> Iterator[str]:
    for config in _bottlenecks(block, configs):
        if config.is_parallel:
            yield f"{block}: the library adds the residual twice where it fuses parallel bottlenecks"
        if config.use_gating or config.ln_after:
            yield f"{block}: the library fuses what its bottlenecks add before use_gating and ln_after"


def _averaged(block: Average, configs: Mapping[str, MethodConfig]) -> Iterator[str]:
    if any(_adds(config) for config in _members(block, configs)):
        yield f"{block}: the library divides the deltas of an average of LoRAs once more by their number"
    places = {
        tuple(tuple(getattr(config, key, None) for key in _PLACES) for config in configs[name].members())
        for name in names(block)
    }
    if len(places) > 1:
        yield f"{block}: its adapters act at different places, and the library weighs one by the weights of all"


def _prefix_length(config: MethodConfig) -> int:
    return sum(member.prefix_length for member in config.members() if isinstance(member, PrefixTuningConfig))


def _members(tree: Composition, configs: Mapping[str, MethodConfig]) -> Iterator[MethodConfig]:
    for name in names(tree):
        yield from configs[name].members()


def _bottlenecks(tree: Composition, configs: Mapping[str, MethodConfig]) -> Iterator[BnConfig]:
    yield from (config for config in _members(tree, configs) if isinstance(config, BnConfig))


def _adds(config: MethodConfig) -> bool:
    return isinstance(config, LoRAConfig) and config.composition_mode == "add"
