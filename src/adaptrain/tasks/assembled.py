"""Texts as a tokenizer puts them together, uncut, with the place of each: so that a task can cut where it likes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from adaptrain.errors import DataError

_AT_ONCE = 1000
"""Texts that are tokenised at once; more would only take memory."""


@dataclass(frozen=True)
class Assembled:
    """The tokens of one row.

    Attributes:
        tokens: name in a batch → of the whole row, those included that the tokenizer adds of its own.
        parts: where the tokens of each text begin and end, in order.
        characters: (tokens, 2), where a token begins and ends in its own text.
    """

    tokens: Mapping[str, np.ndarray]
    parts: tuple[tuple[int, int], ...]
    characters: np.ndarray

    def __len__(self) -> int:
        return len(self.characters)

    def taken(self, kept: np.ndarray) -> dict[str, np.ndarray]:
        """Some of the tokens, by their positions."""
        return {name: values[kept] for name, values in self.tokens.items()}

    def shortened(self, longest: int) -> np.ndarray:
        """The positions that are left of at most `longest` tokens. Texts lose their ends, the first one first, but for
        one token each."""
        excess, out = len(self) - longest, np.zeros(len(self), dtype=bool)
        for begin, end in self.parts:
            lost = max(0, min(excess, end - begin - 1))
            out[end - lost : end] = True
            excess -= lost
        return np.flatnonzero(~out)


def assembled(tokenizer: Any, texts: Sequence[Sequence[str]], keys: Sequence[str], place: str) -> Iterator[Assembled]:
    """Tokenise rows of one text, or of two that are read together.

    Args:
        texts: a column, or two.
        keys: names of what is kept.
        place: for messages.

    Raises:
        DataError: a text of which no token is left.
    """
    for start in range(0, len(texts[0]), _AT_ONCE):
        some = [list(column[start : start + _AT_ONCE]) for column in texts]
        made = tokenizer(
            *some, truncation=False, padding=False, verbose=False, return_token_type_ids="token_type_ids" in keys
        )
        for row, encoding in enumerate(made.encodings):
            whose = np.array([-1 if text is None else text for text in encoding.sequence_ids], dtype=np.int64)
            parts = []
            for number, column in enumerate(some):
                found = np.flatnonzero(whose == number)
                if not len(found):
                    raise DataError(
                        f"{place}: nothing of the text {column[row]!r:.60} is a token of this base model's. Leave the "
                        "row out"
                    )
                parts.append((int(found[0]), int(found[-1]) + 1))
            tokens = {key: np.asarray(made[key][row], dtype=np.int64) for key in keys}
            yield Assembled(tokens, tuple(parts), np.asarray(encoding.offsets, dtype=np.int64).reshape(-1, 2))
