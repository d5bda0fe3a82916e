"""A tag for each word of a sentence: entities, parts of speech, chunks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor, nn

from adaptrain.config.schema import DataConfig, HeadConfig, TaskConfig
from adaptrain.errors import DataError
from adaptrain.evaluation import trivial
from adaptrain.heads.labels import IGNORED
from adaptrain.tasks.bad_rows import LABEL, Column
from adaptrain.tasks.encoded import Collator, Encoded, Feature, Key, Ragged
from adaptrain.tasks.reading import Read, Reader
from adaptrain.tasks.shapes.base import Answered, Shape, Trivial, register_shape
from adaptrain.tasks.shapes.classes import class_index, class_names, need_labels
from adaptrain.tasks.text import longest_input, token_keys
from adaptrain.tasks.words import Words, check_each_token, check_tokens, shared_out, windows

if TYPE_CHECKING:
    from adaptrain.tasks.rows import Rows, Split


@dataclass(frozen=True)
class TaggingReader(Reader):
    """Sentences of words, each of which is predicted at its first piece.

    A sentence that does not fit is read in several windows; each of its words is predicted in one of them. Examples
    have, beside what the model takes, `words`, the words that they predict, and `places`, where those begin.

    Attributes:
        words: how the tokenizer reads them.
        shared: pieces that two windows of a sentence share, where there is room for twice as many.
    """

    words: Words
    shared: int

    @staticmethod
    def of(tokenizer: Any, model: nn.Module, data: DataConfig) -> TaggingReader:
        """For a base model.

        Raises:
            ConfigError: there is no room for text.
        """
        keys = {name: Key(value) for name, value in token_keys(tokenizer, model).items()} | {"labels": Key(IGNORED)}
        longest = longest_input(tokenizer, model, data.max_length)
        return TaggingReader(tokenizer, Collator(keys), longest, Words.of(tokenizer), data.stride)

    def encode(self, rows: Rows, training: bool = False) -> Encoded:
        """The windows of all sentences. A word longer than a window is cut and its row counted."""
        tokens, tags = rows.columns["tokens"], rows.columns.get("tags")
        room = self.max_length - self.words.added
        names = [name for name in self.collate.keys if name != "labels"]
        found: dict[str, list[np.ndarray]] = {name: [] for name in (*names, "labels", "words", "places")}
        origin: list[int] = []
        cut = 0
        for row, pieces in enumerate(self.words.pieces(tokens)):
            cut += any(len(ids) > room for ids in pieces)
            pieces = [ids[:room] for ids in pieces]
            sizes = [len(ids) for ids in pieces]
            spans = windows(sizes, room, min(self.shared, room // 2))
            for (first, behind), own in zip(spans, shared_out(sizes, spans), strict=True):
                if not own:
                    continue
                read, chosen = pieces[first:behind], np.asarray(own)
                places = self.words.places(read)[chosen - first]
                for name in names:
                    found[name].append(self.words.framed(name, read))
                found["words"].append(chosen)
                found["places"].append(places)
                origin.append(row)
                if tags is not None:
                    labels = np.full(len(found["input_ids"][-1]), IGNORED)
                    labels[places] = np.asarray(tags[row])[chosen]
                    found["labels"].append(labels)
        if tags is None:
            del found["labels"]
        features: dict[str, Feature] = {name: Ragged.of(values) for name, values in found.items()}
        lengths, weights = [len(ids) for ids in found["input_ids"]], [len(own) for own in found["words"]]
        return Encoded(features, lengths, cut, weights, origin)


@register_shape
class Tagging(Shape):
    """A class for each word. Of an example the likeliest class of each of its tokens is kept."""

    type = "tagging"
    layers = 1

    def examine(self, split: Split) -> dict[str, Column]:
        need_labels(split)
        tokens = check_tokens(split.values("tokens"), split.column("tokens"), split.where)
        found = {"tokens": tokens}
        return found | {"tags": word_classes(split, "tags", tokens)} if split.has("tags") else found

    def put_head(self, model: Any, task: TaskConfig, head: HeadConfig) -> str | None:
        model.add_tagging_head(
            task.name,
            num_labels=len(task.labels),
            layers=head.layers or self.layers,
            dropout=head.dropout,
            id2label=dict(enumerate(task.labels)),
        )
        return None

    def reader(self, processor: Any, model: Any, task: TaskConfig, data: DataConfig) -> Reader:
        return TaggingReader.of(processor, model, data)

    def answers(self, model: Any, batch: Mapping[str, Tensor], reader: Reader) -> Sequence[np.ndarray]:
        logits = model(**{key: value for key, value in batch.items() if key != "labels"}).logits
        return list(logits.argmax(-1).cpu().numpy())

    def predictions(self, said: Answered) -> list[list[str]]:
        features, origin = said.read.encoded.features, said.read.encoded.origin
        assert origin is not None
        found = [[""] * len(tokens) for tokens in said.read.rows.columns["tokens"]]
        for example, (row, answer) in enumerate(zip(origin, said.answers, strict=True)):
            for word, place in zip(features["words"][example], features["places"][example], strict=True):
                found[row][word] = said.task.labels[answer[place]]
        return found

    def references(self, task: TaskConfig, read: Read) -> list[list[str]]:
        return named(task, read.rows.columns["tags"])

    def written(self, said: Answered) -> Iterator[dict[str, Any]]:
        for right, found in zip(self.references(said.task, said.read), self.predictions(said), strict=True):
            yield {"label": right, "prediction": found}

    def trivial(self, task: TaskConfig, reader: Reader, train: Read, scored: Read) -> Trivial:
        answer = trivial.common_tag(self.references(task, train))
        lengths = [len(tokens) for tokens in scored.rows.columns["tokens"]]
        return Trivial("commonest tag", answer, trivial.same_tags(lengths, answer))


def word_classes(split: Split, role: str, tokens: Column) -> Column:
    """A column of lists of classes of the label map, one a token, as their indices."""
    task, names = split.task, class_names(split.feature(role))

    def convert(value: Any, place: str) -> int:
        if value is None:
            raise DataError(f"{place}: its value in column '{split.column(role)}' is missing. Correct the row")
        return class_index(value, names, task, place, role)

    called = role, split.column(role), split.column("tokens")
    return check_each_token(split.values(role), tokens.values, called, convert, split.where, lambda _: LABEL)


def named(task: TaskConfig, rows: Sequence[Sequence[int]]) -> list[list[str]]:
    """Classes by their names."""
    return [[task.labels[index] for index in row] for row in rows]
