"""The defaults list of a YAML file, checked before Hydra sees it.

Hydra would stop at the first wrong choice. Here a wrong one is reported and replaced by its nearest legal neighbour, so
that the rest of the configuration can still be checked.
"""

from __future__ import annotations

import difflib
from typing import Any

from adaptrain.config.documents import Document
from adaptrain.config.library import GROUPS, Library
from adaptrain.errors import listed, nearest


def unknown_choice(books: Library, group: str, choice: str, place: str) -> str:
    """A sentence that refuses a choice."""
    known = books.choices(group)
    return (
        f"{group}={choice} ({place}): there is no {group} '{choice}'{nearest(choice, known) or '.'} "
        f"Known are: {listed(known)}, or the path of a .yaml file"
    )


def stand_in(books: Library, group: str, choice: str) -> str | None:
    """What an unknown choice was probably meant to be."""
    near = difflib.get_close_matches(choice, books.choices(group), n=1, cutoff=0.6)
    return near[0] if near else None


def usable_defaults(document: Document, books: Library) -> tuple[list[Any], list[str]]:
    """The entries that Hydra can follow, and what is wrong with the others."""
    usable: list[Any] = []
    problems: list[str] = []
    is_recipe = not document.label.startswith("conf/")
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
            problems.append(unknown_choice(books, group, choice, place))
            choice = stand_in(books, group, choice)
            if choice is None:
                continue
        usable.append(choice if is_recipe and group == "recipe" else {key: choice})
    return usable, problems


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
