"""Where the YAML files are: the `conf/` and `recipes/` that ship with adaptrain, and the user's own `./recipes`."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import adaptrain

GROUPS = ("model", "adapter", "task", "trainer", "recipe")
"""What can be chosen by name: a folder of `conf/` each, and the recipes."""

SUFFIX = ".yaml"


@dataclass(frozen=True)
class Library:
    """The folders that hold configuration.

    Attributes:
        conf: holds config.yaml and a folder for each group but the recipes.
        recipes: the folders of recipes; an earlier one wins.
    """

    conf: Path
    recipes: tuple[Path, ...]

    def folders(self, group: str) -> tuple[Path, ...]:
        return self.recipes if group == "recipe" else (self.conf / group,)

    def choices(self, group: str) -> dict[str, Path]:
        """Name → file of everything that can be chosen in a group, sorted by name."""
        found: dict[str, Path] = {}
        for folder in reversed(self.folders(group)):
            found |= {file.stem: file for file in folder.glob(f"*{SUFFIX}") if not file.name.startswith(".")}
        return dict(sorted(found.items()))

    def find(self, group: str, choice: str) -> Path | None:
        """The file of a choice: a name in the group, or a path to a YAML file of the user's."""
        if is_path(choice):
            file = Path(choice).expanduser()
            return file if file.is_file() else None
        for folder in self.folders(group):
            file = folder / f"{choice}{SUFFIX}"
            if file.is_file():
                return file
        return None

    def label(self, file: Path) -> str:
        """A file as messages call it: seen from here if it lies below, else from the top of adaptrain's own files."""
        if file.is_relative_to(self.conf):
            return f"conf/{file.relative_to(self.conf).as_posix()}"
        if file.is_relative_to(self.recipes[-1]):
            return f"recipes/{file.relative_to(self.recipes[-1]).as_posix()}"
        try:
            return file.absolute().relative_to(Path.cwd()).as_posix()
        except ValueError:
            return str(file)

    def shadowed(self, name: str) -> bool:
        """Whether a user's recipe hides one of the same name that ships with adaptrain."""
        return sum((folder / f"{name}{SUFFIX}").is_file() for folder in self.recipes) > 1


def is_yaml(name: str) -> bool:
    """Whether a name is that of a YAML file."""
    return name.endswith((SUFFIX, ".yml"))


def is_path(choice: str) -> bool:
    """Whether a choice is written as a path rather than a name."""
    return is_yaml(choice) or "/" in choice or os.sep in choice


def library() -> Library:
    """The library as seen from the current folder.

    In a checkout `conf/` and `recipes/` stand at the top; a wheel carries them inside the package.
    """
    conf, recipes = _shipped()
    own = Path.cwd() / "recipes"
    return Library(conf, (own, recipes) if own.is_dir() and not own.samefile(recipes) else (recipes,))


@lru_cache(maxsize=1)
def _shipped() -> tuple[Path, Path]:
    package = Path(adaptrain.__file__).resolve().parent
    if (package / "_conf").is_dir():
        return package / "_conf", package / "_recipes"
    checkout = package.parent.parent
    return checkout / "conf", checkout / "recipes"
