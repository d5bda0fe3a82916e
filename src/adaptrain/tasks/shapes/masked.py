"""Masked words: the labels are words of the text itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from adaptrain.config.schema import DataConfig, HeadConfig, TaskConfig
from adaptrain.tasks.bad_rows import Column
from adaptrain.tasks.masking import UNMASKED, MaskedReader
from adaptrain.tasks.reading import Read, Reader
from adaptrain.tasks.shapes.base import Trivial, only_layers, register_shape
from adaptrain.tasks.shapes.words import WordsOfTexts

if TYPE_CHECKING:
    from adaptrain.auto import OwnHead
    from adaptrain.tasks.rows import Split


@register_shape
class MaskedLM(WordsOfTexts):
    """The words of the text itself, some of them masked."""

    type = "masked_lm"
    counted = "masked"
    same_inputs = False

    def examine(self, split: Split) -> dict[str, Column]:
        return {"text": split.texts("text")}

    def own_head(self, config: Any) -> OwnHead | None:
        return "masked_lm"

    def put_head(self, model: Any, task: TaskConfig, head: HeadConfig) -> str | None:
        kind = type(model.base_model).__name__
        if model.base_model.base_model is not model.base_model:
            only_layers(head, f"this checkpoint has a masked-LM head of its own ({kind})")
            return f"the masked-LM head is the checkpoint's own ({kind})"
        model.add_masked_lm_head(task.name, layers=head.layers or self.layers, sparse_prediction=True)
        return "the checkpoint has no masked-LM head; a new one is trained, over the model's own words"

    def reader(self, processor: Any, model: Any, task: TaskConfig, data: DataConfig) -> Reader:
        return MaskedReader.of(processor, model, data)

    def answers(self, model: Any, batch: Mapping[str, Tensor], reader: Reader) -> Tensor:
        labels = batch["labels"]
        chosen = labels != UNMASKED
        logits = model(**batch).logits
        if logits.dim() == 3:  # a head that compares every position with the words
            logits = logits[chosen]
        found = torch.stack(
            [
                F.cross_entropy(logits.float(), labels[chosen], reduction="none"),
                (logits.argmax(-1) == labels[chosen]).float(),
            ],
            -1,
        )
        return found.new_zeros(len(labels), 2).index_add(0, chosen.nonzero()[:, 0], found)

    def trivial(self, task: TaskConfig, reader: Reader, train: Read, scored: Read) -> Trivial:
        """How often each token stands in the training texts, on the very words that a model is scored on."""
        assert isinstance(reader, MaskedReader)
        ids = train.encoded.features["input_ids"]
        return self.unigram(reader, list(ids), reader.masking.words, reader.masked_words(scored.encoded))
