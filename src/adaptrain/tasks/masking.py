"""Which tokens of a text are masked, and what a model reads in their place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from adaptrain.config.schema import DataConfig
from adaptrain.errors import ConfigError, DataError, ModelError
from adaptrain.tasks.encoded import Collator, Encoded, Key
from adaptrain.tasks.reading import Reader
from adaptrain.tasks.text import longest_input, token_keys, tokenised

if TYPE_CHECKING:
    from adaptrain.tasks.rows import Rows

RATE = 0.15
"""Of the tokens that are not special."""

HIDDEN, RANDOM = 0.8, 0.1
"""Of the chosen tokens, how many are read as the mask and how many as any word; the others are read as they are."""

UNMASKED = -100
"""The label of a position that is not predicted."""

Moment = tuple[int, int]
"""Seed and epoch."""


@dataclass(frozen=True, eq=False)
class Masking:
    """Masked words (Devlin et al. 2019, section 3.1): of a text's n tokens that are not special

        max(1, round(0.15 n))

    are chosen at random and predicted. Of those 80% are read as the mask token, 10% as a random word, 10% as they are.

    What is chosen is a function of the seed, the epoch and the row's number, whatever batch the row is in; in an
    evaluation of the row's number alone, so that all runs are scored on the same words.

    Attributes:
        mask: id of the mask token.
        special: for each id whether it is a special token's, which is neither chosen nor put in a word's place.
        words: the ids of all others.
    """

    mask: int
    special: np.ndarray
    words: np.ndarray

    @staticmethod
    def of(tokenizer: Any, count: int) -> Masking:
        """For the ids of a tokenizer.

        Args:
            count: of the base model's words; what the tokenizer has beyond them is put in no word's place.

        Raises:
            ConfigError: it has no mask token.
        """
        if tokenizer.mask_token_id is None:
            raise ConfigError(
                f"task.type=masked_lm needs a tokenizer with a mask token, and that of {tokenizer.name_or_path} has "
                "none; choose a base model that was pre-trained on masked words (BERT, RoBERTa, XLM-R)"
            )
        known = np.asarray(sorted(tokenizer.get_vocab().values()))
        special = np.zeros(int(known[-1]) + 1, dtype=bool)
        special[tokenizer.all_special_ids] = True
        words = known[~special[known]]
        return Masking(int(tokenizer.mask_token_id), special, words[words < count])

    def count(self, ids: np.ndarray) -> int:
        """How many tokens of a text are chosen; 0 where all of them are special."""
        free = int((~self.special[ids]).sum())
        return max(1, round(RATE * free)) if free else 0

    def masked(self, ids: np.ndarray, row: int, moment: Moment | None) -> tuple[np.ndarray, np.ndarray]:
        """What is read of a text, and its labels: the ids of the chosen tokens, −100 elsewhere.

        Args:
            row: number of the text in its split.
            moment: of a training; None in an evaluation.
        """
        chance = np.random.default_rng((0, row) if moment is None else (1, *moment, row))
        free = np.flatnonzero(~self.special[ids])
        chosen = chance.choice(free, self.count(ids), replace=False)
        read, labels = ids.copy(), np.full_like(ids, UNMASKED)
        labels[chosen] = ids[chosen]
        fate = chance.random(len(chosen))
        read[chosen[fate < HIDDEN]] = self.mask
        other = chosen[(fate >= HIDDEN) & (fate < HIDDEN + RANDOM)]
        read[other] = chance.choice(self.words, len(other))
        return read, labels


@dataclass(frozen=True)
class MaskingCollator(Collator):
    """Masks words while it makes a batch.

    Attributes:
        masking: how.
        moment: seed and epoch that it depends on in a training.
    """

    masking: Masking | None = None
    moment: Moment | None = None

    def training(self, seed: int, epoch: int) -> MaskingCollator:
        """For the batches of an epoch: other words are masked in each."""
        return replace(self, moment=(seed, epoch))

    def __call__(self, rows: Encoded, indices: Sequence[int]) -> dict[str, Tensor]:
        assert self.masking is not None
        batch = super().__call__(rows, indices)
        batch["labels"] = torch.full_like(batch["input_ids"], UNMASKED)
        for row, index in enumerate(indices):
            read, labels = self.masking.masked(rows.features["input_ids"][index], index, self.moment)
            batch["input_ids"][row, : len(read)] = torch.from_numpy(read)
            batch["labels"][row, : len(read)] = torch.from_numpy(labels)
        return batch


@dataclass(frozen=True)
class MaskedReader(Reader):
    """Texts whose words are masked.

    Attributes:
        masking: how.
    """

    masking: Masking

    @staticmethod
    def of(tokenizer: Any, model: Any, data: DataConfig) -> MaskedReader:
        """For a base model.

        Raises:
            ConfigError: there is no mask token, or no room for text.
            ModelError: the base model does not have the mask token.
        """
        count = model.get_input_embeddings().num_embeddings
        if tokenizer.mask_token_id is not None and tokenizer.mask_token_id >= count:
            raise ModelError(
                f"The tokenizer's mask token has the id {tokenizer.mask_token_id}, and the base model has {count:,} "
                "embeddings; use the tokenizer that was saved with the base model"
            )
        masking = Masking.of(tokenizer, count)
        keys = {name: Key(value) for name, value in token_keys(tokenizer, model).items()}
        longest = longest_input(tokenizer, model, data.max_length)
        return MaskedReader(tokenizer, MaskingCollator(keys, masking=masking), longest, masking)

    def encode(self, rows: Rows, training: bool = False) -> Encoded:
        """
        Raises:
            DataError: a text has no word that could be masked.
        """
        encoded = tokenised(self.processor, (rows.texts,), tuple(self.collate.keys), self.max_length)
        ids = encoded.features["input_ids"]
        counts = [self.masking.count(ids[row]) for row in range(len(ids))]
        if 0 in counts:
            text = rows.texts[counts.index(0)]
            raise DataError(
                f"{rows.place}, split '{rows.split}': nothing of the text {text!r:.60} can be masked: all its tokens "
                "are special ones. Leave it out"
            )
        return replace(encoded, weights=counts)

    def masked_words(self, encoded: Encoded) -> list[np.ndarray]:
        """The masked words of each row, in an evaluation."""
        ids = encoded.features["input_ids"]
        found = [self.masking.masked(ids[row], row, None)[1] for row in range(len(ids))]
        return [labels[labels != UNMASKED] for labels in found]
