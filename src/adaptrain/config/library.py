"""Where the YAML files are: the `conf/` and `recipes/` that ship with adaptrain, and the user's own in the current
folder. Of two files with one name the user's wins."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import adaptrain

GROUPS = ("model", "adapter", "task", "trainer", "recipe")
"""What can be chosen by name: a folder of `conf/` each, and the recipes."""

SUFFIXES = (".yaml", ".yml")
"""The endings of YAML files; of two files that differ only there the first one counts, and `twin` names the other."""


@dataclass(frozen=True)
class Library:
    """The folders that hold configuration.

    Attributes:
        conf: holds config.yaml and a folder for each group but the recipes.
        recipes: the folders of recipes; an earlier one wins.
        own_conf: the user's `./conf`, with a folder for each group in which there are choices of theirs.
    """

    conf: Path
    recipes: tuple[Path, ...]
    own_conf: Path | None = None

    def folders(self, group: str) -> tuple[Path, ...]:
        if group == "recipe":
            return self.recipes
        return tuple(conf / group for conf in (self.own_conf, self.conf) if conf is not None)

    def choices(self, group: str) -> dict[str, Path]:
        """Name → file of everything that can be chosen in a group, sorted by name."""
        files: dict[str, Path] = {}
        for folder in reversed(self.folders(group)):
            for suffix in reversed(SUFFIXES):
                files |= {file.stem: file for file in folder.glob(f"*{suffix}") if not file.name.startswith(".")}
        return dict(sorted(files.items()))

    def find(self, group: str, choice: str) -> Path | None:
        """The file of a choice: a name in the group, or a path to a YAML file of the user's."""
        if is_path(choice):
            file = Path(choice).expanduser()
            return file if file.is_file() else None
        return next((file for folder in self.folders(group) if (file := _named(folder, choice)) is not None), None)

    def label(self, file: Path) -> str:
        """A file as messages call it: seen from here if it lies below, else from the top of adaptrain's own files."""
        if file.is_relative_to(self.conf):
            return f"conf/{file.relative_to(self.conf).as_posix()}"
        if file.is_relative_to(self.recipes[-1]):
            return f"recipes/{file.relative_to(self.recipes[-1]).as_posix()}"
        try:
            label = file.absolute().relative_to(Path.cwd()).as_posix()
        except ValueError:
            return str(file)
        return f"./{label}" if label.startswith("conf/") else label  # adaptrain's own files are called conf/… too

    def is_own(self, file: Path) -> bool:
        """Whether a file is the user's rather than one that ships with adaptrain."""
        return not (file.is_relative_to(self.conf) or file.is_relative_to(self.recipes[-1]))

    def shadowed(self, name: str, group: str = "recipe") -> bool:
        """Whether a choice of the user's hides one of the same name that ships with adaptrain."""
        return sum(_named(folder, name) is not None for folder in self.folders(group)) > 1

    def twin(self, file: Path) -> Path | None:
        """The file beside this one that differs in its ending only, so that their name could mean either."""
        others = (file.with_suffix(suffix) for suffix in SUFFIXES if suffix != file.suffix)
        return next((other for other in others if other.is_file()), None)


def _named(folder: Path, name: str) -> Path | None:
    files = (folder / f"{name}{suffix}" for suffix in SUFFIXES)
    return next((file for file in files if file.is_file()), None)


def is_yaml(name: str) -> bool:
    """Whether a name is that of a YAML file."""
    return name.endswith(SUFFIXES)


def is_path(choice: str) -> bool:
    """Whether a choice is written as a path rather than a name."""
    return is_yaml(choice) or "/" in choice or os.sep in choice


def library() -> Library:
    """The library as seen from the current folder.

    In a checkout `conf/` and `recipes/` stand at the top; a wheel carries them inside the package.
    """
    conf, recipes = _shipped()
    own_conf, own_recipes = _own("conf", conf), _own("recipes", recipes)
    return Library(conf, (recipes,) if own_recipes is None else (own_recipes, recipes), own_conf)


def _own(name: str, shipped: Path) -> Path | None:
    """The folder of this name in the current one, where it is another than the shipped one."""
    folder = Path.cwd() / name
    return folder if folder.is_dir() and not (shipped.is_dir() and folder.samefile(shipped)) else None


@lru_cache(maxsize=1)
def _shipped() -> tuple[Path, Path]:
    package = Path(adaptrain.__file__).resolve().parent
    if (package / "_conf").is_dir():
        return package / "_conf", package / "_recipes"
    checkout = package.parent.parent
    return checkout / "conf", checkout / "recipes"
