"""Rows as a model takes them: arrays of numbers, and batches no longer than their own longest row."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor


class Ragged(Sequence[np.ndarray]):
    """Arrays of one axis and of any length, one a row, kept end to end.

    Attributes:
        values: of all rows.
        starts: where each row begins; one more for the end.
    """

    def __init__(self, values: np.ndarray, starts: np.ndarray) -> None:
        self.values, self.starts = values, starts

    @classmethod
    def of(cls, rows: Iterable[Any], dtype: Any = np.int64) -> Ragged:
        """From a sequence of numbers for each row."""
        arrays = [np.asarray(row, dtype=dtype) for row in rows]
        starts = np.zeros(len(arrays) + 1, dtype=np.int64)
        np.cumsum([len(array) for array in arrays], out=starts[1:])
        return cls(np.concatenate(arrays) if arrays else np.empty(0, dtype), starts)

    @property
    def lengths(self) -> np.ndarray:
        """Of each row."""
        return np.diff(self.starts)

    def __len__(self) -> int:
        return len(self.starts) - 1

    @overload
    def __getitem__(self, index: int) -> np.ndarray: ...
    @overload
    def __getitem__(self, index: slice) -> list[np.ndarray]: ...
    def __getitem__(self, index: int | slice) -> np.ndarray | list[np.ndarray]:
        if isinstance(index, slice):
            return [self[row] for row in range(*index.indices(len(self)))]
        row = index + len(self) if index < 0 else index
        if not 0 <= row < len(self):
            raise IndexError(index)
        return self.values[self.starts[row] : self.starts[row + 1]]


Feature = Sequence[Any] | np.ndarray
"""A number or an array for each row: in an array, a `Ragged`, or computed when asked for."""


@dataclass(frozen=True)
class Encoded:
    """What a model is trained on or asked about, one *example* after the other: mostly a row of the data each, but a
    long context is read in several windows, each an example.

    Attributes:
        features: name in a batch → what each example has under it; `labels` among them.
        lengths: tokens of each example.
        truncated: rows that lost tokens.
        weights: how many labels each example has, where that is not one.
        origin: the row that each example is of, where that is not its own number.
        texts: how many texts each example has; those of one follow one another in what is kept a text.
    """

    features: Mapping[str, Feature]
    lengths: Sequence[int]
    truncated: int = 0
    weights: Sequence[int] | None = None
    origin: Sequence[int] | None = None
    texts: int = 1

    @classmethod
    def of(cls, rows: Sequence[Mapping[str, Any]], labels: Sequence[Any] | np.ndarray, truncated: int = 0) -> Encoded:
        """From a mapping of tokens for each row, and its label."""
        features: dict[str, Feature] = {key: Ragged.of(row[key] for row in rows) for key in rows[0]}
        lengths = [len(row["input_ids"]) for row in rows]
        return cls(features | {"labels": np.asarray(labels)}, lengths, truncated)

    def __len__(self) -> int:
        return len(self.lengths)

    def weight(self, indices: Sequence[int]) -> int:
        """What the mean loss over some examples is the mean of: their labels."""
        return len(indices) if self.weights is None else int(sum(self.weights[index] for index in indices))

    @property
    def labels(self) -> Feature:
        """Of each example."""
        return self.features["labels"]


@dataclass(frozen=True)
class Key:
    """How a name in a batch is made of what each row has under it.

    Attributes:
        padding: what shorter rows are filled with behind their end; None where all have one shape.
        dtype: of the batch.
        of_text: whether each text of a row has its own, where a row has several.
    """

    padding: float | None = None
    dtype: torch.dtype = torch.long
    of_text: bool = True


@dataclass(frozen=True)
class Collator:
    """Rows to a batch. What has an axis of any length is padded on the right to the longest of the batch, each name for
    itself.

    On the right whatever the tokenizer prefers: every model then counts positions from the first token, and heads find
    the last token by the mask.

    Attributes:
        keys: name → how it is made. Names that the rows do not have are left out: nobody labels what is yet to be
            written.
        masked: the name that `attention_mask` is the mask of; None for a model that takes none.
    """

    keys: Mapping[str, Key] = field(default_factory=dict)
    masked: str | None = "input_ids"

    def training(self, seed: int, epoch: int) -> Collator:
        """For the batches of an epoch."""
        return self

    def __call__(self, rows: Encoded, indices: Sequence[int]) -> dict[str, Tensor]:
        texts = [index * rows.texts + text for index in indices for text in range(rows.texts)]
        batch: dict[str, Tensor] = {}
        for name, key in self.keys.items():
            if name not in rows.features:
                continue
            found = [rows.features[name][index] for index in (texts if key.of_text else indices)]
            batch[name] = _stacked(found, key.dtype) if key.padding is None else _padded(found, key)
            if name == self.masked:
                lengths = torch.tensor([len(each) for each in found])
                batch["attention_mask"] = (torch.arange(batch[name].shape[1]) < lengths[:, None]).long()
        return batch


def text_keys(padding: Mapping[str, int], label_dtype: torch.dtype) -> dict[str, Key]:
    """Of tokens, and of one label a row.

    Args:
        padding: name → what it is padded with.
    """
    return {name: Key(value) for name, value in padding.items()} | {"labels": Key(None, label_dtype, of_text=False)}


def _stacked(found: Sequence[Any], dtype: torch.dtype) -> Tensor:
    return torch.from_numpy(np.stack([np.asarray(each) for each in found])).to(dtype)


def _padded(found: Sequence[np.ndarray], key: Key) -> Tensor:
    """(rows, longest, …)."""
    shape = len(found), max(map(len, found)), *found[0].shape[1:]
    padded = np.full(shape, key.padding, dtype=found[0].dtype)
    for row, array in enumerate(found):
        padded[row, : len(array)] = array
    return torch.from_numpy(padded).to(key.dtype)
