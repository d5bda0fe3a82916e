"""Words of a text that a model is asked for: what masked and causal language models have in common."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import numpy as np

from adaptrain.config.schema import TaskConfig
from adaptrain.evaluation import trivial
from adaptrain.tasks.reading import Read, Reader
from adaptrain.tasks.shapes.base import Answered, Shape, Trivial


class WordsOfTexts(Shape):
    """A shape whose labels are words of the texts. Of each row the summed cross-entropy of its predicted tokens is
    kept, and how many of them were the likeliest.

    Attributes:
        counted: what the number of predicted tokens is called in a predictions file.
    """

    blank_lines = True  # they end paragraphs
    counted: ClassVar[str]

    def predictions(self, said: Answered) -> np.ndarray:
        return said.logits

    def references(self, task: TaskConfig, read: Read) -> np.ndarray:
        return np.asarray(read.encoded.weights)

    def written(self, said: Answered) -> Iterator[dict[str, Any]]:
        for count, (loss, right) in zip(self.references(said.task, said.read), said.answers, strict=True):
            yield {self.counted: int(count), "loss": float(loss) / int(count), "right": int(right)}

    def said(self, answered: Answered) -> Iterator[dict[str, Any]]:
        return self.written(answered)  # the labels are words of the texts

    @staticmethod
    def unigram(reader: Reader, ids: Sequence[np.ndarray], words: np.ndarray, scored: Sequence[np.ndarray]) -> Trivial:
        """How often each token stands in the training texts, on the very words that a model is scored on.

        Args:
            ids: tokens of each training text.
            words: the ids that are words.
            scored: of each row the tokens that a model is scored on.
        """
        losses, likely = trivial.unigram(np.concatenate(ids), words)
        found = trivial.unigram_rows(scored, losses, likely)
        return Trivial("unigram", str(reader.processor.convert_ids_to_tokens(likely)), found)
