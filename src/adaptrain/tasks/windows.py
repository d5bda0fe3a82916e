"""A question and a text that holds its answer, read in windows that overlap."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn

from adaptrain.config.schema import DataConfig
from adaptrain.errors import ConfigError, DataError
from adaptrain.tasks.assembled import Assembled, assembled
from adaptrain.tasks.encoded import Collator, Encoded, Feature, Key, Ragged
from adaptrain.tasks.reading import Reader
from adaptrain.tasks.text import longest_input, token_keys

if TYPE_CHECKING:
    from adaptrain.tasks.rows import Rows


@dataclass(frozen=True)
class WindowReader(Reader):
    """A question, and of its context as many tokens as there is room for:

        [CLS] question [SEP] context[i·step : i·step + room] [SEP]     as the tokenizer puts two texts together
        room = max_length − all other tokens,   step = room − min(stride, ⌊room / 2⌋)

    Each window is an example. Its label is (start, end), the positions of the first and the last token of the first
    right answer; where a window does not hold all of it, twice the position that stands for no answer: that of the
    tokenizer's class token, or 0 where it adds none.

    Beside what the model reads, an example has the features

        null        the position that stands for no answer
        first       the position of the first token of the context
        begins      of each token of the context its first character in the context, without blanks around it
        ends        the character behind its last; equal to `begins` where nothing is left

    Attributes:
        stride: tokens that two windows share; at most half of those that a window has of the context, so that a long
            question does not make hundreds of them.
    """

    stride: int

    @staticmethod
    def of(tokenizer: Any, model: nn.Module, data: DataConfig) -> WindowReader:
        """For a base model.

        Raises:
            ConfigError: there is no room for text; or windows would share all that they have.
        """
        if data.stride >= data.max_length:
            raise ConfigError(
                f"data.stride={data.stride} is not below data.max_length={data.max_length}: windows of so many tokens "
                f"cannot share as many; set data.stride={data.max_length // 2}"
            )
        keys = {name: Key(value) for name, value in token_keys(tokenizer, model).items()}
        longest = longest_input(tokenizer, model, data.max_length, pair=True)
        return WindowReader(tokenizer, Collator(keys | {"labels": Key()}), longest, data.stride)

    def encode(self, rows: Rows, training: bool = False) -> Encoded:
        """
        Raises:
            DataError: a question that leaves no room for its context; a text without a token.
        """
        names = [name for name in self.collate.keys if name != "labels"]
        questions, contexts, answers = (rows.columns[role] for role in ("question", "context", "answers"))
        place = f"{rows.place}, split '{rows.split}'"
        found: dict[str, list[Any]] = {name: [] for name in (*names, "labels", "null", "first", "begins", "ends")}
        origin: list[int] = []
        for row, made in enumerate(assembled(self.processor, (questions, contexts), names, place)):
            (_, _), (begin, end) = made.parts
            room = self.max_length - (len(made) - (end - begin))
            if room < 1:
                raise DataError(
                    f"{place}: the question {questions[row]!r:.80} of row {row + 1} takes {len(made) - (end - begin)} "
                    f"tokens with the special ones and leaves no room for its context in data.max_length="
                    f"{self.max_length}; raise that, or leave the row out"
                )
            begins, ends = _without_blanks(made.characters[begin:end], contexts[row])
            answer = _tokens_of(answers[row], begins, ends)
            null = self._null(made)
            for start in window_starts(end - begin, room, min(self.stride, room // 2)):
                stop = min(start + room, end - begin)
                kept = np.r_[0:begin, begin + start : begin + stop, end : len(made)]
                for name, values in made.taken(kept).items():
                    found[name].append(values)
                nothing = int(np.searchsorted(kept, null))
                held = answer is not None and start <= answer[0] and answer[1] < stop
                label = [begin + each - start for each in answer] if held and answer else [nothing, nothing]
                found["labels"].append(label)
                found["null"].append(nothing)
                found["first"].append(begin)
                found["begins"].append(begins[start:stop])
                found["ends"].append(ends[start:stop])
                origin.append(row)
        features: dict[str, Feature] = {
            name: np.asarray(values) if name in ("labels", "null", "first") else Ragged.of(values)
            for name, values in found.items()
        }
        return Encoded(features, [len(ids) for ids in found["input_ids"]], origin=origin)

    def _null(self, made: Assembled) -> int:
        """The position that stands for no answer: that of the class token that is in neither text."""
        own = made.tokens["input_ids"] == self.processor.cls_token_id
        for begin, end in made.parts:
            own[begin:end] = False
        return int(own.argmax())


def window_starts(count: int, room: int, shared: int) -> range:
    """Where the windows of `count` tokens begin: each has `room` of them, the last perhaps fewer, and shares `shared`
    with the one before it.

    >>> list(window_starts(10, 4, 2))
    [0, 2, 4, 6]
    """
    step = room - shared
    return range(0, max(count - shared, 1), step)


def _without_blanks(characters: np.ndarray, text: str) -> tuple[np.ndarray, np.ndarray]:
    """Where tokens begin and end in a text, without the blanks that some tokenizers count in."""
    begins, ends = characters[:, 0].copy(), characters[:, 1].copy()
    blank = np.array([character.isspace() for character in text] + [False])
    while (more := (begins < ends) & blank[np.minimum(begins, len(text))]).any():
        begins += more
    while (more := (begins < ends) & blank[np.maximum(ends - 1, 0)]).any():
        ends -= more
    return begins, ends


def _tokens_of(answers: Mapping[str, Any], begins: np.ndarray, ends: np.ndarray) -> tuple[int, int] | None:
    """The first and the last token of the first right answer; None where there is none, or no token of it."""
    if not answers["text"]:
        return None
    start = answers["answer_start"][0]
    touched = np.flatnonzero((ends > start) & (begins < start + len(answers["text"][0])) & (begins < ends))
    return (int(touched[0]), int(touched[-1])) if len(touched) else None
