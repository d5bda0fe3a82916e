"""Where the rows of a task come from: a local mirror, a folder in a package, local files, or the hub."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import datasets
import numpy as np

from adaptrain.config.schema import CarveConfig, DataConfig, TaskConfig
from adaptrain.errors import DataError, listed, nearest
from adaptrain.tasks.arrays import ArraysSource
from adaptrain.tasks.classes import ClassesSource, class_folders
from adaptrain.tasks.formats import quiet, read_file, undecoded, unread_of
from adaptrain.tasks.places import is_hub_id, names_in, rows_place, split_name
from adaptrain.tasks.splits import SPELLINGS, has_word, ordered, pick, spellings, usual

_ABOUT_DATA = ("dataset_info.json", "dataset_infos.json")
_SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})")


class Source(Protocol):
    """A place that holds splits.

    Attributes:
        place: what to call it in a message.
    """

    @property
    def place(self) -> str: ...

    def splits(self) -> tuple[str, ...]:
        """The names of the splits that are there, as far as the names of files tell; the usual three come first."""
        ...

    def read(self, split: str) -> datasets.Dataset:
        """All rows of one split, under the columns' own names.

        Raises:
            DataError: there is no such split, it is empty or unreadable.
        """
        ...


def locate(task: TaskConfig, data: DataConfig, key: str = "task.path=") -> Source:
    """The first place that has the task: the mirror, a package, local files, the hub. With `task.splits.carve` it has
    that split too.

    Args:
        key: what stands before the path in messages; nothing where the path was given by itself.

    Raises:
        DataError: a file, folder or package that was named is not there.
    """
    found = _locate(task, data, key)
    return found if task.splits.carve is None else CarvedSource(found, task.splits.carve)


def _locate(task: TaskConfig, data: DataConfig, key: str) -> Source:
    place = rows_place(task.name, task.path, data.mirror, key)
    if place is None:
        return HubSource(task.path, task.subset, task.revision, task.name, key)
    path = Path(place).expanduser()
    if path.is_dir():
        return _folder(path)
    if "{split}" in place:
        return PatternSource(place)
    return ArraysSource(path) if path.suffix == ".npz" else FileSource(path, task.splits.train)


def _folder(folder: Path) -> Source:
    if any((folder / name).is_file() for name in ("dataset_dict.json", "state.json")):
        return SavedSource(folder)
    rows = FolderSource(folder)
    archives = sorted(folder.glob("*.npz"))
    if len(archives) == 1 and not rows.splits():
        return ArraysSource(archives[0])
    return rows if rows.splits() or not class_folders(folder) else ClassesSource(folder)


def absolute_path(path: str) -> str | None:
    """Where a path of a config points when read from another folder: None for hub ids and packages."""
    if path.startswith("package:") or is_hub_id(path):
        return None
    return str(Path(path).expanduser().absolute())


def home_of(place: str, split: str) -> Path | None:
    """The folder that relative paths in the rows of a split start from: that of its file; None for the hub's.

    Args:
        place: of the source.
    """
    found = Path(place.replace("{split}", split)).expanduser()
    return found if found.is_dir() else found.parent if found.is_file() or "{split}" in place else None


@dataclass(frozen=True)
class FolderSource:
    """A folder of data files, each of which names its split.

    For the split `train`: `train.<ending>`, then another spelling of it (`training`), then a file with one of them as a
    word of its name (`reviews_train.csv`); in the folder itself or in its `data`. A split in several files is numbered
    as on the hub, `train-00000-of-00002.parquet`.
    """

    folder: Path

    @property
    def place(self) -> str:
        return str(self.folder)

    def splits(self) -> tuple[str, ...]:
        stems = dict.fromkeys(_stem(file) for file in self._files())
        found = {stem: usual(stem) for stem in stems if usual(stem) in SPELLINGS}
        for stem in stems:
            words = [name for name in SPELLINGS if has_word(stem, SPELLINGS[name])]
            alone = len(words) == 1 and sum(has_word(other, SPELLINGS[words[0]]) for other in stems) == 1
            found.setdefault(stem, words[0] if alone else stem)
        return ordered(found.values())

    def read(self, split: str) -> datasets.Dataset:
        files = self._files()
        words = spellings(split)
        for near in (
            [file for file in files if _stem(file) == split],
            [file for file in files if _stem(file).lower() in words],
            [file for file in files if has_word(_stem(file), words)],
        ):
            if near:
                return _read_all(self._one(near, split))
        names = names_in(self.folder)
        raise DataError(
            f"{self.folder} has no split '{split}'{nearest(split, [Path(name).stem for name in names]) or '.'} "
            f"It holds: {listed(names)}. {unread_of(self.folder, words)}Name one in task.splits, add {split}.jsonl, or "
            f"carve it from another: task.splits.carve={{to: {split}, fraction: 0.1}}",
            "splits",
            split,
        )

    def _files(self) -> list[Path]:
        files = [file for folder in (self.folder, self.folder / "data") for file in sorted(folder.glob("*"))]
        return [file for file in files if split_name(file.name) and file.name not in _ABOUT_DATA and file.is_file()]

    def _one(self, files: Sequence[Path], split: str) -> Sequence[Path]:
        """The file of a split, or all that it is divided into."""
        parts = [_SHARD.fullmatch((split_name(file.name) or ("",))[0]) for file in files]
        if len(files) == 1 and parts[0] is None:
            return files
        if all(parts) and len({(part[1], part[3]) for part in parts if part}) == 1:
            due = int(parts[0][3]) if parts[0] else 0
            if len(files) == due:
                return files
            raise DataError(
                f"{self.folder}: of the split '{split}' there are {len(files)} files of {due}; add the rest"
            )
        ending = files[0].name.removeprefix(_stem(files[0]))
        raise DataError(
            f"{self.folder} has several files for the split '{split}': {listed(file.name for file in files)}; "
            f"leave one of them, or give the pattern of their names: task.path={self.folder}/{{split}}{ending}"
        )


@dataclass(frozen=True)
class SavedSource:
    """A folder that `save_to_disk` of the `datasets` library wrote; its rows are mapped, not read."""

    folder: Path

    @property
    def place(self) -> str:
        return str(self.folder)

    def splits(self) -> tuple[str, ...]:
        return ordered(self._load())

    def read(self, split: str) -> datasets.Dataset:
        return pick(self._load(), split, f"The data set '{self.folder}'")

    def _load(self) -> dict[str, datasets.Dataset]:
        try:
            with quiet():
                found: Any = datasets.load_from_disk(str(self.folder))
        except Exception as error:  # pyarrow, JSON and datasets have each their own
            raise DataError(f"{self.folder} cannot be read as a saved data set: {error}") from error
        made = dict(found) if isinstance(found, dict) else {str(found.split or "train"): found}
        return {name: undecoded(rows) for name, rows in made.items()}


@dataclass(frozen=True)
class PatternSource:
    """Files named by a pattern with `{split}` in it."""

    pattern: str

    @property
    def place(self) -> str:
        return self.pattern

    def splits(self) -> tuple[str, ...]:
        before, _, after = self.pattern.partition("{split}")
        start = Path(before if before.endswith("/") or not before else str(Path(before).parent)).expanduser()
        shape = re.compile(re.escape(str(Path(before + "\0").expanduser())[:-1]) + "(.+)" + re.escape(after))
        files = start.glob("**/*" if "/" in after else "*") if start.is_dir() else ()
        found = [match[1] for file in sorted(files) if file.is_file() and (match := shape.fullmatch(str(file)))]
        return ordered(found)

    def read(self, split: str) -> datasets.Dataset:
        for name in (split, *spellings(split)):
            file = Path(self.pattern.replace("{split}", name)).expanduser()
            if file.is_file():
                return read_file(file)
        file = Path(self.pattern.replace("{split}", split)).expanduser()
        there = file.parent.is_dir()
        beside = f"{file.parent} holds: {listed(names_in(file.parent))}" if there else f"no {file.parent}"
        raise DataError(f"task.path={self.pattern}: there is no file {file} ({beside})", "splits", split)


@dataclass(frozen=True)
class FileSource:
    """One file, which is one split."""

    file: Path
    split: str = "train"

    @property
    def place(self) -> str:
        return str(self.file)

    def splits(self) -> tuple[str, ...]:
        return (self.split,)

    def read(self, split: str) -> datasets.Dataset:
        if usual(split) == usual(self.split):
            return read_file(self.file)
        raise DataError(
            f"task.path={self.file} is one file, which is the split '{self.split}', and '{split}' is asked for. Carve "
            f"it from that: task.splits.carve={{to: {split}, fraction: 0.1}}; or write {{split}} where that stands in "
            "the names of several files, or name a folder of <split>.jsonl",
            "splits",
            split,
        )


PARQUET = "refs/convert/parquet"
"""The revision under which the hub keeps the rows of data sets as parquet files."""


@dataclass(frozen=True)
class HubSource:
    """A data set on the hub, or in the local cache of it.

    A repository that is a loading script is not run. The hub keeps the rows of such ones as parquet files under the
    revision `refs/convert/parquet`, a folder for each subset.
    """

    path: str
    subset: str | None
    revision: str | None
    task: str
    key: str = "task.path="

    @property
    def place(self) -> str:
        return "/".join(part for part in (self.path, self.subset) if part)

    def splits(self) -> tuple[str, ...]:
        return ordered(self._load())

    def read(self, split: str) -> datasets.Dataset:
        return pick(self._load(), split, f"The data set '{self.place}'")

    def _load(self) -> dict[str, datasets.Dataset]:
        try:
            return _from_hub(self.path, self.subset, self.revision)
        except Exception as error:  # whatever the network, the hub or a builder raises: all mean "cannot be had"
            reason = str(error).strip().split("\n")[0] or type(error).__name__
            if "scripts are no longer supported" in reason:
                raise DataError(
                    f"The data set '{self.place}' is a loading script, which is not run ({reason}). Set "
                    f"task.revision={PARQUET}: the hub keeps most of these as files there"
                ) from None
            if not self.key:  # a path by itself, which may be meant for a file
                told = f"and the data set '{self.place}' could not be downloaded from the hub ({reason})"
                raise DataError(f"{self.path}: there is no such file or folder here, {told}. Correct it") from error
            raise DataError(
                f"The data set '{self.place}' cannot be had from the hub ({reason}). "
                f"Without the hub: data.mirror=FOLDER (a folder of {self.task}/<split>.jsonl), "
                "or task.path=FOLDER (a folder of <split>.jsonl)"
            ) from error


@lru_cache(maxsize=4)
def _from_hub(path: str, subset: str | None, revision: str | None) -> dict[str, datasets.Dataset]:
    with quiet():
        if revision == PARQUET and subset is not None:
            found: Any = datasets.load_dataset(path, data_dir=subset, revision=revision)
        else:
            found = datasets.load_dataset(path, subset, revision=revision)
        return {str(name): undecoded(rows) for name, rows in found.items()}


@dataclass(frozen=True)
class CarvedSource:
    """Another source, one of whose splits has given rows to a new one.

    Of n rows, k = `rows` or round(`fraction` · n), at least 1, are drawn without replacement by the seed, and stay in
    their order on both sides.
    """

    inner: Source
    carve: CarveConfig

    @property
    def place(self) -> str:
        return self.inner.place

    def splits(self) -> tuple[str, ...]:
        return ordered([*self.inner.splits(), self.carve.to])

    def read(self, split: str) -> datasets.Dataset:
        taken, given = usual(split) == usual(self.carve.to), usual(split) == usual(self.carve.of)
        if not taken and not given:
            return self.inner.read(split)
        if any(usual(name) == usual(self.carve.to) for name in self.inner.splits()):
            raise DataError(
                f"task.splits.carve makes the split '{self.carve.to}', which {self.place} has already; choose another "
                "name, and put that name into task.splits, or leave carve out"
            )
        rows = self.inner.read(self.carve.of)
        count = self.carve.rows or max(1, round((self.carve.fraction or 0.0) * len(rows)))
        if count >= len(rows):
            raise DataError(
                f"{self.place}: task.splits.carve takes {count} rows of the split '{self.carve.of}', which has "
                f"{len(rows)}; take fewer"
            )
        drawn = np.random.default_rng(self.carve.seed).permutation(len(rows))
        return rows.select(np.sort(drawn[:count] if taken else drawn[count:]))


def _read_all(files: Sequence[Path]) -> datasets.Dataset:
    parts = [read_file(file) for file in files]
    try:
        return parts[0] if len(parts) == 1 else datasets.concatenate_datasets(parts)
    except ValueError as error:
        raise DataError(f"{files[0]} and the files after it do not fit together: {error}") from None


def _stem(file: Path) -> str:
    """A data file's name without endings and number."""
    stem = (split_name(file.name) or (file.name,))[0]
    shard = _SHARD.fullmatch(stem)
    return stem if shard is None else shard[1]
