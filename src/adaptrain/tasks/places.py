"""Where the rows of a task are, told from its config alone. Nothing is read, and nothing heavy is imported."""

from __future__ import annotations

import re
from pathlib import Path

from adaptrain.errors import DataError, listed, nearest
from adaptrain.tasks.layouts.unread import has_unread_ending
from adaptrain.tasks.packages import package_folder

SUFFIXES = ("jsonl", "json", "csv", "tsv", "parquet", "arrow", "txt", "conll", "conllu")
COMPRESSIONS = ("gz", "bz2", "xz", "zst", "lz4", "zip")

_NAME = re.compile(rf"(.+)\.({'|'.join(SUFFIXES)})(?:\.({'|'.join(COMPRESSIONS)}))?", re.IGNORECASE)
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


def split_name(name: str) -> tuple[str, str, str | None] | None:
    """`train.csv.gz` → `train`, `csv`, `gz`; None where a name is no data file's.

    >>> split_name("train.jsonl")
    ('train', 'jsonl', None)
    """
    found = None if name.startswith(".") else _NAME.fullmatch(name)
    return None if found is None else (found[1], found[2].lower(), found[3].lower() if found[3] else None)


def is_hub_id(path: str) -> bool:
    """Whether a path can only mean the hub: shaped like `owner/name`, and nothing of that name is here."""
    return (
        _HUB_ID.fullmatch(path) is not None
        and not path.startswith(".")
        and split_name(Path(path).name) is None
        and not has_unread_ending(path)
        and not Path(path).exists()
    )


def rows_place(name: str, path: str, mirror: str | None, key: str = "task.path=") -> str | None:
    """The first place that has a task: its folder in the mirror or in a package, a file or folder, a pattern with
    `{split}` in it; None where it is on the hub.

    Args:
        name: of the task.
        path: as in `TaskConfig`.
        mirror: as in `DataConfig`.
        key: what stands before the path in messages; nothing where the path was given by itself.

    Raises:
        DataError: a file, folder or package that was named is not there.
    """
    if mirror is not None:
        folder = Path(mirror).expanduser()
        if not folder.is_dir():
            raise DataError(f"data.mirror={mirror}: there is no such folder ({folder.absolute()}); correct the path")
        if (folder / name).is_dir():
            return str(folder / name)
        if is_hub_id(path):  # a task that lives on this machine needs no mirror
            names = names_in(folder)
            raise DataError(
                f"data.mirror={mirror} has no folder '{name}'{nearest(name, names) or '.'} "
                f"It holds: {listed(names)}. Add {name}/<split>.jsonl there, or leave data.mirror out"
            )
    if path.startswith("package:"):
        spec = path.removeprefix("package:")
        carried = package_folder(spec)
        if carried is None:
            module = spec.partition(":")[0]
            raise DataError(f"Task {name}: its data are in the Python package '{module}', which is not installed")
        if not carried.is_dir():
            raise DataError(f"Task {name}: the installed package has no folder {carried}; reinstall it")
        return str(carried)
    if "{split}" in path:
        return path
    place = Path(path).expanduser()
    if place.is_dir() or place.is_file():
        return str(place)
    if not is_hub_id(path):
        beside = names_in(place.parent) if place.parent.is_dir() else []
        raise DataError(
            f"{key}{path}: there is no such file or folder ({place.absolute()}){nearest(place.name, beside) or ';'} "
            "correct the path"
        )
    return None


def names_in(folder: Path) -> list[str]:
    """What a folder holds, but hidden files."""
    return sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))
