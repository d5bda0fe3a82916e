"""Sentences that are divided into words already, as a tokenizer's pieces, none of which is of two words."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from adaptrain.errors import DataError
from adaptrain.tasks.bad_rows import Bad, Column, Where
from adaptrain.tasks.lists import WRITE

NO_TOKENS, TOKEN, EMPTY_TOKEN = "no tokens", "token that is no text", "empty token"
UNEQUAL, NO_LIST = "not one for each token", "text in the place of a list"

_CHUNK = 1000
"""Sentences that the tokenizer is given at once."""

Ids = list[int]


@dataclass(frozen=True)
class Words:
    """How a tokenizer reads words.

    The pieces are those that the words have in running text, with blanks between them. Byte-level tokenizers (GPT-2,
    RoBERTa, LLaMA 3) keep a blank in the piece behind it: of these a word that follows another is read with one.

    Attributes:
        tokenizer: a fast one.
        blank: what stands before a word that follows another.
        unknown: the id that stands for a word of which the tokenizer makes nothing, such as a control character.
        before, after: what the tokenizer puts around a text: name → numbers; names are `input_ids`, `token_type_ids`.
        within: the type of a word.
    """

    tokenizer: Any
    blank: str
    unknown: int
    before: Mapping[str, Ids]
    after: Mapping[str, Ids]
    within: int

    @staticmethod
    def of(tokenizer: Any) -> Words:
        """Of a fast tokenizer."""
        backend = _whole(tokenizer.backend_tokenizer)
        alone = backend.encode("a")
        own = [index for index, special in enumerate(alone.special_tokens_mask) if not special]
        first, last = (own[0], own[-1] + 1) if own else (len(alone.ids), len(alone.ids))
        sides = [
            {"input_ids": alone.ids[part], "token_type_ids": alone.type_ids[part]}
            for part in (slice(first), slice(last, None))
        ]
        apart = backend.encode(["the", "the"], is_pretokenized=True, add_special_tokens=False).ids
        together = backend.encode("the the", add_special_tokens=False).ids
        known = (tokenizer.unk_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
        unknown = next(int(each) for each in known if each is not None)
        within = alone.type_ids[first] if own else 0
        return Words(tokenizer, "" if apart == together else " ", unknown, sides[0], sides[1], within)

    @property
    def added(self) -> int:
        """Tokens that are put around a text."""
        return len(self.before["input_ids"]) + len(self.after["input_ids"])

    def pieces(self, sentences: Sequence[Sequence[str]]) -> Iterator[list[Ids]]:
        """Of each sentence the pieces of each word; a word has at least one."""
        for start in range(0, len(sentences), _CHUNK):
            chunk = [
                [f"{self.blank if place else ''}{word}" for place, word in enumerate(sentence)]
                for sentence in sentences[start : start + _CHUNK]
            ]
            backend = _whole(self.tokenizer.backend_tokenizer)
            made = backend.encode_batch(chunk, is_pretokenized=True, add_special_tokens=False)
            for words, encoding in zip(chunk, made, strict=True):
                found: list[Ids] = [[] for _ in words]
                for piece, word in zip(encoding.ids, encoding.word_ids, strict=True):
                    found[word].append(piece)
                yield [ids or [self.unknown] for ids in found]

    def framed(self, name: str, words: Sequence[Ids]) -> np.ndarray:
        """Words with what is put around them, by a name of `before`."""
        inner = [piece for ids in words for piece in ids]
        if name != "input_ids":
            inner = [self.within] * len(inner)
        return np.asarray([*self.before[name], *inner, *self.after[name]], dtype=np.int64)

    def places(self, words: Sequence[Ids]) -> np.ndarray:
        """Where each word begins in such an example and, last, where the last one ends."""
        starts = np.cumsum([0, *(len(ids) for ids in words)])
        return starts + len(self.before["input_ids"])


def windows(sizes: Sequence[int], room: int, shared: int) -> list[tuple[int, int]]:
    """Which words are read together, where they do not fit all at once: (first, behind the last) of each window.

    Each window is as long as it can be and begins with words that the one before had too: at most `shared` pieces, and
    no more than leave room for the next word.

    Args:
        sizes: pieces of each word, at most `room`.
    """
    found, start, end, count = [], 0, 0, 0
    while end < len(sizes):
        while end < len(sizes) and count + sizes[end] <= room:
            count += sizes[end]
            end += 1
        found.append((start, end))
        while end < len(sizes) and count > min(shared, room - sizes[end]):
            count -= sizes[start]
            start += 1
    return found


def shared_out(sizes: Sequence[int], spans: Sequence[tuple[int, int]]) -> list[list[int]]:
    """The words that are predicted in each window: a word in the one where it has most context on its poorer side; of
    equally good ones in the first."""
    starts = np.cumsum([0, *sizes])
    best = [(-1, -1)] * len(sizes)
    for number, (first, behind) in enumerate(spans):
        for word in range(first, behind):
            context = int(min(starts[word] - starts[first], starts[behind] - starts[word + 1]))
            if context > best[word][0]:
                best[word] = context, number
    return [[word for word in range(*span) if best[word][1] == number] for number, span in enumerate(spans)]


def check_tokens(values: Sequence[Any], column: str, where: Where) -> Column:
    """A column of lists of words: there is one, and each is text and not blank."""
    bad = []
    for row, tokens in enumerate(values, start=1):
        if tokens and not isinstance(tokens, list | tuple):
            what = f"{tokens!r:.60}, which is not a list but {type(tokens).__name__}"
            bad.append(Bad(row, NO_LIST, f"{where(row)}: the tokens in column '{column}' are {what}. {WRITE}"))
            continue
        if not tokens:
            bad.append(Bad(row, NO_TOKENS, f"{where(row)}: there are no tokens in column '{column}'. Correct the row"))
            continue
        wrong = next((place for place, token in enumerate(tokens) if not _is_word(token)), None)
        if wrong is not None:
            blank = isinstance(tokens[wrong], str)
            what = "is empty" if blank else f"is {tokens[wrong]!r:.60}, which is no text"
            told = f"{where(row)}: token {wrong + 1} in column '{column}' {what}. Correct the row"
            bad.append(Bad(row, EMPTY_TOKEN if blank else TOKEN, told))
    return Column(list(values), bad)


def check_each_token(
    values: Sequence[Any],
    tokens: Sequence[Any],
    names: tuple[str, str, str],
    convert: Callable[[Any, str], Any],
    where: Where,
    reason: Callable[[Any], str],
) -> Column:
    """A column of lists with a value for each token, which are converted one by one; equal ones are converted once.

    Args:
        tokens: of each row.
        names: what the values are called, their column, and that of the tokens.
        convert: value, place → what it stands for; raises DataError with a message that begins with the place.
        reason: a value that was refused → what to count it by.
    """
    what, column, words = names
    known: dict[tuple[type, str], Any] = {}

    def converted(value: Any) -> Any:
        key = (type(value), repr(value))
        if key not in known:
            try:
                known[key] = convert(value, _HERE)
            except DataError as error:
                known[key] = error
        return known[key]

    found: list[Any] = []
    bad = []
    for row, (value, sentence) in enumerate(zip(values, tokens, strict=True), start=1):
        given = value if isinstance(value, list | tuple) else []
        due = len(sentence) if isinstance(sentence, list | tuple) else 0
        made = [converted(each) for each in given]
        wrong = next((place for place, each in enumerate(made) if isinstance(each, DataError)), None)
        found.append(None)
        if value and given is not value:
            told = f"the {what} in column '{column}' are {value!r:.60}, which is not a list but {type(value).__name__}"
            bad.append(Bad(row, NO_LIST, f"{where(row)}: {told}. {WRITE}"))
        elif len(given) != due:
            told = f"there are {due} tokens in column '{words}' and {len(given)} {what} in column '{column}'"
            bad.append(Bad(row, UNEQUAL, f"{where(row)}: {told}. Give one for each token"))
        elif wrong is not None:
            place = f"{where(row)}, token {wrong + 1} ({sentence[wrong]!r:.40})"
            bad.append(Bad(row, reason(given[wrong]), str(made[wrong]).replace(_HERE, place, 1)))
        else:
            found[-1] = made
    return Column(found, bad)


_HERE = "\0"
"""Stands for the place in a message until the row is known."""


def _whole(backend: Any) -> Any:
    """A tokenizer that neither cuts nor pads; whoever called it last may have left it so."""
    backend.no_padding()
    backend.no_truncation()
    return backend


def _is_word(token: Any) -> bool:
    return isinstance(token, str) and bool(token.strip())
