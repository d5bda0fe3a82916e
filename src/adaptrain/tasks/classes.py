"""Folders of images: a folder for each split, and in it one for each class."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import datasets

from adaptrain.errors import DataError, listed
from adaptrain.tasks.splits import ordered, pick, usual

IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm")
"""Endings of files that are images."""


@dataclass(frozen=True)
class ClassesSource:
    """A folder of `<split>/<class>/<image>`; the classes are those of all splits, by the alphabet."""

    folder: Path

    @property
    def place(self) -> str:
        return str(self.folder)

    def splits(self) -> tuple[str, ...]:
        return ordered(usual(name) for name in class_folders(self.folder))

    def read(self, split: str) -> datasets.Dataset:
        found = class_folders(self.folder)
        names = sorted({each.name for classes in found.values() for each in classes})
        wanted = next((name for name in found if name == split), None)
        wanted = wanted or next((name for name in found if usual(name) == usual(split)), None)
        if wanted is None:
            return pick({name: datasets.Dataset.from_dict({}) for name in found}, split, f"The folder '{self.folder}'")
        rows = [(file, names.index(each.name)) for each in found[wanted] for file in sorted(_images(each))]
        if len(names) < 2:
            raise DataError(f"{self.folder} has one class, {listed(names)}; a folder for each of several is due")
        features = datasets.Features({"image": datasets.Value("string"), "label": datasets.ClassLabel(names=names)})
        paths = [str(file.relative_to(self.folder)) for file, _ in rows]
        return datasets.Dataset.from_dict({"image": paths, "label": [label for _, label in rows]}, features=features)


def class_folders(folder: Path) -> dict[str, list[Path]]:
    """Split → its folders of images, by name; none where a folder is of another kind."""
    found = {}
    for split in sorted(each for each in folder.iterdir() if each.is_dir() and not each.name.startswith(".")):
        classes = [each for each in sorted(split.iterdir()) if each.is_dir() and any(_images(each))]
        if classes:
            found[split.name] = classes
    return found


def _images(folder: Path) -> Iterator[Path]:
    return (file for file in folder.iterdir() if file.suffix.lower() in IMAGES and file.is_file())
