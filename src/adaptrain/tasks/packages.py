"""Folders that travel inside an installed Python package, written `module:folder`."""

from __future__ import annotations

import importlib.util
from pathlib import Path


def package_folder(spec: str) -> Path | None:
    """The folder that `module:folder` names, or None where that package is not installed.

    The package is located, not imported: carrying files must not run its code.
    """
    module, _, folder = spec.partition(":")
    try:
        found = importlib.util.find_spec(module)
    except (ImportError, ValueError):  # a parent package is missing, or the name is no module name
        return None
    if found is None or not found.submodule_search_locations:
        return None
    return Path(next(iter(found.submodule_search_locations))) / folder
