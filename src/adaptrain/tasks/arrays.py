"""numpy archives: a split is an array of inputs and one of labels."""

from __future__ import annotations

import re
import zipfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import datasets
import numpy as np

from adaptrain.errors import DataError, listed
from adaptrain.tasks.splits import SPELLINGS, ordered, pick, usual

COLUMNS = {"x": "image", "images": "image", "y": "label", "labels": "label"}
"""What the two arrays are mostly called, and the column that each becomes; another name is the column's own."""

_SPLITS = "|".join(word for words in SPELLINGS.values() for word in words)
_NAME = re.compile(rf"(?:(?P<split>{_SPLITS})_(?P<column>\w+))|(?:(?P<column_>\w+)_(?P<split_>{_SPLITS}))")


@dataclass(frozen=True)
class ArraysSource:
    """A numpy archive whose arrays are named by column and split: `x_train`, `y_train`, `x_test`, `y_test`, or
    `train_images`, `train_labels`, `val_images`, … An array's first axis are the rows."""

    file: Path

    @property
    def place(self) -> str:
        return str(self.file)

    def splits(self) -> tuple[str, ...]:
        return ordered(_read(self.file))

    def read(self, split: str) -> datasets.Dataset:
        return pick(_read(self.file), split, f"The archive '{self.file}'")


@lru_cache(maxsize=1)
def _read(file: Path) -> dict[str, datasets.Dataset]:
    found: dict[str, dict[str, np.ndarray]] = {}
    try:
        with np.load(file, allow_pickle=False) as archive:
            for name in archive.files:
                match = _NAME.fullmatch(name)
                if match is not None:
                    column, split = match["column"] or match["column_"], match["split"] or match["split_"]
                    found.setdefault(usual(split), {})[COLUMNS.get(column, column)] = archive[name]
            names = archive.files
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{file} cannot be read as npz: {error}") from None
    if not found:
        raise DataError(
            f"{file} holds {listed(names)}; arrays named by column and split are due: x_train, y_train, x_test, …"
        )
    made = {}
    for split, columns in found.items():
        counts = {name: len(array) if array.ndim else 0 for name, array in columns.items()}
        if len(set(counts.values())) > 1:
            raise DataError(f"{file}, split '{split}': its arrays have different numbers of rows: {counts}")
        flat = {name: array[:, 0] if array.shape[1:] == (1,) else array for name, array in columns.items()}
        made[split] = datasets.Dataset.from_dict(flat)
    return made
