"""`adaptrain ls`: what there is to choose from, read off the YAML files; and the architectures, off their tables."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from adaptrain.cli.arguments import split
from adaptrain.cli.screen import print_rows
from adaptrain.config.library import Library, library
from adaptrain.errors import UsageError, listed, unknown

KINDS = {"recipes": "recipe", "adapters": "adapter", "models": "model", "tasks": "task", "trainers": "trainer"}

LISTS = (*KINDS, "architectures")
"""What can be asked for. Architectures only by name: their tables need transformers, which takes seconds to import."""

_COLUMNS = {
    "recipe": ("model", "adapter", "task"),
    "adapter": ("method",),
    "model": ("name",),
    "task": ("type", "metric"),
    "trainer": (),
}


def run(arguments: Sequence[str]) -> int:
    """List one kind, or all; adapters with what they train on a chosen model."""
    found = split(arguments)
    wanted = []
    for word in found.paths:
        kind = word if word in LISTS else f"{word}s"
        if kind not in LISTS:
            raise UsageError(unknown("list of", word, LISTS, "The lists are"))
        wanted.append(kind)
    if found.overrides:
        if any(override.split("=")[0].split(".")[0] != "model" for override in found.overrides):
            raise UsageError(f"adaptrain ls takes no overrides but model=NAME, for adapters: {listed(found.overrides)}")
        if wanted != ["adapters"]:
            raise UsageError(f"{listed(found.overrides)} is for one list: adaptrain ls adapters model=NAME")
        _print_counts(found.overrides, library())
        return 0
    books = library()
    for index, kind in enumerate(wanted or KINDS):
        if index:
            print()
        if kind == "architectures":
            _print_architectures()
        else:
            _print(kind, KINDS[kind], books)
    return 0


def _print(kind: str, group: str, books: Library) -> None:
    rows = []
    for name, file in books.choices(group).items():
        values, about = read_head(file)
        if group == "recipe":
            values = _choices(values)
        about = f"{_whose(file, name, group, books)}{about}"
        rows.append([name, *(str(values.get(column, "")) for column in _COLUMNS[group]), about])
    choose = "" if group == "recipe" else f"  {group}=NAME"
    heads = [group, *("hub id" if group == "model" else column for column in _COLUMNS[group]), "about"]
    places = ", ".join(str(folder) for folder in books.folders(group) if folder.is_dir())
    print_rows(heads, rows, title=f"{kind}{choose or '  adaptrain train recipe=NAME'}  ({places})", cut=True)


def _print_architectures() -> None:
    from adaptrain.reporting.support import overview

    heads, rows = overview()
    rows = [[cell.replace("`", "") for cell in row] for row in rows]
    print_rows(heads, rows, title="architectures  (docs/support.md says what goes together)", cut=True)


def _print_counts(overrides: Sequence[str], books: Library) -> None:
    """Every adapter, and how many numbers it trains on the model that the overrides choose."""
    from adaptrain.config.compose import compose
    from adaptrain.training.counts import parameter_counts

    files = books.choices("adapter")
    composed = {name: compose(["recipe=quickstart", f"adapter={name}", *overrides]).config for name in files}
    model = next(iter(composed.values())).model
    total, counts = parameter_counts(model, {name: config.adapter for name, config in composed.items()})
    rows = []
    for name, file in files.items():
        values, about = read_head(file)
        count = counts[name]
        numbers = (f"{count:,}", f"{100 * count / total:.3f}") if isinstance(count, int) else ("-", "-")
        rows.append([name, str(values.get("method", "")), *numbers, about if isinstance(count, int) else str(count)])
    heads = ["adapter", "method", "trained", "% of base", "about"]
    print_rows(heads, rows, title=f"adapters on {model.name}  ({total:,} parameters)", cut=True, right=(2, 3))


def _whose(file: Path, name: str, group: str, books: Library) -> str:
    if not books.is_own(file):
        return ""
    return "[yours, hides the shipped one] " if books.shadowed(name, group) else "[yours] "


def _choices(values: dict[str, Any]) -> dict[str, str]:
    """group → name, from a recipe's defaults list, or from what it chooses by `GROUP: NAME`."""
    entries = values.get("defaults")
    pairs = [pair for entry in entries or () if isinstance(entry, dict) for pair in entry.items()]
    flat = {group: values[group] for group in _COLUMNS["recipe"] if isinstance(values.get(group), str)}
    return flat | {str(key).rpartition("/")[2]: str(value) for key, value in pairs}


def read_head(file: Path) -> tuple[dict[str, Any], str]:
    """A file's keys, and the first sentences of the comment it begins with (without the command of a recipe)."""
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the one in C is ten times as fast, where it is built
    try:
        text = file.read_text(encoding="utf-8-sig")
        values = yaml.load(text, loader)  # noqa: S506  (both loaders are safe ones)
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return {}, "(cannot be read; adaptrain show says why)"
    comment = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        comment.append(line.lstrip("# ").rstrip())
    if comment and comment[0].startswith("adaptrain "):
        comment = comment[1:]
    return values if isinstance(values, dict) else {}, first_sentences(" ".join(comment))


def first_sentences(text: str, enough: int = 60) -> str:
    """As many sentences as make `enough` characters: "Hu et al. 2021" is not one."""
    parts = re.split(r"(?<=[^.][.?])\s+(?=[A-Z])", text)
    shown = parts[0]
    for part in parts[1:]:
        if len(shown) >= enough:
            break
        shown += f" {part}"
    return shown
