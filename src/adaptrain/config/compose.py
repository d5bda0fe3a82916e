"""From `conf/`, a recipe and the command line to one run: all mistakes at once, each with the file it came from.

Hydra gives the grammar of overrides and the order of the files (the defaults list). Files are merged here, because
Hydra forgets which file a key came from and stops at the first mistake.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

from hydra._internal.config_repository import CachingConfigRepository, ConfigRepository
from hydra._internal.config_search_path_impl import ConfigSearchPathImpl
from hydra._internal.defaults_list import DefaultsList, create_defaults_list
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException
from hydra.version import setbase
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from adaptrain.config import source
from adaptrain.config.arguments import Arguments, Change, read_arguments
from adaptrain.config.belonging import Layers, as_layer
from adaptrain.config.check import build, origins_of
from adaptrain.config.defaults import usable_defaults
from adaptrain.config.documents import (
    COMMAND_LINE,
    Document,
    Leaf,
    Tree,
    first_origin,
    leaves,
    merge,
    plain,
    read,
)
from adaptrain.config.dotted import undotted
from adaptrain.config.keys import similar
from adaptrain.config.library import GROUPS, Library, is_path, library
from adaptrain.config.members import settle, settled
from adaptrain.config.recipes import circle, read_recipe, with_runs
from adaptrain.config.remote_code import refuse_permission_of_file
from adaptrain.config.report import Report, origin_of
from adaptrain.config.run import Run
from adaptrain.errors import ConfigError, listed
from adaptrain.synonyms import translation

VERSION_BASE = "1.3"

_REPLACED = ("model", "adapter", "task")
"""Sections that a choice describes as a whole: what a recipe adds to one choice has no meaning for another."""


@dataclass(frozen=True)
class Draft:
    """A run whose layers lie over each other and are still to be checked. Nothing heavy has been imported for it.

    Attributes:
        tree: what the layers make.
        name: of the recipe, or of what was chosen instead.
        choices: as in `Run`.
        notes: as in `Run`.
    """

    tree: Tree
    name: str
    choices: Mapping[str, str | None]
    notes: tuple[str, ...]
    _documents: Mapping[str, Document]
    _books: Library
    _report: Report

    @property
    def in_order(self) -> bool:
        """Whether no mistake has been found so far."""
        return not self._report.problems

    def finish(self) -> Run:
        """Check every key against what it must be. The tree is changed; call it once.

        Raises:
            ConfigError: every mistake, a sentence each.
        """
        tree, report = self.tree, self._report
        _refuse_set_by_choice(tree, self._documents, self.choices, self._books, report)
        config = build(tree, self.name, report)
        if config is None or report.problems:
            raise ConfigError(list(dict.fromkeys(report.problems)))
        return Run(config, origins_of(tree), self.choices, self.notes)


def compose(overrides: Sequence[str]) -> Run:
    """Compose one run.

    Args:
        overrides: as on the command line, such as `recipe=lora_cola`, `trainer.epochs=3`.

    Raises:
        ConfigError: every mistake, a sentence each.
    """
    return draft(overrides).finish()


def draft(overrides: Sequence[str]) -> Draft:
    """Lay the layers of one run over each other.

    Raises:
        ConfigError: the files cannot be put in an order.
    """
    books = library()
    arguments = read_arguments(overrides, books)
    report = Report(arguments.problems, silent=set(arguments.unsettled))
    if (sentence := circle(books, arguments.choices.get("recipe", ""))) is not None:
        raise ConfigError([*report.problems, sentence])
    try:
        listing = _defaults_list(arguments.choices)
    except (HydraException, ValueError) as error:
        reason = " ".join(str(error).split("Config search path")[0].split())
        raise ConfigError([*report.problems, f"defaults: {reason}"]) from None
    choices = {group: listing.overrides.known_choices.get(group) for group in GROUPS}
    written = with_runs(_documents(listing, books, report), choices, arguments.choices, report)
    documents, choices = written.documents, written.choices
    if "recipe" in arguments.unsettled:
        report.silent.add("adapter")  # which one that recipe would have chosen is unknown
    dropped = _drop_replaced(documents, arguments, choices, report)
    layers = Layers()
    for document in documents.values():
        settle(document.tree, books, report)
        layers.lay(document.tree)
    changes = [settled(change, books, report) for change in arguments.changes]
    layers.release(as_layer(changes))
    dropped |= {each.key for each in layers.dropped}
    tree = layers.tree
    for change in changes:
        apply_change(tree, change, dropped, report)
    refuse_permission_of_file(tree, report)
    _resolve(tree, report)
    settle(tree, books, report)
    layers.refuse_hidden_rows(report)
    name = written.name or _name(tree, documents, choices)
    return Draft(tree, name, choices, layers.notes(), documents, books, report)


def _defaults_list(choices: Mapping[str, str]) -> DefaultsList:
    """Which files, in which order."""
    setbase(VERSION_BASE)
    source.register()
    path = ConfigSearchPathImpl()
    path.append("main", source.URL)
    path.append("schema", "structured://")
    quoted = [f"{group}={QuotedString(name, Quote.single).with_quotes()}" for group, name in choices.items()]
    return create_defaults_list(
        repo=CachingConfigRepository(ConfigRepository(path)),
        config_name="config",
        overrides_list=OverridesParser.create().parse_overrides(quoted),
        prepend_hydra=False,
        skip_missing=False,
    )


def _documents(listing: DefaultsList, books: Library, report: Report) -> dict[str, Document]:
    """Config path → file, each laid where its group belongs; what is wrong with them goes into the report."""
    documents: dict[str, Document] = {}
    for entry in listing.defaults:
        path = entry.config_path or ""
        file = source.config_file(books, path)
        if file is None or path in documents:
            continue
        group, _, choice = path.partition("/")
        label = books.label(file)
        document = read_recipe(file, label) if group == "recipe" else read(file, label)
        report.problems += document.problems
        if group in ("config", "recipe"):
            report.problems += usable_defaults(document, books, group == "recipe")[1]
        elif document.defaults:
            report.add("defaults", document.defaults[0].origin, f"are for recipes; write the keys of the {group} out")
        if not is_path(choice) and (twin := books.twin(file)) is not None:
            sentence = f"{books.label(twin)} lies beside it, and {group}={choice} could mean either; remove one"
            report.problems.append(f"{label}: {sentence}")
        if document.problems and not document.tree:  # nothing of it can be read; what it lacks is no second mistake
            report.silent |= {"adapter"} if group == "recipe" else {group}
        tree = document.tree if group in ("config", "recipe") else undotted({group: document.tree}, report.problems)
        documents[path] = replace(document, tree=tree)
    return documents


def _drop_replaced(
    documents: Mapping[str, Document], arguments: Arguments, choices: Mapping[str, str | None], report: Report
) -> set[str]:
    """Take out what a recipe adds to a choice that the command line replaces; it must be dropped knowingly.

    Returns:
        the keys taken out.
    """
    dropped: set[str] = set()
    recipe = choices["recipe"]
    replaced = [group for group in _REPLACED if group in arguments.choices]
    if recipe is None or not replaced:
        return dropped
    own = _defaults_list({"recipe": recipe}).overrides.known_choices
    removed = {change.key for change in arguments.changes if change.node is None}
    for group in replaced:
        if choices[group] == own.get(group):
            continue
        for path, document in documents.items():
            node = document.tree.pop(group, None) if path.startswith("recipe/") else None
            if not isinstance(node, dict):
                continue
            keys = [key for key, _ in leaves(node, f"{group}.")]
            dropped |= set(keys)
            left = [key for key in keys if not any(f"{key}.".startswith(f"{gone}.") for gone in removed)]
            if left:
                new, old = f"{group}={choices[group]}", f"{group}={own.get(group)}"
                cure = " ".join(f"'~{key}'" for key in left)
                report.add(
                    listed(left),
                    first_origin(node),
                    f"belong to {old}, which the command line replaces by {new}; drop them with {cure}, "
                    f"or leave out {new}",
                )
    return dropped


def apply_change(tree: Tree, change: Change, dropped: set[str], report: Report) -> None:
    """Carry out one override.

    Args:
        dropped: keys that are gone already.
    """
    *sections, key = change.key.split(".")
    place = tree
    for depth, name in enumerate(sections, start=1):
        inner = place.get(name)
        if _has_room(inner, sections[0]) and change.node is not None:
            inner = place[name] = {}
        if not isinstance(inner, dict):
            if change.node is not None:
                report.add(change.key, COMMAND_LINE, f"{'.'.join(sections[:depth])} is one value and has no keys")
            elif change.key not in dropped:
                report.add(f"~{change.key}", COMMAND_LINE, "there is no such key to drop")
            return
        place = inner
    if change.node is None:
        if place.pop(key, None) is None and change.key not in dropped:
            report.add(f"~{change.key}", COMMAND_LINE, _nothing_to_drop(change.key, tree, place))
    elif isinstance(place.get(key), dict) and isinstance(change.node, Leaf) and change.node.value is None:
        del place[key]  # in a file an empty section changes nothing; who writes null here wants it gone
    else:
        merge(place, {key: change.node})


def _nothing_to_drop(dotted: str, tree: Tree, place: Tree) -> str:
    """Why a key cannot be dropped: it is misspelt, or set elsewhere, or not set at all."""
    section, _, key = dotted.rpartition(".")
    prefix = f"{section}." if section else ""
    if elsewhere := [other for other, _ in leaves(tree) if other.rpartition(".")[2] == key]:
        return f"there is no such key to drop; {' and '.join(elsewhere)} can be dropped"
    if told := translation(key, place, section):
        return f"there is no such key to drop{told}"
    if meant := similar(key, place):
        return f"there is no such key to drop, did you mean '~{prefix}{meant}'?"
    return f"there is no such key to drop. The keys that are set there: {listed(prefix + name for name in place)}"


def _has_room(node: Tree | Leaf | None, top: str) -> bool:
    """Whether keys can be put where this is. An entry of `adapters` that is left empty is a section."""
    if isinstance(node, Leaf):
        return node.value == {} or (node.value is None and top == "adapters")
    return node is None


def _resolve(tree: Tree, report: Report) -> None:
    """Replace OmegaConf's interpolations, `${seed}` or `${oc.env:HOME}`, by what they stand for."""
    open_keys = [(key, leaf) for key, leaf in leaves(tree) if "${" in str(leaf.value)]
    if not open_keys:
        return
    config = OmegaConf.create(plain(tree))
    for key, leaf in open_keys:
        *sections, name = key.split(".")
        place: Any = tree
        for section in sections:
            place = place[section]
        try:
            value = OmegaConf.select(config, key, throw_on_resolution_failure=True)
            if OmegaConf.is_config(value):
                value = OmegaConf.to_container(value, resolve=True)
        except OmegaConfBaseException as error:
            report.add(key, leaf.origin, f"cannot resolve {leaf.value}: {str(error).splitlines()[0]}")
            place[name] = Leaf(None, leaf.origin)
        else:
            place[name] = Leaf(value, leaf.origin)


def _refuse_set_by_choice(
    tree: Tree,
    documents: Mapping[str, Document],
    choices: Mapping[str, str | None],
    books: Library,
    report: Report,
) -> None:
    """Refuse keys that a choice sets: the recipe's name, and an adapter's method apart from its other keys."""
    if (node := tree.pop("recipe", None)) is not None:
        report.add("recipe", first_origin(node), "has no keys; choose a recipe by recipe=NAME")
    adapter, chosen = tree.get("adapter"), documents.get(f"adapter/{choices['adapter']}")
    method = adapter.get("method") if isinstance(adapter, dict) else None
    if not isinstance(method, Leaf) or chosen is None or "adapter" in report.silent:
        return
    before = chosen.tree["adapter"]
    assert isinstance(before, dict)
    if "method" in before and method.origin != origin_of(before, "method") and method.value != plain(before["method"]):
        report.add(
            "adapter.method",
            method.origin,
            f"changes the method of {chosen.label}, whose other keys would not fit; choose another adapter instead: "
            f"adapter=NAME with NAME one of {listed(books.choices('adapter'))}",
        )
        report.silent.add("adapter")


def _name(tree: Tree, documents: Mapping[str, Document], choices: Mapping[str, str | None]) -> str:
    """The recipe's name; where there is none, what was chosen instead, a task by the name that it was given."""
    chosen = [choices["recipe"]] if choices["recipe"] else [choices["adapter"], choices["task"]]
    names = [Path(choice).stem if is_path(choice) else choice for choice in chosen if choice]
    task, document = tree.get("task"), documents.get(f"task/{choices['task']}")
    name = task.get("name") if isinstance(task, dict) else None
    if not choices["recipe"] and document is not None and isinstance(name, Leaf) and isinstance(name.value, str):
        before = document.tree["task"]
        assert isinstance(before, dict)
        if origin_of(before, "name") != name.origin and name.value.strip():
            names[-1] = quote(name.value, safe=" ,+=@")
    return "_".join(names)
