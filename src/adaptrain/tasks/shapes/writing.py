"""Texts that a model writes: of each row it is asked for one, greedily or with beams."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from adaptrain.config.schema import DataConfig, HeadConfig, TaskConfig
from adaptrain.evaluation import trivial
from adaptrain.evaluation.summaries import sentences
from adaptrain.tasks.bad_rows import EMPTY, MISSING, TYPE, Bad, Column
from adaptrain.tasks.language import PairReader, PromptedReader, first_targets
from adaptrain.tasks.reading import Read, Reader
from adaptrain.tasks.shapes.base import Answered, Shape, Trivial, register_shape
from adaptrain.tasks.shapes.language import put_words
from adaptrain.tasks.writing import WritingReader, texts_of, write

if TYPE_CHECKING:
    from adaptrain.auto import OwnHead
    from adaptrain.tasks.rows import Split


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


class FromText(Written):
    """Texts written after a text, by an encoder-decoder or by a decoder that goes on behind the source."""

    def examine(self, split: Split) -> dict[str, Column]:
        return {"source": split.texts("source"), "target": check_targets(split)}

    def own_head(self, config: Any) -> OwnHead | None:
        return "seq2seq_lm" if config.is_encoder_decoder else "causal_lm"

    def put_head(self, model: Any, task: TaskConfig, head: HeadConfig) -> str | None:
        return put_words(model, task, head)

    def reader(self, processor: Any, model: Any, task: TaskConfig, data: DataConfig) -> Reader:
        if model.config.is_encoder_decoder:
            return PairReader.of(processor, model, task, data)
        return PromptedReader.of(processor, model, task, data, asks=True)

    @abstractmethod
    def trivial(self, task: TaskConfig, reader: Reader, train: Read, scored: Read) -> Trivial: ...


@register_shape
class Summarisation(FromText):
    """A short text that says what a long one does."""

    type = "summarisation"

    def trivial(self, task: TaskConfig, reader: Reader, train: Read, scored: Read) -> Trivial:
        """The first sentences of a document, as many as a training summary has (the median)."""
        count = max(1, round(float(np.median([len(sentences(text)) for text in first_targets(train.rows)]))))
        name = "first sentence" if count == 1 else f"first {count} sentences"
        return Trivial(f"lead-{count}", name, trivial.lead(scored.rows.columns["source"], count))


@register_shape
class Translation(FromText):
    """The same in another language."""

    type = "translation"

    def trivial(self, task: TaskConfig, reader: Reader, train: Read, scored: Read) -> Trivial:
        return Trivial("copy", "the source", trivial.copy(scored.rows.columns["source"]))


def check_targets(split: Split) -> Column:
    """A column of texts, or of lists of texts that are all right."""
    found: list[Any] = []
    bad = []
    for row, value in enumerate(split.values("target"), start=1):
        texts = list(value) if isinstance(value, list | tuple) else [value]
        found.append(texts)
        wrong = next((text for text in texts if not isinstance(text, str)), None)
        if not texts or None in texts:
            reason, what = MISSING, "missing" if texts in ([], [None]) else f"{value!r:.60}, where one is missing"
        elif wrong is not None:
            reason, what = TYPE, f"{wrong!r:.60}, which is not text but {type(wrong).__name__}"
        elif any(not text.strip() for text in texts):
            reason, what = EMPTY, "empty" if len(texts) == 1 else f"{value!r:.60}, where one is empty"
        else:
            continue
        cure = "Correct the row" if reason == EMPTY else "Correct the row, or task.columns.target"
        told = f"{split.where(row)}: the target in column '{split.column('target')}' is {what}. {cure}"
        bad.append(Bad(row, reason, told))
    return Column(found, bad)
