"""The defaults list of a YAML file, checked before Hydra sees it.

Hydra would stop at the first wrong choice. Here a wrong one is reported and replaced by its nearest legal neighbour, so
that the rest of the configuration can still be checked.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from adaptrain.config.documents import Document
from adaptrain.config.keys import similar
from adaptrain.config.library import GROUPS, Library, is_path
from adaptrain.errors import listed, nearest


def refusal(books: Library, group: str, choice: str) -> str:
    """Why a choice that the library does not have is refused, and what to write instead."""
    own_model = f"; for a model of the hub or in a folder, set model.name to {choice}" if group == "model" else ""
    if is_path(choice):
        folder = Path(choice).expanduser()
        if group == "recipe" and (folder / "config.yaml").is_file():
            return f"{choice} is a folder; write {folder / 'config.yaml'}"
        return f"there is no file {choice}{own_model or '; correct the path'}"
    known = books.choices(group)
    if near := nearest(choice, known):
        return f"there is no {group} '{choice}'{near} `adaptrain ls {group}s` lists all{own_model}"
    lead = f"there is no {group} '{choice}'. The {group}s are"
    return f"{lead}: {listed(known)}, or the path of a .yaml file{own_model}"


def stand_in(books: Library, group: str, choice: str) -> str | None:
    """What an unknown choice was probably meant to be."""
    return similar(choice, books.choices(group))


def usable_defaults(document: Document, books: Library, is_recipe: bool) -> tuple[list[Any], list[str]]:
    """The entries that Hydra can follow, and what is wrong with the others."""
    usable: list[Any] = []
    problems: list[str] = []
    for leaf in document.defaults:
        entry, place = leaf.value, str(leaf.origin)
        if entry == "_self_":
            usable.append(entry)
            continue
        key, group, choice = _parts(entry, is_recipe)
        if group not in GROUPS or (is_recipe and group != "recipe" and key != f"override /{group}"):
            forms = f"`- override /GROUP: NAME` with GROUP one of {listed(GROUPS[:-1])}, or `- NAME` of another recipe"
            problems.append(f"defaults ({place}): cannot follow `- {_shown(entry)}`; write {forms}")
            continue
        if choice is not None and books.find(group, choice) is None:
            problems.append(f"{group}={choice} ({place}): {refusal(books, group, choice)}")
            choice = stand_in(books, group, choice)
            if choice is None:
                continue
        usable.append(choice if is_recipe and group == "recipe" else {key: choice})
    return usable, problems


def chosen_group(entry: Any) -> str | None:
    """The group that an entry of a recipe chooses from; None for another recipe."""
    _, group, _ = _parts(entry, is_recipe=True)
    return group if group in GROUPS and group != "recipe" else None


def _parts(entry: Any, is_recipe: bool) -> tuple[str, str, str | None]:
    """Key, group and choice of an entry; a bare name in a recipe is another recipe that it is laid over."""
    if isinstance(entry, str) and is_recipe:
        return "recipe", "recipe", entry
    if not isinstance(entry, dict) or len(entry) != 1:
        return "", "", None
    key, choice = next(iter(entry.items()))
    group = str(key).removeprefix("override ").strip().removeprefix("/")
    return str(key), group, None if choice is None else str(choice)


def _shown(entry: Any) -> str:
    if isinstance(entry, dict):
        return ", ".join(f"{key}: {value}" for key, value in entry.items())
    return str(entry)
