"""The rows of one split, checked: texts that are text, labels that are in the map."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import datasets
import numpy as np

from adaptrain.config.schema import DataConfig, TaskConfig
from adaptrain.errors import DataError, listed, nearest
from adaptrain.tasks.shapes import SHAPES, Label, LabelledShape
from adaptrain.tasks.sources import Source, locate


@dataclass(frozen=True)
class Rows:
    """What a task needs of one split.

    Attributes:
        split: its name, as configured.
        texts, pairs: the inputs; `pairs` is None for a task on single texts.
        labels: class indices or numbers; none where the words themselves are the labels.
        place: where the rows came from.
        found: rows of the whole split; fewer are used where `data.max_train` or `data.max_eval` says so.
        fingerprint: sha256 over all rows of the split, in order, in the roles they play.
        empty: rows used whose text is blank.
        skipped: rows left out because their text is blank, where words of it are to be masked.
    """

    split: str
    texts: list[str]
    pairs: list[str] | None
    labels: list[Label]
    place: str
    found: int
    fingerprint: str
    empty: int
    skipped: int = 0

    def __len__(self) -> int:
        return len(self.texts)


def load_training_rows(task: TaskConfig, data: DataConfig, seed: int, source: Source | None = None) -> Rows:
    """The training split; with `data.max_train` a sample of it that depends on the seed alone."""
    rows = load_rows(task, task.splits.train, source or locate(task, data))
    if data.max_train is None or data.max_train >= len(rows):
        return rows
    return _select(rows, np.random.default_rng(seed).permutation(len(rows))[: data.max_train].tolist())


def load_evaluation_rows(task: TaskConfig, data: DataConfig, split: str, source: Source | None = None) -> Rows:
    """A split to evaluate on; with `data.max_eval` its first rows."""
    rows = load_rows(task, split, source or locate(task, data))
    if data.max_eval is None or data.max_eval >= len(rows):
        return rows
    return _select(rows, range(data.max_eval))


def load_rows(task: TaskConfig, split: str, source: Source) -> Rows:
    """All rows of a split.

    Raises:
        DataError: the split is missing or empty, a column is missing, a text is not text, a label is not in the map.
    """
    table = source.read(split)
    place = f"{source.place}, split '{split}'"
    texts = _texts(table, task.columns.text, "text", place)
    pairs = _texts(table, task.columns.text_pair, "text_pair", place) if task.columns.text_pair else None
    shape = SHAPES[task.type]
    if not isinstance(shape, LabelledShape):
        return _unlabelled(split, texts, source.place, place)
    labels = _labels(table, task, shape, place)
    return Rows(
        split, texts, pairs, labels, source.place, len(texts), _fingerprint(texts, pairs, labels), _empty(texts, pairs)
    )


def _unlabelled(split: str, found: list[str], where: str, place: str) -> Rows:
    texts = [text for text in found if text.strip()]
    if not texts:
        raise DataError(f"{place}: all {len(found)} texts are empty")
    fingerprint = _fingerprint(texts, None, [])
    return Rows(split, texts, None, [], where, len(found), fingerprint, 0, len(found) - len(texts))


def _select(rows: Rows, indices: Sequence[int]) -> Rows:
    texts = [rows.texts[index] for index in indices]
    pairs = None if rows.pairs is None else [rows.pairs[index] for index in indices]
    labels = [rows.labels[index] for index in indices] if rows.labels else []
    return replace(rows, texts=texts, pairs=pairs, labels=labels, empty=_empty(texts, pairs))


def _texts(table: datasets.Dataset, column: str, role: str, place: str) -> list[str]:
    values = _column(table, column, role, place)
    for row, value in enumerate(values, start=1):
        if not isinstance(value, str):
            what = "missing" if value is None else f"{value!r:.60}, which is not text but {type(value).__name__}"
            raise DataError(
                f"{place}, row {row}: the {role} in column '{column}' is {what}. Correct the row, or "
                f"task.columns.{role}"
            )
    return values


def _labels(table: datasets.Dataset, task: TaskConfig, shape: LabelledShape, place: str) -> list[Label]:
    values = _column(table, task.columns.label, "label", place)
    feature = table.features[task.columns.label]
    names = feature.names if isinstance(feature, datasets.ClassLabel) else None
    return shape.labels(values, names, task, place)


def _column(table: datasets.Dataset, column: str, role: str, place: str) -> list[Any]:
    if column not in table.column_names:
        raise DataError(
            f"{place}: there is no column '{column}'{nearest(column, table.column_names) or '.'} The columns are: "
            f"{listed(table.column_names)}. Name one in task.columns.{role}"
        )
    return list(table[column])


def _fingerprint(texts: Sequence[str], pairs: Sequence[str] | None, labels: Sequence[Label]) -> str:
    digest = hashlib.sha256()
    columns = [column for column in (texts, pairs, labels or None) if column is not None]
    for row in zip(*columns, strict=True):
        digest.update(json.dumps(row, ensure_ascii=False, separators=(",", ":")).encode())
        digest.update(b"\n")
    return digest.hexdigest()


def _empty(texts: Sequence[str], pairs: Sequence[str] | None) -> int:
    blank = [not text.strip() for text in texts]
    if pairs is not None:
        blank = [first or not second.strip() for first, second in zip(blank, pairs, strict=True)]
    return sum(blank)
