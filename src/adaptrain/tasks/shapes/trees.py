"""The tree of a sentence: of each word its head and the relation to it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor, nn

from adaptrain.config.schema import DataConfig, HeadConfig, TaskConfig
from adaptrain.errors import ConfigError, DataError
from adaptrain.evaluation import trivial
from adaptrain.heads.labels import IGNORED
from adaptrain.tasks.bad_rows import Bad, Column
from adaptrain.tasks.encoded import Collator, Encoded, Feature, Key, Ragged
from adaptrain.tasks.reading import Read, Reader
from adaptrain.tasks.shapes.base import Answered, Shape, Trivial, register_shape
from adaptrain.tasks.shapes.classes import need_labels
from adaptrain.tasks.shapes.tags import named, word_classes
from adaptrain.tasks.text import longest_input, token_keys
from adaptrain.tasks.words import Words, check_each_token, check_tokens

if TYPE_CHECKING:
    from adaptrain.tasks.rows import Rows, Split

NO_HEAD, OUTSIDE, CIRCLE = "word without a head", "head outside the sentence", "heads that lead to no root"

UNREAD = "dep"
"""The relation that is predicted of words that are not read: what Universal Dependencies have for an unknown one."""


@dataclass(frozen=True)
class TreeReader(Reader):
    """Sentences of words with the place where each begins. A tree cannot be cut: of a sentence that does not fit the
    words that do are read, and those of them whose head is not read have no label.

    Attributes:
        words: how the tokenizer reads them.
    """

    words: Words

    @staticmethod
    def of(tokenizer: Any, model: nn.Module, data: DataConfig) -> TreeReader:
        """For a base model.

        Raises:
            ConfigError: there is no room for text.
        """
        keys = {name: Key(value) for name, value in token_keys(tokenizer, model).items()}
        keys |= {"word_starts": Key(-1), "labels": Key(IGNORED)}
        return TreeReader(
            tokenizer, Collator(keys), longest_input(tokenizer, model, data.max_length), Words.of(tokenizer)
        )

    def encode(self, rows: Rows, training: bool = False) -> Encoded:
        tokens, heads, relations = (rows.columns.get(role) for role in ("tokens", "heads", "relations"))
        assert tokens is not None
        room = self.max_length - self.words.added
        names = [name for name in self.collate.keys if name not in ("word_starts", "labels")]
        found: dict[str, list[np.ndarray]] = {name: [] for name in (*names, "word_starts", "labels")}
        cut, weights = 0, []
        for row, pieces in enumerate(self.words.pieces(tokens)):
            count = int(np.searchsorted(np.cumsum([len(ids) for ids in pieces]), room, side="right"))
            read = pieces[:count] or [pieces[0][:room]]
            cut += count < len(pieces)
            for name in names:
                found[name].append(self.words.framed(name, read))
            found["word_starts"].append(self.words.places(read))
            if heads is not None and relations is not None:
                labels = np.stack([heads[row][: len(read)], relations[row][: len(read)]], -1)
                labels[labels[:, 0] > len(read)] = IGNORED
                found["labels"].append(labels)
                weights.append(int((labels[:, 0] >= 0).sum()))
        features: dict[str, Feature] = {name: Ragged.of(found[name]) for name in (*names, "word_starts")}
        if heads is not None:
            features["labels"] = found["labels"]
        lengths = [len(ids) for ids in found["input_ids"]]
        return Encoded(features, lengths, cut, weights if heads is not None else None)


@register_shape
class DependencyParsing(Shape):
    """The likeliest head of each word, and the likeliest relation to it; each word decides for itself, so that the
    arcs need not be a tree. Of an example both are kept, (words, 2)."""

    type = "dependency_parsing"
    layers = None

    def examine(self, split: Split) -> dict[str, Column]:
        need_labels(split)
        tokens = check_tokens(split.values("tokens"), split.column("tokens"), split.where)
        found = {"tokens": tokens}
        if split.has("heads"):
            found["heads"] = word_heads(split, tokens)
        if split.has("relations"):
            found["relations"] = word_classes(split, "relations", tokens)
        return found

    def put_head(self, model: Any, task: TaskConfig, head: HeadConfig) -> str | None:
        if head.layers is not None:
            raise ConfigError(f"head.layers={head.layers}: a head for dependency parsing has no layers; leave it out")
        model.add_dependency_parsing_head(
            task.name, num_labels=len(task.labels), id2label=dict(enumerate(task.labels)), dropout=head.dropout
        )
        return None

    def reader(self, processor: Any, model: Any, task: TaskConfig, data: DataConfig) -> Reader:
        return TreeReader.of(processor, model, data)

    def answers(self, model: Any, batch: Mapping[str, Tensor], reader: Reader) -> Sequence[np.ndarray]:
        arcs, relations = model(**{key: value for key, value in batch.items() if key != "labels"}).logits
        heads = arcs.argmax(-1)  # (rows, words)
        kinds = relations.argmax(-1).gather(-1, heads[..., None])[..., 0]
        counts = (batch["word_starts"] >= 0).sum(1) - 1
        both = np.stack([heads.cpu().numpy(), kinds.cpu().numpy()], -1)
        return [answer[:count] for answer, count in zip(both, counts.tolist(), strict=True)]

    def predictions(self, said: Answered) -> list[dict[str, list[Any]]]:
        """Words that were not read hang on the word before them, by the relation `dep`."""
        found = []
        for tokens, answer in zip(said.read.rows.columns["tokens"], said.answers, strict=True):
            rest = range(len(answer), len(tokens))  # the word before the j-th, counted from 1, is j - 1
            relations = [*named(said.task, [answer[:, 1].tolist()])[0], *(UNREAD for _ in rest)]
            found.append({"heads": [*answer[:, 0].tolist(), *rest], "relations": relations})
        return found

    def references(self, task: TaskConfig, read: Read) -> list[dict[str, list[Any]]]:
        columns = read.rows.columns
        relations = named(task, columns["relations"])
        return [{"heads": one, "relations": other} for one, other in zip(columns["heads"], relations, strict=True)]

    def written(self, said: Answered) -> Iterator[dict[str, Any]]:
        for right, found in zip(self.references(said.task, said.read), self.predictions(said), strict=True):
            yield {"label": right, "prediction": found}

    def trivial(self, task: TaskConfig, reader: Reader, train: Read, scored: Read) -> Trivial:
        relation = trivial.common_tag(named(task, train.rows.columns["relations"]))
        lengths = [len(tokens) for tokens in scored.rows.columns["tokens"]]
        return Trivial("previous word", relation, trivial.previous_word(lengths, relation))


def word_heads(split: Split, tokens: Column) -> Column:
    """A column of lists of heads, as whole numbers: 0 is the root, j the j-th token. From each word its heads must lead
    to a root."""
    column = split.column("heads")

    def convert(value: Any, place: str) -> int:
        text = value.strip() if isinstance(value, str) else value
        if text is None or text in ("", "_", "None"):
            raise DataError(
                f"{place}: it has no head in column '{column}' ({value!r}), as tokens of several words and empty nodes "
                "have none. Leave those tokens out, with all that belongs to them"
            )
        number = int(text) if isinstance(text, str) and text.isascii() and text.isdigit() else text
        if not isinstance(number, int) or isinstance(number, bool) or number < 0:
            raise DataError(
                f"{place}: its head in column '{column}' is {value!r:.60}; the number of a token is due, 0 for the root"
            )
        return number

    called = "heads", column, split.column("tokens")
    found = check_each_token(split.values("heads"), tokens.values, called, convert, split.where, _head_reason)
    values, bad = list(found.values), list(found.bad)
    for row, heads in enumerate(values, start=1):
        if heads is None:
            continue
        beyond = next((word for word, head in enumerate(heads, start=1) if head > len(heads)), None)
        lost = None if beyond else _rootless(heads)
        if beyond or lost:
            word = beyond or lost or 0
            place = f"{split.where(row)}, token {word} ({tokens.values[row - 1][word - 1]!r:.40})"
            if beyond:
                told = f"its head in column '{column}' is {heads[word - 1]}, and there are {len(heads)} tokens"
            else:
                told = f"the heads in column '{column}' go in a circle from there, and to no root (0)"
            bad.append(Bad(row, OUTSIDE if beyond else CIRCLE, f"{place}: {told}. Correct the row"))
            values[row - 1] = None
    return Column(values, sorted(bad, key=lambda each: each.row))


def _rootless(heads: Sequence[int]) -> int | None:
    """The first word, from 1, from which no root is reached."""
    reaches = {0}
    for word in range(1, len(heads) + 1):
        way: list[int] = []
        here = word
        while here not in reaches:
            if here in way:
                return word
            way.append(here)
            here = heads[here - 1]
        reaches.update(way)
    return None


def _head_reason(value: Any) -> str:
    return NO_HEAD if value is None or str(value).strip() in ("", "_", "None") else OUTSIDE
