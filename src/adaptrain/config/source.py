"""Our folders as a source of configs for Hydra: `conf/` at the root, `recipes/` as the group `recipe`.

A plugin instead of a search path because the recipes lie in a folder of their own (several, with the user's), and
because a recipe is always laid over the root: it needs no package header, so its first line is free for the command
that runs it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hydra.core.object_type import ObjectType
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigLoadError, ConfigResult, ConfigSource
from omegaconf import OmegaConf

from adaptrain.config.defaults import usable_defaults
from adaptrain.config.documents import read
from adaptrain.config.library import GROUPS, Library, library
from adaptrain.config.recipes import read_recipe

SCHEME = "adaptrain"
URL = f"{SCHEME}://library"


class LibrarySource(ConfigSource):
    """Serves the files of `library()`."""

    @staticmethod
    def scheme() -> str:
        return SCHEME

    def available(self) -> bool:
        return library().conf.is_dir()

    def is_group(self, config_path: str) -> bool:
        return config_path in ("", *GROUPS)

    def is_config(self, config_path: str) -> bool:
        return config_file(library(), config_path) is not None

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        if config_path == "":
            return [*GROUPS] if results_filter is not ObjectType.CONFIG else ["config"]
        if config_path not in GROUPS or results_filter is ObjectType.GROUP:
            return []
        return [*library().choices(config_path)]

    def load_config(self, config_path: str) -> ConfigResult:
        """A file's list of defaults; its values are laid over each other in `compose`, which knows their lines."""
        books = library()
        file = config_file(books, config_path)
        if file is None:
            raise ConfigLoadError(f"Config not found: {config_path}")
        group = config_path.partition("/")[0]
        values: dict[str, Any] = {}
        if group not in GROUPS[:-1]:  # what is chosen from lists no defaults
            document = (read_recipe if group == "recipe" else read)(file, books.label(file))
            values = {"defaults": usable_defaults(document, books, group == "recipe")[0]} if document.defaults else {}
        return ConfigResult(
            provider=self.provider,
            path=self.full_path(),
            config=OmegaConf.create(values),
            header={"package": "_global_" if config_path.startswith("recipe/") else None},
        )


def config_file(books: Library, config_path: str) -> Path | None:
    """The file of a Hydra config path: `config`, `adapter/lora`, `recipe/./mine.yaml`."""
    group, slash, choice = config_path.partition("/")
    if not slash:
        return books.conf / "config.yaml" if config_path in ("config", "config.yaml") else None
    return books.find(group, choice) if group in GROUPS else None


def register() -> None:
    """Make the source known to Hydra; again is harmless."""
    Plugins.instance().register(LibrarySource)
