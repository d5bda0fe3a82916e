"""The next word: of a text, or of what is written after a source."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from adaptrain.config.schema import DataConfig, HeadConfig, TaskConfig
from adaptrain.errors import ConfigError, UnsupportedError
from adaptrain.tasks.bad_rows import EMPTY, Column
from adaptrain.tasks.language import PromptedReader, TextsReader, predicted
from adaptrain.tasks.masking import UNMASKED
from adaptrain.tasks.reading import Read, Reader
from adaptrain.tasks.shapes.base import Trivial, only_layers, register_shape
from adaptrain.tasks.shapes.words import WordsOfTexts

if TYPE_CHECKING:
    from adaptrain.auto import OwnHead
    from adaptrain.tasks.rows import Split

PIECE = 1 << 24
"""Scores that are float32 at a time: those of a batch may be many gigabytes."""


@register_shape
class CausalLM(WordsOfTexts):
    """Each word from those before it: all words of a text, or those of a target behind its source."""

    type = "causal_lm"
    layers = None
    counted = "tokens"

    def examine(self, split: Split) -> dict[str, Column]:
        if split.has("text"):
            return {"text": split.texts("text")}
        return {role: _by_role(split.texts(role), role) for role in ("source", "target")}

    def own_head(self, config: Any) -> OwnHead | None:
        return "causal_lm"

    def put_head(self, model: Any, task: TaskConfig, head: HeadConfig) -> str | None:
        if model.architecture.encoder_decoder:
            kind = model.base_model.config.model_type
            raise UnsupportedError(f"task.type=causal_lm is for decoders, and a {kind} has an encoder; see translation")
        return put_words(model, task, head)

    def reader(self, processor: Any, model: Any, task: TaskConfig, data: DataConfig) -> Reader:
        if task.columns.text is None:
            return PromptedReader.of(processor, model, task, data, asks=False)
        if task.prompt is not None:
            raise ConfigError("task.prompt is set, and the texts of this task are read as they are; leave it out")
        return TextsReader.of(processor, model, data)

    def answers(self, model: Any, batch: Mapping[str, Tensor], reader: Reader) -> Tensor:
        inputs = {key: value for key, value in batch.items() if key != "labels"}
        return summed(model(**inputs, use_cache=False).logits, batch["labels"])

    def trivial(self, task: TaskConfig, reader: Reader, train: Read, scored: Read) -> Trivial:
        """How often each token is predicted in the training texts, the end among them."""
        words = np.asarray(sorted({*reader.processor.get_vocab().values()}))
        return self.unigram(reader, predicted(train.encoded), words, predicted(scored.encoded))


def put_words(model: Any, task: TaskConfig, head: HeadConfig) -> str:
    """Give a model a head over its words, unless it has one of its own.

    Raises:
        ConfigError: keys of a head that the checkpoint's own does not have.
        UnsupportedError: the base model is an encoder.
    """
    base = model.base_model
    kind = type(base).__name__
    pair = model.architecture.encoder_decoder
    if not pair and not model.architecture.stacks[-1].causal:
        raise UnsupportedError(
            f"task.type={task.type} predicts each word from those before it, and a {base.config.model_type} sees those "
            "behind it too; choose a decoder (gpt2, smollm2_135m)"
            + ("" if task.type == "causal_lm" else " or an encoder-decoder (t5_small, bart_base)")
        )
    if base.base_model is not base or base.get_output_embeddings() is not None:  # a T5 that writes is its own base
        only_layers(head, f"this checkpoint has a head over its words ({kind})")
        if getattr(base, "loss_type", None) is None:  # GPT-2's class has another name: transformers would warn
            base.loss_type = "ForCausalLM"
        return f"the head over the words is the checkpoint's own ({kind})"
    add = model.add_seq2seq_lm_head if pair else model.add_causal_lm_head
    add(task.name, **({} if head.layers is None else {"layers": head.layers}))
    return "the checkpoint has no head over its words; they are compared with the model's own embeddings"


def summed(logits: Tensor, labels: Tensor) -> Tensor:
    """(rows, positions, words) and (rows, positions) → (rows, 2): Σ cross-entropy of the tokens that are due, and how
    many of them are the likeliest. Only positions that have a label become float32, a piece at a time."""
    due = labels[:, 1:]
    rows, places = (due != UNMASKED).nonzero(as_tuple=True)
    found = logits.new_zeros(len(labels), 2, dtype=torch.float32)
    size = max(1, PIECE // logits.shape[-1])
    for start in range(0, len(rows), size):
        here, there = rows[start : start + size], places[start : start + size]
        told, right = logits[here, there].float(), due[here, there]
        each = [F.cross_entropy(told, right, reduction="none"), (told.argmax(-1) == right).float()]
        found.index_add_(0, here, torch.stack(each, -1))
    return found


def _by_role(column: Column, role: str) -> Column:
    """A blank source or target is no end of a paragraph: it is refused."""
    bad = [replace(each, reason=f"empty {role}") if each.reason == EMPTY else each for each in column.bad]
    return replace(column, bad=bad)
