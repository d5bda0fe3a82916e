"""Averaging saved adapters: folders in, a folder out. The base model is not loaded, and need not be there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from adaptrain.adapter import check_name
from adaptrain.averaging import average, linear
from adaptrain.checkpoint import (
    CONFIG,
    FORMAT,
    HEAD_CONFIG,
    HEAD_TENSORS,
    TENSORS,
    AdapterFile,
    find,
    read_adapter_config,
)
from adaptrain.composed import CONFIG as COMPOSITION
from adaptrain.errors import CheckpointError, OutputError, listed
from adaptrain.evaluation.saved import TASK
from adaptrain.files import read_json, read_tensors, write_json, write_tensors
from adaptrain.interop import adapterhub
from adaptrain.methods import MethodConfig
from adaptrain.mixture import Mixture
from adaptrain.reporting.folder import AVERAGE, made_whole
from adaptrain.sources import Source, difference, head_meaning
from adaptrain.version import __version__

RECORD_FORMAT = "adaptrain-average/1"


@dataclass(frozen=True)
class AverageResult:
    """What an averaging wrote.

    Attributes:
        folder: that holds the average.
        name: of the adapter in it.
        config: of it.
        shares: folder → λ, in order.
        head: whether the heads were averaged too.
        task: whether the folder says its task, so that it can be evaluated with nothing else given.
        notes: what is missing in it, and why.
    """

    folder: Path
    name: str
    config: MethodConfig
    shares: tuple[tuple[Path, float], ...]
    head: bool
    task: bool
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Folder:
    path: Path
    file: AdapterFile
    tensors: dict[str, Tensor]
    head: dict[str, Tensor] | None
    task: dict[str, Any] | None


def average_folders(
    paths: Sequence[Path], out: Path, mixture: Mixture, name: str | None = None, force: bool = False
) -> AverageResult:
    """Average saved adapters into a new folder, and the heads beside them where all have equal ones.

    The heads are averaged linearly, with the same weights. Where all are runs of one task, `task.json` goes along,
    without a score: nobody has evaluated the average yet. An earlier average in `out` is replaced.

    Args:
        name: of the averaged adapter; the one that all bear when None, or else that of the folder.
        force: replace whatever `out` holds.

    Raises:
        CheckpointError: not an adapter folder of our format, damaged, or made for different base models.
        UnsupportedError, ConfigError: as in `adaptrain.averaging.average`.
        OutputError: `out` holds something else, or cannot be written.
    """
    shares = mixture.shares([str(path) for path in paths])
    _check_free(out, paths, force)
    folders = [_read(path) for path in paths]
    base = _common_base(folders)
    names = {folder.file.name for folder in folders}
    name = name or (names.pop() if len(names) == 1 else out.absolute().name)
    check_name(name)
    sources = [Source(str(folder.path), folder.file.config, folder.tensors) for folder in folders]
    config, tensors = average(sources, mixture)
    head, no_head = _head(folders, shares)
    task, no_task = _task(folders, head is not None)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"Cannot write {out}: {error}; name another folder") from None
    with made_whole(out, "--out") as work:
        write_tensors(work / TENSORS, tensors)
        if head is not None:
            write_tensors(work / HEAD_TENSORS, head)
            options = {"format": FORMAT, "name": name, "config": folders[0].file.head}
            write_json(work / HEAD_CONFIG, options)
        if task is not None:
            write_json(work / TASK, task)
        versions = {"adaptrain": __version__, "torch": torch.__version__, "transformers": transformers.__version__}
        made = {"format": FORMAT, "name": name, "config": config.to_dict()}
        write_json(work / AVERAGE, _record(folders, mixture, shares))
        write_json(work / CONFIG, made | {"base_model": base, "versions": versions})
    pairs = tuple((folder.path, share) for folder, share in zip(folders, shares, strict=True))
    notes = tuple(note for note in (no_head, no_task) if note)
    return AverageResult(out, name, config, pairs, head is not None, task is not None, notes)


def _check_free(out: Path, paths: Sequence[Path], force: bool) -> None:
    if not out.exists():
        return
    if inside := [path for path in paths if path.absolute().resolve().is_relative_to(out.absolute().resolve())]:
        raise OutputError(f"{out} would replace {inside[0]}, which is to be averaged; name another folder")
    if not (out / AVERAGE).is_file() and not force:
        raise OutputError(f"{out} is there but holds no average; name another folder, or give --force to replace it")


def _read(path: Path) -> _Folder:
    if not path.is_dir():
        raise CheckpointError(f"There is no adapter folder {path}")
    if (path / COMPOSITION).is_file():
        raise CheckpointError(f"{path} holds a composition; name adapters in it, such as {path}/adapters/NAME")
    folder = find(path)
    if adapterhub.recognises(folder):
        raise CheckpointError(
            f"{path} is AdapterHub's, and what its tensors mean depends on the base model's table; load it there with "
            "load_adapter, and save_adapter writes a folder that can be averaged"
        )
    file = read_adapter_config(folder)
    head = None if file.head is None else read_tensors(folder / HEAD_TENSORS)
    task = read_json(folder / TASK) if (folder / TASK).is_file() else None
    return _Folder(path, file, read_tensors(folder / TENSORS), head, task)


def _common_base(folders: Sequence[_Folder]) -> dict[str, Any]:
    """The base model that all were made for, as its best known entry says it."""
    first = max(folders, key=lambda folder: folder.file.base.get("fingerprint") is not None)
    one = first.file.base
    for folder in folders:
        other = folder.file.base
        sums = one.get("fingerprint") or "", other.get("fingerprint") or ""
        # a sum of weights can only be compared with a sum, a commit only with a commit
        known = all(sums) and len(sums[0]) == len(sums[1])
        differs = [key for key in ("model_type", "hidden_size") if one.get(key) != other.get(key)]
        differs += ["fingerprint"] if known and sums[0] != sums[1] else []
        differs += ["name"] if not known and one.get("name") != other.get("name") else []
        if differs:
            key = differs[0]
            values = [str(base.get(key))[:40] for base in (one, other)]
            cure = f"; if they are the same, say so in {CONFIG} (base_model.name)" if key == "name" else ""
            raise CheckpointError(
                f"{first.path} and {folder.path} were made for different base models: {key} is {values[0]} and "
                f"{values[1]}{cure}"
            )
    return one


def _head(folders: Sequence[_Folder], shares: Sequence[float]) -> tuple[dict[str, Tensor] | None, str]:
    """The heads' average; or why there is none, empty where nobody has one."""
    first = folders[0]
    without = [folder.path for folder in folders if folder.head is None]
    if len(without) == len(folders):
        return None, ""
    if without:
        return None, f"no head was written, because {listed(without)} has none"
    for folder in folders:
        if differs := difference(head_meaning(first.file.head or {}), head_meaning(folder.file.head or {})):
            return None, f"no head was written, because those of {first.path} and {folder.path} differ in {differs}"
    heads = [folder.head for folder in folders if folder.head is not None]
    return linear([f"the head of {folder.path}" for folder in folders], heads, shares), ""


def _task(folders: Sequence[_Folder], with_head: bool) -> tuple[dict[str, Any] | None, str]:
    """What to write to `task.json`; or why nothing, empty where nobody has one."""
    first = folders[0]
    tasks = [folder.task for folder in folders if folder.task is not None]
    without = f"no {TASK} was written, so that eval does not know the task: "
    if not tasks:
        return None, ""
    if len(tasks) < len(folders):
        missing = [folder.path for folder in folders if folder.task is None]
        return None, f"{without}{listed(missing)} is no run"
    for folder, task in zip(folders, tasks, strict=True):
        one, other = tasks[0].get("task"), task.get("task")
        if not isinstance(one, Mapping) or not isinstance(other, Mapping):
            raise CheckpointError(f"{(first if one is None else folder).path / TASK} has no task")
        if differs := difference(one, other):
            return None, f"{without}those of {first.path} and {folder.path} differ in {differs}"
    if not with_head:
        return None, f"{without}there is no head"
    same = all(task.get(key) == tasks[0].get(key) for task in tasks for key in ("split", "data_fingerprint"))
    scores = [task.get("score") for task in tasks]
    return tasks[0] | {"score": None, "averaged_scores": scores if same and None not in scores else []}, ""


def _record(folders: Sequence[_Folder], mixture: Mixture, shares: Sequence[float]) -> dict[str, Any]:
    return {
        "format": RECORD_FORMAT,
        "strategy": mixture.strategy,
        "normalize_weights": mixture.normalize_weights,
        "svd_rank": mixture.svd_rank,
        "density": mixture.density,
        "seed": mixture.seed,
        "sources": [
            {"path": str(folder.path), "name": folder.file.name, "weight": share}
            for folder, share in zip(folders, shares, strict=True)
        ],
    }
