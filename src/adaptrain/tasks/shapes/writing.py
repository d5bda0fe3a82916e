"""Texts that a model writes: of each row it is asked for one, greedily or with beams."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from adaptrain.config.schema import TaskConfig
from adaptrain.tasks.reading import Read, Reader
from adaptrain.tasks.shapes.base import Answered, Shape
from adaptrain.tasks.writing import WritingReader, texts_of, write

class Written(Shape):
    """A shape whose answers are written. Its rows have one `target` each, or several that are all right."""

    writes = True
    layers = None

    def answers(self, model: Any, batch: Mapping[str, Tensor], reader: Reader) -> Sequence[np.ndarray]:
        """The tokens that are written for each row."""
        assert isinstance(reader, WritingReader)
        asked = {key: value for key, value in batch.items() if key != "labels"}
        return write(model, asked, reader.generation, reader.tokenizer)

    def predictions(self, said: Answered) -> list[str]:
        assert isinstance(said.reader, WritingReader)
        return texts_of(said.reader.tokenizer, said.answers)

    def references(self, task: TaskConfig, read: Read) -> list[list[str]]:
        return [[texts] if isinstance(texts, str) else list(texts) for texts in read.rows.columns["target"]]

    def written(self, said: Answered) -> Iterator[dict[str, Any]]:
        for right, text in zip(self.references(said.task, said.read), self.predictions(said), strict=True):
            yield {"label": right[0] if len(right) == 1 else right, "prediction": text}
