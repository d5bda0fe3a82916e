"""What splits are called, and which of some is meant."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import datasets

from adaptrain.errors import DataError, listed, nearest

SPELLINGS = {
    "train": ("train", "training"),
    "validation": ("validation", "dev", "valid", "val", "development"),
    "test": ("test", "testing"),
}
"""What the field calls the three splits. Any of a line's words finds the file of another."""


def usual(split: str) -> str:
    """The split that a name means: `dev` is `validation`; another name means itself."""
    return next((name for name, words in SPELLINGS.items() if split.lower() in words), split)


def pick(splits: Mapping[str, datasets.Dataset], split: str, what: str) -> datasets.Dataset:
    """The split of a name, or of another spelling of it.

    Args:
        what: holds them, for messages.

    Raises:
        DataError: there is none, or it is empty.
    """
    for name in (split, *spellings(split)):
        if name in splits:
            if not len(splits[name]):
                raise DataError(f"The split '{name}' of {what[0].lower()}{what[1:]} is empty")
            return splits[name]
    raise DataError(
        f"{what} has no split '{split}'{nearest(split, splits) or '.'} "
        f"Its splits are: {listed(splits)}; name one in task.splits",
        "splits",
        split,
    )


def spellings(split: str) -> tuple[str, ...]:
    """All words for a split."""
    return SPELLINGS.get(usual(split), (split,))


def names_split(name: str) -> bool:
    """Whether one of the usual three is a word of a split's name: of `validation_matched`, not of `labels`."""
    return any(has_word(name, words) for words in SPELLINGS.values())


def has_word(stem: str, words: Iterable[str]) -> bool:
    """Whether one of the words is a word of a name."""
    return not {*re.split(r"[^a-z0-9]+", stem.lower())}.isdisjoint(words)


def ordered(names: Iterable[str]) -> tuple[str, ...]:
    """Without repetition, training first."""
    order = list(SPELLINGS)
    return tuple(
        sorted(dict.fromkeys(names), key=lambda name: order.index(usual(name)) if usual(name) in order else len(order))
    )
