"""The composition of a run: read, checked against the adapters that there are, and told apart into branches."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from adaptrain.composition import Block, Composition, Stack, blocks, last, names, parse
from adaptrain.config.adapter import check_fusion
from adaptrain.config.documents import Items, Leaf, Origin, Tree, first_origin
from adaptrain.config.members import check_branch, check_member, completed, entries_of, take_over
from adaptrain.config.report import BAD, Report
from adaptrain.config.schema import MemberConfig, RunConfig
from adaptrain.errors import CompositionError, listed, nearest
from adaptrain.hints import shown

DIVIDING = ("parallel", "batchsplit", "multitask")
"""Blocks that give each child rows of its own, and so a task of its own."""


def branch_block(tree: Composition | None) -> Block | None:
    """The block whose children are branches: the composition itself, or the last of its stack; None without one."""
    while isinstance(tree, Stack):
        tree = tree.children[-1]
    return tree if isinstance(tree, Block) and tree.word in DIVIDING else None


def branch_names(block: Block | None) -> tuple[str, ...]:
    """A name for each child: its last adapter."""
    return () if block is None else tuple(last(child) for child in block.children)


def members_of(config: RunConfig) -> dict[str, MemberConfig]:
    """Every adapter of a run's composition, left to right, with all that it takes from the run."""
    tree = parse(config.expression)
    block = branch_block(tree)
    branches = branch_names(block)
    return {
        name: completed(
            config.adapters.get(name, MemberConfig()),
            config,
            block.word if block is not None and name in branches else None,
        )
        for name in names(tree)
    }


def complete_members(config: RunConfig) -> RunConfig:
    """The same run, its `adapters` and `fusion` complete, so that equal runs are equal text.

    Raises:
        CompositionError: the composition cannot be read.
        ConfigError: a config of an adapter or a fusion is wrong.
    """
    from adaptrain.methods import config_from_dict, read_fusion  # late: it imports torch

    found = members_of(config)
    adapters = {
        name: found[name]
        if (adapter := found[name].adapter) is None
        else dataclasses.replace(found[name], adapter=config_from_dict(adapter).to_dict())
        for name in config.adapters
    }
    fusion = None
    if any(block.word == "fuse" for block in blocks(parse(config.expression))):
        fusion = {key: value for key, value in read_fusion(config.fusion).to_dict().items() if key != "method"}
    return dataclasses.replace(config, adapters=adapters, fusion=fusion)


def check_composition(tree: Tree, values: Mapping[str, Any], report: Report) -> dict[str, Any]:
    """The run's `composition`, `adapters` and `fusion`, incomplete where they have problems.

    Args:
        tree: of the run; entries of `adapters` get what they take from it.
        values: the run's other sections, as far as they have no mistakes.
    """
    node = tree.get("composition")
    written, parsed = read_written(node, report)
    entries = entries_of(tree, report)
    block = None
    if parsed is not BAD:
        block = _one_branch_block(parsed, _origin(node), report)
        if (task := values.get("task")) is not None:
            _check_names(parsed, task.name, tree.get("adapters"), _origin(node), report)
    branches = branch_names(block)
    members: dict[str, MemberConfig] = {}
    for name, entry in entries.items():
        member = check_member(name, entry, dict(values), report)
        if parsed is not BAD:
            check_branch(name, entry, None if block is None else block.word, branches, report)
        if member is not None:
            _check_own_task(name, member, entry, values, report)
            members[name] = member
    fusion = _fusion(tree.get("fusion"), parsed, report)
    if not report.problems:
        run = RunConfig(**{**values, "composition": written, "adapters": members})
        members = dict(complete_members(run).adapters)
        for name, member in members.items():
            take_over(name, member, tree)
    return {"composition": written, "adapters": members, "fusion": fusion}


def read_written(node: Tree | Leaf | None, report: Report) -> tuple[Any, Any]:
    """As written, and parsed; BAD where it cannot be."""
    if not isinstance(node, Leaf) or node.value is None:
        return None, None
    value = node.value
    if not isinstance(value, str | Mapping):
        value = node.text
    if value is None:
        children = node.value if isinstance(node.value, list) and all(isinstance(c, str) for c in node.value) else None
        inner = listed(children or ("a", "b"))
        cure = f"write an expression such as stack({inner}), or a mapping such as {{stack: [{inner}]}}"
        what = "a list, which does not say how they work together" if children else shown(node.value)
        report.add("composition", node.origin, f"is {what}; {cure}")
        return None, BAD
    try:
        return value, parse(value)
    except CompositionError as error:
        told = str(error)
        report.add("composition", node.origin, told[0].lower() + told[1:])
        return None, BAD


def _check_names(
    parsed: Composition | None, task: str, node: Tree | Leaf | None, origin: Origin | None, report: Report
) -> None:
    entries = node if isinstance(node, dict) and not isinstance(node, Items) else {}
    named = names(task if parsed is None else parsed)
    known = [task, *(name for name in entries if name != task)]
    for name in named:
        if name not in known:
            mine = listed(f"{each} (the task)" if each == task and task not in entries else each for each in known)
            sentence = f"names '{name}', which is neither the task's name nor in adapters{nearest(name, known)}"
            report.add("composition", origin, f"{sentence.rstrip('?')}; there are: {mine}")
    for name, entry in entries.items():
        if name not in named and f"adapters.{name}" not in report.bad:
            why = f"the composition does not name it{nearest(name, named)}".rstrip("?")
            if parsed is None:
                why = f"there is no composition that names it; set composition, such as stack({name}, {task})"
            report.add(f"adapters.{name}", first_origin(entry), f"{why}; drop it with '~adapters.{name}'")


def _one_branch_block(parsed: Composition | None, origin: Origin | None, report: Report) -> Block | None:
    """The block of branches; what cannot be trained is refused."""
    found = [block for block in blocks(parsed) if block.word in DIVIDING]
    block = branch_block(parsed)
    if len(found) > 1:
        words = " and ".join(block.word for block in found)
        sentence = f"has {words}; a run can train one block that gives each child rows of its own"
        report.add("composition", origin, f"{sentence}: write one, with all the branches")
    elif found and block is None:
        sentence = f"has {found[0].word} inside another block, or before the end of a stack"
        report.add("composition", origin, f"{sentence}; a run can train it as the composition itself, or last in it")
    own = branch_names(block)
    for name in dict.fromkeys(name for name in own if own.count(name) > 1):
        sentence = f"has two branches that end in '{name}', and a branch has the name of its last adapter"
        report.add("composition", origin, f"{sentence}; give each an adapter of its own")
    return block


def _check_own_task(name: str, member: MemberConfig, entry: Tree, values: Mapping[str, Any], report: Report) -> None:
    task = values.get("task")
    if task is not None and name == task.name and member.task not in (None, task):
        origin = first_origin(entry["task"])
        report.add(
            f"adapters.{name}.task", origin, f"is not the run's task, whose name the adapter has; set task={name}"
        )


def _fusion(node: Tree | Leaf | None, parsed: Any, report: Report) -> dict[str, Any] | None:
    """The fusion config, complete; None without a fusion."""
    given = node is not None and not (isinstance(node, Leaf) and node.value is None)
    fuses = given if parsed is BAD else any(block.word == "fuse" for block in blocks(parsed))
    if not fuses:
        if node is not None and given:
            report.add(
                "fusion", first_origin(node), "is for a composition with fuse(…), and there is none; leave it out"
            )
        return None
    return check_fusion(node if given else None, report)


def _origin(node: Tree | Leaf | None) -> Origin | None:
    return None if node is None else first_origin(node)
