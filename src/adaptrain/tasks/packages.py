"""Folders that travel inside an installed Python package, written `module:folder`."""

from __future__ import annotations

import importlib.util
import os
import re
from pathlib import Path

from adaptrain.config.library import library
from adaptrain.errors import ConfigError

_NAMED = re.compile(r"^(?:package|path: *package): *(\w+)", re.MULTILINE)


def package_folder(spec: str) -> Path | None:
    """The folder that `module:folder` names, or None where that package is not installed.

    The package is located, not imported: carrying files must not run its code. Python imports `a` to locate `a.b`, so
    only the first part is left to Python, and the others are folders in it.

    Raises:
        ConfigError: the folder is not inside the package.
    """
    module, _, folder = spec.partition(":")
    first, *inner = module.split(".")
    try:
        found = importlib.util.find_spec(first)
    except (ImportError, ValueError):  # the name is no module name
        return None
    if found is None or not found.submodule_search_locations or not all(part.isidentifier() for part in inner):
        return None
    tops = [Path(place).joinpath(*inner) for place in found.submodule_search_locations]
    top = next((each for each in tops if each.is_dir()), None)
    if top is None:
        return None
    if not Path(os.path.normpath(top / folder)).is_relative_to(os.path.normpath(top)):
        raise ConfigError(f"The folder '{folder}' leaves the Python package '{module}'; name a folder inside it")
    return top / folder


def is_shipped(spec: str) -> bool:
    """Whether `module:folder` is in adaptrain itself, or in a package that a file of its own `conf/` names. A saved run
    names no others: what it says may be a stranger's word."""
    package = re.split("[.:]", spec, maxsplit=1)[0]
    files = (file for group in ("model", "task") for file in (library().conf / group).glob("*.yaml"))
    return package == "adaptrain" or any(package in _NAMED.findall(file.read_text(encoding="utf-8")) for file in files)
