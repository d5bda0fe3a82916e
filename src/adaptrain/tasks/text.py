"""Texts as tokens, and tokens as batches no longer than their own longest row."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from adaptrain.config.schema import DataConfig, TaskConfig
from adaptrain.errors import ConfigError, DataError
from adaptrain.tasks.masking import UNMASKED, Masking, Moment
from adaptrain.tasks.rows import Rows
from adaptrain.tasks.shapes import SHAPES, Label


@dataclass(frozen=True)
class Encoded:
    """The rows of a split as tokens.

    Attributes:
        features: one mapping a row, `input_ids` and what else the tokenizer makes and the model takes.
        labels: as in `Rows`; how many tokens are masked, where those are the labels.
        lengths: tokens of each row.
        truncated: rows that lost tokens.
        weights: how many labels each row has, where that is not one.
    """

    features: list[dict[str, np.ndarray]]
    labels: list[Label]
    lengths: list[int]
    truncated: int
    weights: list[int] | None = None

    def __len__(self) -> int:
        return len(self.features)

    def weight(self, indices: Sequence[int]) -> int:
        """What the mean loss over some rows is the mean of: their labels."""
        return len(indices) if self.weights is None else sum(self.weights[index] for index in indices)


@dataclass(frozen=True)
class Collator:
    """Rows to a batch: padded on the right to the longest of them.

    On the right whatever the tokenizer prefers: every model then counts positions from the first token, and heads find
    the last token by the mask.

    Attributes:
        padding: key of a feature → what it is padded with.
        label_dtype: of a batch of labels.
        masking: how words are masked, where those are the labels; (rows, positions) then.
        moment: seed and epoch that masking depends on in a training.
    """

    padding: dict[str, int]
    label_dtype: torch.dtype
    masking: Masking | None = None
    moment: Moment | None = None

    def training(self, seed: int, epoch: int) -> Collator:
        """For the batches of an epoch: other words are masked in each."""
        return self if self.masking is None else replace(self, moment=(seed, epoch))

    def __call__(self, rows: Encoded, indices: Sequence[int]) -> dict[str, Tensor]:
        lengths = torch.tensor([rows.lengths[index] for index in indices])
        longest = int(lengths.max())
        batch = {}
        for key, value in self.padding.items():
            padded = torch.full((len(indices), longest), value, dtype=torch.long)
            for row, index in enumerate(indices):
                padded[row, : rows.lengths[index]] = torch.from_numpy(rows.features[index][key])
            batch[key] = padded
        batch["attention_mask"] = (torch.arange(longest) < lengths[:, None]).long()
        if self.masking is not None:
            self._mask(self.masking, rows, indices, batch)
            return batch
        batch["labels"] = torch.tensor([rows.labels[index] for index in indices], dtype=self.label_dtype)
        return batch

    def _mask(self, masking: Masking, rows: Encoded, indices: Sequence[int], batch: dict[str, Tensor]) -> None:
        batch["labels"] = torch.full_like(batch["input_ids"], UNMASKED)
        for row, index in enumerate(indices):
            read, labels = masking.masked(rows.features[index]["input_ids"], index, self.moment)
            batch["input_ids"][row, : len(read)] = torch.from_numpy(read)
            batch["labels"][row, : len(read)] = torch.from_numpy(labels)


def prepare_tokenizer(tokenizer: Any) -> None:
    """Undo what a tokenizer file may have baked in, and see that there is something to pad with."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        backend.no_padding()
        backend.no_truncation()
    if tokenizer.pad_token is None:  # GPT-2 and LLaMA: any token does, the mask hides it
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.bos_token or tokenizer.unk_token


@dataclass(frozen=True)
class TextReader:
    """Rows of text to what a model takes.

    Attributes:
        tokenizer: of the base model.
        collate: makes batches.
        max_length: tokens that a row may have.
    """

    tokenizer: Any
    collate: Collator
    max_length: int

    def encode(self, rows: Rows) -> Encoded:
        """The rows as tokens.

        Raises:
            DataError: words are to be masked, and a text has none.
        """
        encoded = encode(self.tokenizer, rows, tuple(self.collate.padding), self.max_length)
        if self.collate.masking is None:
            return encoded
        counts = [self.collate.masking.count(feature["input_ids"]) for feature in encoded.features]
        if 0 in counts:
            text = rows.texts[counts.index(0)]
            raise DataError(
                f"{rows.place}, split '{rows.split}': nothing of the text {text!r:.60} can be masked: all its tokens "
                "are special ones. Leave it out"
            )
        return replace(encoded, labels=counts, weights=counts)


def text_reader(tokenizer: Any, model: nn.Module, task: TaskConfig, data: DataConfig) -> TextReader:
    """How this task is read for this base model.

    Raises:
        ConfigError: `data.max_length` leaves no room for text, or there is no mask token for a task that needs one.
    """
    longest = longest_input(tokenizer, model, data.max_length, task.columns.text_pair is not None)
    shape = SHAPES[task.type]
    masking = Masking.of(tokenizer) if shape.masks else None
    return TextReader(tokenizer, _collator(tokenizer, model, shape.label_dtype, masking), longest)


def _collator(tokenizer: Any, model: nn.Module, label_dtype: torch.dtype, masking: Masking | None) -> Collator:
    padding = {"input_ids": int(tokenizer.pad_token_id or 0)}
    # A tokenizer borrowed from BERT makes segment ids that DistilBERT does not take
    if "token_type_ids" in tokenizer.model_input_names and _accepts(model, "token_type_ids"):
        padding["token_type_ids"] = int(tokenizer.pad_token_type_id or 0)
    return Collator(padding, label_dtype, masking)


def encode(tokenizer: Any, rows: Rows, keys: Sequence[str], max_length: int) -> Encoded:
    """Tokenise all rows; those longer than `max_length` are cut (of a pair the longer text first) and counted."""
    texts = (rows.texts,) if rows.pairs is None else (rows.texts, rows.pairs)
    made = tokenizer(*texts, truncation=True, max_length=max_length, padding=False)
    features = [{key: np.asarray(made[key][row], dtype=np.int64) for key in keys} for row in range(len(rows))]
    for feature in features:
        if not len(feature["input_ids"]):  # GPT-2 adds no token of its own, so an empty text has none at all
            feature.update({key: np.zeros(1, dtype=np.int64) for key in keys})
            feature["input_ids"][0] = int(tokenizer.bos_token_id or tokenizer.eos_token_id or tokenizer.pad_token_id)
    truncated = sum(bool(encoding.overflowing) for encoding in made.encodings)
    return Encoded(features, rows.labels, [len(feature["input_ids"]) for feature in features], truncated)


def longest_input(tokenizer: Any, model: nn.Module, wanted: int, pair: bool = False) -> int:
    """Tokens that a row may have: what is asked for, as far as tokenizer and model can go.

    Raises:
        ConfigError: not even the special tokens would fit.
    """
    config: Any = model.config
    limits = [wanted, tokenizer.model_max_length]
    positions = getattr(config, "max_position_embeddings", None)
    if isinstance(positions, int) and positions > 0:
        limits.append(positions - _positions_before_the_first(model))
    longest = int(min(limits))
    added = tokenizer.num_special_tokens_to_add(pair)
    if longest <= added + pair:
        raise ConfigError(
            f"data.max_length={wanted} leaves no room for text: this tokenizer adds {added} tokens of its own to every "
            f"{'pair' if pair else 'text'}"
        )
    return longest


def _positions_before_the_first(model: nn.Module) -> int:
    """RoBERTa and its kin count positions from the padding index + 1; the rows before are never a token's."""
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding) and module.padding_idx is not None:
            return module.padding_idx + 1
    return 0


def _accepts(model: nn.Module, argument: str) -> bool:
    return argument in inspect.signature(model.forward).parameters
