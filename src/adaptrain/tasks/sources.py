"""Where the rows of a task come from: a local mirror, a folder in a package, local files, or the hub.

The `datasets` library reads every format. What it would report badly (a missing file, a broken line) is looked at
before, so that the message names the place and the cure.
"""

from __future__ import annotations

import csv
import json
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import datasets
from huggingface_hub.utils import logging as hub_logging

from adaptrain.config.schema import DataConfig, TaskConfig
from adaptrain.errors import DataError, listed, nearest
from adaptrain.tasks.packages import package_folder

SUFFIXES = ("jsonl", "json", "csv", "tsv", "parquet", "txt")

ALIASES = {"validation": "dev", "dev": "validation"}
"""The two names that the field has for the split that chooses."""

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


class Source(Protocol):
    """A place that holds splits.

    Attributes:
        place: what to call it in a message.
    """

    @property
    def place(self) -> str: ...

    def read(self, split: str) -> datasets.Dataset:
        """All rows of one split, under the columns' own names.

        Raises:
            DataError: there is no such split, it is empty or unreadable.
        """
        ...


def locate(task: TaskConfig, data: DataConfig) -> Source:
    """The first place that has the task: the mirror, a package, local files, the hub.

    Raises:
        DataError: a folder or package that was named is not there.
    """
    if data.mirror is not None:
        mirror = Path(data.mirror).expanduser()
        if not mirror.is_dir():
            raise DataError(
                f"data.mirror={data.mirror}: there is no such folder ({mirror.absolute()}); correct the path"
            )
        if (mirror / task.name).is_dir():
            return FolderSource(mirror / task.name)
        if _is_hub_id(task.path):  # a task that lives on this machine needs no mirror
            raise DataError(
                f"data.mirror={data.mirror} has no folder '{task.name}'{nearest(task.name, _names(mirror)) or '.'} "
                f"It holds: {listed(_names(mirror))}. Add {task.name}/<split>.jsonl there, or leave data.mirror out"
            )
    if task.path.startswith("package:"):
        spec = task.path.removeprefix("package:")
        folder = package_folder(spec)
        if folder is None:
            module = spec.partition(":")[0]
            raise DataError(f"Task {task.name}: its data are in the Python package '{module}', which is not installed")
        if not folder.is_dir():
            raise DataError(f"Task {task.name}: the installed package has no folder {folder}; reinstall it")
        return FolderSource(folder)
    if "{split}" in task.path:
        return PatternSource(task.path)
    path = Path(task.path).expanduser()
    if path.is_dir():
        return FolderSource(path)
    if path.is_file():
        raise DataError(
            f"task.path={task.path} is one file, but a task has several splits; "
            "name a folder of <split>.jsonl, or write {split} where the split's name stands in the file name"
        )
    if not _is_hub_id(task.path):
        raise DataError(f"task.path={task.path}: there is no such folder ({path.absolute()}); correct the path")
    return HubSource(task.path, task.subset, task.revision, task.name)


def _is_hub_id(path: str) -> bool:
    """Whether a path can only mean the hub: shaped like `owner/name`, and nothing of that name is here."""
    return (
        _HUB_ID.fullmatch(path) is not None
        and not path.startswith(".")
        and Path(path).suffix.removeprefix(".") not in SUFFIXES
        and not Path(path).exists()
    )


def absolute_path(path: str) -> str | None:
    """Where a path of a config points when read from another folder: None for hub ids and packages."""
    if path.startswith("package:") or _is_hub_id(path):
        return None
    return str(Path(path).expanduser().absolute())


@dataclass(frozen=True)
class FolderSource:
    """A folder of `<split>.<jsonl|json|csv|tsv|parquet|txt>`."""

    folder: Path

    @property
    def place(self) -> str:
        return str(self.folder)

    def read(self, split: str) -> datasets.Dataset:
        for name in _spellings(split):
            files = [file for suffix in SUFFIXES if (file := self.folder / f"{name}.{suffix}").is_file()]
            if len(files) > 1:
                raise DataError(
                    f"{self.folder} has several files for the split '{name}': {listed(file.name for file in files)}; "
                    "leave one of them, or name it by task.path=" + str(self.folder / f"{{split}}{files[0].suffix}")
                )
            if files:
                return read_file(files[0])
        near = nearest(split, [Path(name).stem for name in _names(self.folder)])
        raise DataError(
            f"{self.folder} has no split '{split}'{near or '.'} "
            f"It holds: {listed(_names(self.folder))}. Name one in task.splits, or add {split}.jsonl"
        )


@dataclass(frozen=True)
class PatternSource:
    """Files named by a pattern with `{split}` in it."""

    pattern: str

    @property
    def place(self) -> str:
        return self.pattern

    def read(self, split: str) -> datasets.Dataset:
        for name in _spellings(split):
            file = Path(self.pattern.replace("{split}", name)).expanduser()
            if file.is_file():
                return read_file(file)
        file = Path(self.pattern.replace("{split}", split)).expanduser()
        beside = f"{file.parent} holds: {listed(_names(file.parent))}" if file.parent.is_dir() else f"no {file.parent}"
        raise DataError(f"task.path={self.pattern}: there is no file {file} ({beside})")


@dataclass(frozen=True)
class HubSource:
    """A data set on the hub, or in the local cache of it."""

    path: str
    subset: str | None
    revision: str | None
    task: str

    @property
    def place(self) -> str:
        return "/".join(part for part in (self.path, self.subset) if part)

    def read(self, split: str) -> datasets.Dataset:
        try:
            splits = _from_hub(self.path, self.subset, self.revision)
        except Exception as error:  # whatever the network, the hub or a builder raises: all mean "cannot be had"
            reason = str(error).strip().split("\n")[0] or type(error).__name__
            raise DataError(
                f"The data set '{self.place}' cannot be had from the hub ({reason}). "
                f"Without the hub: data.mirror=FOLDER (a folder of {self.task}/<split>.jsonl), "
                "or task.path=FOLDER (a folder of <split>.jsonl)"
            ) from error
        for name in _spellings(split):
            if name in splits:
                if not len(splits[name]):
                    raise DataError(f"The split '{name}' of the data set '{self.place}' is empty")
                return splits[name]
        raise DataError(
            f"The data set '{self.place}' has no split '{split}'{nearest(split, splits) or '.'} "
            f"Its splits are: {listed(splits)}; name one in task.splits"
        )


@lru_cache(maxsize=4)
def _from_hub(path: str, subset: str | None, revision: str | None) -> dict[str, datasets.Dataset]:
    with quiet():
        found: Any = datasets.load_dataset(path, subset, revision=revision)
        return {str(name): rows for name, rows in found.items()}


def read_file(file: Path) -> datasets.Dataset:
    """The rows of one data file.

    Raises:
        DataError: empty, or not what its suffix says; a broken line is named by number.
    """
    reader, options = _READERS[file.suffix.removeprefix(".")]
    if file.suffix in (".jsonl", ".json"):
        check_json(file)
    elif not file.stat().st_size:
        raise DataError(f"{file} is empty")
    try:
        # Read into memory through a cache that is thrown away: the file alone decides what is read, not an earlier
        # copy of it, and nothing is left behind in the user's home.
        with quiet(), tempfile.TemporaryDirectory(prefix="adaptrain-") as cache:
            rows = reader(str(file), cache_dir=cache, keep_in_memory=True, **options)
    except Exception as error:  # pandas, pyarrow and datasets have each their own
        if "corresponds to no data" in str(error):
            raise DataError(f"{file} has no rows") from None
        cause = error.__cause__ or error
        raise DataError(f"{file} cannot be read as {file.suffix[1:]}: {str(cause).strip().splitlines()[0]}") from error
    if not len(rows):
        raise DataError(f"{file} has no rows")
    return rows


def _read_lines(file: str, **_: Any) -> datasets.Dataset:
    """A text a line, in the column `text`; what Unicode alone calls the end of a line is none."""
    lines = Path(file).read_bytes().decode("utf-8-sig").replace("\r\n", "\n").split("\n")
    return datasets.Dataset.from_dict({"text": lines if lines[-1] else lines[:-1]})


_READERS: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "jsonl": (datasets.Dataset.from_json, {}),
    "json": (datasets.Dataset.from_json, {}),
    # "NA" and "null" are words; pandas would make them missing values
    "csv": (datasets.Dataset.from_csv, {"keep_default_na": False}),
    # tab-separated values know no quotes (IANA's definition, and GLUE's files have stray ones)
    "tsv": (datasets.Dataset.from_csv, {"keep_default_na": False, "sep": "\t", "quoting": csv.QUOTE_NONE}),
    "parquet": (datasets.Dataset.from_parquet, {}),
    "txt": (_read_lines, {}),
}


def check_json(file: Path) -> None:
    """Refuse what is not one JSON object a line, or one list of objects.

    Raises:
        DataError: names the file and the line.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is not UTF-8 (byte {error.start}); save it as UTF-8") from error
    if not text.strip():
        raise DataError(f"{file} is empty")
    if text.lstrip().startswith("["):
        try:
            rows = json.loads(text)
        except json.JSONDecodeError as error:
            raise DataError(f"{file}:{error.lineno}: broken JSON ({error.msg}, column {error.colno})") from error
        places: Iterator[str] = (f"{file}, item {number}" for number in range(1, len(rows) + 1))
    else:
        rows, numbers = [], []
        for number, line in enumerate(text.split("\n"), start=1):
            if not line.strip():
                continue
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError as error:
                raise DataError(
                    f"{file}:{number}: broken JSON ({error.msg}, column {error.colno}); one object a line is due"
                ) from error
            numbers.append(number)
        places = (f"{file}:{number}" for number in numbers)
    for row, place in zip(rows, places, strict=True):
        if not isinstance(row, dict):
            raise DataError(f'{place}: an object such as {{"text": …}} is due, not {json.dumps(row)[:40]}')


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars, and no lists of attempts to reach the hub: they would fall into our own display."""
    shown, level = not datasets.are_progress_bars_disabled(), hub_logging.get_verbosity()
    datasets.disable_progress_bars()
    hub_logging.set_verbosity_error()
    try:
        yield
    finally:
        hub_logging.set_verbosity(level)
        if shown:
            datasets.enable_progress_bars()


def _spellings(split: str) -> tuple[str, ...]:
    return (split, ALIASES[split]) if split in ALIASES else (split,)


def _names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))
