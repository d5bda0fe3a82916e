"""What a run was made of, file by file, so that a finished run can tell whether that is still the same.

    ingredients.json    base model, rows of each task, saved adapters: where each was, and its files with their sums

Files are noted before they are read. Later they are compared by size and times, and by content where those differ.
Nothing heavy is imported: the answer that a run is finished should not have to wait for torch.
"""

from __future__ import annotations

import dataclasses
import glob
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from adaptrain.config.schema import ModelConfig, RunConfig
from adaptrain.errors import AdaptrainError
from adaptrain.reporting.folder import is_finished
from adaptrain.reporting.sums import changes, record, touches
from adaptrain.tasks.places import is_hub_id, rows_place, split_name
from adaptrain.training.local_base import base_folder, model_files

NAME = "ingredients.json"
FORMAT = "adaptrain-ingredients/1"

MANY = 200
"""Files above which a place is noted by one sum over names, sizes and times: they are images or recordings."""

_ADAPTER = ("adapter_config.json", "adapter.safetensors", "pytorch_adapter.bin")
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Place:
    """Where an ingredient is now.

    Attributes:
        where: folder, file or pattern; None: on the hub.
        files: name → file.
        commit: on the hub, as far as the local cache knows it.
    """

    where: str | None
    files: Mapping[str, Path] = field(default_factory=dict)
    commit: str | None = None


@dataclass
class Changes:
    """What is no longer as it was when a run was made.

    Attributes:
        certain: a sentence each, on the base model, saved adapters, and commits of the hub.
        base: whether the base model is at another place, where its weights may be the same.
        rows: a sentence each, on files that hold rows; the rows may be the same.
    """

    certain: list[str] = field(default_factory=list)
    base: bool = False
    rows: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.certain or self.base or self.rows)


def take_stock(config: RunConfig) -> dict[str, Any]:
    """Note all that a run is about to read, as JSON-able values. What is missing is left to those who read it."""
    tasks = [config.task, *(member.task for member in config.adapters.values() if member.task is not None)]
    asked = {
        "model": dataclasses.asdict(config.model),
        "mirror": config.data.mirror,
        "tasks": [list(each) for each in dict.fromkeys((task.name, task.path, task.revision) for task in tasks)],
        "adapters": [[name, member.path, member.revision] for name, member in config.adapters.items() if member.path],
    }
    stock: dict[str, Any] = {"format": FORMAT, "asked": asked, "places": {}}
    for part in _parts(asked):
        try:
            place = part.find()
            noted: dict[str, Any] = {"where": place.where, "commit": place.commit}
            if len(place.files) > MANY:
                noted |= {"count": len(place.files), "touches": touches(place.files.values())}
            else:
                noted["files"] = record(place.files)
        except (AdaptrainError, OSError):
            continue
        stock["places"][part.key] = noted
    return stock


def note_commits(stock: dict[str, Any]) -> None:
    """Add what the cache of the hub knows now that everything has been read."""
    for part in _parts(stock["asked"]):
        noted = stock["places"].get(part.key)
        if noted is not None and noted["where"] is None:
            noted["commit"] = part.find().commit


def note_named(stock: dict[str, Any], files: Iterable[Path]) -> None:
    """Add the files that rows name: images, recordings."""
    if paths := sorted(map(str, files)):
        stock["named"] = {"paths": paths, "touches": touches(map(Path, paths))}


def read_stock(folder: Path) -> dict[str, Any] | None:
    """What a run's folder says that the run was made of; None for a run of an earlier version."""
    try:
        stock = json.loads((folder / NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return stock if isinstance(stock, dict) and stock.get("format") == FORMAT else None


def compare(stock: Mapping[str, Any]) -> Changes:
    """What has changed since the stock was taken."""
    found = Changes()
    for part in _parts(stock["asked"]):
        noted = stock["places"].get(part.key)
        about_rows = part.key.startswith("rows")
        told = found.rows if about_rows else found.certain
        try:
            place = part.find()
        except AdaptrainError as error:
            told.append(str(error))
            continue
        if noted is None:
            continue
        if (place.where is None) != (noted["where"] is None):
            if part.key == "base":
                found.base = True
            else:
                was, now = noted["where"] or "the hub", place.where or "the hub"
                found.certain.append(f"{part.words} was read from {was}, and would be read from {now}")
        elif place.where is None:
            if place.commit and noted["commit"] and place.commit != noted["commit"]:
                was, now = noted["commit"][:12], place.commit[:12]
                found.certain.append(f"{part.words} is at commit {now} on the hub, not {was}")
        elif "files" in noted:
            told += changes(noted["files"], place.files)
        elif noted["count"] != len(place.files) or noted["touches"] != touches(place.files.values()):
            told.append(f"the {len(place.files)} files in {place.where} are not those that were read")
    named = stock.get("named")
    if named is not None and touches(map(Path, named["paths"])) != named["touches"]:
        found.rows.append(f"the {len(named['paths'])} files that the rows name are not those that were read")
    return found


@dataclass(frozen=True)
class _Part:
    """An ingredient.

    Attributes:
        key: in the stock.
        words: for messages.
        find: tells where it is now.
    """

    key: str
    words: str
    find: Callable[[], Place]


def _parts(asked: Mapping[str, Any]) -> list[_Part]:
    model, mirror = ModelConfig(**asked["model"]), asked["mirror"]
    tasks = [
        _Part(f"rows {name} {path}", f"task {name}", partial(_rows, name, path, revision, mirror))
        for name, path, revision in asked["tasks"]
    ]
    adapters = [
        _Part(f"adapter {name}", f"adapters.{name}.path={path}", partial(_adapter, path, revision))
        for name, path, revision in asked["adapters"]
    ]
    return [_Part("base", f"model.name={model.name}", partial(_base, model)), *tasks, *adapters]


def _base(model: ModelConfig) -> Place:
    folder = base_folder(model)
    if folder is None:
        return Place(None, commit=_commit("models", model.name, model.revision))
    files = dict.fromkeys(model_files(folder, model.allow_remote_code == model.name))
    return Place(str(folder), {file.name: file for file in files})


def _rows(name: str, path: str, revision: str | None, mirror: str | None) -> Place:
    where = rows_place(name, path, mirror)
    if where is None:
        return Place(None, commit=_commit("datasets", path, revision))
    if "{split}" in where and not Path(where).is_dir():
        return Place(where, {str(file): file for file in _matching(where)})
    place = Path(where)
    if place.is_file():
        return Place(where, {place.name: place})
    return Place(where, {file.relative_to(place).as_posix(): file for file in _data_files(place)})


def _data_files(folder: Path) -> list[Path]:
    """Every file of a folder that can be rows of it: data files and archives in it and in its `data`; all files of a
    saved data set; else images in folders of splits and classes."""
    if any((folder / name).is_file() for name in ("dataset_dict.json", "state.json")):
        return sorted(file for file in folder.rglob("*") if file.is_file())
    near = [*sorted(folder.glob("*")), *sorted((folder / "data").glob("*"))]
    found = [file for file in near if (split_name(file.name) or file.suffix == ".npz") and file.is_file()]
    return found or sorted(file for file in folder.glob("*/*/*") if file.is_file() and file.name[:1] != ".")


def _matching(pattern: str) -> list[Path]:
    """The files of all splits that a pattern names."""
    before, *rest = Path(pattern).expanduser().as_posix().split("{split}")
    start, _, head = before.rpartition("/")
    folder = Path(start or ("/" if before.startswith("/") else "."))
    written = "*".join(glob.escape(text) for text in (head, *rest))
    return sorted(file for file in folder.glob(written) if file.is_file())


def _adapter(path: str, revision: str | None) -> Place:
    folder = Path(path).expanduser()
    if folder.is_dir() and not (folder / _ADAPTER[0]).is_file():  # a recipe's folder, for the one run in it
        runs = [inner for inner in sorted(folder.iterdir()) if inner.name[:1] != "." and is_finished(inner)]
        folder = runs[0] if len(runs) == 1 else folder
    if not folder.is_dir() and is_hub_id(path):
        return Place(None, commit=_commit("models", path, revision))
    return Place(str(folder), {name: folder / name for name in _ADAPTER if (folder / name).is_file()})


def _commit(kind: str, name: str, revision: str | None) -> str | None:
    """The commit that a branch or tag of a repository has in the hub's cache on this machine; None where it is not
    there."""
    from huggingface_hub.constants import HF_HUB_CACHE

    if revision is not None and _COMMIT.fullmatch(revision):
        return revision
    reference = Path(HF_HUB_CACHE) / f"{kind}--{name.replace('/', '--')}" / "refs" / (revision or "main")
    try:
        return reference.read_text(encoding="utf-8").strip() or None
    except OSError:
        return None
