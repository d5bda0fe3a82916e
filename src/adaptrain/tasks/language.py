"""Texts whose words are predicted one after the other: texts alone, and targets behind what is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from torch import nn

from adaptrain.config.schema import DataConfig, TaskConfig
from adaptrain.errors import ConfigError, DataError
from adaptrain.tasks.encoded import Collator, Encoded, Key, Ragged
from adaptrain.tasks.masking import UNMASKED
from adaptrain.tasks.positions import positions_of
from adaptrain.tasks.reading import Reader
from adaptrain.tasks.text import longest_input
from adaptrain.tasks.writing import WritingReader, check_room, ends_of

if TYPE_CHECKING:
    from adaptrain.tasks.rows import Rows

SOURCE = "{source}"
PROMPT = SOURCE + "\n"
"""What a decoder reads where the task has no prompt: the line ends, and what is written begins at its start."""


@dataclass(frozen=True)
class TextsReader(Reader):
    """Texts alone. Each ends with the tokenizer's end, where it has one, unless it was cut; all tokens but the first
    are predicted.

    Attributes:
        ends: ids that end a text, the tokenizer's own first.
    """

    ends: Sequence[int]

    @staticmethod
    def of(tokenizer: Any, model: nn.Module, data: DataConfig) -> TextsReader:
        """For a base model.

        Raises:
            ConfigError: no room for text.
        """
        longest = longest_input(tokenizer, model, data.max_length)
        return TextsReader(tokenizer, collator(tokenizer), longest, ends_of(tokenizer, model))

    def encode(self, rows: Rows, training: bool = False) -> Encoded:
        """
        Raises:
            DataError: a text has one token and nothing to predict.
        """
        made, cut = [], 0
        for ids, over in _tokens(self.processor, rows.texts, self.max_length):
            ids, lost = _ended(ids, over, self.ends, self.max_length)
            made.append(ids)
            cut += lost
        short = next((row for row, ids in enumerate(made) if len(ids) < 2), None)
        if short is not None:
            raise DataError(
                f"{rows.place}, split '{rows.split}': nothing of the text {rows.texts[short]!r:.60} can be predicted: "
                "it has no second token. Leave it out"
            )
        lengths = [len(ids) for ids in made]
        found = Ragged.of(made)
        return Encoded({"input_ids": found, "labels": found}, lengths, cut, [length - 1 for length in lengths])


@dataclass(frozen=True)
class PromptedReader(WritingReader):
    """For decoders: a source in its prompt, and behind it the target and the end, which alone are predicted. A target
    that is cut has no end, so that nobody learns to stop there.

    Attributes:
        template: a text with `{source}` in it. Where the prompt is too long, the source is cut at its end; the words
            around it stay.
        target_length: tokens of a target and its end.
        ends: as in `TextsReader`.
        asks: whether an evaluation asks for the target, and reads the prompt alone.
    """

    template: str
    target_length: int
    ends: Sequence[int]
    asks: bool

    @property
    def limit(self) -> str:
        return f"{self.max_length} tokens, or their targets to {self.target_length}"

    @staticmethod
    def of(tokenizer: Any, model: nn.Module, task: TaskConfig, data: DataConfig, asks: bool) -> PromptedReader:
        """For a base model.

        Raises:
            ConfigError: no room for prompt and target in the model; or nothing to end a target with.
        """
        ends = ends_of(tokenizer, model)
        if asks and not ends:
            raise ConfigError(
                f"task.type={task.type} needs a tokenizer with an end token, by which a model knows when to stop, and "
                f"that of {tokenizer.name_or_path} has none"
            )
        written = max(data.max_target_length, task.generation.max_new_tokens if asks else 0)
        room = longest_input(tokenizer, model, data.max_length + written) - written
        if room < 1:
            key = "task.generation.max_new_tokens" if written > data.max_target_length else "data.max_target_length"
            raise ConfigError(f"{key}={written} leaves no room for a prompt before it; lower it")
        longest, template = min(data.max_length, room), task.prompt or PROMPT
        keys = collator(tokenizer)
        return PromptedReader(tokenizer, keys, longest, task.generation, template, data.max_target_length, ends, asks)

    @property
    def tokenizer(self) -> Any:
        return self.processor

    def encode(self, rows: Rows, training: bool = False) -> Encoded:
        """
        Raises:
            ConfigError: the prompt leaves no room for a source.
        """
        found = prompts(self.processor, self.template, rows.columns["source"], self.max_length)
        read = [(self._open(ids), cut) for ids, cut in found]
        if self.asks and not training:
            lengths = [len(ids) for ids, _ in read]
            return Encoded({"input_ids": Ragged.of(ids for ids, _ in read)}, lengths, sum(cut for _, cut in read))
        made, labels, lost = [], [], 0
        written = _tokens(self.processor, first_targets(rows), self.target_length, add_special_tokens=False)
        for (ids, cut), (target, over) in zip(read, written, strict=True):
            target, short = _ended(target, over, self.ends, self.target_length)
            made.append([*ids, *target])
            labels.append([*[UNMASKED] * len(ids), *target])
            lost += cut or short
        features = {"input_ids": Ragged.of(made), "labels": Ragged.of(labels)}
        weights = [sum(label != UNMASKED for label in each) for each in labels]
        return Encoded(features, [len(ids) for ids in made], lost, weights)

    def _open(self, ids: list[int]) -> list[int]:
        """A prompt that does not end the text; some tokenizers end every text."""
        while ids and ids[-1] in self.ends:
            ids = ids[:-1]
        return ids or [self.processor.bos_token_id or (self.ends or [self.processor.pad_token_id])[0]]


@dataclass(frozen=True)
class PairReader(WritingReader):
    """For encoder-decoders: the encoder reads a source in its prompt, the decoder predicts the target and its end. A
    target that is cut has no end.

    Attributes:
        template, target_length, ends: as in `PromptedReader`.
    """

    decoded: ClassVar[tuple[str, ...]] = ("labels",)

    template: str
    target_length: int
    ends: Sequence[int]

    @property
    def limit(self) -> str:
        return f"{self.max_length} tokens, or their targets to {self.target_length}"

    @staticmethod
    def of(tokenizer: Any, model: nn.Module, task: TaskConfig, data: DataConfig) -> PairReader:
        """For a base model.

        Raises:
            ConfigError: no room for a source, or for what is to be written; a tokenizer of many languages.
        """
        if hasattr(tokenizer, "tgt_lang"):
            raise ConfigError(
                f"The tokenizer of {tokenizer.name_or_path} marks every text with its language, which no key says; "
                "choose a base model without such marks (T5, BART, Marian, a decoder)"
            )
        if (positions := positions_of(model, "decoder")) is not None:
            check_room(positions, 1, task.generation)
        longest = longest_input(tokenizer, model, data.max_length, half="encoder")
        written = min(data.max_target_length, positions or data.max_target_length)
        template, ends = task.prompt or SOURCE, ends_of(tokenizer, model)
        return PairReader(tokenizer, collator(tokenizer), longest, task.generation, template, written, ends)

    @property
    def tokenizer(self) -> Any:
        return self.processor

    def encode(self, rows: Rows, training: bool = False) -> Encoded:
        """
        Raises:
            ConfigError: the prompt leaves no room for a source.
        """
        read = prompts(self.processor, self.template, rows.columns["source"], self.max_length)
        sources = [ids for ids, _ in read]
        lengths = [len(ids) for ids in sources]
        if not training:
            return Encoded({"input_ids": Ragged.of(sources)}, lengths, sum(cut for _, cut in read))
        targets, lost = [], 0
        written = _tokens(self.processor, first_targets(rows), self.target_length, target=True)
        for (_, cut), (ids, over) in zip(read, written, strict=True):
            if over and ids[-1] in self.ends:
                ids = ids[:-1]
            ids, short = _ended(ids, over, self.ends, self.target_length)
            targets.append(ids)
            lost += cut or short
        features = {"input_ids": Ragged.of(sources), "labels": Ragged.of(targets)}
        weights = [len(ids) for ids in targets]
        lengths = [one + other for one, other in zip(lengths, weights, strict=True)]
        return Encoded(features, lengths, lost, weights)


def collator(tokenizer: Any) -> Collator:
    """Of tokens, and a label for each of them or of others."""
    return Collator({"input_ids": Key(int(tokenizer.pad_token_id or 0)), "labels": Key(UNMASKED)})


def first_targets(rows: Rows) -> list[str]:
    """What is trained on: of several right texts the first."""
    return [text if isinstance(text, str) else text[0] for text in rows.columns["target"]]


def predicted(encoded: Encoded) -> list[np.ndarray]:
    """The tokens of each example that are predicted from those before them."""
    labels = encoded.features["labels"]
    found = (np.asarray(labels[row])[1:] for row in range(len(encoded)))
    return [each[each != UNMASKED] for each in found]


def prompts(tokenizer: Any, template: str, sources: Sequence[str], longest: int) -> list[tuple[list[int], bool]]:
    """Each source in its prompt: its tokens, and whether the source was cut.

    Raises:
        ConfigError: the prompt leaves no room for a source.
    """
    before, _, after = template.partition(SOURCE)
    texts = [f"{before}{source}{after}" for source in sources]
    made = _tokens(tokenizer, texts, None)
    found = []
    for source, (ids, _) in zip(sources, made, strict=True):
        over = len(ids) > longest
        found.append((_shortened(tokenizer, before, source, after, longest) if over else ids, over))
    return found


def _shortened(tokenizer: Any, before: str, source: str, after: str, longest: int) -> list[int]:
    """A prompt of at most `longest` tokens, whose source is cut behind one of its tokens."""
    made = tokenizer(f"{before}{source}{after}", return_offsets_mapping=True, verbose=False)
    start, end = len(before), len(before) + len(source)
    cuts = sorted({stop for first, stop in made["offset_mapping"] if start < stop <= end and first < stop})
    left = longest - (len(made["input_ids"]) - len(cuts))
    while left > 0:
        ids = list(tokenizer(f"{before}{source[: cuts[left - 1] - start]}{after}", verbose=False)["input_ids"])
        if len(ids) <= longest:
            return ids
        left -= 1
    raise ConfigError(
        f"data.max_length={longest} leaves no room for a source in the prompt {before + SOURCE + after!r:.80}; raise it"
    )


def _tokens(
    tokenizer: Any, texts: Sequence[str], longest: int | None, target: bool = False, **options: Any
) -> list[tuple[list[int], bool]]:
    """Of each text its tokens, and whether it was cut."""
    if longest is not None:
        options |= {"truncation": True, "max_length": longest}
    made = tokenizer(**{"text_target" if target else "text": list(texts)}, verbose=False, **options)
    return [
        (list(ids), bool(encoding.overflowing)) for ids, encoding in zip(made["input_ids"], made.encodings, strict=True)
    ]


def _ended(ids: list[int], over: bool, ends: Sequence[int], longest: int) -> tuple[list[int], bool]:
    """A text with its end, and whether it has lost anything, its end perhaps."""
    if over or not ends or (ids and ids[-1] in ends):
        return ids, over
    return (ids, True) if len(ids) == longest else ([*ids, ends[0]], False)
