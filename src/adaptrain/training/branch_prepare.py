"""Everything that a run with branches needs, loaded and checked before anything is written."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from adaptrain.branches import put
from adaptrain.composition import BatchSplit, Block, Composition, Fuse, blocks, names, parse
from adaptrain.config.composition import branch_block, branch_names, members_of
from adaptrain.config.schema import MemberConfig, RunConfig
from adaptrain.errors import CompositionError, ConfigError, UnsupportedError, listed
from adaptrain.evaluation.baseline import trivial_baseline
from adaptrain.evaluation.metrics import check_metrics
from adaptrain.methods import MTLLoRAConfig, config_from_dict
from adaptrain.tasks.cache import usual_cache
from adaptrain.tasks.shapes import SHAPES
from adaptrain.training.base_model import find_base, load_model, load_processor
from adaptrain.training.members import Source, assemble, source_notes
from adaptrain.training.mixed import choosing
from adaptrain.training.part import Part
from adaptrain.training.precision import Hardware, find_hardware
from adaptrain.training.prepare import Prepared, encode, load_splits, notes_of
from adaptrain.training.quantisation import check_library
from adaptrain.training.seeds import seed_everything

_ALONE = ("adapter_drop", "cache_frozen")
"""Keys of `trainer` that are for one adapter."""


@dataclass(frozen=True)
class PreparedBranches:
    """A run with branches that can begin.

    Attributes:
        config: of the whole.
        tree: its composition.
        block: the one in it whose children are the branches.
        model: with all adapters, fusions and heads; what trains is chosen.
        runs: branch → the same as of a run of its own, its model being its part of this one.
        sources: the saved adapters.
        notes: what a person should know.
    """

    config: RunConfig
    hardware: Hardware
    tree: Composition
    block: Block
    model: Any
    runs: dict[str, Prepared]
    sources: tuple[Source, ...]
    notes: tuple[str, ...]

    @property
    def apart(self) -> bool:
        """Whether each branch has an optimiser of its own."""
        return self.block.word == "parallel"


def prepare_branches(config: RunConfig) -> PreparedBranches:
    """Load and check everything, cheap things first.

    Raises:
        CheckpointError: a saved adapter is missing or wrong.
        ConfigError: branches that cannot train together.
        DataError: rows that are missing or wrong.
        ModelError: a base model that is missing or wrong.
        UnsupportedError: several processes; a method, a block and a model that do not go together.
    """
    tree = parse(config.expression)
    block = branch_block(tree)
    assert tree is not None and block is not None
    check_library(config.model)
    hardware = find_hardware(config.trainer.device, config.trainer.precision, False)
    if hardware.accelerator.num_processes > 1:
        raise UnsupportedError(
            f"composition={tree}: branches train in one process, and there are {hardware.accelerator.num_processes}; "
            "start adaptrain train without accelerate launch"
        )
    _check(config, tree, block)
    paths = {name: put(child, block, tree) for name, child in zip(branch_names(block), block.children, strict=True)}
    own = {name: of_branch(config, block, name, path) for name, path in paths.items()}
    rows = {name: load_splits(branch) for name, branch in own.items()}

    base = find_base(config.model)
    processor = load_processor(base, "texts")
    model, base = load_model(base, hardware.precision.base, hardware.device, config.architecture)
    apart, found = block.word == "parallel", {}
    if not apart:
        seed_everything(config.seed)
        found |= {source.name: source for source in assemble(model, config)}
    for name, branch in own.items():
        if apart:  # as its own run would draw its weights: the adapters of its path, then its head
            seed_everything(branch.seed)
            found |= {source.name: source for source in assemble(model, _of_path(config, paths[name]))}
        SHAPES[branch.task.type].put_head(model, dataclasses.replace(branch.task, name=name), branch.head)
    notes = () if apart else _share(model, tuple(own))
    _choose(model, tree, config, tuple(own))
    if config.trainer.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    model.to(hardware.device)

    runs, cache = {}, usual_cache()
    for name, branch in own.items():
        task = branch.task
        reader = SHAPES[task.type].reader(processor, model.base_model, task, branch.data)
        splits = encode(reader, rows[name], model, cache)
        reported = "test" if "test" in splits else "validation"
        metrics = (task.metric, *task.extra_metrics)
        runs[name] = Prepared(
            config=branch,
            hardware=hardware,
            base=base,
            model=Part(model, paths[name], name),
            reader=reader,
            splits=splits,
            reported=reported,
            baseline=trivial_baseline(task, reader, splits["train"], splits[reported], metrics),
            notes=tuple(note for read in splits.values() for note in notes_of(read, reader, task.splits)),
            sources=tuple(found[member] for member in names(paths[name]) if member in found),
        )
    sources = tuple(found.values())
    notes += source_notes(sources, base.fingerprint)
    notes += tuple(f"{name}: {note}" for name, run in runs.items() for note in run.notes)
    notes += tuple(cache.notes)
    return PreparedBranches(config, hardware, tree, block, model, runs, sources, notes)


def of_branch(config: RunConfig, block: Block, name: str, path: Composition) -> RunConfig:
    """One branch as a run. With an optimiser of its own that is the run of its path alone, the same to rounding; with
    one for all it is the whole run, seen from this branch's task."""
    member = members_of(config)[name]
    task, trainer, seed = member.task, member.trainer, member.seed
    assert task is not None
    if block.word != "parallel":
        return dataclasses.replace(config, task=task)
    assert trainer is not None and seed is not None
    own = dataclasses.replace(_of_path(config, path), task=task, trainer=trainer, seed=seed)
    if isinstance(path, str) and member.path is None and member.adapter is not None:
        adapter = config_from_dict(member.adapter).to_dict()
        return dataclasses.replace(own, adapter=adapter, composition=None, adapters={}, fusion=None)
    return own


def batch_sizes(config: RunConfig, block: BatchSplit) -> list[int]:
    """How many rows of each branch a batch has.

    Raises:
        ConfigError: they do not sum up to `trainer.batch_size`, or there are none of a branch.
    """
    try:
        sizes = block.shares(config.trainer.batch_size, "rows")
    except CompositionError as error:
        raise ConfigError(f"composition: {error}, or trainer.batch_size={config.trainer.batch_size}") from None
    if 0 in sizes:
        raise ConfigError(
            f"composition: {block} has no rows of '{branch_names(block)[sizes.index(0)]}' in a batch of "
            f"trainer.batch_size={config.trainer.batch_size}, so it would not train; correct sizes"
        )
    return sizes


def _of_path(config: RunConfig, path: Composition) -> RunConfig:
    """The run of one path through the composition, with the adapters in it."""
    members = members_of(config)
    own = {
        name: dataclasses.replace(members[name], task=None, trainer=None, seed=None)
        for name in dict.fromkeys(names(path))
    }
    fuses = any(isinstance(block, Fuse) for block in blocks(path))
    return dataclasses.replace(config, composition=str(path), adapters=own, fusion=config.fusion if fuses else None)


def _check(config: RunConfig, tree: Composition, block: Block) -> None:
    """What is wrong with the branches, all at once.

    Raises:
        ConfigError: a metric, a task or a member that has no place here.
    """
    problems, members = [], members_of(config)
    branches = branch_names(block)
    for name in branches:
        task = members[name].task
        assert task is not None
        if not SHAPES[task.type].in_branch:
            problems.append(f"adapters.{name}.task: {task.type} is for a run of its own; a branch cannot have it")
            continue
        try:
            check_metrics(task.type, len(task.labels), (task.metric, *task.extra_metrics))
        except ConfigError as error:
            problems += [f"adapters.{name}.task: {problem}" for problem in error.problems]
    trainers = [config.trainer, *(member.trainer for member in members.values() if member.trainer is not None)]
    for key in _ALONE:
        if any(dataclasses.asdict(trainer)[key] for trainer in trainers):
            problems.append(f"trainer.{key}: is for the training of one adapter, and {block.word} trains several")
    if block.word == "parallel":
        paths = [names(put(child, block, tree)) for child in block.children]
        for name, member in members.items():
            inside = [branch for branch, path in zip(branches, paths, strict=True) if name in path]
            if len(inside) > 1 and _moves(member):
                problems.append(
                    f"adapters.{name}: stands in the branches {listed(inside)} of {tree}, each of which would train it "
                    f"its own way; give adapters.{name}.path and train: false, or let one optimiser train all: "
                    "multitask(…)"
                )
    if problems:
        raise ConfigError(problems)
    if isinstance(block, BatchSplit):
        batch_sizes(config, block)
    if block.word != "parallel":
        choosing({name: task.metric for name in branches if (task := members[name].task) is not None})


def _moves(member: MemberConfig) -> bool:
    """Whether two branches would disagree about its weights: those it ends with, or those it begins with."""
    return member.trains or member.path is None


def _share(model: Any, branches: tuple[str, ...]) -> tuple[str, ...]:
    """Let the branches' MTL-LoRA adapters of one config train the same A and B, as the method has it."""
    groups: list[list[str]] = []
    for name in branches:
        config = model.get_adapter(name).config
        if isinstance(config, MTLLoRAConfig):
            same = next((group for group in groups if model.get_adapter(group[0]).config == config), None)
            groups.append([name]) if same is None else same.append(name)
    notes = []
    for group in groups:
        if len(group) > 1:
            model.share_parameters(group)
            notes.append(f"{listed(group)} share A and B (MTL-LoRA); each has its own task matrix and weights")
    return tuple(notes)


def _choose(model: Any, tree: Composition, config: RunConfig, branches: tuple[str, ...]) -> None:
    """Activate the composition, and freeze all but its fusions, the members that train, and the branches' heads.

    Raises:
        CompositionError: a composition that this model cannot run.
        UnsupportedError: a method, a block and a model that do not go together.
    """
    if any(isinstance(block, Fuse) for block in blocks(tree)):
        model.train_adapter_fusion(tree)
    else:
        model.train_adapter(tree)
    for name, member in members_of(config).items():
        model.get_adapter(name).requires_grad_(member.trains)
    for head in model.heads.values():
        head.requires_grad_(True)
    model.active_head = branches
