"""Which tokens of a text are masked, and what a model reads in their place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from adaptrain.errors import ConfigError

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
    def of(tokenizer: Any) -> Masking:
        """For the ids of a tokenizer.

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
        return Masking(int(tokenizer.mask_token_id), special, known[~special[known]])

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
