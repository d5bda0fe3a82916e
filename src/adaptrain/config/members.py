"""`adapters:`, the members of a composition: names of `conf/` become what they stand for, and each entry is checked."""

from __future__ import annotations

import dataclasses
from typing import Any

from adaptrain.config.adapter import check_adapter
from adaptrain.config.arguments import Change
from adaptrain.config.defaults import refusal, stand_in
from adaptrain.config.documents import Chosen, Items, Leaf, Origin, Tree, first_origin, plain, read
from adaptrain.config.dotted import undotted
from adaptrain.config.library import Library
from adaptrain.config.report import MISSING, Report, origin_of
from adaptrain.config.schema import MemberConfig, RunConfig, TrainerConfig
from adaptrain.config.sections import built, metrics, section
from adaptrain.errors import listed

_NAMED = ("adapter", "task")
"""Keys of an entry that take a name of `conf/`, or a file."""

_BY_BRANCH = ("task", "seed", "trainer")
"""Keys of an entry that mean something for a branch only."""

_SHARED = ("device", "precision", "gradient_checkpointing", "adapter_drop", "cache_frozen")
"""Keys of `trainer` that are of the forward, which all branches go through together."""


def settle(tree: Tree, books: Library, report: Report) -> None:
    """Put in place what is written shorter: a mapping under `composition` is one value, which replaces another as a
    whole, and a name in an entry of `adapters` is the file that it stands for."""
    node = tree.get("composition")
    if isinstance(node, dict):
        tree["composition"] = Leaf(plain(node), first_origin(node) or Origin("default"))
    entries = tree.get("adapters")
    for name, entry in entries.items() if isinstance(entries, dict) and not isinstance(entries, Items) else ():
        if not isinstance(entry, dict):
            continue
        for group in _NAMED:
            leaf = entry.get(group)
            if not isinstance(leaf, Leaf) or not isinstance(leaf.value, str) or leaf.value == MISSING:
                continue
            if "${" not in leaf.value:  # else it is settled when that has been resolved
                entry[group] = _chosen(group, leaf, f"adapters.{name}.{group}", books, report)


def settled(change: Change, books: Library, report: Report) -> Change:
    """The same for one override."""
    *sections, key = change.key.split(".")
    if change.node is None or (sections or [key])[0] not in ("composition", "adapters"):
        return change
    inner: Tree = {key: change.node}
    tree: Tree = inner
    for name in reversed(sections):
        tree = {name: tree}
    settle(tree, books, report)
    return Change(change.key, inner[key])


def _chosen(group: str, leaf: Leaf, dotted: str, books: Library, report: Report) -> Chosen:
    """The section that a name stands for; of a wrong name, what was probably meant."""
    name, file = str(leaf.value), books.find(group, str(leaf.value))
    if file is None:
        report.add(dotted, leaf.origin, refusal(books, group, name))
        near = stand_in(books, group, name)
        if near is None:
            report.silent.add(dotted)
            return Chosen({}, leaf.origin)
        file = books.choices(group)[near]
    document = read(file, books.label(file))
    report.problems += document.problems
    if document.problems and not document.tree:
        report.silent.add(dotted)
    if document.defaults:
        report.add(
            dotted, leaf.origin, f"{document.label} has a defaults list, which is for recipes; write its keys out"
        )
    tree = undotted({group: document.tree}, report.problems)[group]
    return Chosen(tree if isinstance(tree, dict) else {}, leaf.origin)


def entries_of(tree: Tree, report: Report) -> dict[str, Tree]:
    """The entries of `adapters` by name. One that is left empty is a fresh adapter like the run's."""
    node = tree.get("adapters")
    if node is None or (isinstance(node, Leaf) and node.value in (None, {})):
        return {}
    if isinstance(node, Leaf | Items):
        report.add(
            "adapters", first_origin(node), "is not a mapping; write NAME: {path: FOLDER}, or NAME: {adapter: NAME}"
        )
        return {}
    found: dict[str, Tree] = {}
    for name, entry in node.items():
        dotted = f"adapters.{name}"
        if set(name) & set("'\"().") or name != name.strip() or not name:
            report.add(
                dotted, first_origin(entry), "cannot be a name: no dots, parentheses, quotes or blanks around it"
            )
        elif isinstance(entry, Leaf) and entry.value not in (None, {}):
            keys = listed(f.name for f in dataclasses.fields(MemberConfig))
            report.add(dotted, entry.origin, f"is one value; it must be a mapping with the keys: {keys}")
        elif isinstance(entry, Items):
            report.add(dotted, first_origin(entry), "is a list; it must be a mapping")
        else:
            if isinstance(entry, Leaf):
                node[name] = entry = Chosen({}, entry.origin)
            found[name] = entry
    return found


def check_member(name: str, node: Tree, run: dict[str, Any], report: Report) -> MemberConfig | None:
    """One entry by itself.

    Args:
        run: the run's own values, where they have no mistakes.

    Returns:
        None where it has problems; they are in the report.
    """
    prefix = f"adapters.{name}."
    before = len(report.problems)
    _refuse_method_keys(name, node, report)
    rest = {key: child for key, child in node.items() if key not in ("adapter", "trainer")}
    values = section(rest, MemberConfig, prefix, report)
    metrics(values.get("task"), node.get("task"), f"{prefix}task", report)
    if _given(node, "adapter"):
        values["adapter"] = check_adapter(node["adapter"], f"{prefix}adapter", report)
    if _given(node, "trainer"):
        values["trainer"] = _trainer(node["trainer"], f"{prefix}trainer", run.get("trainer"), report)
    member = built(MemberConfig, values, node, prefix, report)
    return member if len(report.problems) == before and not _silent(prefix, report) else None


def check_branch(name: str, node: Tree, word: str | None, branches: tuple[str, ...], report: Report) -> None:
    """Refuse the keys of an entry that mean nothing in its place.

    Args:
        word: of the block whose children are branches; None where the composition has none.
        branches: their names.
    """
    given = [key for key in _BY_BRANCH if _given(node, key) and f"adapters.{name}.{key}" not in report.bad]
    if name not in branches:
        for key in given:
            what = f"the branches here are: {listed(branches)}" if word else "this composition has one task"
            cure = f"set {key} of the run"
            report.add(
                f"adapters.{name}.{key}",
                origin_of(node, key),
                f"is for a branch, the last adapter of a child of parallel, batchsplit or multitask; {what}; {cure}",
            )
    elif word != "parallel":
        for key in given:
            if key != "task":
                why = f"one optimiser trains all branches of {word}; set {key} of the run"
                report.add(f"adapters.{name}.{key}", origin_of(node, key), f"cannot be a branch's own: {why}")


def take_over(name: str, member: MemberConfig, tree: Tree) -> None:
    """Put into an entry's tree what it takes from the run, so that each key knows where it was set."""
    entries = tree["adapters"]
    assert isinstance(entries, dict)
    entry = entries[name]
    assert isinstance(entry, dict)
    for key in ("adapter", *_BY_BRANCH):
        theirs, own = tree.get(key), entry.get(key)
        if getattr(member, key) is None or theirs is None:
            continue
        if not _given(entry, key):
            entry[key] = theirs
        elif key == "trainer" and isinstance(theirs, dict) and isinstance(own, dict):
            entry[key] = {**theirs, **own}


def completed(member: MemberConfig, run: RunConfig, word: str | None) -> MemberConfig:
    """An entry with what it takes from the run.

    Args:
        word: of the block that this is a branch of, or None.
    """
    fresh = run.adapter if member.path is None and member.adapter is None else member.adapter
    member = dataclasses.replace(member, adapter=fresh, train=member.trains)
    if word is not None:
        member = dataclasses.replace(member, task=member.task or run.task)
    if word == "parallel":
        seed = run.seed if member.seed is None else member.seed
        member = dataclasses.replace(member, seed=seed, trainer=member.trainer or run.trainer)
    return member


def _given(node: Tree, key: str) -> bool:
    return key in node and not (isinstance(leaf := node[key], Leaf) and leaf.value is None)


def _silent(prefix: str, report: Report) -> bool:
    return any(key.startswith(prefix) for key in report.silent)


def _trainer(node: Tree | Leaf, dotted: str, run: TrainerConfig | None, report: Report) -> TrainerConfig | None:
    """A branch's own keys over the run's."""
    if isinstance(node, Leaf):
        keys = listed(f.name for f in dataclasses.fields(TrainerConfig))
        report.add(dotted, node.origin, f"is one value; it must be a mapping with the keys: {keys}")
        return None
    values = section(node, TrainerConfig, f"{dotted}.", report)
    if run is None:
        return None
    for key in _SHARED:
        if key in values and values[key] != getattr(run, key):
            why = f"all branches go through one forward; set trainer.{key}"
            report.add(f"{dotted}.{key}", origin_of(node, key), f"cannot be a branch's own: {why}")
    return built(TrainerConfig, dataclasses.asdict(run) | values, node, f"{dotted}.", report)


def _refuse_method_keys(name: str, node: Tree, report: Report) -> None:
    """Keys of a method stand one section further in."""
    from adaptrain.methods import methods  # late: it imports torch

    own = [f.name for f in dataclasses.fields(MemberConfig)]
    theirs = {key for method in methods().values() for key in method.fields()} - set(own)
    for key in [key for key in node if key in theirs]:
        where = f"adapters.{name} has no key '{key}'; it belongs to adapters.{name}.adapter"
        report.add(f"adapters.{name}.{key}", origin_of(node, key), f"{where}. The keys are: {listed(own)}")
