"""What a call says of a saved run's base model and rows, in place of what the run's folder says.

A folder may come from anybody, and what it was made from may lie elsewhere now. So the call can say where the base
model and the rows are, and the call alone can allow code: `task.json` cannot.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from adaptrain.config.remote_code import KEY as PERMISSION
from adaptrain.config.remote_code import cure, permits
from adaptrain.config.schema import DataConfig, ModelConfig, TaskConfig
from adaptrain.errors import CheckpointError, ConfigError, DataError, ModelError, UsageError, unknown
from adaptrain.tasks.packages import is_shipped

MODEL_KEYS = ("model.name", "model.revision", "model.package", PERMISSION)
PATH = "task.path"

Overrides = Mapping[str, str]
"""Dotted key → value, of `MODEL_KEYS` and `PATH`."""


def check_keys(overrides: Overrides) -> None:
    """Refuse other keys.

    Raises:
        UsageError: names the nearest.
    """
    for key in overrides:
        if key not in (*MODEL_KEYS, PATH):
            raise UsageError(unknown("override", key, (*MODEL_KEYS, PATH), "The keys are"))


def base_of(model: ModelConfig, overrides: Overrides, file: Path) -> ModelConfig:
    """The base model that a file names, as the call changes it. What describes the old name or revision goes with it.

    Args:
        file: that names it; what it allows is not allowed.

    Raises:
        CheckpointError: values of the file that are wrong.
        ConfigError: values of the call that are wrong.
        ModelError: the file needs the call's word: for code, or for a package that is not adaptrain's.
    """
    asked = model.allow_remote_code is not None
    changed = {key.removeprefix("model."): value for key, value in overrides.items() if key in MODEL_KEYS}
    model = dataclasses.replace(model, allow_remote_code=None)
    if changed.get("name", model.name) != model.name:
        asked = False
        model = dataclasses.replace(model, revision=None, package=None, sha256=None)
    if changed.get("revision", model.revision) != model.revision or "package" in changed:
        model = dataclasses.replace(model, package=None, sha256=None)
    if model.package is not None and not is_shipped(model.package):
        raise ModelError(
            f"{file}: takes the base model from the Python package '{model.package}', which does not belong to "
            f"adaptrain; if you trust it, add to the command: model.package={model.package}"
        )
    model = dataclasses.replace(model, **changed)
    problems = list(model.problems())
    if theirs := [f"{file}: model.{key} {sentence}" for key, sentence in problems if key not in changed]:
        raise CheckpointError(theirs[0])
    if problems:
        raise ConfigError([f"model.{key} (command line): {sentence}" for key, sentence in problems])
    if asked and not permits(model):
        raise ModelError(
            f"{file}: the base model '{model.name}' was loaded with Python code of its own, which a saved run cannot "
            f"allow; {cure(model)}"
        )
    return model


def rows_of(task: TaskConfig, data: DataConfig, overrides: Overrides) -> tuple[TaskConfig, DataConfig]:
    """The task and its data with the call's own `task.path`, which goes before the mirror of the run."""
    path = overrides.get(PATH)
    if path is None or path == task.path:
        return task, data
    return dataclasses.replace(task, path=path, revision=None), dataclasses.replace(data, mirror=None)


def check_folder(model: ModelConfig, file: Path) -> None:
    """Refuse a base model whose folder is not there any more.

    Raises:
        ModelError: names the key that says where it is.
    """
    if _is_path(model.name) and not Path(model.name).expanduser().is_dir():
        raise ModelError(
            f"{file}: the base model was in {model.name}, and there is no such folder; if it was moved, say where it "
            "is: model.name=FOLDER"
        )


def check_rows(task: TaskConfig, data: DataConfig, overrides: Overrides, file: Path) -> None:
    """Refuse rows that are not there any more, and those of a package that is not adaptrain's.

    Raises:
        DataError: names the key that says where they are.
    """
    if data.mirror is not None and not Path(data.mirror).expanduser().is_dir():
        raise DataError(
            f"{file}: the mirror was {data.mirror}, and there is no such folder; if it was moved, say where it is: "
            "data.mirror=FOLDER"
        )
    carried = task.path.startswith("package:")
    if carried and PATH not in overrides and not is_shipped(task.path.removeprefix("package:")):
        raise DataError(
            f"{file}: takes its rows from the Python package '{task.path.removeprefix('package:')}', which does not "
            f"belong to adaptrain; if you trust it, add to the command: {PATH}={task.path}"
        )
    in_mirror = data.mirror is not None and (Path(data.mirror).expanduser() / task.name).is_dir()
    if not in_mirror and _is_path(task.path) and not is_there(task.path):
        raise DataError(
            f"{file}: the rows were in {task.path}, and nothing is there; if they were moved, say where they are: "
            f"{PATH}=PATH"
        )


def is_there(path: str) -> bool:
    """Whether a file, a folder, or the folder of a pattern with `{split}` is there."""
    before, pattern, _ = path.partition("{split}")
    place = Path(before).expanduser()
    return (place if not pattern or before.endswith("/") else place.parent).exists()


def _is_path(name: str) -> bool:
    return name.startswith((".", "~")) or Path(name).is_absolute()
