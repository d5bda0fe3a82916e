"""What a recipe may be beside a list of keys: it chooses by `model: minilm`, it lies over other recipes, and the config
of a finished run is one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from adaptrain.config.defaults import chosen_group, usable_defaults
from adaptrain.config.documents import Chosen, Document, Leaf, Origin, first_origin, read
from adaptrain.config.dotted import undotted
from adaptrain.config.library import Library
from adaptrain.config.report import MISSING, Report
from adaptrain.hints import shown

IDENTITY = {"model": "name", "adapter": "method", "task": "name"}
"""Group → the key without which nothing of it is described."""

_CHOSEN = (*IDENTITY, "trainer")
"""Groups that a recipe may choose from by `GROUP: NAME`, as on the command line."""


def read_recipe(file: Path, label: str) -> Document:
    """Read a recipe; what it writes shorter is written out: `model: minilm` is an entry of the defaults list."""
    document = read(file, label)
    tree, defaults, problems = document.tree, list(document.defaults), list(document.problems)
    before = {group: leaf.origin for leaf in defaults if (group := chosen_group(leaf.value)) is not None}
    for group in _CHOSEN:
        node = tree.get(group)
        if not isinstance(node, Leaf) or not isinstance(node.value, str) or "${" in node.value or node.value == MISSING:
            continue
        del tree[group]
        if group in before:
            problems.append(f"{node.origin}: {group} is chosen twice (also at {before[group]})")
        else:
            defaults.append(Leaf({f"override /{group}": node.value}, node.origin))
    return replace(document, tree=undotted(tree, problems), defaults=tuple(defaults), problems=problems)


def circle(books: Library, recipe: str) -> str | None:
    """A sentence where recipes lie over each other in a circle; Hydra would follow it without end."""
    return _circle(books, recipe, {})


def _circle(books: Library, recipe: str, below: Mapping[Path, str]) -> str | None:
    file = books.find("recipe", recipe)
    if file is None:
        return None
    path = {**below, file.resolve(): recipe}
    document = read_recipe(file, books.label(file))
    names = {str(leaf.value): leaf.origin for leaf in document.defaults}
    for entry in usable_defaults(document, books, is_recipe=True)[0]:
        if not isinstance(entry, str) or entry == "_self_":
            continue
        inner = books.find("recipe", entry)
        if inner is not None and inner.resolve() in path:
            steps = [*path.values()]
            steps = [*steps[[*path].index(inner.resolve()) :], entry]
            hidden = ""
            if books.shadowed(entry) and len(steps) == 2:
                hidden = f"; your {entry} hides the one that ships with adaptrain: give yours another name"
            place = names.get(entry, Origin(document.label))
            return f"defaults ({place}): recipes include each other: {' → '.join(steps)}; remove this line{hidden}"
        if (sentence := _circle(books, entry, path)) is not None:
            return sentence
    return None


@dataclass(frozen=True)
class Layers:
    """The files of a run, in the order in which they are laid over each other.

    Attributes:
        documents: config path → file.
        choices: group → name; None where the config of a run says everything of the group.
        name: of the run, from the config of one.
    """

    documents: dict[str, Document]
    choices: dict[str, str | None]
    name: str | None = None


def with_runs(
    documents: dict[str, Document], choices: Mapping[str, str | None], given: Mapping[str, str], report: Report
) -> Layers:
    """Lay the configs of finished runs: each describes a model, an adapter and a task as a whole, so that these
    replace what lies below them, and what was chosen over it replaces them.

    Args:
        given: choices of the command line.
    """
    layers = Layers(dict(documents), dict(choices))
    for path, document in documents.items():
        if not path.startswith("recipe/"):
            continue
        key = document.tree.get("recipe")
        if not isinstance(key, Leaf):
            continue
        if not _describes_a_run(document):
            report.add(
                "recipe",
                key.origin,
                "names the run in the config of a finished run only. The name of this recipe is that of its file; to "
                f"lay it over another recipe, write `defaults:` and under it `- {key.value}`",
            )
            del document.tree["recipe"]
            continue
        del document.tree["recipe"]
        layers = _laid(layers, path, document, {*given, *_chosen_elsewhere(documents, path)})
        if path == f"recipe/{choices['recipe']}":
            layers = replace(layers, name=_run_name(key, report))
    return layers


def _describes_a_run(document: Document) -> bool:
    sections = ((document.tree.get(group), key) for group, key in IDENTITY.items())
    return not document.defaults and all(isinstance(node, dict) and key in node for node, key in sections)


def _chosen_elsewhere(documents: Mapping[str, Document], path: str) -> set[str]:
    """Groups that the recipes over a run's config choose from."""
    recipes = [document for other, document in documents.items() if other.startswith("recipe/") and other != path]
    groups = {chosen_group(leaf.value) for document in recipes for leaf in document.defaults}
    return {group for group in groups if group is not None}


def _laid(layers: Layers, path: str, document: Document, chosen: set[str]) -> Layers:
    documents, choices = dict(layers.documents), dict(layers.choices)
    for group in IDENTITY:
        node = document.tree[group]
        assert isinstance(node, dict)
        if group in chosen:
            del document.tree[group]
        else:
            document.tree[group] = Chosen(node, first_origin(node) or Origin(document.label))
            choices[group] = None
    if "trainer" not in chosen:
        return Layers(documents, {**choices, "trainer": None}, layers.name)
    trainer = f"trainer/{choices['trainer']}"
    order = [other for other in documents if other != trainer]
    if trainer in documents:
        order.insert(order.index(path) + 1, trainer)
    return Layers({other: documents[other] for other in order}, choices, layers.name)


def _run_name(key: Leaf, report: Report) -> str | None:
    """The name of the run, which is a folder's."""
    name = key.value
    if not isinstance(name, str) or not name or name.startswith(".") or Path(name).name != name or "\\" in name:
        report.add("recipe", key.origin, f"is {shown(name)}; it names the run's folder, without / and a leading dot")
        return None
    return name
