"""The branches that a run has left behind."""

from __future__ import annotations

from pathlib import Path

from adaptrain.errors import CheckpointError
from adaptrain.files import read_json
from adaptrain.reporting.folder import BRANCHES, RESULT, branch_folder


def branches_of(folder: Path) -> list[Path] | None:
    """The folders of a run's branches, in the order of its composition; None for a folder that has none.

    Raises:
        CheckpointError: one of them is gone.
    """
    if not (folder / BRANCHES).is_dir():
        return None
    rows = read_json(folder / RESULT).get("branches")
    if not isinstance(rows, dict):
        raise CheckpointError(f"{folder / RESULT} names no branches")
    found = [folder / branch_folder(name) for name in rows]
    if missing := [place for place in found if not place.is_dir()]:
        raise CheckpointError(f"{folder} has lost a branch: there is no folder {missing[0]}")
    return found
