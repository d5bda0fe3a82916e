"""The rows of one split, checked: texts that are text, labels that are in the map."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import datasets
import numpy as np

from adaptrain.config.schema import DataConfig, TaskConfig
from adaptrain.errors import DataError, listed, nearest
from adaptrain.tasks.bad_rows import EMPTY, Bad, check_labels, check_texts, counted, first_of_each, in_words, refused
from adaptrain.tasks.columns import settle_columns
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
        empty: rows used whose text is blank; there are none where rows were loaded.
        skipped: rows left out because their text is blank.
        bad: rows left out, by reason; those that are `skipped` too.
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
    bad: Mapping[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.texts)


def load_training_rows(task: TaskConfig, data: DataConfig, seed: int, source: Source | None = None) -> Rows:
    """The training split; with `data.max_train` a sample of it that depends on the seed alone."""
    rows = load_rows(task, task.splits.train, source or locate(task, data), data.bad_rows)
    if data.max_train is None or data.max_train >= len(rows):
        return rows
    return _select(rows, np.random.default_rng(seed).permutation(len(rows))[: data.max_train].tolist())


def load_evaluation_rows(task: TaskConfig, data: DataConfig, split: str, source: Source | None = None) -> Rows:
    """A split to evaluate on; with `data.max_eval` its first rows."""
    rows = load_rows(task, split, source or locate(task, data), data.bad_rows)
    if data.max_eval is None or data.max_eval >= len(rows):
        return rows
    return _select(rows, range(data.max_eval))


def load_rows(task: TaskConfig, split: str, source: Source, bad_rows: str = "error") -> Rows:
    """All rows of a split, but bad ones.

    Args:
        bad_rows: `error` refuses a split that has a bad row, `skip` leaves those out. Where words of the text are to be
            masked, blank texts are left out anyway: they end paragraphs.

    Raises:
        DataError: the split is missing or empty, a column is missing or not the only one that could be meant; a text is
            not text or is empty, a label is not in the map.
    """
    table = source.read(split)
    place = f"{source.place}, split '{split}'"
    task, _, _ = settle_columns(task, table.features, place)
    examined = examine(table, task, place)
    bad = examined.bad
    refusable = [each for each in bad if each.reason != EMPTY] if SHAPES[task.type].masks else bad
    if refusable and bad_rows == "error":
        raise refused(refusable, len(table))
    out = {each.row - 1 for each in bad}
    if len(out) == len(table):
        raise DataError(f"{place}: all {len(table)} {_all_of(counted(bad))}")
    columns = [
        None if column is None else [value for row, value in enumerate(column) if row not in out]
        for column in (examined.texts, examined.pairs, examined.labels)
    ]
    texts, pairs, labels = columns[0] or [], columns[1], columns[2] or []
    counts = counted(bad)
    return Rows(
        split,
        texts,
        pairs,
        labels,
        source.place,
        len(table),
        _fingerprint(texts, pairs, labels),
        empty=0,
        skipped=counts.get(EMPTY, 0),
        bad=counts,
    )


def _all_of(counts: Mapping[str, int]) -> str:
    return "texts are empty" if set(counts) == {EMPTY} else f"rows are bad: {in_words(counts)}"


@dataclass(frozen=True)
class Examined:
    """A split's columns in their roles, one value a row, and the rows that are bad.

    Attributes:
        texts, pairs, labels: as in `Rows`; None where a task has none. What is bad stands as it was read, a bad label
            as None.
        bad: each bad row once.
    """

    texts: list[Any]
    pairs: list[Any] | None
    labels: list[Any] | None
    bad: list[Bad]


def examine(table: datasets.Dataset, task: TaskConfig, place: str) -> Examined:
    """Look at every row of a split.

    Args:
        task: with every column named.

    Raises:
        DataError: a column is missing, or there is no label map.
    """
    columns, names = task.columns, None
    if columns.id is not None:
        names = _column(table, columns.id, "id", place)
    assert columns.text is not None
    texts = check_texts(_column(table, columns.text, "text", place), columns.text, "text", place, names)
    pairs = None
    if columns.text_pair is not None:
        values = _column(table, columns.text_pair, "text_pair", place)
        pairs = check_texts(values, columns.text_pair, "text_pair", place, names)
    shape, labels = SHAPES[task.type], None
    if isinstance(shape, LabelledShape):
        assert columns.label is not None
        if task.type == "classification" and not task.labels:
            raise DataError(f"{place}: task {task.name} has no label map; write it down in task.labels")
        values = _column(table, columns.label, "label", place)
        feature = table.features[columns.label]
        classes = feature.names if isinstance(feature, datasets.ClassLabel) else None
        labels = check_labels(values, classes, task, shape, place, names)
    bad = first_of_each([column for column in (texts, pairs, labels) if column is not None])
    return Examined(texts.values, pairs and pairs.values, labels and labels.values, bad)


def _select(rows: Rows, indices: Sequence[int]) -> Rows:
    texts = [rows.texts[index] for index in indices]
    pairs = None if rows.pairs is None else [rows.pairs[index] for index in indices]
    labels = [rows.labels[index] for index in indices] if rows.labels else []
    return replace(rows, texts=texts, pairs=pairs, labels=labels)


def _column(table: datasets.Dataset, column: str, role: str, place: str) -> list[Any]:
    if column not in table.column_names:
        raise DataError(
            f"{place}: there is no column '{column}'{nearest(column, table.column_names) or '.'} The columns are: "
            f"{listed(table.column_names)}. Name one in task.columns.{role}"
        )
    return list(table[column][:])


def _fingerprint(texts: Sequence[str], pairs: Sequence[str] | None, labels: Sequence[Label]) -> str:
    digest = hashlib.sha256()
    columns = [column for column in (texts, pairs, labels or None) if column is not None]
    for row in zip(*columns, strict=True):
        digest.update(json.dumps(row, ensure_ascii=False, separators=(",", ":")).encode())
        digest.update(b"\n")
    return digest.hexdigest()
